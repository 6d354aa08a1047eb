//! What speaks against taking a drive from the kernel, or formatting it.
//!
//! Guarantees: a drive that is in use is told as such, by the kernel's own exclusive open where
//! nothing else shows it; as long as a [`Look`] lives nobody can begin to use the drive's disks. A
//! pool of ours is nothing to lose: it is the same through any driver.

use super::drive::{Controller, Disk, Drive, VFIO};
use super::holder::Holders;
use super::machine::Machine;
use crate::exit::{Code, Failure};
use crate::media::{name_of, signature, usage};
use anyhow::Context as _;
use nix::errno::Errno;
use std::fs::File;
use std::io;

/// A reason against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Danger {
    /// Somebody uses it now: never.
    InUse(String),
    /// It holds something: only if its serial number is typed.
    Holds(String),
}

impl Danger {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::InUse(text) | Self::Holds(text) => text,
        }
    }

    pub(super) fn stands(&self, confirmed: bool) -> bool {
        matches!(self, Self::InUse(_)) || !confirmed
    }
}

/// What was seen, and the claims that keep it true.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) dangers: Vec<Danger>,
    claims: Vec<File>,
}

impl Look {
    /// Lets go of the disks.
    pub(super) fn release(&mut self) {
        self.claims.clear();
    }
}

/// Looks at every disk of `drive`.
pub(super) fn look(
    machine: &impl Machine,
    drive: &Drive,
    holders: &Holders,
) -> anyhow::Result<Look> {
    let mut look = Look::default();
    look.dangers.extend(unseen(drive.controller.as_ref()));
    for disk in &drive.disks {
        look.disk(machine, disk)?;
    }
    for node in drive.nodes(machine.system()) {
        let open = |holder| match drive.has_driver(VFIO) {
            true => Danger::InUse(format!("driven by {holder}")),
            false => Danger::InUse(format!("{} is open in {holder}", name_of(&node))),
        };
        look.dangers.extend(holders.of(&node).map(open));
    }
    Ok(look)
}

/// A controller that does not answer shows no disks, which does not mean that it has none.
fn unseen(controller: Option<&Controller>) -> Option<Danger> {
    let state = controller?.state.as_deref().filter(|state| *state != "live")?;
    Some(Danger::Holds(format!("its controller is {state}, so that what it holds cannot be seen")))
}

impl Look {
    fn disk(&mut self, machine: &impl Machine, disk: &Disk) -> anyhow::Result<()> {
        let name = &disk.name;
        if let Some(how) = usage::of_disk(machine.system(), &disk.folder) {
            self.dangers.push(Danger::InUse(format!("{name} {how}")));
            return Ok(());
        }
        let path = machine.system().dev(name);
        let mut claim = match machine.claim(&path) {
            Ok(claim) => claim,
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
                let how = "is in use in the kernel (RAID, LVM, ZFS, or a mount in a container)";
                self.dangers.push(Danger::InUse(format!("{name} {how}")));
                return Ok(());
            }
            Err(error) => return Err(cannot_open(&path.display().to_string(), error)),
        };
        let held = holding(disk, &mut claim);
        let held = held.with_context(|| format!("cannot read {}", path.display()))?;
        self.dangers.extend(held.map(|what| Danger::Holds(format!("{name} {what}"))));
        self.claims.push(claim);
        Ok(())
    }
}

/// What would be hidden or lost with a disk.
fn holding(disk: &Disk, claim: &mut File) -> io::Result<Option<String>> {
    let partitions = usage::partitions(&disk.folder).len();
    if disk.bytes == 0 {
        return Ok(Some("cannot be read by the kernel (an LBA format with metadata?)".to_owned()));
    }
    if partitions > 0 {
        let plural = if partitions == 1 { "" } else { "s" };
        return Ok(Some(format!("holds {partitions} partition{plural}")));
    }
    let found = signature::find(claim)?;
    Ok(found.filter(|found| !signature::is_ours(found)).map(|what| format!("holds {what}")))
}

/// An error that says what to do about permissions.
pub(super) fn cannot_open(what: &str, error: io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => "; run as root",
        io::ErrorKind::NotFound => "; is /dev that of the host?",
        _ => "",
    };
    Failure::new(Code::Failure, format!("cannot open {what}: {error}{hint}")).into()
}

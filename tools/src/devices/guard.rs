//! What speaks against taking a drive from the kernel, or formatting it.
//!
//! Guarantees: a drive that is in use is told as such, by the kernel's own exclusive open where
//! nothing else shows it; as long as a [`Look`] lives nobody can begin to use the drive's disks. A
//! pool of ours is nothing to lose for who takes the drive: it is the same through any driver. It is
//! a note, for who formats it.

use super::admin;
use super::drive::{Controller, Disk, Drive, KERNEL, VFIO};
use super::holder::Holders;
use super::machine::Machine;
use crate::exit::{Code, Failure};
use crate::media::signature::{self, Found};
use crate::media::{name_of, usage};
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
    /// What is no danger, and lost all the same if the drive is formatted.
    pub(super) notes: Vec<String>,
    claims: Vec<File>,
}

impl Look {
    /// Has the kernel look at the disks' partition tables again: theirs may be gone.
    pub(super) fn reread(&self, machine: &impl Machine) -> io::Result<()> {
        self.claims.iter().try_for_each(|claim| machine.reread(claim))
    }

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
    if drive.has_driver(VFIO) {
        look.notes.push(format!("what it holds was not looked at: {VFIO} shows no disk"));
    }
    look.dangers.extend(unseen(machine, drive));
    for disk in &drive.disks {
        look.disk(machine, disk)?;
    }
    for node in drive.nodes(machine.system()) {
        let open = |holder| match drive.has_driver(VFIO) {
            true => Danger::InUse(format!("driven by {holder}")),
            false => Danger::InUse(format!("{} is open in {holder}", name_of(&node.path))),
        };
        look.dangers.extend(holders.of(&node).map(open));
    }
    Ok(look)
}

/// What the kernel's driver shows no disk of, which does not mean that nothing is there.
fn unseen(machine: &impl Machine, drive: &Drive) -> Vec<Danger> {
    const HIDDEN: &str = "so that what it holds cannot be seen";
    if !drive.has_driver(KERNEL) {
        return Vec::new();
    }
    let state = state(drive.controller.as_ref());
    if state != "live" {
        return vec![Danger::Holds(format!("its controller is {state}, {HIDDEN}"))];
    }
    match without_disk(machine, drive) {
        Ok(nsids) => nsids
            .into_iter()
            .map(|nsid| Danger::Holds(format!("namespace {nsid} shows no disk, {HIDDEN}")))
            .collect(),
        Err(error) => {
            vec![Danger::Holds(format!("does not tell its namespaces ({error:#}), {HIDDEN}"))]
        }
    }
}

fn state(controller: Option<&Controller>) -> &str {
    controller.map_or("not there yet", |it| it.state.as_deref().unwrap_or("in no known state"))
}

/// The active namespaces that are no disk: the kernel refuses them, or has not got to them yet. It
/// looks for them after the controller is live.
pub(super) fn without_disk(machine: &impl Machine, drive: &Drive) -> anyhow::Result<Vec<u32>> {
    let mut nsids = admin::active_namespaces(&mut *machine.admin(drive)?)?;
    // A disk that came after the look at the files counts as none: it was not looked at.
    nsids.retain(|nsid| drive.disks.iter().all(|disk| disk.nsid != Some(*nsid)));
    Ok(nsids)
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
        match held.with_context(|| format!("cannot read {}", path.display()))? {
            Held::Nothing => {}
            Held::Ours(what) => self.notes.push(format!("{name} holds {what}")),
            Held::Other(what) => self.dangers.push(Danger::Holds(format!("{name} {what}"))),
        }
        self.claims.push(claim);
        Ok(())
    }
}

/// What would be hidden or lost with a disk.
enum Held {
    Nothing,
    /// A pool of ours.
    Ours(&'static str),
    /// As the end of a sentence that begins with its name.
    Other(String),
}

fn holding(disk: &Disk, claim: &mut File) -> io::Result<Held> {
    let partitions = usage::partitions(&disk.folder).len();
    if disk.bytes == 0 {
        let why = "cannot be read by the kernel (an LBA format with metadata?)";
        return Ok(Held::Other(why.to_owned()));
    }
    if partitions > 0 {
        let plural = if partitions == 1 { "" } else { "s" };
        return Ok(Held::Other(format!("holds {partitions} partition{plural}")));
    }
    Ok(match signature::find(claim)? {
        None => Held::Nothing,
        Some(Found::Ours(what)) => Held::Ours(what),
        Some(Found::Foreign(what)) => Held::Other(format!("holds {what}")),
    })
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

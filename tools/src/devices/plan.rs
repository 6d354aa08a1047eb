//! The steps that bind a drive to vfio-pci or give it back, and carrying them out.
//!
//! Guarantees: every write is in the plan, so that the dry run shows all of it; a plan begins where
//! the drive is, so that one for a drive that is bound already is empty; whatever was written so far,
//! the plan of [`unbind`] leads back. [`bind`] begins only where the kernel's driver shows what a drive
//! holds: that somebody once told vfio-pci to take it proves nothing. A step that the kernel takes
//! without doing it is told by the check at the end.
//!
//! What breaks it: another program that binds the same drive in the same moment; the check tells.

use super::drive::{Drive, KERNEL, VFIO};
use super::guard;
use super::machine::{Machine, PAUSE_MS};
use crate::exit::{Code, Failure};
use crate::media::System;
use anyhow::Context as _;
use forebay_nvme::pci::PciAddress;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// How long a driver may take to take a drive, in milliseconds.
const DRIVER_MS: u64 = 10_000;
/// How long a controller may take until it is live: CAP.TO is at most 127.5 s (NVMe Base 2.0,
/// 3.1.3.1).
const LIVE_MS: u64 = 150_000;
/// How long the kernel may take to show a live controller's namespaces as disks.
const DISKS_MS: u64 = 30_000;

/// One change to the machine; shown as the shell would do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Load(&'static str),
    Write { value: String, path: PathBuf },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(module) => write!(f, "modprobe {module}"),
            Self::Write { value, path } if value.is_empty() => {
                write!(f, "echo > {}", path.display())
            }
            Self::Write { value, path } => write!(f, "echo {value} > {}", path.display()),
        }
    }
}

/// What is to be done to a drive, and who has it then.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) address: PciAddress,
    pub(super) driver: &'static str,
    pub(super) steps: Vec<Step>,
}

/// Takes `drive` to vfio-pci; `together` are the drives that the same command binds. Or the reasons
/// why that cannot be.
pub(super) fn bind(
    system: &System,
    drive: &Drive,
    together: &[PciAddress],
) -> Result<Plan, Vec<String>> {
    let mut plan = Plan { address: drive.address, driver: VFIO, steps: Vec::new() };
    if drive.has_driver(VFIO) {
        return Ok(plan);
    }
    let refused = refusals(drive, together);
    if !refused.is_empty() {
        return Err(refused);
    }
    plan.load(system, VFIO);
    if drive.driver_override.as_deref() != Some(VFIO) {
        plan.set_override(system, VFIO);
    }
    plan.leave(system, drive);
    plan.probe(system);
    Ok(plan)
}

fn refusals(drive: &Drive, together: &[PciAddress]) -> Vec<String> {
    let Drive { address, driver, .. } = drive;
    let mut refused = Vec::new();
    match driver.as_deref() {
        Some(KERNEL) => {}
        None => refused.push(format!(
            "has no driver, so that what it holds cannot be seen; give it to the kernel first: \
             forebay devices unbind {address} --yes"
        )),
        Some(other) => {
            refused.push(format!("is bound to {other}; give it back to {KERNEL} there first"));
        }
    }
    if drive.group.is_none() || drive.pretended_group {
        refused.push(
            "has no IOMMU that would keep it to its own memory; turn VT-d or AMD-Vi on in the \
             firmware, and boot with intel_iommu=on on Intel"
                .to_owned(),
        );
    }
    for (other, driver) in drive.obstacles().filter(|(other, _)| !together.contains(other)) {
        refused.push(format!(
            "shares IOMMU group {} with {other}, which {driver} has; VFIO gives out whole groups: \
             free that one too, or move the drive to another slot",
            drive.group.unwrap_or_default(),
        ));
    }
    refused
}

/// Gives `drive` back to the kernel's driver, from wherever it is.
pub(super) fn unbind(system: &System, drive: &Drive) -> Result<Plan, String> {
    let mut plan = Plan { address: drive.address, driver: KERNEL, steps: Vec::new() };
    match drive.driver.as_deref() {
        Some(KERNEL) if drive.driver_override.is_none() => {}
        Some(KERNEL) => plan.set_override(system, ""),
        None | Some(VFIO) => {
            plan.load(system, KERNEL);
            // Named, so that a vfio-pci that was told this drive's id does not take it again.
            plan.set_override(system, KERNEL);
            plan.leave(system, drive);
            plan.probe(system);
            plan.set_override(system, "");
        }
        Some(other) => {
            return Err(format!("is bound to {other}, not to {VFIO}; give it back there"));
        }
    }
    Ok(plan)
}

impl Plan {
    /// The driver is in the kernel already where its folder is there.
    fn load(&mut self, system: &System, module: &'static str) {
        if !system.sys("bus/pci/drivers").join(module).exists() {
            self.steps.push(Step::Load(module));
        }
    }

    fn set_override(&mut self, system: &System, driver: &str) {
        let path = device(system, self.address).join("driver_override");
        self.steps.push(Step::Write { value: driver.to_owned(), path });
    }

    fn leave(&mut self, system: &System, drive: &Drive) {
        if let Some(driver) = &drive.driver {
            let path = system.sys("bus/pci/drivers").join(driver).join("unbind");
            self.steps.push(Step::Write { value: self.address.to_string(), path });
        }
    }

    fn probe(&mut self, system: &System) {
        let path = system.sys("bus/pci/drivers_probe");
        self.steps.push(Step::Write { value: self.address.to_string(), path });
    }

    /// Does all of it; `released` is called when the steps are through, before the wait for their
    /// effect.
    pub(super) fn carry_out(
        &self,
        machine: &mut impl Machine,
        released: impl FnOnce(),
    ) -> anyhow::Result<()> {
        for (number, step) in self.steps.iter().enumerate() {
            let done = run(step, machine).with_context(|| step.to_string());
            match number {
                0 => done?,
                _ => done.context(self.mend())?,
            }
        }
        released();
        self.check(machine).context(self.mend())
    }

    /// Waits until the driver has the drive and, the kernel's, has brought it up.
    fn check(&self, machine: &mut impl Machine) -> anyhow::Result<()> {
        let (address, wanted) = (self.address, self.driver);
        let mut now = Drive::at(machine.system(), address)?;
        for _ in 0..DRIVER_MS / PAUSE_MS {
            if now.has_driver(wanted) {
                break;
            }
            machine.pause();
            now = Drive::at(machine.system(), address)?;
        }
        if !now.has_driver(wanted) {
            let driver = now.driver.as_deref().unwrap_or("no driver");
            let what = format!("is with {driver}, not with {wanted}: dmesg says why");
            return Err(Failure::new(Code::Failure, what).into());
        }
        if wanted != KERNEL {
            return Ok(());
        }
        self.wait_until_live(machine)?;
        self.wait_for_disks(machine)
    }

    /// The kernel's driver brings a controller up behind its probe.
    fn wait_until_live(&self, machine: &mut impl Machine) -> anyhow::Result<()> {
        let mut state = None;
        for _ in 0..LIVE_MS / PAUSE_MS {
            state = Drive::at(machine.system(), self.address)?.controller.and_then(|c| c.state);
            match state.as_deref() {
                Some("live") => return Ok(()),
                Some("dead" | "deleting" | "deleting (no IO)") => break,
                _ => machine.pause(),
            }
        }
        let state = state.unwrap_or_else(|| "not there".to_owned());
        let what = format!("is with {KERNEL}, but {state}: dmesg says why");
        Err(Failure::new(Code::Failure, what).into())
    }

    /// It looks for namespaces behind that, and only disks show what a drive holds. One that it refuses
    /// stays away: then the drive is back all the same, and [`guard::look`] knows what is not seen.
    fn wait_for_disks(&self, machine: &mut impl Machine) -> anyhow::Result<()> {
        for _ in 0..DISKS_MS / PAUSE_MS {
            let drive = Drive::at(machine.system(), self.address)?;
            match guard::without_disk(machine, &drive) {
                Ok(nsids) if nsids.is_empty() => return Ok(()),
                Ok(_) => machine.pause(),
                // Who may not ask, or whose drive does not tell, learns nothing by waiting.
                Err(error) => {
                    log::warn!("{} does not tell its namespaces: {error:#}", self.address);
                    return Ok(());
                }
            }
        }
        log::warn!("{}: not every namespace shows a disk; dmesg may say why", self.address);
        Ok(())
    }

    fn mend(&self) -> String {
        format!("not finished; `forebay devices unbind {} --yes` mends it", self.address)
    }
}

fn run(step: &Step, machine: &mut impl Machine) -> anyhow::Result<()> {
    match step {
        Step::Load(module) => machine.load(module),
        Step::Write { value, path } => {
            machine.write(path, &format!("{value}\n")).map_err(|error| {
                let hint = match error.kind() {
                    io::ErrorKind::PermissionDenied => "; run as root",
                    io::ErrorKind::ReadOnlyFilesystem => {
                        "; /sys is read-only here: leave the container"
                    }
                    _ => "",
                };
                anyhow::anyhow!("{error}{hint}")
            })
        }
    }
}

/// A function's folder as people write it.
fn device(system: &System, address: PciAddress) -> PathBuf {
    system.sys("bus/pci/devices").join(address.to_string())
}

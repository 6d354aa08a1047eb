//! The way to a drive's controller: admin commands, by whatever driver has it.
//!
//! Guarantees: an answer of the right length, or an error that says why there is none; a drive's words
//! are read as they are, and not believed further than they are shown.

use super::drive::{Drive, KERNEL, VFIO};
use super::holder::Holders;
use super::machine::Machine;
use super::own::OwnController;
use crate::clock;
use crate::exit::{Code, Failure};
use crate::media::System;
use anyhow::Context as _;
use forebay_nvme::kernel::KernelController;
use forebay_nvme::pcie::FORMAT_TIMEOUT_MS;
use forebay_nvme::spec::command::{ALL_NAMESPACES, Data, Submission};
use forebay_nvme::spec::identify::{ActiveNamespaces, IdentifyController, IdentifyNamespace};
use forebay_nvme::spec::log::{self, ErrorLogEntry, SmartLog};
use std::sync::Arc;
use std::time::Duration;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// How often it is looked how far such a command has come.
const LOOK: Duration = Duration::from_millis(500);
/// Where the data is: every way to the controller has its own memory for it.
const HERE: Data = Data::Prp(0, 0);
/// The most pages of active namespaces that are asked for: a drive that says more talks nonsense.
const NAMESPACE_PAGES_MAX: usize = 16;

/// Sends admin commands.
pub(super) trait AdminPath {
    /// Runs `command`, whose data comes into `data`: as many bytes as the command transfers. The
    /// command's own data pointer is replaced. Returns the completion's result.
    fn admin(&mut self, command: Submission, data: &mut [u8]) -> anyhow::Result<u32>;

    /// Runs a command without data that may take hours. Where the way allows for other commands
    /// meanwhile, `meanwhile` is called with it now and then.
    fn admin_long(
        &mut self,
        command: Submission,
        meanwhile: &mut dyn FnMut(&mut dyn AdminPath),
    ) -> anyhow::Result<u32>;
}

/// The way to `drive`, by its driver.
pub(super) fn open(system: &System, drive: &Drive) -> anyhow::Result<Box<dyn AdminPath>> {
    let opened = match (drive.driver.as_deref(), &drive.controller) {
        (Some(KERNEL), Some(controller)) => {
            let opened = KernelController::open(&system.dev(&controller.name));
            opened.map(|controller| Box::new(Arc::new(controller)) as _).map_err(Into::into)
        }
        (Some(VFIO), _) => OwnController::open(drive.address).map(|own| Box::new(own) as _),
        (driver, _) => {
            let driver = driver.unwrap_or("no driver");
            let hint = format!("forebay devices unbind {} --yes", drive.address);
            let what = format!("{driver} passes no commands on; give it to the kernel: {hint}");
            Err(Failure::new(Code::Failure, what).into())
        }
    };
    opened.with_context(|| drive.address.to_string())
}

/// The same, if no process drives the drive: nobody else can ask it then.
pub(super) fn open_free(
    machine: &impl Machine,
    drive: &Drive,
    holders: &Holders,
) -> anyhow::Result<Box<dyn AdminPath>> {
    if drive.has_driver(VFIO)
        && let Some(holder) = holders.first(&drive.nodes(machine.system()))
    {
        let what = format!(
            "driven by {holder}, which alone can ask it (list and smart find a daemon by --admin \
             SOCKET)"
        );
        let error = anyhow::Error::new(Failure::new(Code::Failure, what));
        return Err(error.context(drive.address.to_string()));
    }
    machine.admin(drive)
}

impl AdminPath for Arc<KernelController> {
    fn admin(&mut self, command: Submission, data: &mut [u8]) -> anyhow::Result<u32> {
        Ok(KernelController::admin(self, &command, data)?)
    }

    /// The kernel's call blocks, so it has a thread of its own; other commands pass it.
    fn admin_long(
        &mut self,
        command: Submission,
        meanwhile: &mut dyn FnMut(&mut dyn AdminPath),
    ) -> anyhow::Result<u32> {
        let sender = Self::clone(self);
        let sent =
            std::thread::spawn(move || sender.admin_within(&command, &mut [], FORMAT_TIMEOUT_MS));
        while !sent.is_finished() {
            clock::sleep(LOOK);
            if !sent.is_finished() {
                meanwhile(self);
            }
        }
        match sent.join() {
            Ok(result) => Ok(result?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Runs a command that returns one `T`.
fn fetch<T: FromBytes + IntoBytes>(
    path: &mut dyn AdminPath,
    command: Submission,
) -> anyhow::Result<Box<T>> {
    let mut page = Box::new(T::new_zeroed());
    path.admin(command, page.as_mut_bytes())?;
    Ok(page)
}

pub(super) fn identify_controller(
    path: &mut dyn AdminPath,
) -> anyhow::Result<Box<IdentifyController>> {
    fetch(path, Submission::identify_controller(HERE))
}

pub(super) fn identify_namespace(
    path: &mut dyn AdminPath,
    nsid: u32,
) -> anyhow::Result<Box<IdentifyNamespace>> {
    fetch(path, Submission::identify_namespace(nsid, HERE))
}

/// The active namespaces, in order.
pub(super) fn active_namespaces(path: &mut dyn AdminPath) -> anyhow::Result<Vec<u32>> {
    let mut nsids: Vec<u32> = Vec::new();
    for _ in 0..NAMESPACE_PAGES_MAX {
        let last = nsids.last().copied().unwrap_or(0);
        let page: Box<ActiveNamespaces> =
            fetch(path, Submission::identify_active_namespaces(last, HERE))?;
        nsids.extend(page.after(last));
        if !page.full() {
            break;
        }
    }
    Ok(nsids)
}

/// The health of the whole drive. Events that wait for this page stay as they are: they are their
/// driver's.
pub(super) fn smart(path: &mut dyn AdminPath) -> anyhow::Result<Box<SmartLog>> {
    let bytes = log::SMART_BYTES as u32;
    let command = Submission::get_log_page(log::SMART, ALL_NAMESPACES, bytes, HERE);
    fetch(path, command.with_retained_event())
}

/// The newest errors, at most `entries` of them.
pub(super) fn errors(
    path: &mut dyn AdminPath,
    entries: usize,
) -> anyhow::Result<Vec<ErrorLogEntry>> {
    let mut page = vec![ErrorLogEntry::new_zeroed(); entries];
    let bytes = page.as_mut_bytes();
    let command = Submission::get_log_page(log::ERROR, ALL_NAMESPACES, bytes.len() as u32, HERE);
    path.admin(command.with_retained_event(), bytes)?;
    page.retain(ErrorLogEntry::used);
    Ok(page)
}

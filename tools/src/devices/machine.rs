//! What binding asks of the machine beside reading its files: writes, modules, claims, admin
//! commands, time.
//!
//! The one seam of this folder: tests put a kernel of their own behind it, which answers writes as
//! Linux does, and dies where they want it to. Nothing else here changes the machine.

use super::admin::{self, AdminPath};
use super::drive::Drive;
use crate::clock;
use crate::media::System;
use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long [`Machine::pause`] waits, in milliseconds.
pub(super) const PAUSE_MS: u64 = 20;

/// The machine that drives are bound on.
pub(super) trait Machine {
    /// Its files.
    fn system(&self) -> &System;

    /// Writes `value` to a file of the kernel's, in one call.
    fn write(&mut self, path: &Path, value: &str) -> io::Result<()>;

    /// Loads a kernel module.
    fn load(&mut self, module: &str) -> anyhow::Result<()>;

    /// Opens a block device for this process alone: nobody mounts it, or builds on it, while it is
    /// open. `EBUSY` if somebody has.
    fn claim(&self, device: &Path) -> io::Result<File>;

    /// Whether somebody has a file of VFIO's open, which it gives to one at a time: the kernel's own word,
    /// also for those whose descriptors are not seen here.
    fn is_taken(&self, device: &Path) -> bool;

    /// The way to a drive's controller.
    fn admin(&self, drive: &Drive) -> anyhow::Result<Box<dyn AdminPath>>;

    /// Has the kernel look at a disk's partition table again.
    fn reread(&self, disk: &File) -> io::Result<()>;

    /// Waits for [`PAUSE_MS`].
    fn pause(&mut self);
}

/// This machine.
pub(super) struct Host {
    system: System,
}

impl Host {
    pub(super) fn new() -> Self {
        Self { system: System::here() }
    }
}

impl Machine for Host {
    fn system(&self) -> &System {
        &self.system
    }

    fn write(&mut self, path: &Path, value: &str) -> io::Result<()> {
        // Neither created nor truncated: a file that is not there is an error.
        OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
    }

    fn load(&mut self, module: &str) -> anyhow::Result<()> {
        let mut modprobe = Command::new("modprobe");
        let ran = modprobe.arg(module).stdin(Stdio::null()).output();
        let ran = ran.with_context(|| format!("cannot run modprobe {module}; install kmod"))?;
        if !ran.status.success() {
            let said = String::from_utf8_lossy(&ran.stderr);
            bail!("modprobe {module}: {}; is it in this kernel, and are you root?", said.trim());
        }
        Ok(())
    }

    fn claim(&self, device: &Path) -> io::Result<File> {
        // Without O_CREAT, O_EXCL asks the kernel for the whole block device (open(2)).
        OpenOptions::new().read(true).custom_flags(OFlag::O_EXCL.bits()).open(device)
    }

    fn is_taken(&self, device: &Path) -> bool {
        let opened = OpenOptions::new().read(true).write(true).open(device);
        opened.is_err_and(|error| error.raw_os_error() == Some(Errno::EBUSY as i32))
    }

    fn reread(&self, disk: &File) -> io::Result<()> {
        forebay_nvme::kernel::reread_partitions(disk)
    }

    fn admin(&self, drive: &Drive) -> anyhow::Result<Box<dyn AdminPath>> {
        admin::open(&self.system, drive)
    }

    fn pause(&mut self) {
        clock::sleep(Duration::from_millis(PAUSE_MS));
    }
}

//! A write cache that forgets: nbdkit between the drive and its file.

use super::clock::wait_until;
use super::place::bound_to_this_thread;
use anyhow::{Context as _, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// A running nbdkit: what was written is in its memory until it is flushed. Killed when dropped.
#[derive(Debug)]
pub struct Nbd {
    child: Child,
    socket: PathBuf,
}

impl Nbd {
    /// Serves `media` on a socket in `folder`.
    ///
    /// # Errors
    /// nbdkit does not start.
    pub fn start(folder: &Path, number: usize, media: &Path) -> anyhow::Result<Self> {
        let socket = folder.join(format!("nbd{number}.sock"));
        if socket.exists() {
            std::fs::remove_file(&socket)?;
        }
        let log = File::options().create(true).append(true).open(folder.join("nbdkit.log"))?;
        let mut command = bound_to_this_thread("nbdkit");
        command.arg("--foreground").arg("--unix").arg(&socket);
        command.args(["--filter=cache", "file"]).arg(media);
        // Blocks of its own size would be flushed together with their neighbours.
        command.args(["cache=writeback", "cache-min-block-size=4096"]);
        command.env("TMPDIR", folder).stdin(Stdio::null()).stderr(log);
        let child = command.spawn().context("nbdkit")?;
        let mut nbd = Self { child, socket };
        wait_until("nbdkit's socket", Duration::from_secs(20), || {
            if let Some(status) = nbd.child.try_wait()? {
                bail!("nbdkit ended with {status}; see nbdkit.log");
            }
            Ok(nbd.socket.exists().then_some(()))
        })?;
        Ok(nbd)
    }

    /// Where QEMU connects.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Cuts its power.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().context("killing nbdkit")?;
        self.child.wait().context("waiting for nbdkit")?;
        Ok(())
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            self.child.wait().map(drop).unwrap_or_default();
        }
    }
}

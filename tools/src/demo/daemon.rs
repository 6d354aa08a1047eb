//! The daemon as a child process: started, killed, started again.

use super::flow;
use crate::clock;
use anyhow::{Context as _, bail};
use forebay_fabric::client::Pipeline;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a start or a stop may take, in seconds.
const PATIENCE_S: f64 = 30.0;
const LOG: &str = "forebayd.log";

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    binary: PathBuf,
    folder: PathBuf,
    address: SocketAddr,
    child: Child,
}

/// The daemon's binary that was built with this one.
pub(crate) fn beside_this() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("this program's own path")?;
    let binary = this.with_file_name("forebayd");
    if !binary.is_file() {
        bail!("there is no {}; build it, or name it with --daemon", binary.display());
    }
    Ok(binary)
}

/// A port of the loopback that nobody listens on.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port of 127.0.0.1 is free")?;
    Ok(listener.local_addr()?)
}

impl Daemon {
    /// Starts it on the files of `folder`, and waits until it answers.
    pub(crate) fn start(binary: &Path, folder: &Path, address: SocketAddr) -> anyhow::Result<Self> {
        let child = spawn(binary, folder, address)?;
        let (binary, folder) = (binary.to_owned(), folder.to_owned());
        let mut daemon = Self { binary, folder, address, child };
        daemon.wait_until_it_answers()?;
        Ok(daemon)
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().context("cannot kill the daemon")?;
        self.child.wait().context("cannot wait for the daemon")?;
        Ok(())
    }

    /// Starts it again on the same files.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        self.child = spawn(&self.binary, &self.folder, self.address)?;
        self.wait_until_it_answers()
    }

    /// SIGTERM, and waits until it has ended well.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM)?;
        let started_ns = clock::now_ns();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return if status.success() { Ok(()) } else { self.died(&status.to_string()) };
            }
            if clock::seconds_between(started_ns, clock::now_ns()) > PATIENCE_S {
                bail!("the daemon does not end after SIGTERM");
            }
            clock::sleep(Duration::from_millis(5));
        }
    }

    fn wait_until_it_answers(&mut self) -> anyhow::Result<()> {
        let started_ns = clock::now_ns();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return self.died(&status.to_string());
            }
            match Pipeline::connect(flow::config(self.address)) {
                Ok(_) => return Ok(()),
                Err(error) if clock::seconds_between(started_ns, clock::now_ns()) > PATIENCE_S => {
                    return Err(error).context("the daemon does not answer");
                }
                Err(_) => clock::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Its last words.
    fn died(&self, how: &str) -> anyhow::Result<()> {
        let log = std::fs::read_to_string(self.folder.join(LOG)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(10)..].join("\n");
        bail!("the daemon ended by itself ({how}); its last words:\n{last}")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has ended already on the good path; there is nobody left to tell of anything else.
        if self.child.kill().is_ok() {
            self.child.wait().map(drop).unwrap_or_default();
        }
    }
}

fn spawn(binary: &Path, folder: &Path, address: SocketAddr) -> anyhow::Result<Child> {
    let mut options = File::options();
    let log = options.create(true).append(true).open(folder.join(LOG)).context("the log")?;
    Command::new(binary)
        .arg("--dev")
        .arg(folder)
        .args(["--listen", &address.to_string()])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))
}

//! A daemon as a child process, its configuration and its folder.

use forebay_fabric::client::{Client, ClientConfig, NamespaceId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_forebayd");
/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with a configuration in it.
pub(crate) struct Place {
    folder: tempfile::TempDir,
    pub(crate) reactors: u16,
    /// Lines of `[daemon]` beside the usual ones.
    pub(crate) more: &'static str,
}

impl Place {
    /// In memory where that is possible: these tests are about crashes of the process, not of disks.
    pub(crate) fn new(reactors: u16) -> Self {
        let shared_memory = Path::new("/dev/shm");
        let folder = if shared_memory.is_dir() {
            tempfile::tempdir_in(shared_memory)
        } else {
            tempfile::tempdir()
        };
        Self { folder: folder.unwrap(), reactors, more: "" }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a configuration for reactors that listen from `port` on.
    fn configure(&self, port: u16, drain_timeout_ms: u32) -> PathBuf {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cores: Vec<_> = (0..usize::from(self.reactors).min(cpus)).collect();
        let (device, socket) = (self.path("forebay.img"), self.path("admin.sock"));
        let more = self.more;
        let text = format!(
            "[daemon]\ncores = {cores:?}\narena = \"96MiB\"\nindex = \"16MiB\"\n\
             drain_timeout_ms = {drain_timeout_ms}\nadmin_socket = {socket:?}\n{more}\n\
             [[device]]\ndriver = \"uring\"\npath = {device:?}\nsize = \"512MiB\"\n\
             format_if_blank = true\n\
             [[listen]]\ntransport = \"tcp\"\naddress = \"127.0.0.1:{port}\"\n\
             [[namespace]]\nname = \"default\"\nclass = \"durable\"\n\
             [[namespace]]\nname = \"small\"\nclass = \"durable\"\nquota = \"1MiB\"\n"
        );
        let file = self.path("forebay.toml");
        std::fs::write(&file, text).unwrap();
        file
    }

    /// Starts a daemon here and waits until it is ready.
    pub(crate) fn start(&self) -> Daemon {
        self.start_with(10_000)
    }

    /// As [`Place::start`], with another time to drain.
    pub(crate) fn start_with(&self, drain_timeout_ms: u32) -> Daemon {
        let file = self.configure(free_ports(self.reactors), drain_timeout_ms);
        let mut command = Command::new(BINARY);
        command.arg("--config").arg(file);
        Daemon::spawn(&mut command)
    }

    /// What the admin socket answers.
    pub(crate) fn admin(&self, request: &str) -> serde_json::Value {
        let mut stream = UnixStream::connect(self.path("admin.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, "{request}").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }
}

/// The first of `count` ports in a row that nobody listens on.
pub(crate) fn free_ports(count: u16) -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let rest = (1..count).map(|n| TcpListener::bind(("127.0.0.1", port.saturating_add(n))));
        if rest.collect::<Result<Vec<_>, _>>().is_ok() {
            return port;
        }
    }
}

/// A daemon that is ready. Killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) address: SocketAddr,
    log: Receiver<String>,
}

impl Daemon {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, log) = channel();
        // Reads on to the end, so that the daemon never waits for its log.
        std::thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).for_each(|line| {
                sender.send(line).unwrap_or_default();
            });
        });
        let mut seen = Vec::new();
        let address = loop {
            let Ok(line) = log.recv_timeout(PATIENCE) else {
                panic!("the daemon did not become ready; it said: {seen:#?}");
            };
            if let Some((_, addresses)) = line.split_once("ready: ") {
                break addresses.split([',', ' ']).next().unwrap().parse().unwrap();
            }
            seen.push(line);
        };
        Self { child, address, log }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(ClientConfig::new(vec![self.address])).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Dead at once, without a word.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended by itself; how, and what it said since it was ready.
    pub(crate) fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let mut log = Vec::new();
        loop {
            match self.log.recv_timeout(PATIENCE) {
                Ok(line) => log.push(line),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(_) => panic!("the daemon does not end; it said: {log:#?}"),
            }
        }
        (self.child.wait().unwrap(), log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            self.child.wait().map(drop).unwrap_or_default();
        }
    }
}

/// The namespace that every place has.
pub(crate) fn namespace(client: &mut Client) -> NamespaceId {
    client.namespace("default").unwrap()
}

/// `length` bytes that follow from `seed`.
pub(crate) fn value(seed: u64, length: usize) -> Vec<u8> {
    let mut value = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut value);
    value
}

//! `vm-guest agent PORT`: runs in a guest of the tests in a virtual machine, and does what they ask.
//! (`vm-guest run SCRIPT`, on the host, is for trying things by hand in such a guest.)
//!
//! Guarantees: each question has one answer, also when its script hangs, for then it is killed with
//! all that it started; the end of a process in the background is told once. It ends when the test
//! hangs up, and the guest with it.

use anyhow::{Context as _, bail};
use forebay_tests::vm::wire::{Ask, Tell};
use forebay_tests::vm::{Drive, Place, Prepared};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// The status of a script whose time was up, as timeout(1) has it.
const TIME_UP: i32 = 124;
/// How long a script's output may take behind its end: the guest is slow.
const LAST_WORDS: Duration = Duration::from_secs(30);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "agent", port] => serve(&find(port)?),
        [_, "run", script] => run_by_hand(script),
        _ => bail!("usage: vm-guest run SCRIPT, with FOREBAY_VM as `make test-vm` sets it"),
    }
}

/// Boots a machine with two drives, and runs a script in it.
fn run_by_hand(script: &str) -> anyhow::Result<()> {
    let Some(prepared) = Prepared::find(&std::env::current_exe()?)? else { return Ok(()) };
    let drive = || Drive::file(512 << 20).lba_bytes(4096);
    let place = Place::new(&prepared, "by-hand")?.drive(drive())?.drive(drive())?;
    let ran = place.boot()?.run(script, Duration::from_secs(600))?;
    print!("{}", ran.stdout);
    eprint!("{}", ran.stderr);
    // Its folder goes with it, and the process behind it.
    drop(place);
    std::process::exit(ran.status)
}

/// The device of the virtio port of this name (its number depends on the machine).
fn find(name: &str) -> anyhow::Result<PathBuf> {
    for port in std::fs::read_dir("/sys/class/virtio-ports").context("no virtio port")? {
        let port = port?;
        if std::fs::read_to_string(port.path().join("name")).unwrap_or_default().trim() == name {
            return Ok(Path::new("/dev").join(port.file_name()));
        }
    }
    bail!("no virtio port is called {name}")
}

fn serve(port: &Path) -> anyhow::Result<()> {
    let mut options = File::options();
    let port = options.read(true).write(true).open(port).context("opening the port")?;
    let (tell, told) = channel::<Tell>();
    let mut out = port.try_clone()?;
    thread::spawn(move || {
        for tell in told {
            let line = format!("{}\n", tell.to_json());
            if out.write_all(line.as_bytes()).is_err() {
                break;
            }
        }
    });
    tell.send(Tell::Ready)?;
    for line in BufReader::new(port).lines() {
        let line = line?;
        let Some((id, ask)) = serde_json::from_str(&line).ok().and_then(|v| Ask::from_json(&v))
        else {
            bail!("the test asks {line}");
        };
        answer(id, ask, &tell);
    }
    Ok(())
}

fn answer(id: u64, ask: Ask, tell: &Sender<Tell>) {
    let tell = tell.clone();
    match ask {
        Ask::Run { script, timeout_ms } => {
            thread::spawn(move || {
                let ran = run(id, &script, Duration::from_millis(timeout_ms));
                say(&tell, ran.unwrap_or_else(|error| failed(id, &error)));
            });
        }
        Ask::Spawn { script, log } => match spawn(&script, &log) {
            Ok(mut child) => {
                let pid = child.id();
                say(&tell, Tell::Spawned { id, pid });
                thread::spawn(move || {
                    let status = child.wait().map_or(-1, status_of);
                    say(&tell, Tell::Ended { pid, status });
                });
            }
            Err(error) => say(&tell, failed(id, &error)),
        },
    }
}

fn failed(id: u64, error: &anyhow::Error) -> Tell {
    Tell::Failed { id, why: format!("{error:#}") }
}

/// When the test has hung up there is nobody to tell.
fn say(tell: &Sender<Tell>, what: Tell) {
    tell.send(what).unwrap_or_default();
}

/// `sh` with a process group of its own.
fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).stdin(Stdio::null()).process_group(0);
    command
}

fn spawn(script: &str, log: &str) -> anyhow::Result<Child> {
    let mut options = File::options();
    let log = options.create(true).append(true).open(log).context("its log")?;
    let mut command = shell(script);
    command.stdout(log.try_clone()?).stderr(log);
    command.spawn().context("/bin/sh")
}

fn run(id: u64, script: &str, timeout: Duration) -> anyhow::Result<Tell> {
    let mut child = shell(script).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let pid = Pid::from_raw(child.id() as i32);
    let (done, ended) = channel();
    thread::spawn(move || done.send(child.wait()).unwrap_or_default());
    let status = match ended.recv_timeout(timeout) {
        Ok(status) => status_of(status?),
        Err(RecvTimeoutError::Timeout) => {
            killpg(pid, Signal::SIGKILL)?;
            TIME_UP
        }
        Err(RecvTimeoutError::Disconnected) => bail!("nobody waits for the script"),
    };
    let text = |bytes: &Receiver<Vec<u8>>| match bytes.recv_timeout(LAST_WORDS) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        // What was killed has no last word; what survived it (in a group of its own) holds the pipe.
        Err(_) if status == TIME_UP => Ok(String::new()),
        Err(_) => bail!("it ended, but what it started holds its output open"),
    };
    Ok(Tell::Ran { id, status, stdout: text(&stdout)?, stderr: text(&stderr)? })
}

fn collect(from: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            // What was read before an error is still what it said.
            from.read_to_end(&mut bytes).map(drop).unwrap_or_default();
        }
        sender.send(bytes).unwrap_or_default();
    });
    receiver
}

fn status_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

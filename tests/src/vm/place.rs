//! What outlives a machine: its parts list, and the folder with its media and logs.

use super::cable::Cable;
use super::drive::{Backing, Drive};
use super::machine::Machine;
use super::prepared::Prepared;
use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

/// Files up to this size are kept of a test that fails: logs, and no media.
const KEPT_BYTES: u64 = 4 << 20;

/// What a test may write to all its drives together, in bytes.
const ROOM_BYTES: u64 = 2 << 30;

/// How the folder of a place is called, before what makes it its own.
const PREFIX: &str = "forebay-vm-place-";
/// The file in it that is locked as long as it is needed.
const ALIVE: &str = "alive";

/// One end of a wire between two machines.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    pub(super) cable: Rc<Cable>,
    /// The last byte of the address of its network device, and of the address that it has for RDMA.
    pub(super) number: u8,
}

/// A machine that can be booted, again and again, on the same drives. See the module above.
#[derive(Debug)]
pub struct Place {
    pub(super) prepared: Prepared,
    pub(super) drives: Vec<Drive>,
    pub(super) iommu: bool,
    pub(super) wire: Option<Wire>,
    name: String,
    folder: tempfile::TempDir,
    /// Held as long as the folder is needed, wherever its process is seen from.
    _alive: Flock<File>,
}

impl Place {
    /// A machine with two cores, 2 GiB and no drive. `name` says whose logs these are.
    ///
    /// # Errors
    /// There is no room for its folder.
    pub fn new(prepared: &Prepared, name: &str) -> anyhow::Result<Self> {
        // In memory where that is possible: the host's disk is not what is tested.
        let memory = Path::new("/dev/shm");
        let parent =
            if free_bytes(memory) >= ROOM_BYTES { memory.to_owned() } else { std::env::temp_dir() };
        clear_away(&parent);
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&parent);
        let folder = folder.with_context(|| format!("a folder in {}", parent.display()))?;
        let alive = File::create(folder.path().join(ALIVE))?;
        let alive = Flock::lock(alive, FlockArg::LockExclusiveNonblock);
        let _alive = alive.map_err(|(_, error)| error).context("a new folder is somebody's")?;
        std::fs::create_dir(folder.path().join("share"))?;
        let (prepared, name, drives) = (prepared.clone(), name.to_owned(), Vec::new());
        Ok(Self { prepared, drives, iommu: true, wire: None, name, folder, _alive })
    }

    /// Adds a drive; the first one is number 0.
    ///
    /// # Errors
    /// Its file cannot be made.
    pub fn drive(mut self, drive: Drive) -> anyhow::Result<Self> {
        if drive.backing != Backing::Null {
            File::create_new(self.media(self.drives.len()))?.set_len(drive.bytes)?;
        }
        self.drives.push(drive);
        Ok(self)
    }

    /// As on a machine whose firmware has the IOMMU switched off.
    #[must_use]
    pub fn without_iommu(mut self) -> Self {
        self.iommu = false;
        self
    }

    /// With a second network device, at a wire that waits for another machine.
    ///
    /// # Errors
    /// There is no room for a socket.
    pub fn with_wire(mut self) -> anyhow::Result<Self> {
        let cable = Rc::new(Cable::lay(self.path("wire.sock"))?);
        self.wire = Some(Wire { cable, number: 2 });
        Ok(self)
    }

    /// With a second network device, at the wire of `other`.
    #[must_use]
    pub fn wired_to(mut self, other: &Self) -> Self {
        self.wire = other.wire.clone().map(|wire| Wire { number: 1, ..wire });
        self
    }

    /// Boots it.
    ///
    /// # Errors
    /// It does not come up.
    pub fn boot(&self) -> anyhow::Result<Machine<'_>> {
        Machine::boot(self)
    }

    /// What is on the media of drive `number`, below all caches of the machine.
    #[must_use]
    pub fn media(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("drive{number}.img"))
    }

    /// A binary under test, the same on the host and in the guest.
    #[must_use]
    pub fn binary(&self, name: &str) -> PathBuf {
        self.prepared.binary(name)
    }

    /// A program of the tests that runs in the guest.
    #[must_use]
    pub fn helper(&self, name: &str) -> PathBuf {
        self.prepared.helper(name)
    }

    /// The folder that is `/vm` in the guest.
    #[must_use]
    pub fn share(&self) -> PathBuf {
        self.folder.path().join("share")
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The end of the console's log.
    pub(super) fn last_words(&self) -> String {
        let text = std::fs::read(self.path("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Copies all logs to where they stay.
    fn keep(&self) -> anyhow::Result<PathBuf> {
        let kept = self.prepared.failed().join(&self.name);
        std::fs::create_dir_all(&kept)?;
        for folder in [self.folder.path().to_owned(), self.share()] {
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                let file = entry.metadata()?;
                if file.is_file() && file.len() <= KEPT_BYTES {
                    std::fs::copy(entry.path(), kept.join(entry.file_name()))?;
                }
            }
        }
        Ok(kept)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("the console's last words:\n{}", self.last_words());
        match self.keep() {
            Ok(kept) => eprintln!("logs are kept in {}", kept.display()),
            Err(error) => eprintln!("the logs are lost: {error:#}"),
        }
    }
}

/// Removes the folders of tests that were killed.
fn clear_away(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if ours && is_left_behind(&entry.path()) {
            // It may go in this moment.
            std::fs::remove_dir_all(entry.path()).unwrap_or_default();
        }
    }
}

/// Whether nobody holds the folder. One without the file is being made, or empty.
fn is_left_behind(folder: &Path) -> bool {
    let alive = File::open(folder.join(ALIVE));
    alive.is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok())
}

/// What may still be written in `folder`; nothing if it is not there.
fn free_bytes(folder: &Path) -> u64 {
    statvfs(folder).map_or(0, |found| found.blocks_available() * found.fragment_size())
}

/// A command that the kernel kills when the thread that started it ends, however it ends.
pub(super) fn bound_to_this_thread(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

//! Opening a file or a block device: locked, direct, and measured.
//!
//! Guarantees: no two processes (nor two opens in one) hold the same device; nothing is created
//! unless its size was given; a file that could not be given its size is not left behind.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use crate::{BLOCK_BYTES, arena};

/// How often, and how far apart, a device is asked for that somebody else still holds.
const CLAIM_TRIES: u32 = 250;
const CLAIM_PAUSE: Duration = Duration::from_millis(4);

/// Why a device could not be opened. Every message says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such file, and no size to create it with.
    #[error("{}: no such file or device; create it with a size, or correct the path", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// It holds not even one block.
    #[error("{}: {bytes} bytes are too small for a device; give a larger file or device", path.display())]
    TooSmall {
        /// The path.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Another process holds the lock.
    #[error("{}: in use by another daemon; stop that one, or give this one a device of its own", path.display())]
    Locked {
        /// The path.
        path: PathBuf,
    },
    /// The kernel holds the block device.
    #[error("{}: in use by the kernel (mounted, swap, RAID or LVM); unmount or release it first", path.display())]
    Busy {
        /// The path.
        path: PathBuf,
    },
    /// The file system cannot do direct I/O.
    #[error("{}: the file system has no O_DIRECT; use ext4, xfs, tmpfs (Linux 6.6) or a block device", path.display())]
    NoDirect {
        /// The path.
        path: PathBuf,
    },
    /// Not allowed.
    #[error("{}: permission denied; run as its owner, or `chown` it to the daemon's user", path.display())]
    Permission {
        /// The path.
        path: PathBuf,
    },
    /// Neither a regular file nor a block device.
    #[error("{}: neither a file nor a block device; give the path of one", path.display())]
    Unsuitable {
        /// The path.
        path: PathBuf,
    },
    /// The file could not be created in its full size.
    #[error("{}: no room for {bytes} bytes; free space there, or ask for a smaller file", path.display())]
    NoSpace {
        /// The path.
        path: PathBuf,
        /// What was asked for.
        bytes: u64,
    },
    /// The kernel gives no ring.
    #[error(
        "io_uring is not available: {source}; needs Linux 5.6, `sysctl kernel.io_uring_disabled=0` \
         and a container profile that allows it (ENOMEM: raise `ulimit -l`)"
    )]
    IoUring {
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else.
    #[error("{}: cannot {what}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An open, locked device, and what is known of it.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) file: Flock<File>,
    /// A file on tmpfs.
    pub(super) in_memory: bool,
    pub(super) blocks: u64,
    pub(super) volatile_write_cache: bool,
    pub(super) discard: bool,
}

impl Target {
    pub(super) fn open(path: &Path, create_bytes: Option<u64>) -> Result<Self, OpenError> {
        let fail = |what| move |source| refused(path, what, source);
        let (file, created) = claim(path, create_bytes.is_some())?;
        let metadata = file.metadata().map_err(fail("look at it"))?;
        // A file of no size is one whose creator died before it gave it one.
        if metadata.is_file()
            && metadata.len() == 0
            && let Some(bytes) = create_bytes
        {
            give_size(&file, path, bytes).inspect_err(|_| remove_created(path, created))?;
        }
        let bytes = (&*file).seek(SeekFrom::End(0)).map_err(fail("measure it"))?;
        let blocks = bytes / BLOCK_BYTES as u64;
        if blocks == 0 {
            remove_created(path, created);
            return Err(OpenError::TooSmall { path: path.into(), bytes });
        }
        let (volatile_write_cache, discard) = if metadata.is_file() {
            (has_cache(&file, path)?, can_punch(&file, bytes))
        } else {
            (block_has_cache(metadata.rdev()), block_can_discard(metadata.rdev()))
        };
        // Of all regular files only those in memory have no cache to lose.
        let in_memory = metadata.is_file() && !volatile_write_cache;
        Ok(Self { file, in_memory, blocks, volatile_write_cache, discard })
    }
}

/// Opens the device and locks it, for this process alone; also tells whether it was created.
///
/// The kernel takes the ring of a killed daemon apart, lets its last writes end, and only then gives up
/// its lock: some milliseconds behind the end of the process. That is what the lock is for, so a start
/// right behind a SIGKILL waits for it.
fn claim(path: &Path, create: bool) -> Result<(Flock<File>, bool), OpenError> {
    for _ in 0..CLAIM_TRIES {
        match try_claim(path, create) {
            Err(OpenError::Locked { .. } | OpenError::Busy { .. }) => {}
            claimed => return claimed,
        }
        #[expect(clippy::disallowed_methods, reason = "nothing runs on this thread yet")]
        std::thread::sleep(CLAIM_PAUSE);
    }
    try_claim(path, create)
}

fn try_claim(path: &Path, create: bool) -> Result<(Flock<File>, bool), OpenError> {
    let (file, created) = open_direct(path, create)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => Ok((file, created)),
        Err((_, Errno::EWOULDBLOCK)) => Err(OpenError::Locked { path: path.into() }),
        Err((_, errno)) => Err(refused(path, "lock it", errno.into())),
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The errors that mean the same wherever they come from.
fn refused(path: &Path, what: &'static str, source: io::Error) -> OpenError {
    let path = path.to_path_buf();
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENXIO | Errno::ENODEV) => OpenError::NotFound { path },
        Some(Errno::EACCES | Errno::EPERM | Errno::EROFS) => OpenError::Permission { path },
        Some(Errno::EBUSY) => OpenError::Busy { path },
        _ => OpenError::Io { path, what, source },
    }
}

/// Opens it, or creates it if that is allowed; and whether it was created.
fn open_direct(path: &Path, create: bool) -> Result<(File, bool), OpenError> {
    let refuse = |error: io::Error| match error.raw_os_error() {
        Some(libc::EINVAL) => OpenError::NoDirect { path: path.into() },
        _ => refused(path, "open it", error),
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    if create {
        match options.clone().create_new(true).mode(0o600).open(path) {
            Ok(file) => return Ok((file, true)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                // A file system without O_DIRECT may refuse after it has made the name.
                return Err(refuse(error));
            }
        }
    }
    let kind = path.metadata().map_err(refuse)?.file_type();
    if kind.is_block_device() {
        // Without O_CREAT, O_EXCL asks the kernel for the whole block device (open(2)).
        options.custom_flags(libc::O_DIRECT | libc::O_EXCL);
    } else if !kind.is_file() {
        return Err(OpenError::Unsuitable { path: path.into() });
    }
    Ok((options.open(path).map_err(refuse)?, false))
}

/// Gives a new file its size, with room behind every byte, and makes file and name durable.
fn give_size(file: &File, path: &Path, bytes: u64) -> Result<(), OpenError> {
    let length = i64::try_from(bytes).unwrap_or(i64::MAX);
    match fallocate(file, FallocateFlags::empty(), 0, length) {
        Ok(()) => {}
        Err(Errno::ENOSPC | Errno::EFBIG | Errno::EDQUOT) => {
            return Err(OpenError::NoSpace { path: path.into(), bytes });
        }
        Err(Errno::EOPNOTSUPP) => {
            log::warn!("{}: the file system reserves no space, it may run out", path.display());
            file.set_len(bytes).map_err(|error| refused(path, "give it its size", error))?;
        }
        Err(errno) => return Err(refused(path, "give it its size", errno.into())),
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let sync = || file.sync_all().and_then(|()| File::open(folder)?.sync_all());
    sync().map_err(|error| refused(path, "make it durable", error))
}

fn remove_created(path: &Path, created: bool) {
    if created && let Err(error) = std::fs::remove_file(path) {
        log::warn!("{}: left behind without its size: {error}", path.display());
    }
}

/// Whether a completed write to the file may be lost in a power cut. On tmpfs nothing outlives
/// one, so that nothing is gained by a flush.
fn has_cache(file: &File, path: &Path) -> Result<bool, OpenError> {
    let stat = fstatfs(file).map_err(|errno| refused(path, "look at it", errno.into()))?;
    Ok(stat.filesystem_type() != TMPFS_MAGIC)
}

/// Whether the file system can punch holes: asked past the end, where there is nothing to lose.
fn can_punch(file: &File, bytes: u64) -> bool {
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let end = i64::try_from(bytes).unwrap_or(i64::MAX);
    fallocate(file, mode, end, arena::BUFFER_BYTES_MIN as i64).is_ok()
}

/// "write through" is a promise; everything else may lose writes.
fn block_has_cache(device: u64) -> bool {
    queue_attribute(device, "write_cache").is_none_or(|mode| mode.trim() != "write through")
}

/// fallocate(2) on a block device needs its write-zeroes command.
fn block_can_discard(device: u64) -> bool {
    let positive = |name| {
        queue_attribute(device, name)
            .and_then(|value| value.trim().parse::<u64>().ok())
            .is_some_and(|value| value > 0)
    };
    positive("discard_max_bytes") && positive("write_zeroes_max_bytes")
}

/// A queue attribute from sysfs; a partition's are its disk's.
fn queue_attribute(device: u64, name: &str) -> Option<String> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let read = |up: &str| {
        std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{up}queue/{name}")).ok()
    };
    read("").or_else(|| read("../"))
}

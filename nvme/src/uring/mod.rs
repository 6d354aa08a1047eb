//! The block queue over io_uring: a file or a block device, opened with `O_DIRECT`.
//!
//! Guarantees, beyond those of [`crate::queue`]:
//!
//! * one system call takes any number of requests to the kernel; completions are reaped from
//!   shared memory without one; a queue with nothing to do makes none;
//! * nothing is allocated per request;
//! * dropping a queue waits for the requests that the kernel has: no buffer returns to its pool
//!   while a device may still write to it;
//! * one [`UringDevice`] per device among all processes, by an advisory lock.
//!
//! What breaks it: a process that ignores the lock; a file truncated behind our back (reads fail).
//!
//! Durability: where completed writes may be lost in a power cut, `fua` is `RWF_DSYNC` and a flush
//! is `fdatasync`. On tmpfs, and on drives that write through, both cost nothing.

#![expect(
    unsafe_code,
    reason = "gives the kernel addresses of buffers that it owns until they complete; each block \
              carries its proof"
)]

mod device;
mod memory;
mod ring;
mod slots;

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::errno::Errno;

use crate::{
    BLOCK_BYTES, BlockError, BlockQueue, Completion, Geometry, Operation, Pool, Request, arena,
};
pub use device::OpenError;
use device::Target;
use memory::Transfers;
use ring::Registered;
use slots::{InFlight, Slots};

/// The most requests that one queue can have in flight.
pub const DEPTH_MAX: u32 = 4096;

/// The registered file of every ring.
const FILE: types::Fixed = types::Fixed(0);
/// The unit in which a short transfer is continued: `O_DIRECT` needs whole sectors.
const SECTOR_BYTES: usize = 512;

/// A file or block device, open and locked. Goes to every reactor's thread, which makes its own
/// queue there; the lock lasts until the device and all its queues are dropped.
#[derive(Clone, Debug)]
pub struct UringDevice {
    target: Arc<Target>,
}

impl UringDevice {
    /// Opens the file or block device at `path`. With `create_bytes`, a file that does not exist
    /// is created in that size, with its space reserved.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left open, locked or half created.
    pub fn open(path: &Path, create_bytes: Option<u64>) -> Result<Self, OpenError> {
        let target = Target::open(path, create_bytes)?;
        log::info!(
            "{}: {} MiB, {} write cache, {} discard",
            path.display(),
            (target.blocks * BLOCK_BYTES as u64) >> 20,
            if target.volatile_write_cache { "volatile" } else { "no volatile" },
            if target.discard { "with" } else { "no" },
        );
        Ok(Self { target: Arc::new(target) })
    }

    /// Size in blocks of [`BLOCK_BYTES`].
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.target.blocks
    }

    /// A queue for this thread, with the pool's memory registered. `depth` is brought into
    /// 1 ..= [`DEPTH_MAX`].
    ///
    /// # Errors
    /// [`OpenError::IoUring`] when the kernel gives no ring.
    pub fn queue(&self, pool: &Pool, depth: u32) -> Result<UringQueue, OpenError> {
        let depth = depth.clamp(1, DEPTH_MAX);
        let ring = ring::build(depth)?;
        ring::register_file(&ring, self.target.as_fd())?;
        let registered = ring::register_pool(&ring, pool);
        let geometry = Geometry {
            blocks: self.target.blocks,
            max_transfer_blocks: (arena::BUFFER_BYTES_MAX / BLOCK_BYTES) as u32,
            depth,
            volatile_write_cache: self.target.volatile_write_cache,
            discard: self.target.discard,
            // Punching a hole, which is what a discard does here, leaves zeroes.
            write_zeroes: self.target.discard,
            compare: false,
            verify: false,
            atomic_write_bytes: SECTOR_BYTES as u32,
        };
        Ok(UringQueue {
            ring,
            slots: Slots::new(depth),
            ended: VecDeque::with_capacity(depth as usize),
            transfers: self.target.in_memory.then(|| Transfers::new(depth)),
            staged: 0,
            kernel_owned: 0,
            registered,
            geometry,
            target: Arc::clone(&self.target),
            _pool: pool.clone(),
        })
    }
}

/// One thread's queue on a [`UringDevice`].
///
/// A request is in one of four places: `ended` (it never needed the kernel), `transfers` (the file is
/// in memory), staged in the submission ring, or owned by the kernel. In the last two its buffer lies
/// in `slots`.
pub struct UringQueue {
    ring: IoUring,
    slots: Slots,
    /// Ended without the kernel: impossible, or a flush of nothing.
    ended: VecDeque<Completion>,
    /// Reads and writes of a file in memory, which never go to the ring.
    transfers: Option<Transfers>,
    /// Entries in the submission ring that the kernel has not taken.
    staged: u32,
    /// Entries that the kernel has taken and not completed.
    kernel_owned: usize,
    registered: Option<Registered>,
    geometry: Geometry,
    target: Arc<Target>,
    /// Registered with the ring; see `ring::register_pool`.
    _pool: Pool,
}

impl std::fmt::Debug for UringQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UringQueue({} of {} in flight)", self.in_flight(), self.geometry.depth)
    }
}

impl BlockQueue for UringQueue {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.in_flight() == self.geometry.depth as usize {
            return Err(request);
        }
        let nothing_to_flush = !self.geometry.volatile_write_cache;
        match self.geometry.check(&request.operation) {
            Err(error) => self.ended.push_back(request.end(Err(error))),
            Ok(()) if nothing_to_flush && matches!(request.operation, Operation::Flush) => {
                self.ended.push_back(request.end(Ok(())));
            }
            Ok(()) => match (&mut self.transfers, &request.operation) {
                (Some(transfers), Operation::Read { .. } | Operation::Write { .. }) => {
                    transfers.push(request);
                }
                _ => {
                    let slot = self.slots.insert(request);
                    self.stage(slot);
                }
            },
        }
        Ok(())
    }

    fn poll(&mut self, _now_us: u64, completions: &mut Vec<Completion>) -> usize {
        let before = completions.len();
        self.enter();
        while completions.len() < completions.capacity()
            && let Some(completion) = self.ended.pop_front()
        {
            completions.push(completion);
        }
        if let Some(transfers) = &mut self.transfers {
            transfers.run(&self.target.file, completions);
        }
        while completions.len() < completions.capacity()
            && let Some(entry) = self.next_entry()
        {
            completions.extend(self.complete(&entry));
        }
        // What short transfers have left goes out now: the caller may sleep after this.
        if self.staged > 0 {
            self.enter();
        }
        completions.len() - before
    }

    fn in_flight(&self) -> usize {
        self.slots.used() + self.ended.len() + self.transfers.as_ref().map_or(0, Transfers::len)
    }

    /// The ring: readable when it has completions. Requests that ended without the kernel do not
    /// show; they are there at the next `poll`.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the ring owns the descriptor, and the borrow of `self` keeps the ring.
        Some(unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) })
    }
}

impl UringQueue {
    /// Puts the slot's request, or what is left of it, into the submission ring.
    fn stage(&mut self, slot: u32) {
        let cached = self.geometry.volatile_write_cache;
        let entry = entry_of(self.slots.get_mut(slot), self.registered.as_ref(), cached)
            .user_data(u64::from(slot));
        // SAFETY: the entry names a range inside a `DmaBuf` (its length was checked by
        // `Geometry::check`) that lies in `slots` and leaves it only in `complete`, when the
        // kernel has said that it is done; `drop` waits for that. Until then nothing reads or
        // writes the buffer here, since nothing takes it out of its slot.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the ring has room for one entry a slot");
        self.staged += 1;
    }

    /// Shows the kernel what is staged, and lets it run completions that wait for us: one system
    /// call, or none if there is neither.
    fn enter(&mut self) {
        if self.staged == 0 && !self.ring.submission().taskrun() {
            return;
        }
        if let Err(errno) = self.system_call(self.staged, 0) {
            // Short of memory or interrupted: what is staged stays so until the next poll.
            // Anything else is a ring that we have set up or used wrongly.
            let passes = matches!(errno, Errno::EINTR | Errno::EAGAIN | Errno::EBUSY);
            assert!(passes, "io_uring_enter: {errno}");
        }
    }

    fn system_call(&mut self, submit: u32, wait_for: u32) -> Result<(), Errno> {
        const GET_EVENTS: u32 = 1; // IORING_ENTER_GETEVENTS
        // SAFETY: every staged entry is valid (see `stage`), and no argument is passed.
        let taken = unsafe {
            self.ring.submitter().enter::<libc::sigset_t>(submit, wait_for, GET_EVENTS, None)
        };
        match taken {
            Ok(taken) => {
                self.staged -= taken as u32;
                self.kernel_owned += taken;
                Ok(())
            }
            Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(0))),
        }
    }

    fn next_entry(&mut self) -> Option<cqueue::Entry> {
        let entry = self.ring.completion().next()?;
        self.kernel_owned -= 1;
        Some(entry)
    }

    /// Ends the entry's request, or stages what a short transfer has left of it.
    fn complete(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let slot = entry.user_data() as u32;
        let in_flight = self.slots.get_mut(slot);
        let result = match entry.result() {
            error if error < 0 => match Errno::from_raw(-error) {
                Errno::EINTR | Errno::EAGAIN => {
                    self.stage(slot);
                    return None;
                }
                errno => Err(block_error(errno, &in_flight.request.operation)),
            },
            bytes => match advance(in_flight, bytes as usize) {
                Progress::Done => Ok(()),
                Progress::Partial => {
                    self.stage(slot);
                    return None;
                }
                Progress::Stuck => Err(in_flight.request.operation.media_error()),
            },
        };
        Some(self.slots.remove(slot).end(result))
    }
}

impl Drop for UringQueue {
    /// Waits for what the kernel has taken. What it has not taken it never will: nobody enters
    /// this ring again.
    fn drop(&mut self) {
        while self.kernel_owned > 0 {
            if let Err(errno) = self.system_call(0, 1)
                && errno != Errno::EINTR
            {
                // The kernel may still write to the buffers: they never return to their pool.
                log::error!("uring: cannot wait for {} requests: {errno}", self.kernel_owned);
                std::mem::forget(std::mem::replace(&mut self.slots, Slots::new(0)));
                return;
            }
            while self.next_entry().is_some() {}
        }
        // The kernel takes a ring apart some time after it is closed; the file must be free for
        // the next daemon, and the pool's memory unpinned, as soon as the queue is gone.
        let submitter = self.ring.submitter();
        if let Err(error) = submitter.unregister_files() {
            log::debug!("uring: unregistering the file: {error}");
        }
        if self.registered.is_some()
            && let Err(error) = submitter.unregister_buffers()
        {
            log::debug!("uring: unregistering the buffers: {error}");
        }
    }
}

enum Progress {
    Done,
    Partial,
    /// Nothing was transferred: the file ends here.
    Stuck,
}

/// Counts what a read or write has transferred.
fn advance(in_flight: &mut InFlight, bytes: usize) -> Progress {
    let blocks = match in_flight.request.operation {
        Operation::Read { blocks, .. } | Operation::Write { blocks, .. } => blocks as usize,
        _ => return Progress::Done,
    };
    in_flight.done_bytes += bytes / SECTOR_BYTES * SECTOR_BYTES;
    if in_flight.done_bytes >= blocks * BLOCK_BYTES {
        Progress::Done
    } else if bytes < SECTOR_BYTES {
        Progress::Stuck
    } else {
        Progress::Partial
    }
}

/// The submission entry for what is left of a request.
fn entry_of(
    in_flight: &mut InFlight,
    registered: Option<&Registered>,
    cached: bool,
) -> squeue::Entry {
    let done = in_flight.done_bytes;
    let piece_of = |bytes: &[u8]| registered?.piece_of(bytes.as_ptr().addr(), bytes.len());
    match &mut in_flight.request.operation {
        Operation::Read { block, blocks, buffer } => {
            let offset = *block * BLOCK_BYTES as u64 + done as u64;
            let rest = &mut buffer[done..*blocks as usize * BLOCK_BYTES];
            let (at, length) = (rest.as_mut_ptr(), rest.len() as u32);
            match piece_of(rest) {
                Some(piece) => {
                    opcode::ReadFixed::new(FILE, at, length, piece).offset(offset).build()
                }
                None => opcode::Read::new(FILE, at, length).offset(offset).build(),
            }
        }
        Operation::Write { block, blocks, buffer, fua } => {
            let offset = *block * BLOCK_BYTES as u64 + done as u64;
            let rest = &buffer[done..*blocks as usize * BLOCK_BYTES];
            let (at, length) = (rest.as_ptr(), rest.len() as u32);
            let flags = if *fua && cached { libc::RWF_DSYNC } else { 0 };
            match piece_of(rest) {
                Some(piece) => opcode::WriteFixed::new(FILE, at, length, piece)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
                None => opcode::Write::new(FILE, at, length).offset(offset).rw_flags(flags).build(),
            }
        }
        Operation::Flush => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        Operation::Discard { block, blocks } | Operation::WriteZeroes { block, blocks } => {
            opcode::Fallocate::new(FILE, *blocks * BLOCK_BYTES as u64)
                .offset(*block * BLOCK_BYTES as u64)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build()
        }
        Operation::Compare { .. } | Operation::Verify { .. } => {
            unreachable!("the geometry says that there is no such command")
        }
    }
}

fn block_error(errno: Errno, operation: &Operation) -> BlockError {
    match errno {
        // A flush that failed for whatever reason is a flush that failed.
        _ if matches!(operation, Operation::Flush) => BlockError::Flush,
        Errno::ENOSPC | Errno::EDQUOT => BlockError::NoSpace,
        Errno::EOPNOTSUPP => BlockError::Unsupported,
        Errno::EINVAL => BlockError::Invalid,
        Errno::ENODEV | Errno::ENXIO => BlockError::Gone,
        _ => operation.media_error(),
    }
}

//! Connections over TCP and shared memory, with poll(2) to wait for them.

use super::clock::Clock;
use super::pipeline::{Connector, Slot};
use super::{Address, Memory, Stream};
use crate::shm::{ShmStream, socket_path};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

/// Streams that are waited for without asking the allocator for room.
const INLINE_STREAMS: usize = 16;
/// The longest single wait, in microseconds: callers wait again.
const WAIT_LONGEST_US: u64 = 60_000_000;

/// A connection of either kind.
#[derive(Debug)]
pub enum SystemStream {
    /// TCP.
    Tcp(TcpStream),
    /// Shared memory.
    Shm(ShmStream),
}

impl SystemStream {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Shm(stream) => stream.wait_fd(),
        }
    }

    /// What to wait for on [`SystemStream::fd`]. A stream over shared memory rings when there is room.
    fn awaited(&self, slot: &Slot<Self>) -> PollFlags {
        match self {
            Self::Tcp(_) if slot.wants_write => PollFlags::POLLIN | PollFlags::POLLOUT,
            Self::Tcp(_) | Self::Shm(_) => PollFlags::POLLIN,
        }
    }

    /// `true`: there is something to do without waiting.
    fn is_ready_before_waiting(&self) -> bool {
        matches!(self, Self::Shm(stream) if !stream.may_sleep())
    }

    /// Whether a read will find something, if the system `said` that it may.
    fn is_ready_after_waiting(&self, said: bool) -> bool {
        match self {
            Self::Tcp(_) => said,
            Self::Shm(stream) => stream.woke(),
        }
    }
}

impl Read for SystemStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(into),
            Self::Shm(stream) => stream.read(into),
        }
    }

    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read_vectored(slices),
            Self::Shm(stream) => stream.read_vectored(slices),
        }
    }
}

impl Write for SystemStream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(from),
            Self::Shm(stream) => stream.write(from),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(slices),
            Self::Shm(stream) => stream.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for SystemStream {
    fn memory(&mut self) -> Option<&mut dyn Memory> {
        match self {
            Self::Tcp(_) => None,
            Self::Shm(stream) => stream.memory(),
        }
    }
}

/// Makes connections over TCP and shared memory; the clock is the system's monotonic one.
///
/// A write to a connection that the peer has closed raises SIGPIPE, which Rust programs ignore
/// unless they ask otherwise: a program that restores its default action must not use this client.
#[derive(Clone, Copy, Debug)]
pub struct SystemConnector {
    clock: Clock,
}

impl SystemConnector {
    /// A connector whose clock begins now.
    #[must_use]
    pub fn new() -> Self {
        Self { clock: Clock::new() }
    }
}

impl Default for SystemConnector {
    fn default() -> Self {
        Self::new()
    }
}

impl Connector for SystemConnector {
    type Stream = SystemStream;

    fn connect(&mut self, address: &Address) -> io::Result<SystemStream> {
        match address {
            Address::Tcp(address) => connect_tcp(*address).map(SystemStream::Tcp),
            Address::Shm { path, number } => {
                ShmStream::connect(&socket_path(path, *number)).map(SystemStream::Shm)
            }
        }
    }

    fn wait(&mut self, slots: &[Slot<SystemStream>], timeout_us: u64) -> io::Result<()> {
        let open = || slots.iter().filter_map(|slot| Some((slot, slot.stream.as_ref()?)));
        let Some((_, first)) = open().next() else { return wait_for(&mut [], timeout_us) };
        // All of them: each has to know that this side sleeps.
        let ready = open().filter(|(_, stream)| stream.is_ready_before_waiting()).count();
        let timeout_us = if ready > 0 { 0 } else { timeout_us };
        let count = open().count();
        let mut heap: Vec<PollFd<'_>>;
        let mut inline: [PollFd<'_>; INLINE_STREAMS];
        let made = open().map(|(slot, stream)| PollFd::new(stream.fd(), stream.awaited(slot)));
        let fds = if count <= INLINE_STREAMS {
            inline = std::array::from_fn(|_| PollFd::new(first.fd(), PollFlags::empty()));
            inline.iter_mut().zip(made).for_each(|(fd, one)| *fd = one);
            &mut inline[..count]
        } else {
            heap = made.collect();
            &mut heap[..]
        };
        wait_for(fds, timeout_us)?;
        for ((slot, stream), fd) in open().zip(fds) {
            let unreadable = PollFlags::POLLOUT;
            let said = fd.revents().is_some_and(|found| !(found - unreadable).is_empty());
            slot.ready.set(stream.is_ready_after_waiting(said));
        }
        Ok(())
    }

    fn now_us(&mut self) -> u64 {
        self.clock.now_us()
    }
}

/// Starts a connection; until it is established, reads and writes would block (Linux).
fn connect_tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(fd)),
        Err(error) => Err(error.into()),
    }
}

fn wait_for(fds: &mut [PollFd<'_>], timeout_us: u64) -> io::Result<()> {
    let timeout = TimeSpec::from_duration(Duration::from_micros(timeout_us.min(WAIT_LONGEST_US)));
    match ppoll(fds, Some(timeout), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

//! Connections over TCP, RDMA and shared memory, with poll(2) to wait for them.

use super::clock::Clock;
use super::pipeline::{Connector, Slot};
#[cfg(feature = "rdma")]
use super::rdma::{Rdma, RdmaStream};
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

/// A connection of any kind.
#[derive(Debug)]
pub enum SystemStream {
    /// TCP.
    Tcp(TcpStream),
    /// RDMA.
    #[cfg(feature = "rdma")]
    Rdma(RdmaStream),
    /// Shared memory.
    Shm(ShmStream),
}

impl SystemStream {
    /// What to wait for; those over RDMA have one descriptor together.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tcp(stream) => Some(stream.as_fd()),
            #[cfg(feature = "rdma")]
            Self::Rdma(_) => None,
            Self::Shm(stream) => Some(stream.wait_fd()),
        }
    }

    /// What to wait for on [`SystemStream::fd`]. A stream over shared memory rings when there is room.
    fn awaited(&self, slot: &Slot<Self>) -> PollFlags {
        match self {
            Self::Tcp(_) if slot.wants_write => PollFlags::POLLIN | PollFlags::POLLOUT,
            _ => PollFlags::POLLIN,
        }
    }

    /// `true`: there is something to do without waiting.
    fn is_ready_before_waiting(&self) -> bool {
        match self {
            Self::Tcp(_) => false,
            // A read takes a part of what has come; for the rest no event will come.
            #[cfg(feature = "rdma")]
            Self::Rdma(line) => line.is_readable(),
            Self::Shm(stream) => !stream.may_sleep(),
        }
    }

    /// Whether a read will find something, if the system `said` that it may.
    fn is_ready_after_waiting(&self, said: bool) -> bool {
        match self {
            Self::Tcp(_) => said,
            #[cfg(feature = "rdma")]
            Self::Rdma(_) => true,
            Self::Shm(stream) => stream.woke(),
        }
    }
}

impl Read for SystemStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(into),
            #[cfg(feature = "rdma")]
            Self::Rdma(stream) => stream.read(into),
            Self::Shm(stream) => stream.read(into),
        }
    }

    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read_vectored(slices),
            #[cfg(feature = "rdma")]
            Self::Rdma(stream) => stream.read_vectored(slices),
            Self::Shm(stream) => stream.read_vectored(slices),
        }
    }
}

impl Write for SystemStream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(from),
            #[cfg(feature = "rdma")]
            Self::Rdma(stream) => stream.write(from),
            Self::Shm(stream) => stream.write(from),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(slices),
            #[cfg(feature = "rdma")]
            Self::Rdma(stream) => stream.write_vectored(slices),
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
            #[cfg(feature = "rdma")]
            Self::Rdma(stream) => stream.memory(),
            Self::Shm(stream) => stream.memory(),
        }
    }
}

/// Makes connections over TCP, RDMA and shared memory; the clock is the system's monotonic one.
///
/// A write to a connection that the peer has closed raises SIGPIPE, which Rust programs ignore
/// unless they ask otherwise: a program that restores its default action must not use this client.
#[derive(Debug)]
pub struct SystemConnector {
    clock: Clock,
    #[cfg(feature = "rdma")]
    rdma: Rdma,
}

impl SystemConnector {
    /// A connector whose clock begins now, for connections with so many commands in flight.
    #[must_use]
    pub fn new(queue_depth: u16) -> Self {
        #[cfg(not(feature = "rdma"))]
        let _ = queue_depth;
        Self {
            clock: Clock::new(),
            #[cfg(feature = "rdma")]
            rdma: Rdma::new(queue_depth),
        }
    }

    #[cfg(feature = "rdma")]
    fn connect_rdma(&mut self, address: SocketAddr) -> io::Result<SystemStream> {
        self.rdma.connect(address).map(SystemStream::Rdma)
    }

    #[cfg(not(feature = "rdma"))]
    fn connect_rdma(&mut self, _: SocketAddr) -> io::Result<SystemStream> {
        Err(io::Error::other(crate::NO_RDMA))
    }

    /// `true` if there is something to do before anything is waited for.
    fn prepare_to_wait(&self) -> bool {
        #[cfg(feature = "rdma")]
        return self.rdma.is_ready_before_waiting(self.clock.now_us());
        #[cfg(not(feature = "rdma"))]
        false
    }

    fn has_waited(&self) {
        #[cfg(feature = "rdma")]
        self.rdma.woke(self.clock.now_us());
    }

    /// What all connections over RDMA wait for together.
    fn common_fd(&self) -> Option<BorrowedFd<'_>> {
        #[cfg(feature = "rdma")]
        return self.rdma.wait_fd();
        #[cfg(not(feature = "rdma"))]
        None
    }
}

impl Connector for SystemConnector {
    type Stream = SystemStream;

    fn connect(&mut self, address: &Address) -> io::Result<SystemStream> {
        match address {
            Address::Tcp(address) => connect_tcp(*address).map(SystemStream::Tcp),
            Address::Rdma(address) => self.connect_rdma(*address),
            Address::Shm { path, number } => {
                ShmStream::connect(&socket_path(path, *number)).map(SystemStream::Shm)
            }
        }
    }

    fn wait(&mut self, slots: &[Slot<SystemStream>], timeout_us: u64) -> io::Result<()> {
        let open = || slots.iter().filter_map(|slot| Some((slot, slot.stream.as_ref()?)));
        // All of them: each has to know that this side sleeps.
        let ready = open().filter(|(_, stream)| stream.is_ready_before_waiting()).count() > 0;
        let timeout_us = if self.prepare_to_wait() || ready { 0 } else { timeout_us };
        let common = self.common_fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let own = open()
            .filter_map(|(slot, stream)| Some(PollFd::new(stream.fd()?, stream.awaited(slot))));
        let all = own.chain(common);
        let mut heap: Vec<PollFd<'_>>;
        let mut inline: [PollFd<'_>; INLINE_STREAMS];
        let fds = match (all.clone().next(), all.clone().count()) {
            (Some(first), count) if count <= INLINE_STREAMS => {
                inline = std::array::from_fn(|_| first.clone());
                inline.iter_mut().zip(all).for_each(|(fd, one)| *fd = one);
                &mut inline[..count]
            }
            _ => {
                heap = all.collect();
                &mut heap[..]
            }
        };
        wait_for(fds, timeout_us)?;
        let mut said = fds.iter().map(has_news);
        for (slot, stream) in open() {
            let said = stream.fd().is_some() && said.next().unwrap_or(false);
            slot.ready.set(stream.is_ready_after_waiting(said));
        }
        self.has_waited();
        Ok(())
    }

    fn now_us(&mut self) -> u64 {
        let now_us = self.clock.now_us();
        #[cfg(feature = "rdma")]
        self.rdma.set_now_us(now_us);
        now_us
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

/// A read will find something, or has failed.
fn has_news(fd: &PollFd<'_>) -> bool {
    fd.revents().is_some_and(|found| !(found - PollFlags::POLLOUT).is_empty())
}

fn wait_for(fds: &mut [PollFd<'_>], timeout_us: u64) -> io::Result<()> {
    let timeout = TimeSpec::from_duration(Duration::from_micros(timeout_us.min(WAIT_LONGEST_US)));
    match ppoll(fds, Some(timeout), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

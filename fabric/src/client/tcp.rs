//! Connections over TCP, with poll(2) to wait for them.

use super::clock::Clock;
use super::pipeline::{Connector, Slot};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// Streams that are waited for without asking the allocator for room.
const INLINE_STREAMS: usize = 16;
/// The longest single wait, in microseconds: callers wait again.
const WAIT_LONGEST_US: u64 = 60_000_000;

/// Makes TCP connections; the clock is the system's monotonic one.
///
/// A write to a connection that the peer has closed raises SIGPIPE, which Rust programs ignore
/// unless they ask otherwise: a program that restores its default action must not use this client.
#[derive(Clone, Copy, Debug)]
pub struct TcpConnector {
    clock: Clock,
}

impl TcpConnector {
    /// A connector whose clock begins now.
    #[must_use]
    pub fn new() -> Self {
        Self { clock: Clock::new() }
    }
}

impl Default for TcpConnector {
    fn default() -> Self {
        Self::new()
    }
}

impl Connector for TcpConnector {
    type Stream = TcpStream;

    /// Starts a connection; until it is established, reads and writes would block (Linux).
    fn connect(&mut self, address: SocketAddr) -> io::Result<TcpStream> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(family, SockType::Stream, flags, None)?;
        setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(address)) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(fd)),
            Err(error) => Err(error.into()),
        }
    }

    fn wait(&mut self, slots: &[Slot<TcpStream>], timeout_us: u64) -> io::Result<()> {
        let open = || slots.iter().filter_map(|slot| Some((slot, slot.stream.as_ref()?)));
        let Some((_, first)) = open().next() else { return wait_for(&mut [], timeout_us) };
        let watch = |(slot, stream): (&Slot<TcpStream>, _)| {
            let output = if slot.wants_write { PollFlags::POLLOUT } else { PollFlags::empty() };
            PollFd::new(TcpStream::as_fd(stream), PollFlags::POLLIN | output)
        };
        let count = open().count();
        let mut heap: Vec<PollFd<'_>>;
        let mut inline: [PollFd<'_>; INLINE_STREAMS];
        let fds = if count <= INLINE_STREAMS {
            inline = std::array::from_fn(|_| PollFd::new(first.as_fd(), PollFlags::empty()));
            inline.iter_mut().zip(open()).for_each(|(fd, pair)| *fd = watch(pair));
            &mut inline[..count]
        } else {
            heap = open().map(watch).collect();
            &mut heap[..]
        };
        wait_for(fds, timeout_us)?;
        for ((slot, _), fd) in open().zip(fds) {
            let unreadable = PollFlags::POLLOUT;
            slot.ready.set(fd.revents().is_some_and(|found| !(found - unreadable).is_empty()));
        }
        Ok(())
    }

    fn now_us(&mut self) -> u64 {
        self.clock.now_us()
    }
}

fn wait_for(fds: &mut [PollFd<'_>], timeout_us: u64) -> io::Result<()> {
    let timeout = TimeSpec::from_duration(Duration::from_micros(timeout_us.min(WAIT_LONGEST_US)));
    match ppoll(fds, Some(timeout), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

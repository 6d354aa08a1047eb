//! TCP: non-blocking sockets under one edge-triggered epoll.
//!
//! Listens wherever it is told; choosing an address that others can reach is the configuration's.

use super::{ByteStream, Listener, Readiness};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{Backlog, listen};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

/// Peers that the system lets wait to be accepted.
const BACKLOG: i32 = 1024;
/// Events of one system call.
const EVENTS_MAX: usize = 128;
/// The listening socket's number; streams have those of their slots.
const LISTENER: u64 = u64::MAX;

/// Makes a socket what both sides want: it never waits, and small PDUs leave at once. Buffer sizes
/// are left to the kernel, which grows them as the path needs; a fixed size turns that off and
/// measured no faster.
///
/// # Errors
/// The system refuses.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)
}

impl ByteStream for TcpStream {
    fn finish(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// A listening socket and the readiness of its connections.
#[derive(Debug)]
pub struct Tcp {
    listener: TcpListener,
    epoll: Epoll,
    events: [EpollEvent; EVENTS_MAX],
}

impl Tcp {
    /// Listens at `address`.
    ///
    /// # Errors
    /// The address is in use, not this machine's, or not allowed.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        listen(&listener, Backlog::new(BACKLOG)?)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        Ok(Self { listener, epoll, events: [EpollEvent::empty(); EVENTS_MAX] })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Listener for Tcp {
    type Stream = TcpStream;
    /// epoll(7), "Possible pitfalls": true of streams; the end of a stream is said by EPOLLRDHUP.
    const SHORT_BLOCKS: bool = true;

    fn accept(&mut self) -> io::Result<Option<TcpStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => tune(&stream).map(|()| Some(stream)),
            // The peer has given up already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn watch(&mut self, stream: &TcpStream, token: u32) -> io::Result<()> {
        let interest = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        Ok(self.epoll.add(stream, EpollEvent::new(interest, u64::from(token)))?)
    }

    fn ready(&mut self, events: &mut Vec<Readiness>) -> io::Result<bool> {
        let most = EVENTS_MAX.min(events.capacity() - events.len());
        let count = match self.epoll.wait(&mut self.events[..most], EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let mut waiting = false;
        for event in &self.events[..count] {
            if event.data() == LISTENER {
                waiting = true;
                continue;
            }
            let flags = event.events();
            let broken = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
            events.push(Readiness {
                token: event.data() as u32,
                readable: flags.intersects(EpollFlags::EPOLLIN | broken),
                writable: flags.intersects(EpollFlags::EPOLLOUT | broken),
                hangup: flags.intersects(EpollFlags::EPOLLRDHUP | broken),
            });
        }
        Ok(waiting)
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.0.as_fd())
    }
}

//! The server's side: accepts clients, and says which of them have something to do.
//!
//! Guarantees: while there is any client, [`Listener::ready`] costs no system call but one in
//! [`SKIPS_MAX`], which is how new peers and ends of processes are found out (and at once after a sleep, which
//! they end); a client that
//! connects and then says nothing holds one of [`WAITING_MAX`] places until others need it.

use super::end::End;
use super::layout::AREA;
use super::port::Port;
use super::{Refusal, open, socket, socket_path};
use crate::crc32c::Digest;
use crate::stream::{ByteStream, Listener, PeerMemory, Readiness};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Peers that have connected and not yet sent their memory.
const WAITING_MAX: usize = 16;
/// Events of one system call.
const EVENTS_MAX: usize = 128;
/// Peers of which one call takes none before it gives up.
const ACCEPTS_MAX: usize = 16;
/// Polls without a system call.
const SKIPS_MAX: u32 = 64;
/// Numbers in the epoll that are no stream's.
const LISTENER: u64 = u64::MAX;
const WAITING: u64 = u64::MAX - 1;
/// Mode bits of a socket that somebody else than its owner may connect to.
const OTHERS: u32 = 0o077;

/// What became of a client that has connected.
enum Admitted {
    /// Its memory has not come.
    NotYet(OwnedFd),
    /// It was told why.
    Refused,
    Taken(Arc<Port>),
}

#[derive(Debug)]
struct Watched {
    token: u32,
    port: Arc<Port>,
}

/// A reactor's Unix socket and the clients that came over it.
#[derive(Debug)]
pub struct Shm {
    socket: OwnedFd,
    path: PathBuf,
    /// Only processes of this one's user, or root's.
    own_user_only: bool,
    epoll: Epoll,
    waiting: VecDeque<OwnedFd>,
    watched: Vec<Watched>,
    /// Where the next look at the watched begins.
    first: usize,
    skipped: u32,
    /// Clients were told to ring.
    asleep: bool,
    events: Box<[EpollEvent; EVENTS_MAX]>,
}

impl Shm {
    /// Listens for reactor `number` at [`socket_path`]. The socket has `mode`; with 0600, peers are
    /// also asked for their user.
    ///
    /// # Errors
    /// The path is in use by a daemon that runs, is no socket, or cannot be made.
    pub fn bind(path: &Path, number: u16, mode: u32) -> io::Result<Self> {
        let path = socket_path(path, number);
        let socket = socket::serve(&path, mode)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        Ok(Self {
            socket,
            path,
            own_user_only: mode & OTHERS == 0,
            epoll,
            waiting: VecDeque::with_capacity(WAITING_MAX),
            watched: Vec::new(),
            first: 0,
            skipped: 0,
            asleep: false,
            events: Box::new([EpollEvent::empty(); EVENTS_MAX]),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks whether the client behind `socket` has sent its memory, and at that.
    fn admit(&self, socket: OwnedFd) -> Admitted {
        let taken = match self.check(&socket).map(|()| open::take(socket.as_fd())) {
            Ok(None) => return Admitted::NotYet(socket),
            Ok(Some(taken)) => taken,
            Err(refusal) => Err(refusal),
        };
        match taken {
            Ok(mapping) => Admitted::Taken(Port::of_server(mapping, socket)),
            Err(refusal) => {
                log::warn!("refused a client on {}: {refusal}", self.path.display());
                socket::refuse(socket.as_fd(), refusal as u8);
                Admitted::Refused
            }
        }
    }

    /// The first of those who waited that has sent its memory by now.
    fn admit_waiting(&mut self) -> io::Result<Option<Arc<Port>>> {
        for _ in 0..self.waiting.len() {
            let Some(socket) = self.waiting.pop_front() else { break };
            match self.admit(socket) {
                Admitted::NotYet(socket) => self.waiting.push_back(socket),
                Admitted::Refused => {}
                Admitted::Taken(port) => {
                    self.epoll.delete(port.socket())?;
                    return Ok(Some(port));
                }
            }
        }
        Ok(None)
    }

    fn check(&self, socket: &OwnedFd) -> Result<(), Refusal> {
        let peer = socket::peer(socket).map_err(|_| Refusal::NotAllowed)?;
        let own = [0, nix::unistd::geteuid().as_raw()].contains(&peer.uid());
        log::debug!("process {} of user {} connects over shared memory", peer.pid(), peer.uid());
        if own || !self.own_user_only { Ok(()) } else { Err(Refusal::NotAllowed) }
    }

    fn await_memory(&mut self, socket: OwnedFd) -> io::Result<()> {
        if self.waiting.len() == WAITING_MAX {
            self.waiting.pop_front();
            log::debug!("dropped a client that connected and sent nothing");
        }
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        self.epoll.add(&socket, EpollEvent::new(interest, WAITING))?;
        self.waiting.push_back(socket);
        Ok(())
    }

    /// Looks at the rings: which client has something to do?
    fn look(&mut self, events: &mut Vec<Readiness>) {
        self.watched.retain(|watched| watched.port.is_open());
        let count = self.watched.len();
        self.first = if self.first + 1 < count { self.first + 1 } else { 0 };
        let (before, from) = self.watched.split_at(self.first);
        // Half of the room is the kernel's: new peers and ends come through, however many are busy.
        let most = events.capacity() / 2;
        for Watched { token, port } in from.iter().chain(before) {
            let (readable, writable) = (port.has_input(), port.has_room_again());
            if (readable || writable) && events.len() < most {
                let hangup = port.is_hung();
                events.push(Readiness { token: *token, readable, writable, hangup });
            }
        }
    }

    /// Asks the kernel; `true` if a peer waits to be accepted.
    fn ask(&mut self, events: &mut Vec<Readiness>) -> io::Result<bool> {
        let most = EVENTS_MAX.min(events.capacity() - events.len());
        if most == 0 {
            return Ok(false);
        }
        let count = match self.epoll.wait(&mut self.events[..most], EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let mut waiting = false;
        for event in &self.events[..count] {
            let token = match event.data() {
                LISTENER | WAITING => {
                    waiting = true;
                    continue;
                }
                token => token as u32,
            };
            let Some(watched) = self.watched.iter().find(|watched| watched.token == token) else {
                continue;
            };
            let gone = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
            watched.port.hear();
            if event.events().intersects(gone) {
                watched.port.hang_up();
            }
            let hangup = watched.port.is_hung();
            events.push(Readiness { token, readable: true, writable: hangup, hangup });
        }
        Ok(waiting)
    }
}

impl Listener for Shm {
    type Stream = ShmServerStream;
    /// Readiness is what the rings hold at each look, not an edge.
    const SHORT_BLOCKS: bool = true;
    const HAS_MEMORY: bool = true;

    fn accept(&mut self) -> io::Result<Option<ShmServerStream>> {
        if let Some(port) = self.admit_waiting()? {
            return Ok(Some(ShmServerStream::new(port)));
        }
        for _ in 0..ACCEPTS_MAX {
            let Some(socket) = socket::accept(self.socket.as_fd())? else { break };
            match self.admit(socket) {
                Admitted::NotYet(socket) => self.await_memory(socket)?,
                Admitted::Refused => {}
                Admitted::Taken(port) => return Ok(Some(ShmServerStream::new(port))),
            }
        }
        Ok(None)
    }

    fn watch(&mut self, stream: &ShmServerStream, token: u32) -> io::Result<()> {
        let port = stream.0.port.clone();
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.epoll.add(port.socket(), EpollEvent::new(interest, u64::from(token)))?;
        self.watched.push(Watched { token, port });
        Ok(())
    }

    fn ready(&mut self, events: &mut Vec<Readiness>) -> io::Result<bool> {
        if std::mem::take(&mut self.asleep) {
            self.watched.iter().for_each(|watched| watched.port.woke());
            self.skipped = SKIPS_MAX;
        }
        self.look(events);
        if !self.watched.is_empty() && self.skipped < SKIPS_MAX {
            self.skipped += 1;
            return Ok(false);
        }
        self.skipped = 0;
        self.ask(events)
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.0.as_fd())
    }

    fn may_sleep(&mut self) -> bool {
        self.asleep = true;
        self.watched.iter().all(|watched| watched.port.may_sleep())
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::debug!("{} was gone already: {error}", self.path.display());
        }
    }
}

/// A client's connection, as the server has it.
#[derive(Debug)]
pub struct ShmServerStream(End);

impl ShmServerStream {
    fn new(port: Arc<Port>) -> Self {
        Self(End::of_server(port))
    }

    /// Where `count` bytes at `address` of the area are in the mapping. The address is the client's
    /// word.
    fn place(&self, address: u64, count: usize) -> Option<usize> {
        let offset = usize::try_from(address).ok()?.checked_add(AREA)?;
        let end = offset.checked_add(count)?;
        (end <= self.0.port.map.bytes()).then_some(offset)
    }
}

impl Read for ShmServerStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }

    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.0.read_vectored(slices)
    }
}

impl Write for ShmServerStream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.0.write(from)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ByteStream for ShmServerStream {
    fn finish(&mut self) -> io::Result<()> {
        self.0.port.finish();
        Ok(())
    }

    fn memory(&self) -> Option<&dyn PeerMemory> {
        Some(self)
    }
}

impl PeerMemory for ShmServerStream {
    fn key(&self) -> u32 {
        super::MEMORY_KEY
    }

    fn get(&self, address: u64, into: &mut [u8]) -> Option<()> {
        let offset = self.place(address, into.len())?;
        self.0.port.map.copy_out(offset, into);
        Some(())
    }

    fn put(&self, address: u64, from: &[u8], sum: Option<&mut Digest>) -> Option<()> {
        let (offset, map) = (self.place(address, from.len())?, &self.0.port.map);
        match sum {
            Some(sum) => map.copy_in_summed(offset, from, sum),
            None => map.stream_in(offset, from),
        }
        Some(())
    }
}

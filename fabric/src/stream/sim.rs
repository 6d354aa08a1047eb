//! A network in memory: deterministic under a seed and a virtual clock, and as unkind as asked.
//!
//! Guarantees: bytes of one direction arrive in order, unchanged, at most once, and not before
//! their delay has passed on the virtual clock; with the same seed and the same calls, every run is
//! the same. What it breaks, by [`SimProfile`] or by order: reads and writes move fewer bytes than
//! asked, bytes are late, a window fills up, a connection is cut after any byte of either
//! direction, or falls silent without a word.
//!
//! [`SimNet`] is a shared handle; all its streams and listeners live on one thread.

use super::{ByteStream, Listener, Readiness};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::rc::Rc;

/// How unkind the network is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimProfile {
    /// One read or write moves a random number of bytes up to this.
    pub chunk_bytes_max: usize,
    /// How long bytes travel, in microseconds; each write draws its own.
    pub delay_us: RangeInclusive<u64>,
    /// How many bytes may be on their way in one direction before a write would block.
    pub window_bytes: usize,
    /// Of a million writes, how many cut the connection instead.
    pub cut_per_million: u32,
}

impl SimProfile {
    /// Moves everything at once, unbroken.
    #[must_use]
    pub fn kind() -> Self {
        Self {
            chunk_bytes_max: usize::MAX,
            delay_us: 0..=0,
            window_bytes: 16 << 20,
            cut_per_million: 0,
        }
    }

    /// Small pieces, delays up to 2 ms, a 64 KiB window; unbroken.
    #[must_use]
    pub fn choppy() -> Self {
        Self { chunk_bytes_max: 4096, delay_us: 0..=2_000, window_bytes: 64 << 10, ..Self::kind() }
    }
}

/// Which way bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// From the side that connected.
    ToServer,
    /// From the side that accepted.
    ToClient,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// (arrival, how many bytes), in order; together all of `bytes`.
    chunks: VecDeque<(u64, usize)>,
    written: u64,
    cut_at: Option<u64>,
    /// The writer has ended it; when that arrives.
    finished_us: Option<u64>,
    /// Nobody will read it any more.
    reader_gone: bool,
}

impl Pipe {
    fn arrived(&self, now_us: u64) -> usize {
        self.chunks.iter().take_while(|(at, _)| *at <= now_us).map(|(_, bytes)| bytes).sum()
    }

    fn take(&mut self, mut out: &mut [u8]) {
        let mut left = out.len();
        while left > 0 {
            let (_, bytes) = &mut self.chunks[0];
            let part = left.min(*bytes);
            *bytes -= part;
            left -= part;
            if *bytes == 0 {
                self.chunks.pop_front();
            }
        }
        while !out.is_empty() {
            let n = self.bytes.read(out).unwrap_or(0);
            out = &mut out[n..];
        }
    }
}

#[derive(Debug, Default)]
struct Link {
    pipes: [Pipe; 2],
    /// Broken: what has not arrived yet never will (but bytes written before do).
    reset: bool,
    /// Nothing arrives and nobody is told.
    silent: bool,
    ends: u8,
}

#[derive(Debug)]
struct Net {
    now_us: u64,
    rng: fastrand::Rng,
    profile: SimProfile,
    links: BTreeMap<u64, Link>,
    next_link: u64,
    /// Peers that wait to be accepted, with their time of arrival.
    listeners: BTreeMap<SocketAddr, VecDeque<(u64, u64)>>,
}

impl Net {
    fn delay_us(&mut self) -> u64 {
        let delay_us = self.profile.delay_us.clone();
        self.now_us + self.rng.u64(delay_us)
    }

    fn chunk(&mut self, most: usize) -> usize {
        let most = most.min(self.profile.chunk_bytes_max);
        if self.profile.chunk_bytes_max == usize::MAX { most } else { self.rng.usize(1..=most) }
    }

    /// How many bytes a read of at most `room` gets.
    fn readable(&self, id: u64, from: Direction) -> io::Result<usize> {
        let link = &self.links[&id];
        let pipe = &link.pipes[from as usize];
        if link.silent {
            return Err(ErrorKind::WouldBlock.into());
        }
        match pipe.arrived(self.now_us) {
            0 if !pipe.bytes.is_empty() => Err(ErrorKind::WouldBlock.into()),
            0 if link.reset => Err(ErrorKind::ConnectionReset.into()),
            0 if pipe.finished_us.is_some_and(|at| at <= self.now_us) => Ok(0),
            0 => Err(ErrorKind::WouldBlock.into()),
            arrived => Ok(arrived),
        }
    }

    fn read(&mut self, id: u64, from: Direction, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let room: usize = bufs.iter().map(|buf| buf.len()).sum();
        let most = self.readable(id, from)?.min(room);
        if most == 0 {
            return Ok(0);
        }
        let bytes = self.chunk(most);
        let mut left = bytes;
        let Some(link) = self.links.get_mut(&id) else { return Ok(0) };
        for buf in bufs {
            let part = left.min(buf.len());
            link.pipes[from as usize].take(&mut buf[..part]);
            left -= part;
        }
        Ok(bytes)
    }

    /// How many bytes a write may take now.
    fn writable(&self, id: u64, to: Direction) -> io::Result<usize> {
        let link = &self.links[&id];
        let pipe = &link.pipes[to as usize];
        if link.reset || pipe.reader_gone || pipe.finished_us.is_some() {
            return Err(ErrorKind::BrokenPipe.into());
        }
        match self.profile.window_bytes.saturating_sub(pipe.bytes.len()) {
            0 => Err(ErrorKind::WouldBlock.into()),
            room => Ok(room),
        }
    }

    fn write(&mut self, id: u64, to: Direction, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let most = self.writable(id, to)?.min(bufs.iter().map(|buf| buf.len()).sum());
        if most == 0 {
            return Ok(0);
        }
        let unlucky = self.profile.cut_per_million > 0
            && self.rng.u32(..1_000_000) < self.profile.cut_per_million;
        let (mut left, at_us) = (self.chunk(most), self.delay_us());
        let Some(link) = self.links.get_mut(&id) else { return Ok(0) };
        let pipe = &mut link.pipes[to as usize];
        if let Some(cut_at) = pipe.cut_at {
            left = left.min((cut_at - pipe.written) as usize);
        }
        if left == 0 || unlucky {
            link.reset = true;
            return Err(ErrorKind::ConnectionReset.into());
        }
        let bytes = left;
        for buf in bufs {
            let part = left.min(buf.len());
            pipe.bytes.extend(&buf[..part]);
            left -= part;
        }
        pipe.written += bytes as u64;
        let at_us = pipe.chunks.back().map_or(at_us, |(last, _)| at_us.max(*last));
        pipe.chunks.push_back((at_us, bytes));
        if pipe.cut_at == Some(pipe.written) {
            link.reset = true;
        }
        Ok(bytes)
    }

    fn finish(&mut self, id: u64, to: Direction) {
        let at_us = self.delay_us();
        if let Some(link) = self.links.get_mut(&id) {
            let pipe = &mut link.pipes[to as usize];
            let last = pipe.chunks.back().map_or(0, |(last, _)| *last);
            pipe.finished_us.get_or_insert(at_us.max(last));
        }
    }
}

/// The network. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct SimNet {
    net: Rc<RefCell<Net>>,
}

impl SimNet {
    /// An empty network at time 0.
    #[must_use]
    pub fn new(seed: u64, profile: SimProfile) -> Self {
        Self {
            net: Rc::new(RefCell::new(Net {
                now_us: 0,
                rng: fastrand::Rng::with_seed(seed),
                profile,
                links: BTreeMap::new(),
                next_link: 0,
                listeners: BTreeMap::new(),
            })),
        }
    }

    /// Listens at `address`.
    ///
    /// # Errors
    /// [`ErrorKind::AddrInUse`].
    pub fn listen(&self, address: SocketAddr) -> io::Result<SimListener> {
        let mut net = self.net.borrow_mut();
        if net.listeners.contains_key(&address) {
            return Err(ErrorKind::AddrInUse.into());
        }
        net.listeners.insert(address, VecDeque::new());
        Ok(SimListener { net: self.clone(), address, watched: Vec::new() })
    }

    /// Connects to whoever listens at `address`. Returns at once; the other side sees the
    /// connection when its delay has passed, and may be written to already.
    ///
    /// # Errors
    /// [`ErrorKind::ConnectionRefused`] if nobody listens.
    pub fn connect(&self, address: SocketAddr) -> io::Result<SimStream> {
        let mut net = self.net.borrow_mut();
        let (at_us, id) = (net.delay_us(), net.next_link);
        let waiting = net.listeners.get_mut(&address).ok_or(ErrorKind::ConnectionRefused)?;
        waiting.push_back((at_us, id));
        net.next_link += 1;
        net.links.insert(id, Link { ends: 2, ..Link::default() });
        Ok(SimStream { net: self.clone(), id, to: Direction::ToServer })
    }

    /// The virtual clock, in microseconds.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.net.borrow().now_us
    }

    /// Moves the virtual clock forward.
    pub fn advance(&self, by_us: u64) {
        self.net.borrow_mut().now_us += by_us;
    }

    /// Changes the profile from now on.
    pub fn set_profile(&self, profile: SimProfile) {
        self.net.borrow_mut().profile = profile;
    }

    /// Connections that have at least one end left.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.net.borrow().links.len()
    }

    /// Breaks connection `id` once `bytes` bytes in all were written in `direction`: the reader
    /// still gets those, everything else fails.
    pub fn cut_at(&self, id: u64, direction: Direction, bytes: u64) {
        if let Some(link) = self.net.borrow_mut().links.get_mut(&id) {
            let pipe = &mut link.pipes[direction as usize];
            if pipe.written >= bytes {
                link.reset = true;
            } else {
                pipe.cut_at = Some(bytes);
            }
        }
    }

    /// Breaks connection `id` now.
    pub fn reset(&self, id: u64) {
        if let Some(link) = self.net.borrow_mut().links.get_mut(&id) {
            link.reset = true;
        }
    }

    /// From now on nothing arrives on connection `id`, and neither side is told: a cable pulled
    /// far away. `false` plugs it in again.
    pub fn silence(&self, id: u64, silent: bool) {
        if let Some(link) = self.net.borrow_mut().links.get_mut(&id) {
            link.silent = silent;
        }
    }

    /// Bytes written so far on connection `id` in `direction`.
    #[must_use]
    pub fn written(&self, id: u64, direction: Direction) -> u64 {
        self.net.borrow().links.get(&id).map_or(0, |link| link.pipes[direction as usize].written)
    }

    /// The number of the newest connection.
    #[must_use]
    pub fn newest(&self) -> Option<u64> {
        self.net.borrow().next_link.checked_sub(1)
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct SimStream {
    net: SimNet,
    id: u64,
    to: Direction,
}

impl SimStream {
    /// The connection's number, for [`SimNet::cut_at`] and its like. Both ends have the same.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    fn from(&self) -> Direction {
        match self.to {
            Direction::ToServer => Direction::ToClient,
            Direction::ToClient => Direction::ToServer,
        }
    }
}

impl Read for SimStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(buf)])
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.net.net.borrow_mut().read(self.id, self.from(), bufs)
    }
}

impl Write for SimStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.net.net.borrow_mut().write(self.id, self.to, bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ByteStream for SimStream {
    fn finish(&mut self) -> io::Result<()> {
        self.net.net.borrow_mut().finish(self.id, self.to);
        Ok(())
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let from = self.from();
        let mut net = self.net.net.borrow_mut();
        net.finish(self.id, self.to);
        if let Some(link) = net.links.get_mut(&self.id) {
            link.pipes[from as usize].reader_gone = true;
            link.ends -= 1;
            if link.ends == 0 {
                net.links.remove(&self.id);
            }
        }
    }
}

/// Accepts on one address.
#[derive(Debug)]
pub struct SimListener {
    net: SimNet,
    address: SocketAddr,
    /// (connection, token)
    watched: Vec<(u64, u32)>,
}

impl Listener for SimListener {
    type Stream = SimStream;
    const SHORT_BLOCKS: bool = false;

    fn accept(&mut self) -> io::Result<Option<SimStream>> {
        let mut net = self.net.net.borrow_mut();
        let now_us = net.now_us;
        let Some(waiting) = net.listeners.get_mut(&self.address) else { return Ok(None) };
        if waiting.front().is_none_or(|(at_us, _)| *at_us > now_us) {
            return Ok(None);
        }
        Ok(waiting.pop_front().map(|(_, id)| SimStream {
            net: self.net.clone(),
            id,
            to: Direction::ToClient,
        }))
    }

    fn watch(&mut self, stream: &SimStream, token: u32) -> io::Result<()> {
        self.watched.retain(|(_, watched)| *watched != token);
        self.watched.push((stream.id, token));
        Ok(())
    }

    fn ready(&mut self, events: &mut Vec<Readiness>) -> io::Result<bool> {
        let net = self.net.net.borrow();
        self.watched.retain(|(id, _)| net.links.contains_key(id));
        for &(id, token) in &self.watched {
            let would_block = |result: io::Result<usize>| {
                result.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
            };
            let readable = !would_block(net.readable(id, Direction::ToServer));
            let writable = !would_block(net.writable(id, Direction::ToClient));
            if (readable || writable) && events.len() < events.capacity() {
                events.push(Readiness { token, readable, writable, hangup: false });
            }
        }
        let waiting = net.listeners.get(&self.address);
        Ok(waiting.is_some_and(|queue| queue.front().is_some_and(|(at, _)| *at <= net.now_us)))
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let mut net = self.net.net.borrow_mut();
        for (_, id) in net.listeners.remove(&self.address).unwrap_or_default() {
            if let Some(link) = net.links.get_mut(&id) {
                // Nobody will ever hold the other end.
                link.reset = true;
                link.ends -= 1;
                if link.ends == 0 {
                    net.links.remove(&id);
                }
            }
        }
    }
}

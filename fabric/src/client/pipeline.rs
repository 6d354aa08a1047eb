//! The pipelined client: many requests in flight, driven by whoever calls `poll`.
//!
//! One pass over the links does at most one vectored write and one read on each, so that what was
//! submitted since the last one leaves together. Nothing is allocated per request once all windows
//! have been full, if the caller gives each [`Done`] back.

use super::address::Address;
use super::error::ClientError;
use super::request::{Done, Request, Ticket};
use super::router::{ClientCounters, Rewired, Router};
use super::stream::{Reach, Stream};
use super::system::SystemConnector;
use super::{ClientConfig, NamespaceId};
use crate::region::Region;
use std::cell::Cell;
use std::io;

/// The client's surroundings: makes connections, waits for them, and knows the time.
pub trait Connector {
    /// A connection; reads and writes would block while it is still being established.
    type Stream: Stream;

    /// Starts a connection to `address`.
    ///
    /// # Errors
    /// It could not even be started, or was refused at once.
    fn connect(&mut self, address: &Address) -> io::Result<Self::Stream>;

    /// Waits until a stream can be read, or one whose slot wants to write can be written, but no
    /// longer than `timeout_us`; marks those that can be read, or have failed, as ready.
    ///
    /// # Errors
    /// Waiting is impossible.
    fn wait(&mut self, slots: &[Slot<Self::Stream>], timeout_us: u64) -> io::Result<()>;

    /// Monotonic microseconds.
    fn now_us(&mut self) -> u64;
}

/// One link's stream, as [`Connector::wait`] sees it.
#[derive(Debug)]
pub struct Slot<S> {
    /// The connection, if there is one.
    pub stream: Option<S>,
    /// Bytes wait for the network to take more.
    pub wants_write: bool,
    /// Set by [`Connector::wait`]: a read will find something.
    pub ready: Cell<bool>,
}

impl<S> Default for Slot<S> {
    fn default() -> Self {
        Self { stream: None, wants_write: false, ready: Cell::new(false) }
    }
}

/// A client that keeps many requests in flight; see the module.
pub struct Pipeline<C: Connector = SystemConnector> {
    // Before the router, which holds the memory that a server may use as long as its stream is there.
    slots: Vec<Slot<C::Stream>>,
    router: Router,
    connector: C,
}

impl Pipeline {
    /// Connects to every reactor of the server, over the transport that its address says.
    ///
    /// # Errors
    /// [`ClientError`] says which address and why.
    pub fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        let connector = SystemConnector::new(config.queue_depth);
        Self::connect_with(config, connector)
    }
}

impl<C: Connector> Pipeline<C> {
    /// Connects through `connector` to every reactor of the server.
    ///
    /// # Errors
    /// [`ClientError`] says which address and why.
    pub fn connect_with(config: ClientConfig, mut connector: C) -> Result<Self, ClientError> {
        let until_us =
            connector.now_us().saturating_add(u64::from(config.connect_timeout_ms) * 1000);
        let router = Router::new(config)?;
        let mut pipeline = Self { slots: vec![Slot::default()], router, connector };
        let mut now_us = pipeline.connector.now_us();
        while !pipeline.router.is_connected() {
            let moved = pipeline.pass(now_us, true);
            if let Some(error) =
                pipeline.router.fatal().or_else(|| pipeline.router.take_first_error())
            {
                return Err(error);
            }
            if now_us >= until_us {
                return Err(pipeline.router.too_slow());
            }
            if !moved {
                pipeline.wait(now_us, until_us)?;
            }
            now_us = pipeline.connector.now_us();
        }
        Ok(pipeline)
    }

    /// Takes a request in, without a system call: it leaves with the next [`Pipeline::poll`].
    ///
    /// # Errors
    /// The request, if the window of a link that it needs is full: poll, and try again.
    pub fn submit<'a>(&mut self, request: Request<'a>) -> Result<Ticket, Request<'a>> {
        let now_us = self.connector.now_us();
        self.router.submit(request, now_us)
    }

    /// Sends, receives, and appends what has ended to `done`; how many. Waits up to `timeout_us`
    /// for the first to end; with 0 it does not wait at all.
    ///
    /// # Errors
    /// The pipeline cannot go on: the server is another one now, or waiting has failed. What was in
    /// flight has been appended to `done` all the same.
    pub fn poll(&mut self, done: &mut Vec<Done>, timeout_us: u64) -> Result<usize, ClientError> {
        let waited = self.drive(timeout_us, |router| router.finished() > 0);
        let count = self.router.take_finished(done);
        waited.map(|()| count)
    }

    /// One request and its end. What else ends meanwhile is kept for the next [`Pipeline::poll`].
    ///
    /// # Errors
    /// As [`Pipeline::poll`]. That the request failed is no error: look at [`Done::status`].
    pub fn call(&mut self, request: Request<'_>) -> Result<Done, ClientError> {
        let ticket = self.submit_when_possible(request)?;
        let waited = self.drive(u64::MAX, |router| router.has_finished(ticket));
        match self.router.take_one(ticket) {
            Some(done) => Ok(done),
            None => Err(waited.err().unwrap_or(ClientError::Unanswered)),
        }
    }

    fn submit_when_possible(&mut self, mut request: Request<'_>) -> Result<Ticket, ClientError> {
        loop {
            request = match self.submit(request) {
                Ok(ticket) => return Ok(ticket),
                Err(request) => request,
            };
            let finished = self.router.finished();
            self.drive(u64::MAX, |router| router.finished() > finished)?;
        }
    }

    /// Passes over the links until `enough`, at least once, and at most for `timeout_us`.
    fn drive(
        &mut self,
        timeout_us: u64,
        enough: impl Fn(&Router) -> bool,
    ) -> Result<(), ClientError> {
        let mut now_us = self.connector.now_us();
        let until_us = now_us.saturating_add(timeout_us);
        let mut read_all = true;
        loop {
            let moved = self.pass(now_us, read_all);
            if let Some(error) = self.router.fatal() {
                return Err(error);
            }
            if enough(&self.router) || now_us >= until_us {
                return Ok(());
            }
            read_all = moved;
            if !moved {
                self.wait(now_us, until_us)?;
            }
            now_us = self.connector.now_us();
        }
    }

    fn wait(&mut self, now_us: u64, until_us: u64) -> Result<(), ClientError> {
        let timeout_us = self.router.next_wake_us().min(until_us).saturating_sub(now_us);
        self.connector.wait(&self.slots, timeout_us).map_err(ClientError::Wait)
    }

    /// Every link's turn, and then the clock's. `true` if anything moved. Reads from streams that
    /// are ready, or from all.
    fn pass(&mut self, now_us: u64, read_all: bool) -> bool {
        let mut moved = false;
        for index in 0..self.slots.len() {
            moved |= self.turn(index, now_us, read_all);
            if let Some(rewired) = self.router.take_rewired() {
                self.rewire(rewired);
                return true;
            }
        }
        self.router.tick(now_us);
        for index in 0..self.slots.len() {
            moved |= self.drop_stream(index);
        }
        moved
    }

    /// The stream of a link that is closed goes before anything is sent again elsewhere: a server may
    /// still write to memory that its connection reaches. `true` if there was one.
    fn drop_stream(&mut self, index: usize) -> bool {
        let is_closed = self.router.peers[index].link.is_closed();
        is_closed && std::mem::take(&mut self.slots[index]).stream.is_some()
    }

    /// One link: connect if it is time, write, read.
    fn turn(&mut self, index: usize, now_us: u64, read_all: bool) -> bool {
        let slot = &mut self.slots[index];
        if slot.stream.is_none() {
            let Some(address) = self.router.wants_connection(index, now_us) else { return false };
            match self.connector.connect(&address) {
                Ok(stream) => slot.stream = Some(stream),
                Err(error) => return self.router.lost(index, now_us, error.into()),
            }
            self.router.opened(index, now_us);
        }
        let Some(stream) = &mut slot.stream else { return false };
        let mut moved = self.router.write(index, stream, now_us);
        let link = &self.router.peers[index].link;
        slot.wants_write = link.is_blocked();
        if (read_all || slot.ready.get()) && !link.is_closed() {
            slot.ready.set(false);
            moved |= self.router.read(index, stream, now_us);
        }
        if !self.router.is_rewired() {
            self.drop_stream(index);
        }
        moved
    }

    fn rewire(&mut self, rewired: Rewired) {
        let kept = std::mem::take(&mut self.slots[rewired.from]);
        self.slots.clear();
        self.slots.resize_with(rewired.links, Slot::default);
        self.slots[rewired.to] = kept;
    }

    /// Readies `region` for the connections that are up, so that no operation pays for that: registers it
    /// with devices that are to reach it.
    ///
    /// # Errors
    /// It cannot be used over one of the connections; operations there would end with
    /// [`crate::Status::Memory`].
    pub fn register(&mut self, region: &Region) -> Result<(), ClientError> {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(stream) = &mut slot.stream else { continue };
            if self.router.peers[index].link.is_ready() {
                let failed = |source| ClientError::Region { reactor: index as u16, source };
                Reach::over(stream, region).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Takes `region` back at once, from operations of this pipeline that are under way or have timed out:
    /// ends the connections whose servers may still use it. Those operations that have not ended do now,
    /// with [`crate::Status::Cancelled`] (a store may or may not have happened); all others on these
    /// connections are sent again. `false`: another pipeline still holds some of it.
    pub fn reclaim(&mut self, region: &Region) -> bool {
        let now_us = self.connector.now_us();
        self.router.reclaim(region, now_us);
        for index in 0..self.slots.len() {
            self.drop_stream(index);
        }
        region.is_idle()
    }

    /// Gives the memory of a finished request back, for the answers to come.
    pub fn recycle(&mut self, done: Done) {
        self.router.recycle(done);
    }

    /// Requests whose [`Done`] has not been handed out.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.router.in_flight()
    }

    /// Commands that may be in flight over all links.
    #[must_use]
    pub fn window(&self) -> usize {
        self.router.window()
    }

    /// How many reactors the server has.
    #[must_use]
    pub fn reactors(&self) -> u16 {
        self.slots.len() as u16
    }

    /// The reactor that keeps the checkpoint catalog.
    #[must_use]
    pub fn catalog_reactor(&self) -> u16 {
        self.router.welcome().map_or(0, |welcome| welcome.catalog_reactor)
    }

    /// The server's pool.
    #[must_use]
    pub fn pool(&self) -> [u8; 16] {
        self.router.welcome().map_or([0; 16], |welcome| welcome.pool)
    }

    /// The largest value that one store takes, in bytes.
    #[must_use]
    pub fn value_bytes_max(&self) -> u32 {
        self.router.limits.value_bytes_max
    }

    /// The reactor that owns `key`.
    #[must_use]
    pub fn reactor_of(&self, namespace: NamespaceId, key: &[u8]) -> u16 {
        self.router.reactor_of(namespace.0, key) as u16
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> ClientCounters {
        self.router.counters()
    }

    /// The time by which this client's deadlines are kept, in microseconds.
    #[must_use]
    pub fn now_us(&mut self) -> u64 {
        self.connector.now_us()
    }
}

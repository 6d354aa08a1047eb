//! The client's side: connections over the queue pairs of one provider, each a stream of PDUs.
//!
//! A [`Line`] takes whole PDUs and gives bytes, and has memory that the server reaches, as a client of
//! shared memory has it. So everything above framing is shared with the byte streams.
//!
//! A caller's own region is offered to the server as it is, and nothing is copied on this side.
//!
//! Memory that was lent stays lent until it is taken back, or the queue pair is gone; only then is it used for something else. A line that is dropped takes its queue pair down first.

use super::chain::Chain;
use super::channel::{Channel, Reading};
use super::grants::Pool;
use super::greeting::Greeting;
use super::provider::{Event, LentRegion, Note, Provider, ProviderError, Qp, Shape};
use crate::client::{Lent, Memory, Reach, Stream};
use crate::pdu::{COMMON_HEADER_BYTES, CommonHeader, PduType};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::{Debug, Formatter};
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;

/// The smallest memory that is registered, in bytes: registering is slow.
const REGION_BYTES_MIN: usize = 64 << 10;

/// How a client's queue pairs are made.
#[must_use]
pub fn client_shape(queue_depth: u16) -> Shape {
    Shape {
        receives: queue_depth.saturating_add(16),
        receive_bytes: 16 << 10,
        reads: 16,
        remote_access: true,
        shared: false,
    }
}

/// The lines of one provider.
pub struct Hub<P: Provider>(Rc<RefCell<Shared<P>>>);

impl<P: Provider> Clone for Hub<P> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<P: Provider> Debug for Hub<P> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

struct Shared<P: Provider> {
    provider: P,
    shape: Shape,
    lines: Vec<Option<State<P>>>,
    chain: Chain<P::Buffer>,
    events: Vec<Event<P::Buffer>>,
    reading: Reading,
    /// Of nothing: a client's receives are its connections' own.
    pool: Pool,
    now_us: u64,
}

struct State<P: Provider> {
    qp: Qp,
    /// There once the connection is.
    channel: Option<Channel<P::Buffer>>,
    /// What has come and was not read.
    input: VecDeque<u8>,
    /// Bytes that still belong to the PDU whose beginning is in `input`.
    rest: usize,
    /// The beginning of a PDU that is still being written.
    partial: Vec<u8>,
    /// PDUs from before the connection was there.
    early: VecDeque<Vec<u8>>,
    /// What is lent: a few pieces, known by their keys.
    lent: Vec<P::Region>,
    /// Memory that is lent to nobody. It is of this connection's device.
    spare: Vec<P::Region>,
    closed: bool,
}

impl<P: Provider> Hub<P> {
    /// Connections are made with queue pairs of this `shape`.
    pub fn new(provider: P, shape: Shape) -> Self {
        Self(Rc::new(RefCell::new(Shared {
            provider,
            shape,
            lines: Vec::new(),
            chain: Chain::default(),
            events: Vec::new(),
            reading: Reading::default(),
            pool: Pool::new(0),
            now_us: 0,
        })))
    }

    /// Starts a connection.
    ///
    /// # Errors
    /// It could not even be started.
    pub fn connect(&self, address: SocketAddr) -> io::Result<Line<P>> {
        let mut shared = self.0.borrow_mut();
        let (shape, ask) = (shared.shape, Greeting::of(&shared.shape).note());
        let qp = shared.provider.connect(address, ask, shape).map_err(io_error)?;
        let state = State {
            qp,
            channel: None,
            input: VecDeque::new(),
            rest: 0,
            partial: Vec::new(),
            early: VecDeque::new(),
            lent: Vec::new(),
            spare: Vec::new(),
            closed: false,
        };
        let slot = shared.lines.iter().position(Option::is_none).unwrap_or(shared.lines.len());
        if slot == shared.lines.len() {
            shared.lines.push(None);
        }
        shared.lines[slot] = Some(state);
        Ok(Line { hub: self.clone(), slot })
    }

    /// Takes in what has happened on all lines, and sends what they have; `true` if anything moved.
    pub fn turn(&self, now_us: u64) -> bool {
        self.set_now_us(now_us);
        self.0.borrow_mut().turn()
    }

    /// The time that reads and writes of lines happen at from now on.
    pub fn set_now_us(&self, now_us: u64) {
        self.0.borrow_mut().now_us = now_us;
    }

    /// The provider, for what only it can do.
    pub fn with_provider<T>(&self, use_it: impl FnOnce(&mut P) -> T) -> T {
        use_it(&mut self.0.borrow_mut().provider)
    }

    /// Takes the provider out; all lines must have been dropped.
    #[must_use]
    pub fn into_provider(self) -> Option<P> {
        Rc::try_unwrap(self.0).ok().map(|shared| shared.into_inner().provider)
    }
}

fn io_error(error: ProviderError) -> io::Error {
    match error {
        ProviderError::System { source, .. } if source.raw_os_error().is_some() => {
            io::Error::new(source.kind(), source)
        }
        other => io::Error::other(other.to_string()),
    }
}

impl<P: Provider> Shared<P> {
    fn turn(&mut self) -> bool {
        let mut events = std::mem::take(&mut self.events);
        let mut moved = self.provider.poll(self.now_us, &mut events);
        for event in events.drain(..) {
            self.take(event);
        }
        self.events = events;
        for index in 0..self.lines.len() {
            moved |= self.pump(index);
        }
        moved
    }

    fn pump(&mut self, index: usize) -> bool {
        let Some(state) = self.lines[index].as_mut().filter(|state| !state.closed) else {
            return false;
        };
        let Some(channel) = &mut state.channel else { return false };
        channel.pump(&mut self.provider, &mut self.chain, &mut self.reading, usize::MAX)
    }

    fn line(&mut self, qp: Qp) -> Option<usize> {
        self.lines.iter().position(|line| line.as_ref().is_some_and(|state| state.qp == qp))
    }

    fn take(&mut self, event: Event<P::Buffer>) {
        match event {
            // A client offers its memory and reads none, and nobody connects to it.
            Event::Requested { request, .. } => self.provider.reject(request, Note::new(&[])),
            Event::Read { .. } | Event::Progress { .. } => {}
            Event::Established { qp, answer } => self.established(qp, &answer),
            Event::Received { qp, receive, length, immediate } => {
                self.received(qp, receive, length, immediate);
            }
            Event::Refused { qp, answer } => {
                if let Some(index) = self.line(qp) {
                    self.refused(index, &answer);
                }
            }
            Event::Disconnected { qp } | Event::Broken { qp, .. } => {
                if let Some(index) = self.line(qp) {
                    self.close(index);
                }
            }
        }
    }

    fn established(&mut self, qp: Qp, answer: &Note) {
        let Some(index) = self.line(qp) else { return };
        let Some(greeting) = Greeting::parse(answer) else { return self.close(index) };
        let shape = self.shape;
        let Some(state) = self.lines[index].as_mut() else { return };
        let mut channel = Channel::new(qp, &shape, greeting, 0);
        let message_bytes = channel.message_bytes();
        let fit = state
            .early
            .drain(..)
            .all(|pdu| pdu.len() <= message_bytes && channel.output.push_pdu(&pdu, message_bytes));
        state.channel = Some(channel);
        if !fit {
            self.close(index);
        }
    }

    /// The refusal carries a GOAWAY that says why, if the server is of this house.
    fn refused(&mut self, index: usize, answer: &Note) {
        let Some(state) = self.lines[index].as_mut() else { return };
        if let Ok(Some((PduType::GoAway, length))) = CommonHeader::peek(answer.bytes())
            && let Some(pdu) = answer.bytes().get(..length)
        {
            state.input.extend(pdu);
        }
        self.close(index);
    }

    fn received(&mut self, qp: Qp, receive: u16, length: u32, immediate: u32) {
        let Some(index) = self.line(qp) else { return };
        let Some(state) = self.lines[index].as_mut().filter(|state| !state.closed) else { return };
        let Some(channel) = &mut state.channel else { return self.close(index) };
        let heard = channel.hear(immediate, &mut self.pool);
        let message = self.provider.received(qp, receive, length);
        let taken = heard.is_ok() && state.take_in(message);
        self.provider.repost(qp, receive);
        if !taken {
            self.close(index);
        }
    }

    /// Nothing more moves on a line; what has come can still be read.
    fn close(&mut self, index: usize) {
        let Some(state) = self.lines[index].as_mut().filter(|state| !state.closed) else { return };
        state.closed = true;
        let qp = state.qp;
        self.provider.disconnect(qp);
        self.provider.break_off(qp);
    }

    /// The smallest spare memory of a line that holds `bytes`, or more of it.
    fn region(&mut self, index: usize, bytes: usize) -> Result<P::Region, ProviderError> {
        let state = self.lines[index].as_mut().ok_or(ProviderError::Gone)?;
        let fits = state.spare.iter().enumerate().filter(|(_, region)| region.len() >= bytes);
        match fits.min_by_key(|(_, region)| region.len()).map(|(index, _)| index) {
            Some(index) => Ok(state.spare.swap_remove(index)),
            None => {
                let bytes = bytes.max(REGION_BYTES_MIN).next_power_of_two();
                self.provider.region(state.qp, bytes)
            }
        }
    }
}

impl<P: Provider> State<P> {
    fn lent_region(&mut self, lent: Lent) -> Option<&mut P::Region> {
        self.lent.iter_mut().find(|region| region.key() == lent.key)
    }

    /// A message: PDUs' bytes. `false` if they cannot be.
    fn take_in(&mut self, message: &[u8]) -> bool {
        if self.rest > 0 || message.is_empty() {
            let count = message.len();
            self.input.extend(message);
            self.rest = self.rest.saturating_sub(count);
            return true;
        }
        let Ok(Some((_, length))) = CommonHeader::peek(message) else { return false };
        self.input.extend(message);
        self.rest = length.saturating_sub(message.len());
        message.len() <= length
    }
}

/// One connection. Dropping it ends it.
pub struct Line<P: Provider> {
    hub: Hub<P>,
    slot: usize,
}

impl<P: Provider> Debug for Line<P> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl<P: Provider> Drop for Line<P> {
    fn drop(&mut self) {
        let mut shared = self.hub.0.borrow_mut();
        let Some(state) = shared.lines[self.slot].take() else { return };
        shared.provider.disconnect(state.qp);
        shared.provider.release(state.qp, &mut |_, buffer| drop(buffer));
        // Nothing is written to what was lent any more; but the device may not have let go of it.
        state.lent.into_iter().chain(state.spare).for_each(|region| shared.provider.keep(region));
    }
}

impl<P: Provider> Line<P> {
    fn with<T>(&self, use_it: impl FnOnce(&mut State<P>) -> T) -> T {
        let mut shared = self.hub.0.borrow_mut();
        let state = shared.lines[self.slot].as_mut();
        use_it(state.expect("a line has its state until it is dropped"))
    }

    /// Nothing more comes.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.with(|state| state.closed)
    }

    /// A read finds something, or the end.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.with(|state| state.closed || !state.input.is_empty())
    }

    /// Everything that was written has been posted.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.with(|state| {
            state.early.is_empty() && state.channel.as_ref().is_none_or(Channel::is_empty)
        })
    }

    /// Queues a PDU; it leaves with the next [`Hub::turn`].
    ///
    /// # Errors
    /// The connection is over, or the server takes no PDU of that length.
    pub fn send(&self, pdu: &[u8]) -> io::Result<()> {
        self.with(|state| {
            if state.closed {
                return Err(ErrorKind::ConnectionReset.into());
            }
            let Some(channel) = &mut state.channel else {
                state.early.push_back(pdu.to_vec());
                return Ok(());
            };
            let message_bytes = channel.message_bytes();
            if pdu.len() > message_bytes {
                return Err(io::Error::new(
                    ErrorKind::InvalidInput,
                    "a PDU longer than the server takes: lower capsule_bytes",
                ));
            }
            let queued = channel.output.push_pdu(pdu, message_bytes);
            if queued { Ok(()) } else { Err(ErrorKind::WouldBlock.into()) }
        })
    }
}

impl<P: Provider> Stream for Line<P> {
    fn memory(&mut self) -> Option<&mut dyn Memory> {
        Some(self)
    }
}

/// Registered memory, in pieces of its own for each command.
impl<P: Provider> Memory for Line<P> {
    fn lend(&mut self, bytes: usize) -> Option<Lent> {
        let region = self.hub.0.borrow_mut().region(self.slot, bytes);
        let region =
            region.map_err(|error| log::error!("no memory for a command: {error}")).ok()?;
        let lent = Lent { address: region.address(), key: region.key(), bytes: bytes as u32 };
        self.with(|state| state.lent.push(region));
        Some(lent)
    }

    fn put(&mut self, lent: Lent, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= lent.bytes as usize, "more than was lent");
        self.with(|state| {
            state.lent_region(lent).into_iter().for_each(|region| region.write(offset, from));
        });
    }

    fn get(&self, lent: Lent, offset: usize, into: &mut [u8]) {
        assert!(offset + into.len() <= lent.bytes as usize, "more than was lent");
        self.with(|state| {
            state.lent_region(lent).into_iter().for_each(|region| region.read(offset, into));
        });
    }

    fn prefetch(&self, _: Lent, _: usize, _: usize) {}

    fn take_back(&mut self, lent: Lent) {
        self.with(|state| {
            let place = state.lent.iter().position(|region| region.key() == lent.key);
            state.spare.extend(place.map(|place| state.lent.swap_remove(place)));
        });
    }

    fn reach(&mut self, region: &crate::region::Region) -> io::Result<Reach> {
        let mut shared = self.hub.0.borrow_mut();
        let state = shared.lines[self.slot].as_ref();
        let qp = state.filter(|state| !state.closed).map(|state| state.qp);
        let qp = qp.ok_or(ErrorKind::ConnectionReset)?;
        shared.provider.offer(qp, region).map(Reach::Key).map_err(io::Error::other)
    }
}

impl<P: Provider> Read for Line<P> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.with(|state| state.input.is_empty() && !state.closed) {
            self.hub.0.borrow_mut().turn();
        }
        self.with(|state| match state.input.read(bytes) {
            Ok(0) if state.closed => Ok(0),
            Ok(0) => Err(ErrorKind::WouldBlock.into()),
            read => read,
        })
    }
}

impl<P: Provider> Write for Line<P> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut partial = self.with(|state| std::mem::take(&mut state.partial));
        partial.extend_from_slice(bytes);
        let mut start = 0;
        let mut outcome = Ok(bytes.len());
        while partial.len() - start >= COMMON_HEADER_BYTES {
            let header = CommonHeader::peek(&partial[start..]);
            let Ok(Some((_, length))) = header else {
                outcome = Err(io::Error::new(ErrorKind::InvalidData, "not a PDU"));
                break;
            };
            let Some(pdu) = partial.get(start..start + length) else { break };
            match self.send(pdu) {
                Ok(()) => start += length,
                // Kept, and sent with what is written next.
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        partial.drain(..start);
        self.with(|state| state.partial = partial);
        // One doorbell for all that was written at once.
        self.hub.0.borrow_mut().pump(self.slot);
        outcome
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

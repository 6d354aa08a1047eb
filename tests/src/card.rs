//! An RDMA network card that works only when it is told to, and the peer behind it: what a reactor costs
//! without the hardware.
//!
//! Guarantees: one connection; `post` and `poll` do the bookkeeping that a provider of real verbs has to
//! do (the ledger, one entry for each work request, the inline bytes) and nothing else; no byte of bulk
//! data moves; nothing is allocated once it is warm. What is left out: the system's libibverbs.

use forebay_fabric::rdma::{
    Chain, Ended, Event, Greeting, InFlight, Ledger, LentRegion, Limits, Note, Provider,
    ProviderError, Qp, Room, Shape, Work,
};
use forebay_fabric::region;
use forebay_nvme::Buffer;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;

/// As large as those of real verbs.
const LIMITS: Limits =
    Limits { works: 256, buffers: 512, pieces: 16, message_bytes: 1 << 30, send_bytes: 256 << 10 };
/// The one queue pair.
const QP: Qp = Qp { slot: 0, generation: 1 };
/// Receives of the peer, and bytes of each.
const PEER_RECEIVES: u16 = 256;
const PEER_RECEIVE_BYTES: u32 = 16 << 10;

/// A work request that the card has.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The bytes of a SEND: where they begin, and how many.
    sent: Option<(u32, u16)>,
    sequence: u32,
    signalled: bool,
}

/// Messages for the server, one behind the other.
#[derive(Debug, Default)]
struct Messages {
    bytes: Vec<u8>,
    all: Vec<Message>,
}

#[derive(Clone, Copy, Debug)]
struct Message {
    /// The receive that it is in.
    receive: u16,
    start: u32,
    length: u32,
    /// The number beside it.
    immediate: u32,
}

/// What lies between the card and its peer.
#[derive(Debug, Default)]
struct Line {
    asks: bool,
    accepted: bool,
    /// Receives that the server has posted.
    receives: VecDeque<u16>,
    arrived: Messages,
    entries: Vec<Entry>,
    /// The bytes of all sends.
    bytes: Vec<u8>,
    completed: Vec<u32>,
    /// Receives that the peer has ever posted.
    posted: u32,
}

/// The server's provider.
#[derive(Debug)]
pub struct Card {
    line: Rc<RefCell<Line>>,
    ledger: Ledger<Buffer>,
    /// Those that were polled last: the server looks at them before it polls again.
    messages: Messages,
    /// Where in their bytes what is in each receive lies.
    places: Vec<u32>,
    reposted: Vec<u16>,
    unheard: u32,
}

/// The client behind the card, and the card's own work.
#[derive(Debug)]
pub struct CardPeer(Rc<RefCell<Line>>);

/// A card, and a peer that asks for a connection.
#[must_use]
pub fn card() -> (Card, CardPeer) {
    let line =
        Rc::new(RefCell::new(Line { asks: true, posted: PEER_RECEIVES.into(), ..Line::default() }));
    let card = Card {
        line: Rc::clone(&line),
        ledger: Ledger::new(LIMITS.works, LIMITS.buffers, LIMITS.send_bytes),
        messages: Messages::default(),
        places: Vec::new(),
        reposted: Vec::new(),
        unheard: 0,
    };
    (card, CardPeer(line))
}

impl CardPeer {
    /// The connection is there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.0.borrow().accepted
    }

    /// Puts a PDU into one of the server's receives.
    ///
    /// # Panics
    /// When it has none: the peer has sent more than it may.
    pub fn send(&self, pdu: &[u8]) {
        let line = &mut *self.0.borrow_mut();
        let receive = line.receives.pop_front().expect("the peer keeps to its credits");
        let Messages { bytes, all } = &mut line.arrived;
        let (start, length) = (bytes.len() as u32, pdu.len() as u32);
        bytes.extend_from_slice(pdu);
        all.push(Message { receive, start, length, immediate: line.posted });
    }

    /// Does the card's work, and shows the messages that have come; those that only grant credits are
    /// empty.
    pub fn take(&self, mut message: impl FnMut(&[u8])) {
        let line = &mut *self.0.borrow_mut();
        for Entry { sent, sequence, signalled } in line.entries.drain(..) {
            if signalled {
                line.completed.push(sequence);
            }
            if let Some((start, length)) = sent {
                line.posted = line.posted.wrapping_add(1);
                message(&line.bytes[start as usize..][..length.into()]);
            }
        }
        line.bytes.clear();
    }
}

impl Card {
    fn complete(&mut self, sequence: u32, events: &mut Vec<Event<Buffer>>) {
        self.ledger.complete(sequence, true, |Ended { token, held, complete }| {
            events.push(Event::Read { qp: QP, token, buffer: held, complete });
        });
        if !matches!(events.last(), Some(Event::Progress { .. })) {
            events.push(Event::Progress { qp: QP });
        }
    }
}

impl Provider for Card {
    type Buffer = Buffer;
    type Region = NoRegion;

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn poll(&mut self, _now_us: u64, events: &mut Vec<Event<Buffer>>) -> bool {
        let before = events.len();
        let shared = Rc::clone(&self.line);
        let line = &mut *shared.borrow_mut();
        if std::mem::take(&mut line.asks) {
            let greeting =
                Greeting { receives: PEER_RECEIVES.into(), receive_bytes: PEER_RECEIVE_BYTES };
            events.push(Event::Requested { request: 0, ask: greeting.note(), reads: 16 });
        }
        self.messages.bytes.clear();
        std::mem::swap(&mut self.messages, &mut line.arrived);
        let Self { messages, places, .. } = self;
        events.extend(messages.all.drain(..).map(|message| {
            let Message { receive, start, length, immediate } = message;
            places[usize::from(receive)] = start;
            Event::Received { qp: QP, receive, length, immediate }
        }));
        line.completed.drain(..).for_each(|sequence| self.complete(sequence, events));
        events.len() > before
    }

    fn accept(&mut self, _: u32, _: Note, shape: Shape) -> Result<Qp, ProviderError> {
        self.places.resize(shape.receives.into(), 0);
        let mut line = self.line.borrow_mut();
        line.receives.extend(0..shape.receives);
        line.accepted = true;
        Ok(QP)
    }

    fn reject(&mut self, _: u32, _: Note) {
        unreachable!("there is room for one connection");
    }

    fn connect(&mut self, _: SocketAddr, _: Note, _: Shape) -> Result<Qp, ProviderError> {
        Err(ProviderError::Full)
    }

    fn received(&self, _: Qp, receive: u16, length: u32) -> &[u8] {
        &self.messages.bytes[self.places[usize::from(receive)] as usize..][..length as usize]
    }

    fn repost(&mut self, _: Qp, receive: u16) {
        self.reposted.push(receive);
    }

    fn ring_receives(&mut self, _: Qp) {
        self.line.borrow_mut().receives.extend(self.reposted.drain(..));
    }

    fn room(&self, _: Qp) -> Room {
        self.ledger.room()
    }

    fn in_flight(&self, _: Qp) -> usize {
        self.ledger.in_flight()
    }

    fn post(&mut self, qp: Qp, chain: &mut Chain<Buffer>) {
        self.ring_receives(qp);
        let line = &mut *self.line.borrow_mut();
        for buffer in chain.take_buffers() {
            self.ledger.hold(buffer);
        }
        let (mut left, start) = (chain.steps().len(), line.bytes.len());
        line.bytes.extend_from_slice(chain.bytes());
        line.entries.extend(chain.steps().iter().map(|step| {
            left -= 1;
            let signalled = step.is_signalled(left == 0, &mut self.unheard);
            let sent = match &step.work {
                Work::Send { bytes, .. } => {
                    Some(((start + bytes.start) as u32, bytes.len() as u16))
                }
                _ => None,
            };
            let in_flight =
                InFlight { releases: step.releases, ring_bytes: 0, token: step.token() };
            Entry { sent, sequence: self.ledger.post(in_flight), signalled }
        }));
        chain.clear();
    }

    fn disconnect(&mut self, _: Qp) {}

    fn break_off(&mut self, _: Qp) {
        panic!("the connection of a benchmark does not break");
    }

    fn is_drained(&self, _: Qp) -> bool {
        true
    }

    fn release(&mut self, _: Qp, ended: &mut dyn FnMut(u32, Buffer)) {
        self.ledger.give_up(|Ended { token, held, .. }| ended(token, held));
    }

    fn region(&mut self, _: Qp, _: usize) -> Result<NoRegion, ProviderError> {
        Err(ProviderError::Full)
    }

    fn offer(&mut self, _: Qp, _: &region::Region) -> Result<u32, ProviderError> {
        Err(ProviderError::Full)
    }
}

/// A server lends nothing.
#[derive(Debug)]
pub enum NoRegion {}

impl LentRegion for NoRegion {
    fn address(&self) -> u64 {
        match *self {}
    }

    fn key(&self) -> u32 {
        match *self {}
    }

    fn len(&self) -> usize {
        match *self {}
    }

    fn write(&mut self, _: usize, _: &[u8]) {
        match *self {}
    }

    fn read(&self, _: usize, _: &mut [u8]) {
        match *self {}
    }
}

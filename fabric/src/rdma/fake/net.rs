//! The simulated fabric: what lies between the queue pairs of several processes, and what goes wrong.
//!
//! The fault model. Messages of one queue pair arrive in order and once, or its connection breaks, as
//! on real hardware: loss, duplication and reordering of packets show as delay, and past the retries as
//! [`Violation::Silent`]. A queue pair may fail on its own, a connection may be cut, a process may die
//! with or without the other side hearing of it. A peer without a posted receive, or one that is slow
//! to say that it has one, makes the sender wait, and past the retries fail. A message of the connection
//! manager may be lost for good: who waits for an answer is then refused, late; who was to hear that
//! a connection is there, or over, never does.

use super::super::provider::{Limits, Note, Qp, Shape, Violation};
use crate::region::{Usage, WeakRegion};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;

/// Names one side of a connection in the whole fabric.
pub(super) type SideId = u32;
/// Names one process.
pub(super) type ProcessId = u32;

/// How unkind the fabric is. Chances are per million work requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeProfile {
    /// The longest time that a message or work request takes, in microseconds.
    pub delay_us: u64,
    /// Loses packets: the work request takes as long as a retransmission.
    pub loss: u32,
    /// Fails a queue pair.
    pub failure: u32,
    /// Cuts the connection.
    pub cut: u32,
    /// Lets the receiver say that it is not ready, though it is.
    pub not_ready: u32,
    /// Loses a message of the connection manager.
    pub mail_loss: u32,
    /// Retries before a sender gives up a peer that is silent, or (servers only) not ready.
    pub retries: u32,
}

impl FakeProfile {
    /// Nothing goes wrong.
    #[must_use]
    pub fn kind() -> Self {
        Self { delay_us: 50, loss: 0, failure: 0, cut: 0, not_ready: 0, mail_loss: 0, retries: 6 }
    }

    /// Packets are lost all the time, connections now and then.
    #[must_use]
    pub fn rough() -> Self {
        Self {
            delay_us: 400,
            loss: 50_000,
            failure: 1_000,
            cut: 1_000,
            not_ready: 50_000,
            mail_loss: 50_000,
            retries: 6,
        }
    }
}

/// How long a retransmission takes, and the wait for a receive, in microseconds.
pub(super) const RETRY_US: u64 = 300;
/// How long the connection manager waits for an answer that was lost, in microseconds.
const ANSWER_US: u64 = 20_000;

/// What the connection manager of a process has to tell.
#[derive(Debug)]
pub(super) enum Mail {
    Requested { from: SideId, ask: Note, reads: u8 },
    Accepted { side: SideId, answer: Note },
    Established { side: SideId },
    Refused { side: SideId, answer: Note },
    Disconnected { side: SideId },
}

/// A message that has taken a receive of its destination.
#[derive(Debug)]
pub(super) struct Arrived {
    pub due_us: u64,
    pub receive: u16,
    pub bytes: Vec<u8>,
    pub immediate: u32,
}

#[derive(Debug)]
pub(super) struct Side {
    pub process: ProcessId,
    pub qp: Qp,
    pub shape: Shape,
    pub peer: Option<SideId>,
    /// Receives that are posted.
    pub receives: VecDeque<u16>,
    pub arrived: VecDeque<Arrived>,
    /// It has failed; said once.
    pub failed: Option<Violation>,
    pub said: bool,
}

#[derive(Debug)]
pub(super) struct Memory {
    pub process: ProcessId,
    pub address: u64,
    pub bytes: Bytes,
}

/// What is behind a key.
#[derive(Clone, Debug)]
pub(super) enum Bytes {
    /// Memory of the simulation's.
    Own(Rc<RefCell<Vec<u8>>>),
    /// A caller's, so many bytes of it.
    Region(WeakRegion, usize),
}

impl Bytes {
    fn len(&self) -> usize {
        match self {
            Self::Own(bytes) => bytes.borrow().len(),
            Self::Region(_, bytes) => *bytes,
        }
    }

    /// What a WRITE does; `false` if it may not.
    pub(super) fn write(&self, at: usize, from: &[u8]) -> bool {
        match self {
            Self::Own(bytes) => bytes.borrow_mut()[at..at + from.len()].copy_from_slice(from),
            Self::Region(region, _) => {
                let may = region.usage().is_some_and(Usage::retrieves);
                return may && region.write(at, from);
            }
        }
        true
    }

    /// What a READ does; `false` if it may not.
    pub(super) fn read(&self, at: usize, into: &mut [u8]) -> bool {
        match self {
            Self::Own(bytes) => into.copy_from_slice(&bytes.borrow()[at..at + into.len()]),
            Self::Region(region, _) => {
                let may = region.usage().is_some_and(Usage::stores);
                return may && region.read(at, into);
            }
        }
        true
    }
}

#[derive(Debug)]
pub(super) struct Net {
    pub rng: fastrand::Rng,
    pub profile: FakeProfile,
    pub limits: Limits,
    pub now_us: u64,
    pub sides: BTreeMap<SideId, Side>,
    pub memory: BTreeMap<u32, Memory>,
    pub listeners: BTreeMap<SocketAddr, ProcessId>,
    /// Receives that the queue pairs of a process share, and that are posted.
    pub shared: BTreeMap<ProcessId, VecDeque<u16>>,
    /// Sends that found no receive.
    pub not_ready: u64,
    mail: BTreeMap<ProcessId, VecDeque<(u64, Mail)>>,
    next: u32,
}

impl Net {
    pub(super) fn new(seed: u64, profile: FakeProfile) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            profile,
            limits: super::LIMITS,
            now_us: 0,
            sides: BTreeMap::new(),
            memory: BTreeMap::new(),
            listeners: BTreeMap::new(),
            shared: BTreeMap::new(),
            not_ready: 0,
            mail: BTreeMap::new(),
            next: 1,
        }
    }

    pub(super) fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    pub(super) fn delay_us(&mut self) -> u64 {
        self.rng.u64(0..=self.profile.delay_us)
    }

    pub(super) fn happens(&mut self, per_million: u32) -> bool {
        per_million > 0 && self.rng.u32(..1_000_000) < per_million
    }

    pub(super) fn join(&mut self) -> ProcessId {
        let process = self.number();
        self.mail.insert(process, VecDeque::new());
        process
    }

    pub(super) fn post(&mut self, process: ProcessId, mail: Mail) {
        if self.happens(self.profile.mail_loss) {
            return self.lose(mail);
        }
        let due_us = self.now_us + self.delay_us();
        self.deliver(process, due_us, mail);
    }

    fn deliver(&mut self, process: ProcessId, due_us: u64, mail: Mail) {
        if let Some(mails) = self.mail.get_mut(&process) {
            mails.push_back((due_us, mail));
        }
    }

    /// Who waits for an answer gives up some day.
    fn lose(&mut self, mail: Mail) {
        let (Mail::Requested { from: side, .. }
        | Mail::Accepted { side, .. }
        | Mail::Refused { side, .. }) = mail
        else {
            return;
        };
        if let Some(process) = self.sides.get(&side).map(|found| found.process) {
            let due_us = self.now_us + ANSWER_US;
            self.deliver(process, due_us, Mail::Refused { side, answer: Note::new(&[]) });
        }
    }

    pub(super) fn next_mail(&mut self, process: ProcessId) -> Option<Mail> {
        let mails = self.mail.get_mut(&process)?;
        let due = mails.front().is_some_and(|(due_us, _)| *due_us <= self.now_us);
        if due { mails.pop_front().map(|(_, mail)| mail) } else { None }
    }

    pub(super) fn open(&mut self, process: ProcessId, qp: Qp, shape: Shape) -> SideId {
        let id = self.number();
        self.sides.insert(
            id,
            Side {
                process,
                qp,
                shape,
                peer: None,
                receives: if shape.shared {
                    VecDeque::new()
                } else {
                    (0..shape.receives).collect()
                },
                arrived: VecDeque::new(),
                failed: None,
                said: false,
            },
        );
        id
    }

    /// The other side of `side`, as long as it works.
    pub(super) fn peer_of(&mut self, side: SideId) -> Option<(SideId, &mut Side)> {
        let peer = self.sides.get(&side)?.peer?;
        let found = self.sides.get_mut(&peer)?;
        found.failed.is_none().then_some((peer, found))
    }

    /// A receive that is posted for `side`: its own, or one that its process shares.
    pub(super) fn take_receive(&mut self, side: SideId) -> Option<u16> {
        let found = self.sides.get_mut(&side)?;
        let taken = match found.shape.shared {
            true => self.shared.get_mut(&found.process)?.pop_front(),
            false => found.receives.pop_front(),
        };
        self.not_ready += u64::from(taken.is_none());
        taken
    }

    /// Forgets a side. What had arrived for it, and was not seen, is posted for others.
    pub(super) fn close(&mut self, side: SideId) {
        let Some(side) = self.sides.remove(&side) else { return };
        if let Some(shared) = self.shared.get_mut(&side.process).filter(|_| side.shape.shared) {
            shared.extend(side.arrived.iter().map(|message| message.receive));
        }
    }

    pub(super) fn fail(&mut self, side: SideId, why: Violation) {
        if let Some(side) = self.sides.get_mut(&side) {
            side.failed.get_or_insert(why);
        }
    }

    /// The other side hears that this one is over.
    pub(super) fn say_disconnected(&mut self, side: SideId) {
        let peer = self.sides.get(&side).and_then(|side| side.peer);
        if let Some((id, process)) = peer.and_then(|id| Some((id, self.sides.get(&id)?.process))) {
            // What a sender has heard the end of has arrived.
            let now_us = self.now_us;
            let arrived = self.sides.get_mut(&id).into_iter().flat_map(|side| &mut side.arrived);
            arrived.for_each(|message| message.due_us = now_us);
            self.post(process, Mail::Disconnected { side: id });
        }
    }

    /// Checks a key and a range of the memory of the process behind `peer`.
    pub(super) fn memory_of(
        &self,
        peer: SideId,
        key: u32,
        address: u64,
        length: usize,
    ) -> Option<(Bytes, usize)> {
        let side = self.sides.get(&peer)?;
        let memory = self.memory.get(&key)?;
        let start = usize::try_from(address.checked_sub(memory.address)?).ok()?;
        let end = start.checked_add(length)?;
        let allowed =
            side.shape.remote_access && memory.process == side.process && end <= memory.bytes.len();
        allowed.then(|| (memory.bytes.clone(), start))
    }

    /// A process dies. Unless the `power` is gone, its connections are taken down for it.
    pub(super) fn leave(&mut self, process: ProcessId, power: bool) {
        let sides: Vec<_> = self
            .sides
            .iter()
            .filter(|(_, side)| side.process == process)
            .map(|(id, _)| *id)
            .collect();
        for id in sides {
            if power {
                self.say_disconnected(id);
            }
            self.sides.remove(&id);
        }
        self.memory.retain(|_, memory| memory.process != process);
        self.listeners.retain(|_, listener| *listener != process);
        self.mail.remove(&process);
        self.shared.remove(&process);
    }
}

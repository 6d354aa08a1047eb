//! What passes between a controller and its queues, which live on different threads.
//!
//! Guarantees: a queue that sees its gate [`Gate::Open`] may use its rings; one that sees [`Gate::Stopped`]
//! knows that the controller does not touch memory any more, so that what was in flight is its own again. The
//! gate is one word that a queue loads once in each poll; everything rare goes by mail.
//!
//! ```text
//!            attach mail                      trouble                 the controller is quiet
//!  Stopped ─────────────► (queues made) Open ─────────► Closed ─────────────────────► Stopped, next epoch
//!                                        │                 │
//!                                        └── detach mail   └── given up ──► Gone
//!                                             └──► Gone
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam_channel::{Receiver, Sender};

use super::doorbell::Doorbell;
use super::error::{AdminError, Trouble};
use super::facts::Facts;
use super::{AdminReply, State};
use crate::spec::command::Submission;

/// How a queue stands with its controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// The controller has stopped, or has never known the queue: nothing of it is with the device.
    Stopped,
    /// The controller's side of the queue is there.
    Open,
    /// The controller is being stopped: submit nothing; the device may still touch memory.
    Closed,
    /// There is no controller for this queue any more, and the device does not touch its memory.
    Gone,
}

/// The gate of one queue.
#[derive(Debug, Default)]
pub(super) struct Link(AtomicU64);

/// A gate, and how often the controller has been stopped: two stops are two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(u64);

impl Word {
    pub(super) fn gate(self) -> Gate {
        match self.0 & 3 {
            0 => Gate::Stopped,
            1 => Gate::Open,
            2 => Gate::Closed,
            _ => Gate::Gone,
        }
    }

    pub(super) fn epoch(self) -> u64 {
        self.0 >> 2
    }
}

impl Link {
    #[inline]
    pub(super) fn load(&self) -> Word {
        Word(self.0.load(Ordering::Acquire))
    }

    /// Called by the controller only.
    pub(super) fn set(&self, gate: Gate) {
        let epoch = self.load().epoch() + u64::from(gate == Gate::Stopped);
        let bits = match gate {
            Gate::Stopped => 0,
            Gate::Open => 1,
            Gate::Closed => 2,
            Gate::Gone => 3,
        };
        self.0.store(epoch << 2 | bits, Ordering::Release);
    }
}

/// The controller's side of a queue is there.
#[derive(Debug)]
pub(super) struct Attached<R> {
    pub(super) registers: Arc<R>,
    pub(super) id: u16,
    pub(super) submission: Doorbell,
    pub(super) completion: Doorbell,
}

/// A queue asks for the controller's side of it.
#[derive(Debug)]
pub(super) struct Attach<R> {
    pub(super) link: Arc<Link>,
    /// The link's epoch when this was written: a later stop makes it void.
    pub(super) epoch: u64,
    pub(super) submission: Ring,
    pub(super) completion: Ring,
    pub(super) reply: Sender<Result<Attached<R>, AdminError>>,
}

/// Where a ring is, for the controller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    pub(super) iova: u64,
    pub(super) entries: u32,
}

/// From queues and tools to the controller.
#[derive(Debug)]
pub(super) enum Message<R> {
    Attach(Attach<R>),
    /// The queue ends. Its gate turns `Gone` when the device has forgotten it.
    Detach(Arc<Link>),
    /// A command is late.
    Abort {
        link: Arc<Link>,
        epoch: u64,
        cid: u16,
    },
    /// A command is still not back, or the controller breaks the protocol.
    Reset {
        link: Arc<Link>,
        epoch: u64,
        trouble: Trouble,
    },
    /// Somebody wants an admin command carried out.
    Admin {
        command: Submission,
        data: Data,
        reply: Sender<Result<AdminReply, AdminError>>,
    },
}

/// The data of an admin command.
#[derive(Debug)]
pub(super) enum Data {
    None,
    /// So many bytes come from the controller.
    In(usize),
    /// These go to it.
    Out(Vec<u8>),
}

/// What everybody may know of a controller.
pub(super) struct Shared<R> {
    pub(super) name: String,
    pub(super) facts: OnceLock<Facts>,
    state: AtomicU64,
    mail: Sender<Message<R>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl<R> Shared<R> {
    pub(super) fn new(
        name: String,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> (Arc<Self>, Receiver<Message<R>>) {
        let (mail, inbox) = crossbeam_channel::unbounded();
        let state = AtomicU64::new(State::Starting as u64);
        (Arc::new(Self { name, facts: OnceLock::new(), state, mail, wake }), inbox)
    }

    /// Writes to the controller. `false`: there is none any more.
    pub(super) fn send(&self, message: Message<R>) -> bool {
        let sent = self.mail.send(message).is_ok();
        (self.wake)();
        sent
    }

    pub(super) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Starting,
            1 => State::Ready,
            2 => State::Resetting,
            _ => State::Gone,
        }
    }

    pub(super) fn set_state(&self, state: State) {
        self.state.store(state as u64, Ordering::Release);
    }
}

impl<R> std::fmt::Debug for Shared<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({:?})", self.name, self.state())
    }
}

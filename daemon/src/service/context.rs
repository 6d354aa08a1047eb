//! What the commands of one reactor share.

use super::Chunks;
use super::batch::Batches;
use super::memory::Memory;
use super::serve::Refusal;
use super::serve::check_key;
use super::slots::{Origin, SlotIndex, Slots};
use crate::catalog::Table;
use crate::checkpoint;
use crate::counters::Counters;
use crate::executor::Ready;
use crate::reactor::mail::Letters;
use crate::reactor::{Core, Now, Phase};
use crate::store::Store;
use forebay_fabric::Status;
use forebay_fabric::server::{Counters as Counted, Reply};
use forebay_fabric::transport::Payload;
use forebay_nvme::{Buffer, DmaBuf};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// The checkpoint service over this daemon's storage.
pub(super) type Checkpoints = checkpoint::Service<Chunks>;

/// One thing for a server to do, at the end of the tick.
#[derive(Debug)]
pub enum Outgoing {
    /// End a command.
    Reply(Origin, Reply<Buffer>),
    /// End a batch, whose data lies in several buffers.
    Parts(Origin, Reply<Buffer>, Vec<Payload<Buffer>>),
    /// Bring the client's data.
    Pull(Origin, Buffer),
}

/// What a [`Context`] is set up with.
#[derive(Debug)]
pub struct Setup {
    /// The way to the other reactors.
    pub mailbox: Rc<Letters>,
    /// The namespaces of the pool.
    pub namespaces: Table,
    /// The checkpoint service, on the catalog's reactor.
    pub checkpoints: Option<Rc<Checkpoints>>,
    /// The reactor that has it.
    pub catalog_reactor: u16,
    /// How many listeners bring commands.
    pub listeners: usize,
    /// The most commands in flight on one connection.
    pub queue_depth: u16,
    /// The most commands in service at a time.
    pub slots: SlotIndex,
}

/// One reactor's engine and bookkeeping, as its commands see them.
#[derive(Debug)]
pub struct Context {
    /// The executor's ready queue.
    pub ready: Ready,
    /// The time of this tick.
    pub now: Rc<Cell<Now>>,
    /// This reactor's shards.
    pub store: Store,
    /// Buffers.
    pub memory: Memory,
    /// Commands in service.
    pub slots: Slots,
    /// Vectors for batches.
    pub(super) batches: Batches,
    /// What happened so far.
    pub counters: Counters,
    /// The way to the other reactors.
    pub mailbox: Rc<Letters>,
    /// The namespaces of the pool.
    pub namespaces: Table,
    /// The checkpoint service, on the catalog's reactor.
    pub checkpoints: Option<Rc<Checkpoints>>,
    /// The reactor that has it.
    pub catalog_reactor: u16,
    /// Where the reactor is on its way out.
    pub phase: Cell<Phase>,
    /// What each listener's server has counted, as of the last tick.
    pub listeners: Box<[Cell<Counted>]>,
    outgoing: RefCell<VecDeque<Outgoing>>,
}

impl Context {
    /// Sets up what the commands of the reactor with this `core` share.
    #[must_use]
    pub fn new(core: &Core, setup: Setup) -> Rc<Self> {
        let Setup { mailbox, namespaces, checkpoints, catalog_reactor, .. } = setup;
        let Setup { listeners, queue_depth, slots, .. } = setup;
        let (ready, now, store) = (core.ready.clone(), core.now.clone(), core.store.clone());
        namespaces.install(&store.context().namespaces);
        let memory = Memory::new(&ready, core.memory.clone(), now.clone(), slots.into());
        let slots = Slots::new(&ready, slots, listeners, queue_depth);
        let outgoing = RefCell::new(VecDeque::with_capacity(2 * slots.count()));
        let phase = Cell::new(Phase::Serving);
        let listeners = (0..listeners).map(|_| Cell::default()).collect();
        let (batches, counters) = (Batches::new(queue_depth.into()), Counters::default());
        Rc::new(Self {
            ready,
            now,
            store,
            memory,
            slots,
            batches,
            counters,
            mailbox,
            namespaces,
            checkpoints,
            catalog_reactor,
            phase,
            listeners,
            outgoing,
        })
    }

    /// Frees slot `at` and sends its reply.
    pub fn finish(&self, at: SlotIndex, reply: Reply<Buffer>) {
        self.counters.reply(reply.status);
        let origin = self.slots.give_back(at);
        self.outgoing.borrow_mut().push_back(Outgoing::Reply(origin, reply));
    }

    /// Frees slot `at` and sends the reply of its batch.
    pub fn finish_parts(&self, at: SlotIndex, reply: Reply<Buffer>, parts: Vec<Payload<Buffer>>) {
        self.counters.reply(reply.status);
        let origin = self.slots.give_back(at);
        self.outgoing.borrow_mut().push_back(Outgoing::Parts(origin, reply, parts));
    }

    /// Takes back the vector of a batch's data once it has been handed on.
    pub fn sent(&self, parts: Vec<Payload<Buffer>>) {
        self.batches.give_back_parts(parts);
    }

    /// Answers a command that got no slot.
    pub fn answer(&self, origin: Origin, reply: Reply<Buffer>) {
        self.counters.reply(reply.status);
        self.outgoing.borrow_mut().push_back(Outgoing::Reply(origin, reply));
    }

    /// Refuses a command that got no slot.
    pub fn refuse(&self, origin: Origin, refusal: Refusal) {
        let Refusal { status, result } = refusal;
        self.answer(origin, Reply::status(status, result));
    }

    /// Has the client's data brought into `buffer`; the polled task waits for it.
    pub fn pull(&self, at: SlotIndex, buffer: DmaBuf) {
        let origin = self.slots.pulling(at);
        self.outgoing.borrow_mut().push_back(Outgoing::Pull(origin, buffer.into()));
    }

    /// Hands on what there is for servers to do, in order; `true` if there was anything. `each` adds nothing to it.
    pub fn deliver(&self, mut each: impl FnMut(Outgoing)) -> bool {
        let mut outgoing = self.outgoing.borrow_mut();
        let any = !outgoing.is_empty();
        for one in outgoing.drain(..) {
            each(one);
        }
        any
    }

    /// Why an operation on `key` did not begin: a key of another reactor's is refused with its number.
    pub fn refusal(&self, namespace: u32, key: &[u8], status: Status) -> Refusal {
        let owner = match status {
            Status::WrongReactor => self.store.owns(namespace, key).err(),
            _ => None,
        };
        Refusal { status, result: owner.unwrap_or_default().into() }
    }

    /// May `key` of `namespace` be asked for here?
    ///
    /// # Errors
    /// Its length is impossible, or another reactor owns it.
    pub fn check(&self, namespace: u32, key: &[u8]) -> Result<(), Refusal> {
        check_key(key)?;
        let elsewhere = |owner: u16| Refusal { status: Status::WrongReactor, result: owner.into() };
        self.store.owns(namespace, key).map_err(elsewhere)
    }
}

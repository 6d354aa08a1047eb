//! The service: what joins the fabric to the store, one command at a time.
//!
//! [`Door`] is where the fabric's server knocks: it copies a command into a slot of [`slots`] and
//! starts its task. [`serve`] carries out single commands, [`batch`] batches, [`control`] what is not
//! on the data path, [`chunks`] is the storage of the checkpoint service. What a task makes goes out
//! through the [`Context`]'s outgoing queue at the end of the tick.
//!
//! Guarantees: a command allocates nothing (its slot, its task and its memory are there before it
//! comes) except on the control path; one that cannot be taken is answered `Busy` at once.

mod batch;
mod chunks;
mod context;
mod control;
mod local;
mod memory;
mod report;
mod serve;
mod slots;

pub use chunks::Chunks;
pub use context::{Context, Outgoing, Setup};
pub use control::{checkpoint_sweep, checkpoint_upkeep};
pub use local::answer;
pub use report::namespace;
pub use slots::{Origin, SlotIndex};

use crate::executor::{TaskId, Tasks};
use crate::store::{Looked, Wanted};
use forebay_fabric::Status;
use forebay_fabric::pdu::{Capsule, Opcode};
use forebay_fabric::server::{RequestId, Service};
use forebay_nvme::Buffer;
use serve::Refusal;
use std::future::Future;
use std::rc::Rc;

/// The set of the tasks that carry out commands.
const COMMAND_SET: u8 = 0;

/// The running commands of one reactor. Hides the name of their future's type, which has none.
pub trait Commands {
    /// Starts the command in slot `at`.
    fn start(&mut self, at: SlotIndex);

    /// Polls `task`, if it is one of these.
    fn run(&mut self, task: TaskId);
}

/// A single retrieve is no task: [`serve::advance_retrieve`] is all of it.
struct CommandTasks<F> {
    cx: Rc<Context>,
    tasks: Tasks<F>,
}

impl<F: Future<Output = ()>> Commands for CommandTasks<F> {
    fn start(&mut self, at: SlotIndex) {
        if !serve::advance_retrieve(&self.cx, at, self.tasks.id(at.into())) {
            self.tasks.wake(at.into());
        }
    }

    fn run(&mut self, task: TaskId) {
        let at = self.tasks.slot(task).expect("a task of a set that does not exist");
        if !serve::advance_retrieve(&self.cx, at as SlotIndex, task) {
            self.tasks.run(task);
        }
    }
}

/// A task for each of the slots of `cx`. It stays, and serves one command of its slot after the other: to
/// make one for each command would be to move it around, which costs more than most of what it does.
#[must_use]
pub fn commands(cx: &Rc<Context>) -> Box<dyn Commands> {
    let count = cx.slots.count();
    let mut tasks = Tasks::new(&cx.ready, COMMAND_SET, count);
    for at in 0..count as SlotIndex {
        assert!(tasks.spawn(serve::attend(cx.clone(), at)), "there are as many tasks as slots");
    }
    Box::new(CommandTasks { cx: cx.clone(), tasks })
}

/// Where one listener's server brings its commands.
pub struct Door<'a> {
    /// What commands share.
    pub cx: &'a Context,
    /// Those that run.
    pub commands: &'a mut dyn Commands,
    /// The listener's number.
    pub listener: u8,
}

impl std::fmt::Debug for Door<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Door<'_> {
    fn origin(&self, id: RequestId) -> Origin {
        Origin { listener: self.listener, id }
    }

    /// Gives a command a slot, if it is not answered at once.
    fn take(
        &self,
        origin: Origin,
        opcode: Opcode,
        capsule: &Capsule<'_>,
        deadline_us: u64,
    ) -> Result<Option<SlotIndex>, Refusal> {
        let cx = self.cx;
        if cx.slots.are_taken() {
            return Err(Status::Busy.into());
        }
        if serve::is_single_retrieve(opcode, capsule) {
            let wanted = serve::wanted(opcode, capsule.command, capsule.keys)?;
            match self.retrieve(origin, &wanted) {
                Ok(Taken::Not) => {}
                Ok(Taken::Answered) => return Ok(None),
                Ok(Taken::Slot(at)) => return Ok(Some(at)),
                Err(status) => return Err(cx.refusal(wanted.namespace, wanted.key, status)),
            }
        }
        let alloc = |bytes| cx.memory.pool().alloc(bytes);
        let at = cx.slots.take(origin, opcode, capsule, deadline_us, alloc)?;
        cx.counters.bytes_copied.add(capsule.data.len() as u64);
        Ok(Some(at))
    }

    /// Answers a single retrieve at once, if it is in memory; or begins to read as soon as it has come: all that
    /// it then waits for are its reads, and that takes no task.
    fn retrieve(&self, origin: Origin, wanted: &Wanted<'_>) -> Result<Taken, Status> {
        let cx = self.cx;
        match cx.store.look(wanted)? {
            Looked::Found(fragment) => {
                cx.answer(origin, serve::retrieved(cx, fragment));
                Ok(Taken::Answered)
            }
            Looked::Elsewhere(hash) => {
                let pending = cx.store.read(wanted, hash)?;
                if !pending.is_under_way() {
                    return Ok(Taken::Not);
                }
                cx.slots.take_for_retrieve(origin, pending).map(Taken::Slot)
            }
        }
    }
}

/// What has become of a retrieve.
enum Taken {
    /// It is answered.
    Answered,
    /// It has this slot, and is being read.
    Slot(SlotIndex),
    /// It could not begin.
    Not,
}

impl Service<Buffer> for Door<'_> {
    fn request(&mut self, id: RequestId, capsule: &Capsule<'_>, deadline_us: u64) {
        let cx = self.cx;
        cx.counters.command(capsule.command.opcode);
        let origin = self.origin(id);
        let Some(opcode) = capsule.opcode else {
            return cx.refuse(origin, Status::Unsupported.into());
        };
        match self.take(origin, opcode, capsule, deadline_us) {
            Ok(Some(at)) => self.commands.start(at),
            Ok(None) => {}
            Err(refusal) => cx.refuse(origin, refusal),
        }
    }

    fn pulled(&mut self, id: RequestId, buffer: Buffer, complete: bool) {
        let buffer = buffer.into_own().expect("a pull goes to memory of its own");
        let at = self.cx.slots.find(self.origin(id));
        let at = at.expect("a command stays in its slot until its data has come or gone");
        self.cx.slots.pulled(at, buffer, complete);
    }

    fn abandoned(&mut self, id: RequestId, why: Status) {
        log::debug!("a command was abandoned: {why}");
        if let Some(at) = self.cx.slots.find(self.origin(id)) {
            self.cx.slots.at(at).borrow_mut().abandoned = true;
        }
    }
}

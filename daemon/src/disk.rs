//! Device I/O as futures: one reactor's block queues behind `read`, `write` and `flush`.
//!
//! An [`Io`] is submitted when it is made, so that several can be under way before the first is
//! awaited: that is all the concurrency a task needs. Whatever happens to the `Io`, the buffer stays
//! with the queue until the device is done with it.

use crate::executor::{Ready, TaskId};
use forebay_nvme::{BlockError, BlockQueue, Completion, DmaBuf, Geometry, Operation, Request};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// How many completions one poll takes from one queue.
const REAP_BUDGET: usize = 128;

/// What an [`Io`] ends with: how it went, and the buffer back if there was one.
pub type Outcome = (Result<(), BlockError>, Option<DmaBuf>);

/// One reactor's queues, one on every device of the pool.
#[derive(Clone)]
pub struct Disk(Rc<Shared>);

struct Shared {
    ready: Ready,
    state: RefCell<State>,
}

struct State {
    queues: Vec<Queue>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    completions: Vec<Completion>,
}

struct Queue {
    block: Box<dyn BlockQueue>,
    backlog: VecDeque<Request>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    waiter: Option<TaskId>,
    outcome: Option<Outcome>,
    abandoned: bool,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("in_flight", &self.in_flight()).finish()
    }
}

impl Disk {
    /// Takes the queues, in the order of the pool's devices.
    #[must_use]
    pub fn new(ready: &Ready, queues: Vec<Box<dyn BlockQueue>>) -> Self {
        let depth: usize = queues.iter().map(|queue| queue.geometry().depth as usize).sum();
        let queues = queues
            .into_iter()
            .map(|block| Queue { block, backlog: VecDeque::with_capacity(depth) })
            .collect();
        let state = State {
            queues,
            slots: Vec::with_capacity(4 * depth),
            free: Vec::with_capacity(4 * depth),
            completions: Vec::with_capacity(REAP_BUDGET),
        };
        Self(Rc::new(Shared { ready: ready.clone(), state: RefCell::new(state) }))
    }

    /// What device `device` is.
    #[must_use]
    pub fn geometry(&self, device: usize) -> Geometry {
        self.0.state.borrow().queues[device].block.geometry()
    }

    /// How many devices there are.
    #[must_use]
    pub fn devices(&self) -> usize {
        self.0.state.borrow().queues.len()
    }

    /// Starts a read of `blocks` blocks from `block` on into the beginning of `buffer`.
    pub fn read(&self, device: usize, block: u64, blocks: u32, buffer: DmaBuf) -> Io {
        self.start(device, Operation::Read { block, blocks, buffer })
    }

    /// Starts a write of the first `blocks` blocks of `buffer` at `block`.
    pub fn write(&self, device: usize, block: u64, blocks: u32, buffer: DmaBuf, fua: bool) -> Io {
        self.start(device, Operation::Write { block, blocks, buffer, fua })
    }

    /// Starts a flush.
    pub fn flush(&self, device: usize) -> Io {
        self.start(device, Operation::Flush)
    }

    /// Starts a discard.
    pub fn discard(&self, device: usize, block: u64, blocks: u64) -> Io {
        self.start(device, Operation::Discard { block, blocks })
    }

    fn start(&self, device: usize, operation: Operation) -> Io {
        let state = &mut *self.0.state.borrow_mut();
        let slot = state.free.pop().unwrap_or_else(|| {
            state.slots.push(Slot::default());
            state.slots.len() as u32 - 1
        });
        let tag = u64::from(state.slots[slot as usize].generation) << 32 | u64::from(slot);
        let queue = &mut state.queues[device];
        let request = Request { tag, operation };
        // Behind a backlog nobody overtakes: requests reach the device in their order.
        let refused = if queue.backlog.is_empty() {
            queue.block.submit(request).err()
        } else {
            Some(request)
        };
        queue.backlog.extend(refused);
        Io { disk: self.clone(), slot, finished: false }
    }

    /// Rings the doorbells and takes what has completed; wakes its tasks. `true` if there was any.
    pub fn poll(&self, now_us: u64) -> bool {
        let state = &mut *self.0.state.borrow_mut();
        let mut reaped = false;
        for queue in &mut state.queues {
            queue.block.poll(now_us, &mut state.completions);
            reaped |= !state.completions.is_empty();
            for completion in state.completions.drain(..) {
                finish(&mut state.slots, &mut state.free, completion, &self.0.ready);
            }
            while let Some(request) = queue.backlog.pop_front() {
                if let Err(request) = queue.block.submit(request) {
                    queue.backlog.push_front(request);
                    break;
                }
            }
        }
        reaped
    }

    /// How many requests have not ended.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        let state = self.0.state.borrow();
        state.queues.iter().map(|queue| queue.block.in_flight() + queue.backlog.len()).sum()
    }

    /// Calls `visit` with every descriptor that turns readable when a completion waits. `false` if a
    /// queue with requests in flight has none, and so has to be polled.
    pub fn wait_fds(&self, mut visit: impl FnMut(std::os::fd::BorrowedFd<'_>)) -> bool {
        let state = self.0.state.borrow();
        let mut can_sleep = true;
        for queue in &state.queues {
            match queue.block.wait_fd() {
                Some(fd) => visit(fd),
                None => can_sleep &= queue.block.in_flight() == 0,
            }
        }
        can_sleep
    }
}

fn finish(slots: &mut [Slot], free: &mut Vec<u32>, completion: Completion, ready: &Ready) {
    let index = completion.tag as u32;
    let slot = &mut slots[index as usize];
    assert_eq!(
        slot.generation,
        (completion.tag >> 32) as u32,
        "a block queue completed a request twice"
    );
    slot.generation = slot.generation.wrapping_add(1);
    if slot.abandoned {
        slot.abandoned = false;
        free.push(index);
        return;
    }
    slot.outcome = Some((completion.result, completion.buffer));
    if let Some(task) = slot.waiter.take() {
        ready.wake(task);
    }
}

/// A request under way. Dropped before its end it goes on by itself and its buffer returns to the
/// pool when the device lets go of it.
#[derive(Debug)]
#[must_use = "await it, or the outcome is lost"]
pub struct Io {
    disk: Disk,
    slot: u32,
    finished: bool,
}

impl Io {
    /// Has it ended? If not, the polled task is woken when it does.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let slot = &mut self.disk.0.state.borrow_mut().slots[self.slot as usize];
        if slot.outcome.is_none() {
            slot.waiter = Some(self.disk.0.ready.current());
        }
        slot.outcome.is_some()
    }

    /// Takes the outcome, if it has ended, which frees the slot.
    #[must_use]
    pub fn take(&mut self) -> Option<Outcome> {
        let state = &mut *self.disk.0.state.borrow_mut();
        let outcome = state.slots[self.slot as usize].outcome.take()?;
        state.free.push(self.slot);
        self.finished = true;
        Some(outcome)
    }
}

impl Future for Io {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Outcome> {
        match self.is_done() {
            true => self.take().map_or(Poll::Pending, Poll::Ready),
            false => Poll::Pending,
        }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let state = &mut *self.disk.0.state.borrow_mut();
        let slot = &mut state.slots[self.slot as usize];
        slot.waiter = None;
        if slot.outcome.take().is_some() {
            state.free.push(self.slot);
        } else {
            slot.abandoned = true;
        }
    }
}

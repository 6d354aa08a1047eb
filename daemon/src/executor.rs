//! A small single-threaded executor: FIFO, preallocated, and the same run for the same inputs.
//!
//! Tasks are futures of one type in fixed slots, so that starting one allocates nothing. There are
//! no `std::task::Waker`s: everything that a task can wait for lives in its own reactor, so a
//! future that has to wait takes note of [`Ready::current`], and whoever ends the wait calls
//! [`Ready::wake`]. That is a push on a ring, without atomics, and the order of polls is the order
//! of wakes: a simulation replays exactly.
//!
//! What would break it: a future that returns `Pending` without having arranged a wake sleeps for
//! ever. A spurious wake is harmless; every future here checks its condition again.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Names a task of a reactor: the set it lives in, and its slot there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskId(u32);

impl TaskId {
    const SET_SHIFT: u32 = 24;

    fn new(set: u8, slot: usize) -> Self {
        Self((u32::from(set) << Self::SET_SHIFT) | slot as u32)
    }

    fn set(self) -> u8 {
        (self.0 >> Self::SET_SHIFT) as u8
    }

    fn slot(self) -> usize {
        (self.0 & ((1 << Self::SET_SHIFT) - 1)) as usize
    }
}

/// The ready queue of one reactor, shared by everything that runs in it.
#[derive(Clone, Debug)]
pub struct Ready(Rc<ReadyState>);

#[derive(Debug)]
struct ReadyState {
    current: Cell<Option<TaskId>>,
    queue: RefCell<VecDeque<TaskId>>,
    next_turn: RefCell<VecDeque<TaskId>>,
}

impl Ready {
    /// A queue with room for `capacity` wakes before it has to grow.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let queue = RefCell::new(VecDeque::with_capacity(capacity));
        let next_turn = RefCell::new(VecDeque::with_capacity(64));
        Self(Rc::new(ReadyState { current: Cell::new(None), queue, next_turn }))
    }

    /// The task that is being polled.
    ///
    /// # Panics
    /// Outside of a poll: only futures that run in a [`Tasks`] may wait.
    #[must_use]
    pub fn current(&self) -> TaskId {
        self.0.current.get().expect("a future of the engine was polled outside of its executor")
    }

    /// Does `what` as `task`: whatever it has to wait for wakes that task.
    pub fn as_task<T>(&self, task: TaskId, what: impl FnOnce() -> T) -> T {
        let before = self.0.current.replace(Some(task));
        let done = what();
        self.0.current.set(before);
        done
    }

    /// Makes `task` run again, after all that is ready already.
    pub fn wake(&self, task: TaskId) {
        self.0.queue.borrow_mut().push_back(task);
    }

    /// Takes the next task to run.
    #[must_use]
    pub fn next(&self) -> Option<TaskId> {
        self.0.queue.borrow_mut().pop_front()
    }

    /// Lets the reactor look at its network and its devices first: the task goes on in the next turn.
    pub async fn pass(&self) {
        let mut passed = false;
        std::future::poll_fn(|_| {
            if std::mem::replace(&mut passed, true) {
                return Poll::Ready(());
            }
            self.0.next_turn.borrow_mut().push_back(self.current());
            Poll::Pending
        })
        .await;
    }

    /// A new turn of the reactor: those who passed are ready again.
    pub fn turn(&self) {
        self.0.queue.borrow_mut().extend(self.0.next_turn.borrow_mut().drain(..));
    }

    /// Nothing is ready to run, now or in the next turn.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.queue.borrow().is_empty() && self.0.next_turn.borrow().is_empty()
    }
}

/// A fixed number of slots for futures of one type.
pub struct Tasks<F> {
    ready: Ready,
    set: u8,
    slots: Vec<Pin<Box<Option<F>>>>,
    free: Vec<usize>,
}

impl<F> fmt::Debug for Tasks<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running = self.slots.len() - self.free.len();
        f.debug_struct("Tasks").field("set", &self.set).field("running", &running).finish()
    }
}

impl<F: Future<Output = ()>> Tasks<F> {
    /// `capacity` slots; `set` tells this set's tasks from those of the reactor's other sets.
    ///
    /// # Panics
    /// `capacity` of 2²⁴ or more.
    #[must_use]
    pub fn new(ready: &Ready, set: u8, capacity: usize) -> Self {
        assert!(capacity < 1 << TaskId::SET_SHIFT, "too many tasks for a task id");
        let slots = (0..capacity).map(|_| Box::pin(None)).collect();
        Self { ready: ready.clone(), set, slots, free: (0..capacity).rev().collect() }
    }

    /// Puts `future` in a free slot, to be polled when its turn comes. `false`: all slots are taken
    /// (and the future was dropped).
    #[must_use]
    pub fn spawn(&mut self, future: F) -> bool {
        let Some(slot) = self.free.pop() else { return false };
        self.slots[slot].as_mut().set(Some(future));
        self.ready.wake(TaskId::new(self.set, slot));
        true
    }

    /// The name of the task in `slot`.
    #[must_use]
    pub fn id(&self, slot: usize) -> TaskId {
        TaskId::new(self.set, slot)
    }

    /// The slot of `task`, if it is of this set.
    #[must_use]
    pub fn slot(&self, task: TaskId) -> Option<usize> {
        (task.set() == self.set).then(|| task.slot())
    }

    /// Makes the task in `slot` run again, if it still does.
    pub fn wake(&self, slot: usize) {
        self.ready.wake(self.id(slot));
    }

    /// Polls `task` if it is one of this set's and still runs; `false` if it belongs to another set.
    pub fn run(&mut self, task: TaskId) -> bool {
        if task.set() != self.set {
            return false;
        }
        let slot = &mut self.slots[task.slot()];
        let Some(future) = slot.as_mut().as_pin_mut() else { return true };
        let poll =
            self.ready.as_task(task, || future.poll(&mut Context::from_waker(Waker::noop())));
        if poll.is_ready() {
            slot.as_mut().set(None);
            self.free.push(task.slot());
        }
        true
    }

    /// How many tasks are running.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// No task is running.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Every slot is taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }
}

/// Tasks that wait for the same thing. Waiters are woken in the order in which they came.
#[derive(Debug, Default)]
pub struct Waiters(RefCell<VecDeque<TaskId>>);

impl Waiters {
    /// Room for `capacity` waiters before it has to grow.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self(RefCell::new(VecDeque::with_capacity(capacity)))
    }

    /// Wakes every waiter.
    pub fn wake_all(&self, ready: &Ready) {
        for task in self.0.borrow_mut().drain(..) {
            ready.wake(task);
        }
    }

    /// Nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Waits until `condition` gives something; it is asked again after each wake.
    pub async fn until<T>(&self, ready: &Ready, mut condition: impl FnMut() -> Option<T>) -> T {
        std::future::poll_fn(move |_| match condition() {
            Some(value) => Poll::Ready(value),
            None => {
                self.0.borrow_mut().push_back(ready.current());
                Poll::Pending
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ready: &Ready, tasks: &mut Tasks<Pin<Box<dyn Future<Output = ()>>>>) {
        while let Some(task) = ready.next() {
            tasks.run(task);
        }
    }

    #[test]
    fn tasks_run_in_the_order_of_their_wakes() {
        let ready = Ready::new(8);
        let mut tasks: Tasks<Pin<Box<dyn Future<Output = ()>>>> = Tasks::new(&ready, 0, 8);
        let (gate, open) = (Rc::new(Waiters::new(4)), Rc::new(Cell::new(false)));
        let order = Rc::new(RefCell::new(Vec::new()));
        for n in 0..3 {
            let (gate, open, order, ready) =
                (gate.clone(), open.clone(), order.clone(), ready.clone());
            assert!(tasks.spawn(Box::pin(async move {
                gate.until(&ready, || open.get().then_some(())).await;
                order.borrow_mut().push(n);
            })));
        }
        run(&ready, &mut tasks);
        assert!(order.borrow().is_empty());
        open.set(true);
        gate.wake_all(&ready);
        run(&ready, &mut tasks);
        assert_eq!(*order.borrow(), [0, 1, 2]);
        assert!(tasks.is_empty());
    }

    #[test]
    fn a_task_that_passes_goes_on_in_the_next_turn() {
        let ready = Ready::new(8);
        let mut tasks: Tasks<Pin<Box<dyn Future<Output = ()>>>> = Tasks::new(&ready, 0, 8);
        let passing = ready.clone();
        assert!(tasks.spawn(Box::pin(async move { passing.pass().await })));
        run(&ready, &mut tasks);
        assert!(!tasks.is_empty() && !ready.is_empty(), "it waits for the next turn");
        ready.turn();
        run(&ready, &mut tasks);
        assert!(tasks.is_empty());
    }

    #[test]
    fn a_full_set_refuses_a_task_and_takes_one_again_when_a_slot_is_free() {
        let ready = Ready::new(8);
        let mut tasks = Tasks::new(&ready, 0, 1);
        assert!(tasks.spawn(std::future::ready(())));
        assert!(!tasks.spawn(std::future::ready(())));
        let task = ready.next().expect("the first task is ready");
        assert!(tasks.run(task));
        assert!(tasks.spawn(std::future::ready(())));
    }

    #[test]
    fn a_late_wake_of_a_finished_task_is_harmless() {
        let ready = Ready::new(8);
        let mut tasks = Tasks::new(&ready, 3, 1);
        assert!(tasks.spawn(std::future::ready(())));
        let task = ready.next().expect("the task is ready");
        assert!(tasks.run(task));
        assert!(tasks.run(task));
        assert!(!Tasks::<std::future::Ready<()>>::new(&ready, 2, 1).run(task));
    }
}

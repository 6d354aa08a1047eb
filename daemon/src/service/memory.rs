//! Memory for commands: taken from the reactor's pool, waited for in turn when there is none.
//!
//! Guarantees: waiting is bounded by the command's deadline and by [`MEMORY_WAIT_US`], after which
//! the answer is `Busy` and the client comes again; the reactor is never blocked by it.

use crate::executor::{Ready, Waiters};
use crate::reactor::Now;
use forebay_fabric::Status;
use forebay_nvme::{DmaBuf, Pool};
use std::cell::Cell;
use std::rc::Rc;

/// The longest that a command waits for memory, in microseconds.
pub(super) const MEMORY_WAIT_US: u64 = 200_000;
/// How often a waiter looks at the clock, in microseconds.
const LOOK_US: u64 = 1_000;

/// The reactor's pool, and the tasks that wait for it.
#[derive(Debug)]
pub struct Memory {
    pool: Pool,
    waiters: Waiters,
    ready: Ready,
    now: Rc<Cell<Now>>,
    free_bytes: Cell<usize>,
    looked_us: Cell<u64>,
}

impl Memory {
    /// Gives out `pool`; `now` is the reactor's time. Room for `waiters` tasks that wait.
    #[must_use]
    pub fn new(ready: &Ready, pool: Pool, now: Rc<Cell<Now>>, waiters: usize) -> Self {
        let (free_bytes, looked_us) = (Cell::new(pool.free_bytes()), Cell::new(0));
        let waiters = Waiters::new(waiters);
        Self { pool, waiters, ready: ready.clone(), now, free_bytes, looked_us }
    }

    /// The pool itself.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// A buffer of `bytes` or more, waited for until `deadline_us` at the latest.
    ///
    /// # Errors
    /// `Busy`: none came free in time.
    pub async fn alloc(&self, bytes: usize, deadline_us: u64) -> Result<DmaBuf, Status> {
        self.patiently(deadline_us, || self.pool.alloc(bytes).ok_or(Status::Busy)).await
    }

    /// Does `what` again, each time that memory has come free, for as long as it is `Busy`.
    ///
    /// # Errors
    /// Those of `what`; `Busy` only when the time is up.
    pub async fn patiently<T>(
        &self,
        deadline_us: u64,
        mut what: impl FnMut() -> Result<T, Status>,
    ) -> Result<T, Status> {
        let until_us = deadline_us.min(self.now.get().us + MEMORY_WAIT_US);
        self.waiters
            .until(&self.ready, || match what() {
                Err(Status::Busy) if self.now.get().us < until_us => None,
                result => Some(result),
            })
            .await
    }

    /// Wakes those who wait, if memory has come free or it is time to look at the clock.
    pub fn tick(&self) {
        let free_bytes = self.pool.free_bytes();
        let came_free = free_bytes > self.free_bytes.replace(free_bytes);
        if self.waiters.is_empty() {
            return;
        }
        let now_us = self.now.get().us;
        if came_free || now_us >= self.looked_us.get() + LOOK_US {
            self.looked_us.set(now_us);
            self.waiters.wake_all(&self.ready);
        }
    }

    /// When [`Memory::tick`] has to be called again at the latest, if anybody waits.
    #[must_use]
    pub fn next_deadline_us(&self) -> Option<u64> {
        (!self.waiters.is_empty()).then(|| self.looked_us.get() + LOOK_US)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Tasks;
    use forebay_nvme::Arena;
    use std::cell::RefCell;
    use std::future::Future;
    use std::pin::Pin;

    type Outcome = Rc<RefCell<Option<Result<DmaBuf, Status>>>>;
    type Task = Pin<Box<dyn Future<Output = ()>>>;

    struct Bench {
        ready: Ready,
        memory: Rc<Memory>,
        now: Rc<Cell<Now>>,
        tasks: Tasks<Task>,
    }

    impl Bench {
        fn new() -> Self {
            let (ready, now) = (Ready::new(8), Rc::new(Cell::new(Now::default())));
            let pool = Arena::on_demand(4 << 20).unwrap().pool();
            let memory = Rc::new(Memory::new(&ready, pool, now.clone(), 4));
            let tasks = Tasks::new(&ready, 0, 4);
            Self { ready, memory, now, tasks }
        }

        fn ask(&mut self, deadline_us: u64) -> Outcome {
            let (outcome, memory) = (Outcome::default(), self.memory.clone());
            let put = outcome.clone();
            assert!(self.tasks.spawn(Box::pin(async move {
                let got = memory.alloc(4 << 20, deadline_us).await;
                put.replace(Some(got));
            })));
            self.run_at(self.now.get().us);
            outcome
        }

        fn run_at(&mut self, us: u64) {
            self.now.set(Now { us, unix_s: 0 });
            self.memory.tick();
            while let Some(task) = self.ready.next() {
                self.tasks.run(task);
            }
        }
    }

    #[test]
    fn a_waiter_gets_the_memory_that_comes_free() {
        let mut bench = Bench::new();
        let held = bench.memory.pool().alloc(4 << 20).unwrap();
        bench.run_at(1);
        let outcome = bench.ask(1_000_000);
        assert!(outcome.borrow().is_none());
        drop(held);
        bench.run_at(2);
        assert!(matches!(*outcome.borrow(), Some(Ok(_))));
    }

    #[test]
    fn waiting_ends_busy_at_the_deadline_and_after_the_longest_wait() {
        for (deadline_us, ends_us) in [(50_000, 50_000), (u64::MAX, MEMORY_WAIT_US)] {
            let mut bench = Bench::new();
            let _held = bench.memory.pool().alloc(4 << 20).unwrap();
            let outcome = bench.ask(deadline_us);
            bench.run_at(ends_us - 1);
            assert!(outcome.borrow().is_none());
            assert_eq!(bench.memory.next_deadline_us(), Some(ends_us - 1 + LOOK_US));
            bench.run_at(ends_us - 1 + LOOK_US);
            assert!(matches!(*outcome.borrow(), Some(Err(Status::Busy))));
            assert_eq!(bench.memory.next_deadline_us(), None);
        }
    }
}

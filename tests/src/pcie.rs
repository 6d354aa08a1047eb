//! The NVMe driver on an emulated controller: one thread, and time of their own.

use forebay_nvme::emulated::{
    EmulatedConfig, EmulatedController, EmulatedHardware, EmulatedRegisters,
};
use forebay_nvme::pcie::{Controller, Options, Queue};
use forebay_nvme::{Arena, BlockQueue, Completion, Geometry, Pool, Request};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Memory for the queue and the buffers of its requests.
const ARENA_BYTES: usize = 64 << 20;
/// Between two looks of the controller and its owner while a queue comes or goes, in microseconds.
const TURN_US: u64 = 1_000;
/// Turns that this may take.
const PATIENCE_TURNS: u32 = 100_000;

/// A controller, its owner, and one queue that is open.
#[derive(Debug)]
pub struct EmulatedQueue {
    /// To be stepped by whoever submits something.
    pub device: EmulatedController,
    /// The queue.
    pub queue: Queue<EmulatedRegisters>,
    /// Where the buffers of its requests come from.
    pub pool: Pool,
    owner: Controller<EmulatedHardware>,
    now_us: u64,
}

impl EmulatedQueue {
    /// Brings the controller up, and opens a queue on it.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn open(config: EmulatedConfig, options: Options, depth: u32) -> Self {
        let pool = Arena::on_demand(ARENA_BYTES).expect("address space").pool();
        let device = EmulatedController::new(config);
        let mut owner = Controller::new(device.hardware(), options, &pool, Box::new(|| {}))
            .expect("the arena can be mapped");
        let mut now_us = 0;
        let drive = until(&device, &mut owner, &mut now_us, |owner| owner.drive());
        let mut queue = drive.queue(&pool, depth).expect("there is room for its rings");
        until(&device, &mut owner, &mut now_us, |_| {
            queue.is_open().expect("the controller makes its side").then_some(())
        });
        Self { device, queue, pool, owner, now_us }
    }

    /// The time.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.now_us
    }
}

impl Drop for EmulatedQueue {
    /// A queue that is dropped waits for its controller, which nobody would step.
    fn drop(&mut self) {
        let Self { device, queue, owner, now_us, .. } = self;
        until(device, owner, now_us, |_| queue.close().then_some(()));
    }
}

/// An [`EmulatedQueue`] for a reactor: its controller works in each `poll`, until it is told to work only
/// when it is stepped. Clones are handles on it.
#[derive(Clone, Debug)]
pub struct SteppedQueue {
    queue: Rc<RefCell<EmulatedQueue>>,
    automatic: Rc<Cell<bool>>,
}

impl SteppedQueue {
    /// As [`EmulatedQueue::open`].
    #[must_use]
    pub fn open(config: EmulatedConfig, options: Options, depth: u32) -> Self {
        let queue = EmulatedQueue::open(config, options, depth);
        Self { queue: Rc::new(RefCell::new(queue)), automatic: Rc::new(Cell::new(true)) }
    }

    /// Where the buffers of its requests come from.
    #[must_use]
    pub fn pool(&self) -> Pool {
        self.queue.borrow().pool.clone()
    }

    /// From now on the controller works only when it is stepped.
    pub fn stop(&self) {
        self.automatic.set(false);
    }

    /// Lets the controller work. Time passes as its owner's does.
    pub fn step(&self, now_us: u64) {
        let queue = &mut *self.queue.borrow_mut();
        queue.now_us = now_us;
        queue.device.step(now_us);
    }
}

impl BlockQueue for SteppedQueue {
    fn geometry(&self) -> Geometry {
        self.queue.borrow().queue.geometry()
    }

    fn submit(&mut self, request: Request) -> Result<(), Request> {
        self.queue.borrow_mut().queue.submit(request)
    }

    fn poll(&mut self, now_us: u64, completions: &mut Vec<Completion>) -> usize {
        let count = self.queue.borrow_mut().queue.poll(now_us, completions);
        if self.automatic.get() {
            self.step(now_us);
        }
        count
    }

    fn in_flight(&self) -> usize {
        self.queue.borrow().queue.in_flight()
    }
}

/// Lets the two get on until there is something to return.
fn until<T>(
    device: &EmulatedController,
    owner: &mut Controller<EmulatedHardware>,
    now_us: &mut u64,
    mut done: impl FnMut(&Controller<EmulatedHardware>) -> Option<T>,
) -> T {
    for _ in 0..PATIENCE_TURNS {
        if let Some(done) = done(owner) {
            return done;
        }
        *now_us += TURN_US;
        device.step(*now_us);
        owner.poll(*now_us);
    }
    panic!("the controller does not get on: {:?}", owner.trouble());
}

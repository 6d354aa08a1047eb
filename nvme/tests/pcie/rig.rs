//! A controller, its driver and a queue, in virtual time.

use std::ops::{Deref, DerefMut};

use forebay_nvme::emulated::{
    EmulatedConfig, EmulatedController, EmulatedHardware, EmulatedRegisters, Violation,
};
use forebay_nvme::pcie::{Controller, Options, Queue, State};
use forebay_nvme::{
    Arena, BLOCK_BYTES, BlockQueue, Completion, DmaBuf, Geometry, Operation, Pool, Request,
};

/// Nothing takes longer, not even a drive that takes all the time it gives itself, several times.
pub(crate) const FOREVER_US: u64 = 1_200_000_000;
/// The longest step of a clock that waits for nothing in particular.
const STEP_US_MAX: u64 = 20_000;

pub(crate) fn pool(bytes: usize) -> Pool {
    Arena::on_demand(bytes).expect("address space").pool()
}

/// Timeouts that make a test short: a late command is aborted after a second.
pub(crate) fn options() -> Options {
    Options {
        command_timeout_us: 1_000_000,
        abort_timeout_us: 500_000,
        request_timeout_us: 4_000_000,
        admin_timeout_us: 2_000_000,
        ..Options::default()
    }
}

/// The emulated controller and the driver's side of it.
pub(crate) struct Drive {
    pub(crate) emulated: EmulatedController,
    pub(crate) controller: Controller<EmulatedHardware>,
    pub(crate) now_us: u64,
    step_us: u64,
}

impl Drive {
    /// The driver is given the controller, and has not looked at it yet.
    pub(crate) fn new(emulated: EmulatedController, options: Options, pool: &Pool) -> Self {
        let hardware = emulated.hardware();
        let controller = Controller::new(hardware, options, pool, Box::new(|| {}));
        let controller = controller.expect("IOVAs");
        Self { emulated, controller, now_us: 0, step_us: 1 }
    }

    /// Brings it up. `false`: it was given up.
    pub(crate) fn bring_up(&mut self) -> bool {
        self.until(|drive| matches!(drive.state(), State::Ready | State::Gone));
        self.state() == State::Ready
    }

    pub(crate) fn state(&self) -> State {
        self.controller.state()
    }

    /// One step of both sides, and of the clock: to the controller's next event, or as far as it goes without
    /// one; further each time that nothing happens.
    pub(crate) fn step(&mut self) {
        let before = self.emulated.next_event_us();
        self.emulated.step(self.now_us);
        self.controller.poll(self.now_us);
        let next_us = self.emulated.next_event_us();
        self.step_us = if next_us == before { (self.step_us * 2).min(STEP_US_MAX) } else { 1 };
        let far_us = self.now_us + self.step_us;
        self.now_us = next_us.unwrap_or(far_us).min(far_us).max(self.now_us + 1);
    }

    /// Something was done: the next step is a short one.
    pub(crate) fn hurry(&mut self) {
        self.step_us = 1;
    }

    /// Steps until `done`.
    pub(crate) fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline_us = self.now_us + FOREVER_US;
        while !done(self) {
            assert!(self.now_us < deadline_us, "it hangs: {:?}", self.controller);
            self.step();
        }
    }

    /// Steps for so long.
    pub(crate) fn pass(&mut self, us: u64) {
        let end_us = self.now_us + us;
        self.until(|drive| drive.now_us >= end_us);
    }

    /// As [`Drive::assert_clean`], for a controller that has lied: who believes it is refused.
    pub(crate) fn assert_clean_but_refused(&self) {
        let counters = self.emulated.counters();
        let mut violations = self.emulated.violations();
        violations.retain(|it| !matches!(it, Violation::Refused { .. }));
        assert_eq!(violations, [], "{counters:?}");
        assert_eq!(counters.iommu_faults, counters.stray_dma);
    }

    /// Neither the driver nor the controller reached where it must not.
    pub(crate) fn assert_clean(&self) {
        let counters = self.emulated.counters();
        assert_eq!(self.emulated.violations(), [], "{counters:?}");
        let faults = self.emulated.iommu_faults();
        assert_eq!(counters.iommu_faults, counters.stray_dma, "{faults:x?}");
    }
}

/// A queue that waits for nobody when its test has failed.
#[derive(Debug)]
pub(crate) struct Held(Option<Queue<EmulatedRegisters>>);

impl Held {
    pub(crate) fn new(queue: Queue<EmulatedRegisters>) -> Self {
        Self(Some(queue))
    }

    /// Has the controller forget the queue, and drops it.
    pub(crate) fn close(mut self, drive: &mut Drive) {
        drive.hurry();
        drive.until(|_| Queue::close(&mut self));
        drop(self.0.take());
    }
}

impl Deref for Held {
    type Target = Queue<EmulatedRegisters>;

    fn deref(&self) -> &Self::Target {
        self.0.as_ref().expect("there until it is closed")
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.0.as_mut().expect("there until it is closed")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Whoever polls the controller is this thread: dropping the queue would wait for ever.
        if let Some(queue) = self.0.take() {
            std::mem::forget(queue);
        }
    }
}

/// With one queue.
pub(crate) struct Rig {
    pub(crate) drive: Drive,
    /// There until the rig is dropped.
    queue: Option<Held>,
    pub(crate) pool: Pool,
    pub(crate) done: Vec<Completion>,
    last_tag: u64,
    liar: bool,
}

impl Rig {
    pub(crate) fn new(config: EmulatedConfig) -> Self {
        Self::on(EmulatedController::new(config), options(), 32, &pool(16 << 20))
    }

    pub(crate) fn on(
        emulated: EmulatedController,
        options: Options,
        depth: u32,
        pool: &Pool,
    ) -> Self {
        let mut drive = Drive::new(emulated, options, &self::pool(4 << 20));
        assert!(drive.bring_up(), "{:?}", drive.controller.trouble());
        let queue = drive.controller.drive().expect("it is up").queue(pool, depth);
        let queue = Some(Held::new(queue.expect("room")));
        let (pool, done) = (pool.clone(), Vec::with_capacity(256));
        let mut rig = Self { drive, queue, pool, done, last_tag: 0, liar: false };
        while !rig.queue().is_open().expect("a queue") {
            rig.drive.step();
        }
        rig
    }

    pub(crate) fn queue(&mut self) -> &mut Queue<EmulatedRegisters> {
        self.queue.as_mut().expect("there until the rig is dropped")
    }

    /// Not even a refused command is expected of the driver, unless the controller lies.
    pub(crate) fn keep_quiet(&mut self) {
        self.liar = true;
    }

    pub(crate) fn emulated(&self) -> &EmulatedController {
        &self.drive.emulated
    }

    pub(crate) fn buffer(&self, blocks: u32, fill: u8) -> DmaBuf {
        let mut buffer = self.pool.alloc(blocks as usize * BLOCK_BYTES).expect("room");
        buffer.fill(fill);
        buffer
    }

    pub(crate) fn write(&self, block: u64, blocks: u32, fill: u8) -> Operation {
        Operation::Write { block, blocks, buffer: self.buffer(blocks, fill), fua: false }
    }

    pub(crate) fn read(&self, block: u64, blocks: u32) -> Operation {
        Operation::Read { block, blocks, buffer: self.buffer(blocks, 0xEE) }
    }

    pub(crate) fn start(&mut self, operation: Operation) -> u64 {
        self.last_tag += 1;
        let tag = self.last_tag;
        assert!(self.queue().submit(Request { tag, operation }).is_ok(), "there is room");
        self.drive.hurry();
        tag
    }

    /// One step of all.
    pub(crate) fn step(&mut self) {
        let now_us = self.drive.now_us;
        let queue = self.queue.as_mut().expect("there until the rig is dropped");
        if queue.poll(now_us, &mut self.done) > 0 {
            self.drive.hurry();
        }
        self.drive.step();
    }

    /// The end of that request. What else ends meanwhile stays in `done`.
    pub(crate) fn end(&mut self, tag: u64) -> Completion {
        let deadline_us = self.drive.now_us + FOREVER_US;
        loop {
            if let Some(at) = self.done.iter().position(|completion| completion.tag == tag) {
                let completion = self.done.swap_remove(at);
                if let Some(buffer) = &completion.buffer {
                    let held = self.emulated().holds(buffer.as_ptr().addr(), buffer.len());
                    assert!(!held, "its buffer is back too early");
                }
                return completion;
            }
            assert!(self.drive.now_us < deadline_us, "request {tag} hangs: {:?}", self.queue);
            self.step();
        }
    }

    pub(crate) fn run(&mut self, operation: Operation) -> Completion {
        let tag = self.start(operation);
        self.end(tag)
    }

    pub(crate) fn ok(&mut self, operation: Operation) -> Option<DmaBuf> {
        let completion = self.run(operation);
        assert_eq!(completion.result, Ok(()));
        completion.buffer
    }

    /// Drops the driver's controller. What follows is done by one that never does anything.
    pub(crate) fn drop_controller(&mut self) {
        let idle = EmulatedController::new(EmulatedConfig::default()).hardware();
        let idle = Controller::new(idle, options(), &pool(4 << 20), Box::new(|| {}));
        drop(std::mem::replace(&mut self.drive.controller, idle.expect("IOVAs")));
    }

    /// Asserts that the blocks hold nothing but `fill`.
    pub(crate) fn expect_fill(&mut self, block: u64, blocks: u32, fill: u8) {
        let buffer = self.ok(self.read(block, blocks)).expect("a read has a buffer");
        let data = &buffer[..blocks as usize * BLOCK_BYTES];
        assert!(data.iter().all(|byte| *byte == fill), "blocks {block}+{blocks} are not {fill}");
    }
}

/// As a block queue that steps its drive when it is polled, for the conformance suite.
impl BlockQueue for Rig {
    fn geometry(&self) -> Geometry {
        self.queue.as_ref().expect("there until the rig is dropped").geometry()
    }

    fn submit(&mut self, request: Request) -> Result<(), Request> {
        self.queue().submit(request)
    }

    fn poll(&mut self, _now_us: u64, completions: &mut Vec<Completion>) -> usize {
        let now_us = self.drive.now_us;
        let count = self.queue().poll(now_us, completions);
        self.drive.hurry();
        self.drive.step();
        count
    }

    fn in_flight(&self) -> usize {
        self.queue.as_ref().expect("there until the rig is dropped").in_flight()
    }
}

impl Drop for Rig {
    /// Closes the queue first, or dropping it would wait for somebody who polls the controller.
    fn drop(&mut self) {
        let queue = self.queue.take().expect("there until the rig is dropped");
        if !std::thread::panicking() {
            queue.close(&mut self.drive);
            if self.liar {
                return self.drive.assert_clean_but_refused();
            }
            self.drive.assert_clean();
        }
    }
}

//! The simulated controller: it takes requests, draws their time, and carries them out.
//!
//! Guarantees: a request takes effect at the instant that it completes, in the order of virtual
//! time; two runs with the same seed and the same calls are the same run.

use std::collections::{BTreeMap, VecDeque};

use fastrand::Rng;

use super::faults::{FaultState, WriteFate};
use super::media::{Media, check_atomic_bytes};
use super::{Latency, SimConfig, SimCounters};
use crate::{BLOCK_BYTES, BlockError, Completion, Geometry, Operation, Request};

pub(super) type QueueId = u64;

#[derive(Debug)]
pub(super) struct Device {
    pub(super) geometry: Geometry,
    pub(super) latency: Latency,
    pub(super) state: FaultState,
    pub(super) media: Media,
    pub(super) counters: SimCounters,
    queues: BTreeMap<QueueId, Queue>,
    /// What is under way, by the time of its end; the second number keeps ties in order.
    events: BTreeMap<(u64, u64), (QueueId, Request)>,
    last_event: u64,
    last_queue: QueueId,
    now_us: u64,
}

#[derive(Debug, Default)]
struct Queue {
    /// Taken, and not yet shown to the device.
    staged: VecDeque<Request>,
    ready: VecDeque<Completion>,
    in_flight: usize,
    gone: bool,
}

impl Device {
    pub(super) fn new(config: SimConfig, media: Media) -> Self {
        let SimConfig {
            blocks,
            depth,
            max_transfer_blocks,
            volatile_write_cache,
            discard,
            latency,
            faults,
            seed,
        } = config;
        check_atomic_bytes(faults.atomic_bytes);
        let geometry = Geometry {
            blocks,
            max_transfer_blocks,
            depth,
            volatile_write_cache,
            discard,
            write_zeroes: true,
            compare: true,
            verify: true,
            atomic_write_bytes: faults.atomic_bytes as u32,
        };
        Self {
            geometry,
            latency,
            state: FaultState { faults, rules: Vec::new(), rng: Rng::with_seed(seed) },
            media,
            counters: SimCounters::default(),
            queues: BTreeMap::new(),
            events: BTreeMap::new(),
            last_event: 0,
            last_queue: 0,
            now_us: 0,
        }
    }

    pub(super) fn add_queue(&mut self) -> QueueId {
        self.last_queue += 1;
        self.queues.insert(self.last_queue, Queue::default());
        self.last_queue
    }

    /// Carries out what is under way for the queue, as a host that waits for it would see it, and
    /// forgets the queue.
    pub(super) fn remove_queue(&mut self, id: QueueId) {
        let (own, other) =
            std::mem::take(&mut self.events).into_iter().partition(|(_, (queue, _))| *queue == id);
        self.events = other;
        let own: BTreeMap<_, (QueueId, Request)> = own;
        for (_, request) in own.into_values() {
            self.execute(request);
        }
        self.queues.remove(&id);
    }

    pub(super) fn submit(&mut self, id: QueueId, request: Request) -> Result<(), Request> {
        let depth = self.geometry.depth as usize;
        let queue = self.queue(id);
        if queue.in_flight == depth {
            return Err(request);
        }
        let gone = if queue.gone { Err(BlockError::Gone) } else { Ok(()) };
        let verdict = gone.and_then(|()| self.geometry.check(&request.operation));
        let queue = self.queue(id);
        queue.in_flight += 1;
        match verdict {
            Ok(()) => queue.staged.push_back(request),
            Err(error) => queue.ready.push_back(request.end(Err(error))),
        }
        Ok(())
    }

    pub(super) fn poll(&mut self, id: QueueId, now_us: u64, out: &mut Vec<Completion>) -> usize {
        self.now_us = self.now_us.max(now_us);
        while let Some(request) = self.queue(id).staged.pop_front() {
            let due_us = self.now_us + self.duration_us(&request.operation);
            self.last_event += 1;
            self.events.insert((due_us, self.last_event), (id, request));
        }
        self.run_due();
        let queue = self.queue(id);
        let count = queue.ready.len().min(out.capacity() - out.len());
        out.extend(queue.ready.drain(..count));
        queue.in_flight -= count;
        count
    }

    pub(super) fn in_flight(&self, id: QueueId) -> usize {
        self.queues.get(&id).map_or(0, |queue| queue.in_flight)
    }

    pub(super) fn next_event_us(&self) -> Option<u64> {
        let waiting = |queue: &Queue| !queue.gone && queue.staged.len() + queue.ready.len() > 0;
        if self.queues.values().any(waiting) {
            return Some(self.now_us);
        }
        self.events.first_key_value().map(|((due_us, _), _)| *due_us)
    }

    /// Cuts the power. Everything not yet handed out by `poll` ends with `Gone`.
    pub(super) fn crash(&mut self, seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let events = std::mem::take(&mut self.events);
        let staged = self.queues.values().flat_map(|queue| &queue.staged);
        let in_flight = events.values().map(|(_, request)| request).chain(staged);
        let writes = in_flight.filter_map(|request| match &request.operation {
            Operation::Write { block, blocks, buffer, .. } => {
                Some((*block, &buffer[..*blocks as usize * BLOCK_BYTES]))
            }
            _ => None,
        });
        let faults = self.state.faults;
        for (_, request) in events.values() {
            if let Operation::Discard { block, blocks } = request.operation {
                self.media.discard(block, blocks, &mut rng);
            }
        }
        self.media.crash(writes, faults.atomic_bytes, faults.reordering, &mut rng);
        for (id, request) in events.into_values() {
            self.queue(id).ready.push_back(request.end(Err(BlockError::Gone)));
        }
        for queue in self.queues.values_mut() {
            queue.gone = true;
            let staged = queue.staged.drain(..).map(|request| request.end(Ok(())));
            queue.ready.extend(staged);
            for completion in &mut queue.ready {
                completion.result = Err(BlockError::Gone);
            }
        }
        self.state.rng = rng;
    }

    fn queue(&mut self, id: QueueId) -> &mut Queue {
        self.queues.get_mut(&id).expect("a queue is removed only when it is dropped")
    }

    fn run_due(&mut self) {
        while let Some(first) = self.events.first_entry()
            && first.key().0 <= self.now_us
        {
            let (id, request) = first.remove();
            let completion = self.execute(request);
            self.queue(id).ready.push_back(completion);
        }
    }

    fn duration_us(&mut self, operation: &Operation) -> u64 {
        let (span, delay_us) = match operation {
            Operation::Read { block, blocks, .. } => {
                (&self.latency.read_us, self.state.delay_us(*block, u64::from(*blocks)))
            }
            Operation::Write { block, blocks, .. } => {
                (&self.latency.write_us, self.state.delay_us(*block, u64::from(*blocks)))
            }
            Operation::Compare { block, blocks, .. } => {
                (&self.latency.read_us, self.state.delay_us(*block, u64::from(*blocks)))
            }
            Operation::Verify { block, blocks } => {
                (&self.latency.read_us, self.state.delay_us(*block, *blocks))
            }
            Operation::Flush => (&self.latency.flush_us, 0),
            Operation::Discard { .. } | Operation::WriteZeroes { .. } => {
                (&self.latency.discard_us, 0)
            }
        };
        delay_us + self.state.rng.u64(span.clone())
    }

    fn execute(&mut self, mut request: Request) -> Completion {
        let result = match &mut request.operation {
            Operation::Read { block, blocks, buffer } => {
                self.read(*block, &mut buffer[..*blocks as usize * BLOCK_BYTES])
            }
            Operation::Write { block, blocks, buffer, fua } => {
                self.write(*block, &buffer[..*blocks as usize * BLOCK_BYTES], *fua)
            }
            Operation::Flush => self.flush(),
            Operation::Discard { block, blocks } => {
                self.counters.discards += 1;
                self.media.discard(*block, *blocks, &mut self.state.rng);
                Ok(())
            }
            Operation::WriteZeroes { block, blocks } => {
                let zeroes = [0; BLOCK_BYTES];
                (*block..*block + *blocks).try_for_each(|block| self.write(block, &zeroes, false))
            }
            Operation::Compare { block, blocks, buffer } => {
                let mut held = vec![0; *blocks as usize * BLOCK_BYTES];
                let read = self.read(*block, &mut held);
                let same = buffer[..held.len()] == held;
                read.and(if same { Ok(()) } else { Err(BlockError::Mismatch) })
            }
            Operation::Verify { block, blocks } => {
                let mut held = [0; BLOCK_BYTES];
                (*block..*block + *blocks).try_for_each(|block| self.read(block, &mut held))
            }
        };
        request.end(result)
    }

    fn read(&mut self, first: u64, into: &mut [u8]) -> Result<(), BlockError> {
        let blocks = (into.len() / BLOCK_BYTES) as u64;
        self.counters.reads += 1;
        self.counters.blocks_read += blocks;
        if self.state.read_fails(first, blocks) {
            into.fill(self.state.rng.u8(..));
            return Err(BlockError::Read);
        }
        if self.state.hit(self.state.faults.bit_rot_per_mille) {
            let block = first + self.state.rng.u64(..blocks);
            let bit = self.state.rng.usize(..BLOCK_BYTES * 8);
            self.media.edit(block, |data| data[bit / 8] ^= 1 << (bit % 8));
        }
        self.media.read(first, into);
        Ok(())
    }

    fn write(&mut self, first: u64, bytes: &[u8], fua: bool) -> Result<(), BlockError> {
        let blocks = (bytes.len() / BLOCK_BYTES) as u64;
        self.counters.writes += 1;
        self.counters.blocks_written += blocks;
        let durable = fua || !self.geometry.volatile_write_cache;
        match self.state.write_fate(first, blocks, self.geometry.blocks) {
            WriteFate::Written => self.media.write(first, bytes, durable),
            WriteFate::Lost => {}
            WriteFate::LandsAt(other) => self.media.write(other, bytes, durable),
            WriteFate::Failed => {
                let rng = &mut self.state.rng;
                self.media.write_some(first, bytes, durable, |_| rng.bool());
                return Err(BlockError::Write);
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), BlockError> {
        self.counters.flushes += 1;
        if self.state.flush_fails() {
            self.media.fail_flush(&mut self.state.rng);
            return Err(BlockError::Flush);
        }
        self.media.flush();
        Ok(())
    }
}

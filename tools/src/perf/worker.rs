//! One worker: a thread with its own pipeline that keeps commands in flight and takes their times.

use super::choose::Chooser;
use super::knobs::{Op, Plan};
use super::pace::Pace;
use super::tally::Tally;
use super::value::Values;
use crate::clock;
use forebay_fabric::Status;
use forebay_fabric::client::{
    Done, NamespaceId, Pipeline, Request, RetrieveIntoItem, RetrieveItem, StoreItem,
};
use forebay_fabric::region::{Fragment, HugePages, Region, RegionError, Usage};

/// How often a worker tells what it did, in nanoseconds.
const TELL_NS: u64 = 1_000_000_000;
/// An open loop with less time than this to its next command does not sleep, in microseconds.
const SPIN_US: u64 = 60;
/// The longest sleep, in microseconds, so that the main thread hears something now and then.
const SLEEP_US: u64 = 100_000;

/// How long a worker looks for more answers before it sleeps. A server that has to wake its client for
/// every answer spends a fifth of its time on that, and the client would be what is measured.
const LOOK_NS: u64 = 50_000;

/// When a worker starts, measures and ends, on [`clock::now_ns`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    pub(crate) start_ns: u64,
    pub(crate) measure_from_ns: u64,
    pub(crate) until: Until,
}

/// When a worker takes no more commands.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Time {
        ns: u64,
    },
    /// So many measured operations.
    Ops(u64),
}

/// One command in flight, or about to be.
struct Slot {
    op: Op,
    due_ns: u64,
    /// It is sent in the measured time.
    measured: bool,
    keys: Vec<u64>,
    /// Where values land, if not in memory of the pipeline's.
    places: Option<Places>,
}

/// A region with a fragment for each item of a command.
struct Places {
    region: Region,
    fragments: Vec<Fragment>,
}

impl Places {
    fn new(plan: &Plan) -> Result<Self, RegionError> {
        let bytes = plan.value_bytes as usize;
        let region = Region::allocate(bytes * plan.batch, Usage::Retrieves, HugePages::default())?;
        let place = |item: usize| region.fragment(item * bytes..(item + 1) * bytes);
        let fragments = (0..plan.batch).map(place).collect();
        Ok(Self { region, fragments })
    }

    /// The first `length` bytes of what landed for an item.
    fn landed(&self, item: usize, length: u32) -> Result<Vec<u8>, RegionError> {
        let mut bytes = vec![0; length as usize];
        self.region.read(self.fragments[item].range().start, &mut bytes)?;
        Ok(bytes)
    }
}

pub(crate) struct Worker<'a> {
    plan: &'a Plan,
    pipeline: Pipeline,
    namespace: NamespaceId,
    values: Values,
    chooser: Chooser,
    pace: Pace,
    schedule: Schedule,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// A slot that was taken from the timetable and found its link full.
    held: Option<usize>,
    /// Measured operations taken so far.
    taken: u64,
    tally: Box<Tally>,
    told_ns: u64,
    /// When the last answers came.
    heard_ns: u64,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(
        plan: &'a Plan,
        pipeline: Pipeline,
        namespace: NamespaceId,
        values: Values,
        chooser: Chooser,
        schedule: Schedule,
    ) -> anyhow::Result<Self> {
        let depth = usize::from(plan.depth);
        let slot = || {
            let places = plan.region.then(|| Places::new(plan)).transpose()?;
            let keys = Vec::with_capacity(plan.batch);
            anyhow::Ok(Slot { op: plan.op, due_ns: 0, measured: false, keys, places })
        };
        let number = chooser.worker();
        let mut worker = Self {
            plan,
            pipeline,
            namespace,
            values,
            pace: Pace::new(plan.rate, plan.connections, number, schedule.start_ns),
            chooser,
            schedule,
            slots: (0..depth).map(|_| slot()).collect::<Result<_, _>>()?,
            free: (0..depth).rev().collect(),
            held: None,
            taken: 0,
            tally: Box::new(Tally::new()),
            told_ns: schedule.start_ns,
            heard_ns: 0,
        };
        for places in worker.slots.iter().flat_map(|slot| &slot.places) {
            worker.pipeline.register(&places.region)?;
        }
        Ok(worker)
    }

    /// Works to the end of the schedule; `tell` gets what was done, about once a second.
    pub(crate) fn run(mut self, tell: impl Fn(Box<Tally>)) -> anyhow::Result<()> {
        let mut done = Vec::with_capacity(self.slots.len());
        loop {
            let more = self.issue();
            if !more && self.free.len() == self.slots.len() {
                break;
            }
            let timeout_us = self.timeout_us(more);
            let heard = self.pipeline.poll(&mut done, timeout_us)?;
            let now_ns = clock::now_ns();
            if heard > 0 {
                self.heard_ns = now_ns;
            } else if timeout_us == 0 {
                std::thread::yield_now();
            }
            for done in done.drain(..) {
                self.complete(&done, now_ns)?;
                self.pipeline.recycle(done);
            }
            if now_ns - self.told_ns >= TELL_NS {
                self.told_ns = now_ns;
                tell(std::mem::replace(&mut self.tally, Box::new(Tally::new())));
            }
        }
        self.count_unsent();
        tell(self.tally);
        Ok(())
    }

    /// Sends what is due and has room. `false`: nothing will be due any more.
    fn issue(&mut self) -> bool {
        if let Some(slot) = self.held {
            if !self.submit(slot) {
                return true;
            }
            self.held = None;
        }
        loop {
            let now_ns = clock::now_ns();
            let due_ns = self.pace.due_ns(now_ns);
            if self.is_over(now_ns, due_ns) {
                return false;
            }
            if due_ns > now_ns || self.free.is_empty() {
                return true;
            }
            self.pace.take();
            let slot = self.fill(due_ns, now_ns);
            if !self.submit(slot) {
                self.held = Some(slot);
                return true;
            }
        }
    }

    /// Whether a command due at `due_ns` is beyond the end. A timed open loop ends by the clock
    /// too: what is due and unsent by then is counted by [`Self::count_unsent`].
    fn is_over(&self, now_ns: u64, due_ns: u64) -> bool {
        match self.schedule.until {
            Until::Time { ns } => now_ns >= ns || due_ns >= ns,
            Until::Ops(ops) => self.taken >= ops,
        }
    }

    /// Takes a free slot for a new command.
    fn fill(&mut self, due_ns: u64, now_ns: u64) -> usize {
        let number = self.free.pop().expect("the caller has seen a free slot");
        let slot = &mut self.slots[number];
        let mut items = self.plan.batch as u64;
        let measured = now_ns >= self.schedule.measure_from_ns;
        if let (Until::Ops(ops), true) = (self.schedule.until, measured) {
            items = items.min(ops - self.taken);
            self.taken += items;
        }
        slot.op = self.chooser.op();
        (slot.due_ns, slot.measured) = (due_ns, measured);
        slot.keys.clear();
        slot.keys.extend((0..items).map(|_| self.chooser.key()));
        number
    }

    /// Hands the command of a slot to the pipeline; `false`: its link is full.
    fn submit(&mut self, number: usize) -> bool {
        let Slot { op, keys, places, .. } = &self.slots[number];
        let (ns, length) = (self.namespace, self.plan.value_bytes);
        if let [key] = keys[..] {
            let name = key_bytes(key);
            let request = match (op, places) {
                (Op::Store, _) => Request::store(ns, &name, self.values.of(key)),
                (Op::Retrieve | Op::Mixed, Some(places)) => {
                    Request::retrieve_into(ns, &name, 0, &places.fragments[..1])
                }
                (Op::Retrieve | Op::Mixed, None) => Request::retrieve(ns, &name, 0, length),
                (Op::Exist, _) => Request::exist(ns, &name),
                (Op::Delete, _) => Request::delete(ns, &name),
            };
            return self.pipeline.submit(request.with_tag(number as u64)).is_ok();
        }
        let names: Vec<[u8; KEY_BYTES]> = keys.iter().map(|key| key_bytes(*key)).collect();
        let slices: Vec<&[u8]> = names.iter().map(|name| name.as_slice()).collect();
        let (stores, retrieves, landings): (Vec<_>, Vec<_>, Vec<_>);
        let request = match (op, places) {
            (Op::Store, _) => {
                let items = slices.iter().zip(keys);
                stores = items
                    .map(|(key, number)| StoreItem { key, data: self.values.of(*number) })
                    .collect();
                Request::store_batch(ns, &stores)
            }
            (Op::Retrieve | Op::Mixed, Some(places)) => {
                landings = slices
                    .iter()
                    .zip(places.fragments.iter().cloned())
                    .map(|(key, fragment)| RetrieveIntoItem { key, offset: 0, fragment })
                    .collect();
                Request::retrieve_batch_into(ns, &landings)
            }
            (Op::Retrieve | Op::Mixed, None) => {
                let items = slices.iter();
                retrieves = items.map(|key| RetrieveItem { key, offset: 0, length }).collect();
                Request::retrieve_batch(ns, &retrieves)
            }
            (Op::Exist, _) => Request::exist_batch(ns, &slices),
            (Op::Delete, _) => Request::delete_batch(ns, &slices),
        };
        self.pipeline.submit(request.with_tag(number as u64)).is_ok()
    }

    /// Takes the time of a command that ended, and counts it if it was sent in the measured time.
    fn complete(&mut self, done: &Done, now_ns: u64) -> anyhow::Result<()> {
        let number = done.tag as usize;
        self.free.push(number);
        let Slot { op, due_ns, measured, keys, places } = &mut self.slots[number];
        if places.as_ref().is_some_and(|places| !places.region.is_idle()) {
            // It has timed out, and the server may still write there.
            *places = Some(Places::new(self.plan)?);
        }
        if !*measured {
            return Ok(());
        }
        self.tally.record(now_ns - *due_ns);
        self.tally.last_end_ns = now_ns;
        let stored = if *op == Op::Store { u64::from(self.plan.value_bytes) } else { 0 };
        if keys.len() == 1 {
            let status = match (*op, done.result) {
                (Op::Delete, 0) if done.status == Status::Ok => Status::NotFound,
                _ => done.status,
            };
            self.tally.count(status, stored + u64::from(done.length));
            return self.check(number, 0, status, &done.data, done.length);
        }
        for index in 0..keys.len() {
            let item = done.items.get(index);
            let (status, length) = item.map_or((done.status, 0), |item| (item.status, item.length));
            let data = if item.is_some() { done.item_data(index) } else { &[] };
            self.tally.count(status, stored + u64::from(length));
            self.check(number, index, status, data, length)?;
        }
        Ok(())
    }

    /// Compares what came back for an item of the command of a slot, if that is wanted: `data`, or
    /// `length` bytes in its place.
    fn check(
        &mut self,
        number: usize,
        index: usize,
        status: Status,
        data: &[u8],
        length: u32,
    ) -> anyhow::Result<()> {
        let Slot { op, keys, places, .. } = &self.slots[number];
        if self.plan.verify && *op == Op::Retrieve && status == Status::Ok {
            let expected = self.values.of(keys[index]);
            let is_right = match places {
                Some(places) => places.landed(index, length)? == expected,
                None => data == expected,
            };
            self.tally.mismatched += u64::from(!is_right);
        }
        Ok(())
    }

    /// Commands that the timetable had before the end and that were never sent: each has waited
    /// since it was due.
    fn count_unsent(&mut self) {
        let Until::Time { ns: end_ns } = self.schedule.until else { return };
        if matches!(self.pace, Pace::Closed) {
            return;
        }
        let now_ns = clock::now_ns();
        loop {
            let due_ns = self.pace.due_ns(now_ns);
            if due_ns >= end_ns {
                return;
            }
            self.pace.take();
            self.tally.record(now_ns - due_ns);
            self.tally.unsent += 1;
        }
    }

    /// How long to wait for answers: to the next due command, if there is room for it.
    fn timeout_us(&self, more: bool) -> u64 {
        if clock::now_ns() - self.heard_ns < LOOK_NS {
            return 0;
        }
        if !more || self.free.is_empty() || self.held.is_some() {
            return SLEEP_US;
        }
        let now_ns = clock::now_ns();
        let wait_us = self.pace.due_ns(now_ns).saturating_sub(now_ns) / 1000;
        if wait_us < SPIN_US { 0 } else { wait_us.min(SLEEP_US) }
    }
}

/// Bytes of every key.
const KEY_BYTES: usize = 16;

/// `key:` and twelve digits, as redis-benchmark writes them.
fn key_bytes(mut number: u64) -> [u8; KEY_BYTES] {
    let mut key = *b"key:000000000000";
    for digit in key[4..].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sixteen_bytes_and_sort_by_number() {
        assert_eq!(&key_bytes(0), b"key:000000000000");
        assert_eq!(&key_bytes(123_456), b"key:000000123456");
        assert_eq!(&key_bytes(999_999_999_999), b"key:999999999999");
        assert!(key_bytes(9) < key_bytes(10));
    }
}

//! Many chunks through a pipeline, so many in flight, with a bar and the time that each one took.

use crate::clock;
use crate::progress::Progress;
use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use forebay_fabric::Status;
use forebay_fabric::client::{Connector, Done, Pipeline, Request};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The longest time that the histogram tells apart, in nanoseconds: 10 minutes.
const LATENCY_MAX_NS: u64 = 600_000_000_000;

/// One chunk under way.
struct Flight {
    began_ns: u64,
    bytes: u64,
    /// What is sent; its memory is used again.
    data: Bytes,
}

/// Keeps chunks in flight.
pub(super) struct Transfer<'a, C: Connector> {
    pipeline: &'a mut Pipeline<C>,
    progress: &'a Progress,
    depth: usize,
    flights: BTreeMap<u64, Flight>,
    done: Vec<Done>,
    spare: Vec<BytesMut>,
    started_ns: u64,
    latency_ns: Histogram<u64>,
    moved_bytes: u64,
}

/// What a transfer took.
pub(super) struct Timing {
    /// Chunks that travelled.
    pub(super) chunks: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    p99_us: Option<f64>,
}

impl Timing {
    /// Adds the figures to a JSON object.
    pub(super) fn add_to(&self, value: &mut Value) {
        value["seconds"] = json!(self.seconds);
        value["p99_us"] = json!(self.p99_us);
    }
}

impl<'a, C: Connector> Transfer<'a, C> {
    pub(super) fn new(pipeline: &'a mut Pipeline<C>, progress: &'a Progress, depth: u32) -> Self {
        Self {
            pipeline,
            progress,
            depth: depth as usize,
            flights: BTreeMap::new(),
            done: Vec::new(),
            spare: Vec::new(),
            started_ns: clock::now_ns(),
            latency_ns: Histogram::new_with_max(LATENCY_MAX_NS, 3).expect("3 digits are possible"),
            moved_bytes: 0,
        }
    }

    /// Memory for a chunk of `length` bytes; what it holds is undefined.
    pub(super) fn buffer(&mut self, length: usize) -> BytesMut {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.resize(length, 0);
        buffer
    }

    /// Sends what `request` makes of `data`, once there is room. Whatever ends meanwhile goes to
    /// `ended`, by its tag, which must be new.
    pub(super) fn send<'r>(
        &mut self,
        tag: u64,
        bytes: u64,
        data: Bytes,
        request: impl FnOnce(Bytes) -> Request<'r>,
        ended: &mut impl FnMut(u64, &Done) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        while self.flights.len() >= self.depth {
            self.reap(ended)?;
        }
        let mut request = request(data.clone()).with_tag(tag);
        while let Err(back) = self.pipeline.submit(request) {
            request = back;
            self.reap(ended)?;
        }
        self.flights.insert(tag, Flight { began_ns: clock::now_ns(), bytes, data });
        Ok(())
    }

    /// A chunk that need not travel.
    pub(super) fn skip(&mut self, bytes: u64) {
        self.progress.inc(bytes);
    }

    /// Waits for everything that is in flight.
    pub(super) fn finish(
        mut self,
        ended: &mut impl FnMut(u64, &Done) -> anyhow::Result<()>,
    ) -> anyhow::Result<Timing> {
        while !self.flights.is_empty() {
            self.reap(ended)?;
        }
        let chunks = self.latency_ns.len();
        let p99_us = self.latency_ns.value_at_quantile(0.99) as f64 / 1e3;
        Ok(Timing {
            chunks,
            bytes: self.moved_bytes,
            seconds: clock::seconds_between(self.started_ns, clock::now_ns()),
            p99_us: (chunks > 0).then_some(p99_us),
        })
    }

    /// Waits until something ends.
    fn reap(
        &mut self,
        ended: &mut impl FnMut(u64, &Done) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.pipeline.poll(&mut self.done, 100_000).context("the connection")?;
        let mut done = std::mem::take(&mut self.done);
        for done in done.drain(..) {
            let flight = self.flights.remove(&done.tag).context("an answer to no question")?;
            ended(done.tag, &done)?;
            self.latency_ns.saturating_record((clock::now_ns() - flight.began_ns).max(1));
            self.moved_bytes += flight.bytes;
            self.progress.inc(flight.bytes);
            self.pipeline.recycle(done);
            // Where the pipeline still holds it, there will be a new one.
            self.spare.extend(flight.data.try_into_mut().ok().filter(|data| data.capacity() > 0));
        }
        self.done = done;
        Ok(())
    }
}

/// The answer to a chunk's command, unless it is good.
pub(super) fn check(done: &Done, what: &str) -> anyhow::Result<()> {
    match done.status {
        Status::Ok => Ok(()),
        status => Err(anyhow::Error::new(status).context(what.to_owned())),
    }
}

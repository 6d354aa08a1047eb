//! A fixed number of commands through a pipeline, timed.

use crate::clock;
use anyhow::{Context as _, bail};
use forebay_fabric::Status;
use forebay_fabric::client::{ClientConfig, Pipeline, Request};
use hdrhistogram::Histogram;
use std::net::SocketAddr;

/// The longest latency that is told apart, in nanoseconds: ten minutes.
const LONGEST_NS: u64 = 600_000_000_000;

/// What a step took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timing {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    pub(crate) p99_us: Option<f64>,
}

/// Takes the times of commands.
pub(crate) struct Stopwatch {
    started_ns: u64,
    latency_ns: Histogram<u64>,
    bytes: u64,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        let latency_ns =
            Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("the bounds are constants");
        Self { started_ns: clock::now_ns(), latency_ns, bytes: 0 }
    }

    /// A command that began at `began_ns` has ended and moved so many bytes.
    pub(crate) fn lap(&mut self, began_ns: u64, bytes: u64) {
        self.latency_ns.saturating_record((clock::now_ns() - began_ns).max(1));
        self.bytes += bytes;
    }

    pub(crate) fn timing(&self) -> Timing {
        Timing {
            count: self.latency_ns.len(),
            bytes: self.bytes,
            seconds: clock::seconds_between(self.started_ns, clock::now_ns()),
            p99_us: Some(self.latency_ns.value_at_quantile(0.99) as f64 / 1e3),
        }
    }
}

/// How the demo connects.
pub(crate) fn config(address: SocketAddr) -> ClientConfig {
    ClientConfig { connect_timeout_ms: 2000, ..ClientConfig::new(vec![address]) }
}

/// Sends commands 0 to `count` - 1, `depth` at a time. `request` makes the command of an index and
/// hands it over; `ended` gets its data, and says how many bytes it moved. Any status but Ok ends
/// it all.
pub(crate) fn run(
    pipeline: &mut Pipeline,
    count: usize,
    depth: usize,
    request: impl Fn(usize, &mut dyn FnMut(Request<'_>) -> bool) -> bool,
    mut ended: impl FnMut(usize, &[u8]) -> anyhow::Result<u64>,
) -> anyhow::Result<Timing> {
    let mut watch = Stopwatch::start();
    let mut began_ns = vec![0; count];
    let (mut next, mut done) = (0, Vec::new());
    while next < count || pipeline.in_flight() > 0 {
        while next < count && pipeline.in_flight() < depth {
            began_ns[next] = clock::now_ns();
            let mut submit =
                |request: Request<'_>| pipeline.submit(request.with_tag(next as u64)).is_ok();
            if !request(next, &mut submit) {
                break;
            }
            next += 1;
        }
        pipeline.poll(&mut done, 100_000).context("the connection")?;
        for done in done.drain(..) {
            let index = done.tag as usize;
            if done.status != Status::Ok {
                return Err(anyhow::Error::new(done.status).context(format!("command {index}")));
            }
            watch.lap(began_ns[index], ended(index, &done.data)?);
            pipeline.recycle(done);
        }
    }
    if watch.latency_ns.len() != count as u64 {
        bail!("{} of {count} commands ended", watch.latency_ns.len());
    }
    Ok(watch.timing())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A histogram that does not know its bounds clamps everything to 2 ns when it saturates.
    #[test]
    fn a_stopwatch_tells_times_of_milliseconds() {
        let mut watch = Stopwatch::start();
        clock::sleep(std::time::Duration::from_millis(2));
        watch.lap(watch.started_ns, 5);
        let timing = watch.timing();
        assert_eq!((timing.count, timing.bytes), (1, 5));
        assert!(timing.p99_us.unwrap() >= 2000.0, "{timing:?}");
    }
}

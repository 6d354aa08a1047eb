//! What was measured: latencies and counts, in a form that adds up over workers and intervals.

use forebay_fabric::Status;
use hdrhistogram::Histogram;

/// The longest latency that is told apart, in nanoseconds: an hour.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// Latencies and counts of one interval or of a whole run.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Of commands, in nanoseconds, to three digits; those never sent with the age they reached.
    pub(crate) latency_ns: Histogram<u64>,
    /// Operations that ended (the items of a batch are counted one by one).
    pub(crate) ops: u64,
    /// Bytes of values stored or retrieved.
    pub(crate) bytes: u64,
    /// Operations that found no such key.
    pub(crate) absent: u64,
    /// Values that came back with wrong bytes.
    pub(crate) mismatched: u64,
    /// Commands that were due and were never sent.
    pub(crate) unsent: u64,
    /// Other failures, by status.
    failed: [u64; Status::ALL.len()],
    /// When the last of them ended, on [`crate::clock::now_ns`].
    pub(crate) last_end_ns: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let latency_ns =
            Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("the bounds are constants");
        Self {
            latency_ns,
            ops: 0,
            bytes: 0,
            absent: 0,
            mismatched: 0,
            unsent: 0,
            failed: [0; Status::ALL.len()],
            last_end_ns: 0,
        }
    }

    /// A command took so long.
    pub(crate) fn record(&mut self, latency_ns: u64) {
        self.latency_ns.saturating_record(latency_ns.max(1));
    }

    /// One operation ended so, and moved so many bytes of values.
    pub(crate) fn count(&mut self, status: Status, bytes: u64) {
        self.ops += 1;
        match status {
            Status::Ok => self.bytes += bytes,
            Status::NotFound => self.absent += 1,
            other => self.failed[other as usize] += 1,
        }
    }

    /// Adds another interval or another worker.
    pub(crate) fn add(&mut self, other: &Self) {
        let Self { latency_ns, ops, bytes, absent, mismatched, unsent, failed, last_end_ns } =
            other;
        self.latency_ns.add(latency_ns).expect("all histograms have the same bounds");
        self.ops += ops;
        self.bytes += bytes;
        self.absent += absent;
        self.mismatched += mismatched;
        self.unsent += unsent;
        self.failed.iter_mut().zip(failed).for_each(|(sum, more)| *sum += more);
        self.last_end_ns = self.last_end_ns.max(*last_end_ns);
    }

    /// The failures that happened.
    pub(crate) fn errors(&self) -> Vec<(Status, u64)> {
        let all = Status::ALL.into_iter().zip(self.failed);
        all.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_of_workers_add_up_to_the_tally_of_all() {
        let (mut a, mut b, mut all) = (Tally::new(), Tally::new(), Tally::new());
        for number in 1..=1000u64 {
            let part = if number % 3 == 0 { &mut a } else { &mut b };
            for tally in [part, &mut all] {
                tally.record(number * 1000);
                tally.count(if number % 10 == 0 { Status::NotFound } else { Status::Ok }, 5);
            }
        }
        a.add(&b);
        assert_eq!((a.ops, a.bytes, a.absent), (all.ops, all.bytes, all.absent));
        assert_eq!((a.ops, a.bytes, a.absent), (1000, 4500, 100));
        for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] {
            let (sum, exact) = (a.latency_ns.value_at_quantile(quantile), quantile * 1e6);
            assert_eq!(sum, all.latency_ns.value_at_quantile(quantile));
            assert!((sum as f64 - exact).abs() / exact < 0.002, "{quantile}: {sum}");
        }
    }

    #[test]
    fn failures_are_told_by_status_and_absent_keys_are_none() {
        let mut tally = Tally::new();
        for status in [Status::Timeout, Status::Ok, Status::NotFound, Status::Timeout] {
            tally.count(status, 1);
        }
        assert_eq!(tally.errors(), [(Status::Timeout, 2)]);
        assert_eq!((tally.ops, tally.bytes, tally.absent), (4, 1, 1));
    }

    #[test]
    fn a_latency_beyond_the_longest_is_kept_as_the_longest() {
        let mut tally = Tally::new();
        tally.record(u64::MAX);
        tally.record(0);
        assert_eq!(tally.latency_ns.len(), 2);
        assert!(tally.latency_ns.max() >= LONGEST_NS);
    }
}

//! What a run prints: text, JSON, and the HdrHistogram interval log.

use super::knobs::Plan;
use super::tally::Tally;
use crate::clock;
use crate::output;
use anyhow::Context as _;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// The result of a run; its fields are the keys of the JSON and keep their meaning.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    op: &'static str,
    value_bytes: u32,
    keys: u64,
    dist: String,
    connections: u64,
    depth: u16,
    batch: usize,
    rate: Option<f64>,
    namespace: String,
    seed: u64,
    verified: bool,
    seconds: f64,
    ops: u64,
    ops_per_s: f64,
    bytes_per_s: f64,
    latency_us: Latency,
    absent: u64,
    unsent: u64,
    mismatched: u64,
    errors: BTreeMap<String, u64>,
}

/// Latencies of commands, in microseconds.
#[derive(Debug, Serialize)]
struct Latency {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Report {
    pub(crate) fn new(plan: &Plan, tally: &Tally, seconds: f64) -> Self {
        let latency = &tally.latency_ns;
        let us = |quantile: f64| latency.value_at_quantile(quantile) as f64 / 1e3;
        let errors = tally.errors().into_iter();
        Self {
            op: plan.op.name(),
            value_bytes: plan.value_bytes,
            keys: plan.keys,
            dist: plan.dist.to_string(),
            connections: plan.connections,
            depth: plan.depth,
            batch: plan.batch,
            rate: plan.rate,
            namespace: plan.namespace.clone(),
            seed: plan.seed,
            verified: plan.verify,
            seconds,
            ops: tally.ops,
            ops_per_s: tally.ops as f64 / seconds,
            bytes_per_s: tally.bytes as f64 / seconds,
            latency_us: Latency {
                mean: latency.mean() / 1e3,
                p50: us(0.5),
                p90: us(0.9),
                p99: us(0.99),
                p999: us(0.999),
                max: latency.max() as f64 / 1e3,
            },
            absent: tally.absent,
            unsent: tally.unsent,
            mismatched: tally.mismatched,
            errors: errors.map(|(status, count)| (format!("{status:?}"), count)).collect(),
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let loop_kind = match self.rate {
            Some(rate) => format!("open loop at {}/s", output::count(rate)),
            None => "closed loop".to_owned(),
        };
        let batch =
            if self.batch > 1 { format!(" in batches of {}", self.batch) } else { String::new() };
        let mut text = format!(
            "{} of {}{batch}, {} keys, {}; {} x depth {}, {loop_kind}, {:.1} s\n\n",
            self.op,
            output::bytes(u64::from(self.value_bytes)),
            output::count(self.keys as f64),
            self.dist,
            self.connections,
            self.depth,
            self.seconds,
        );
        let Latency { mean: _, p50, p90, p99, p999, max } = self.latency_us;
        let us = |value: f64| output::nanoseconds((value * 1e3) as u64);
        let rate = format!("{}/s", output::bytes(self.bytes_per_s as u64));
        let mut row = vec![format!("{}/s", output::count(self.ops_per_s)), rate];
        row.extend([p50, p90, p99, p999, max].map(us));
        text += &output::table(&["ops", "bytes", "p50", "p90", "p99", "p99.9", "max"], &[row]);
        for (count, what) in [
            (self.absent, "found no such key"),
            (self.unsent, "were due and never sent: the server does not keep up with the rate"),
            (self.mismatched, "came back with WRONG BYTES"),
        ] {
            if count > 0 {
                text += &format!("{count} {what}\n");
            }
        }
        for (status, count) in &self.errors {
            text += &format!("{count} failed: {status}\n");
        }
        text
    }
}

/// An HdrHistogram interval log (version 1.3 of the format, as HistogramLogProcessor and
/// hdrhistogram.github.io read it).
pub(crate) struct HdrLog {
    file: File,
    /// [`clock::now_ns`] when the log began.
    began_ns: u64,
    header_written: bool,
}

impl HdrLog {
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file, began_ns: clock::now_ns(), header_written: false })
    }

    /// Adds the histogram of one interval.
    pub(crate) fn write(&mut self, tally: &Tally, from_ns: u64, to_ns: u64) -> anyhow::Result<()> {
        let mut line = Vec::new();
        let mut serializer = V2DeflateSerializer::new();
        let mut builder = IntervalLogWriterBuilder::new();
        if !self.header_written {
            let began = UNIX_EPOCH + clock::unix_time();
            builder.add_comment("forebay perf; latencies in nanoseconds");
            builder.with_start_time(began).with_base_time(began);
        }
        let from = Duration::from_nanos(from_ns.saturating_sub(self.began_ns));
        let length = Duration::from_nanos(to_ns.saturating_sub(from_ns));
        {
            let mut log = builder.begin_log_with(&mut line, &mut serializer)?;
            log.write_histogram(&tally.latency_ns, from, length, None)
                .map_err(|error| anyhow::anyhow!("the histogram log: {error:?}"))?;
        }
        self.header_written = true;
        self.file.write_all(&line).context("cannot write the histogram log")
    }
}

#[cfg(test)]
mod tests {
    use super::super::knobs::{Knobs, Length};
    use super::*;
    use forebay_fabric::Status;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    fn sample() -> Tally {
        let mut tally = Tally::new();
        for number in 1..=100u64 {
            tally.record(number * 10_000);
            tally.count(Status::Ok, 4096);
        }
        tally
    }

    #[test]
    fn the_report_names_rates_and_percentiles() {
        let plan = Knobs::default().plan().unwrap();
        assert!(matches!(plan.length, Length::Time { .. }));
        let report = Report::new(&plan, &sample(), 2.0);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["ops_per_s"], 50.0);
        assert_eq!(json["bytes_per_s"], 204_800.0);
        let p90 = json["latency_us"]["p90"].as_f64().unwrap();
        assert!((p90 - 900.0).abs() < 2.0, "{p90}");
        let text = report.text();
        assert!(text.contains("p99.9") && text.contains("50/s"), "{text}");
    }

    #[test]
    fn the_interval_log_reads_back_as_the_histograms_that_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.hdr");
        let mut log = HdrLog::create(&path).unwrap();
        let began_ns = log.began_ns;
        for second in 0..3u64 {
            let from_ns = began_ns + second * 1_000_000_000;
            log.write(&sample(), from_ns, from_ns + 1_000_000_000).unwrap();
        }
        let text = std::fs::read(&path).unwrap();
        let mut starts = Vec::new();
        for entry in IntervalLogIterator::new(&text) {
            if let LogEntry::Interval(interval) = entry.unwrap() {
                starts.push(interval.start_timestamp().as_secs());
                let bytes = base64(interval.encoded_histogram());
                let histogram: hdrhistogram::Histogram<u64> =
                    Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
                assert_eq!(histogram, sample().latency_ns);
            }
        }
        assert_eq!(starts, [0, 1, 2]);
    }

    /// RFC 4648 base64: the test's own reading of what the log holds.
    fn base64(text: &str) -> Vec<u8> {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
        for digit in text.bytes().filter(|digit| *digit != b'=') {
            let value = DIGITS.iter().position(|known| *known == digit).expect("base64") as u32;
            (bits, count) = ((bits << 6 | value) & 0xffff, count + 6);
            if count >= 8 {
                count -= 8;
                bytes.push((bits >> count) as u8);
            }
        }
        bytes
    }
}

//! fio at its best: io_uring, fixed buffers, a registered file, many submitted and reaped at a time.

use anyhow::Context as _;
use serde_json::Value;
use std::path::Path;

/// One job.
#[derive(Clone, Copy, Debug)]
pub struct Fio<'a> {
    /// The block device, or the file; fio makes one that is not there.
    pub file: &'a Path,
    /// `randread`, `read`, …
    pub rw: &'a str,
    /// Bytes of each transfer.
    pub block_bytes: usize,
    /// How many at a time.
    pub depth: usize,
    /// How many are submitted, and reaped at most, at a time.
    pub batch: usize,
    /// Size of the file that it makes; all of a block device without it.
    pub size_mib: Option<u64>,
}

impl Fio<'_> {
    /// What fio is started with.
    #[must_use]
    pub fn arguments(&self, seconds: u32) -> Vec<String> {
        let Self { file, rw, block_bytes, depth, batch, size_mib } = self;
        let mut all: Vec<String> = [
            "--name=bench",
            "--ioengine=io_uring",
            "--fixedbufs=1",
            "--registerfiles=1",
            "--direct=1",
            "--norandommap=1",
            "--time_based=1",
            "--ramp_time=1",
            "--output-format=json",
        ]
        .map(str::to_owned)
        .into();
        all.extend(size_mib.map(|mib| format!("--size={mib}m")));
        all.extend([
            format!("--filename={}", file.display()),
            format!("--rw={rw}"),
            format!("--bs={block_bytes}"),
            format!("--iodepth={depth}"),
            format!("--iodepth_batch_submit={batch}"),
            format!("--iodepth_batch_complete_max={batch}"),
            format!("--runtime={seconds}"),
        ]);
        all
    }

    /// Operations per second, from what it printed.
    ///
    /// # Errors
    /// That is no result of such a job.
    pub fn iops(&self, text: &str) -> anyhow::Result<f64> {
        let direction = if self.rw.ends_with("write") { "write" } else { "read" };
        // fio may print warnings before its JSON.
        let json = &text[text.find('{').context("fio printed no JSON")?..];
        let json: Value = serde_json::from_str(json).context("the JSON of fio")?;
        json["jobs"][0][direction]["iops"].as_f64().context("no iops in the JSON of fio")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_of_fio_is_read_behind_its_warnings() {
        let job = Fio {
            file: Path::new("/dev/null"),
            rw: "randwrite",
            block_bytes: 4096,
            depth: 32,
            batch: 16,
            size_mib: None,
        };
        let text =
            "note: a warning\n{\"jobs\": [{\"read\": {\"iops\": 0}, \"write\": {\"iops\": 7.5}}]}";
        assert_eq!(job.iops(text).unwrap(), 7.5);
        assert!(job.iops("fio: no such device").is_err());
        assert!(job.arguments(3).iter().all(|argument| !argument.starts_with("--size")));
    }
}

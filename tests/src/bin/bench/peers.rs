//! What Forebay is measured against: fio, iperf3 and Redis, each at its best.

use crate::machine::{Process, free_address, output};
use anyhow::{Context as _, ensure};
use forebay_tests::measure::Fio;
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

/// Operations per second of a job on `core`.
pub(crate) fn fio(core: usize, job: Fio<'_>, seconds: u32) -> anyhow::Result<f64> {
    job.iops(&output(core, Command::new("fio").args(job.arguments(seconds)))?)
}

/// An iperf3 server.
#[derive(Debug)]
pub(crate) struct Iperf {
    process: Process,
    address: SocketAddr,
}

impl Iperf {
    pub(crate) fn start(core: usize) -> anyhow::Result<Self> {
        let address = free_address()?;
        let port = address.port().to_string();
        let mut command = Command::new("iperf3");
        command.args(["--server", "--bind", "127.0.0.1", "--port", &port]);
        Ok(Self { process: Process::start(core, &mut command)?, address })
    }

    /// Bytes per second of one connection.
    pub(crate) fn bytes_per_s(&mut self, core: usize, seconds: u32) -> anyhow::Result<f64> {
        let (port, seconds) = (self.address.port().to_string(), seconds.to_string());
        let mut command = Command::new("iperf3");
        command.args(["--client", "127.0.0.1", "--port", &port, "--time", &seconds]);
        command.args(["--omit", "1", "--json"]);
        let text = self.process.wait_until(|| output(core, &mut command))?;
        let json: Value = serde_json::from_str(&text).context("the JSON of iperf3")?;
        let bits = json["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(bits.context("no rate in the JSON of iperf3")? / 8.0)
    }
}

/// A Redis server that keeps an append-only file, without snapshots and rewrites in the background.
#[derive(Debug)]
pub(crate) struct Redis {
    _process: Process,
    address: SocketAddr,
    keys: u64,
}

/// Bytes of each value.
const VALUE_BYTES: usize = 4096;
/// Operations of the run that finds out how many make a second.
const PROBE_OPS: u64 = 50_000;

impl Redis {
    /// Starts it with `keys` values of 4 KiB under the keys that redis-benchmark asks for.
    pub(crate) fn start(core: usize, folder: &Path, keys: u64) -> anyhow::Result<Self> {
        let address = free_address()?;
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--appendonly", "yes", "--save", "", "--auto-aof-rewrite-percentage", "0"])
            .arg("--dir")
            .arg(folder);
        let mut process = Process::start(core, &mut command)?;
        let stream = process.wait_until(|| Ok(TcpStream::connect(address)?))?;
        fill(stream, keys).context("filling Redis")?;
        Ok(Self { _process: process, address, keys })
    }

    /// `get` or `set`, of random keys: operations per second of two connections of 16 at a time.
    pub(crate) fn ops_per_s(&self, core: usize, op: &str, seconds: u32) -> anyhow::Result<f64> {
        let probe = self.benchmark(core, op, PROBE_OPS)?;
        self.benchmark(core, op, (probe * f64::from(seconds)) as u64)
    }

    fn benchmark(&self, core: usize, op: &str, ops: u64) -> anyhow::Result<f64> {
        let (port, keys) = (self.address.port().to_string(), self.keys.to_string());
        let mut command = Command::new("redis-benchmark");
        command.args(["-h", "127.0.0.1", "-p", &port, "-c", "2", "-P", "16", "-r", &keys]);
        command.args(["-d", &VALUE_BYTES.to_string(), "-n", &ops.to_string(), "-t", op, "--csv"]);
        rate_in_csv(&output(core, &mut command)?).context("no rate in the CSV of redis-benchmark")
    }
}

/// The second field of the last line: `"GET","215053.77",…`.
fn rate_in_csv(text: &str) -> Option<f64> {
    text.lines().last()?.split(',').nth(1)?.trim_matches('"').parse().ok()
}

/// SET for every key, 256 at a time.
fn fill(mut stream: TcpStream, keys: u64) -> anyhow::Result<()> {
    const OK: &[u8] = b"+OK\r\n";
    let value = "x".repeat(VALUE_BYTES);
    let numbers: Vec<u64> = (0..keys).collect();
    for some in numbers.chunks(256) {
        let set = |key: &u64| {
            format!("*3\r\n$3\r\nSET\r\n$16\r\nkey:{key:012}\r\n${VALUE_BYTES}\r\n{value}\r\n")
        };
        stream.write_all(some.iter().map(set).collect::<String>().as_bytes())?;
        let mut answers = vec![0; some.len() * OK.len()];
        stream.read_exact(&mut answers)?;
        ensure!(answers.chunks(OK.len()).all(|answer| answer == OK), "Redis refused a SET");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_csv_of_redis_benchmark_is_read() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\"\n\"GET\",\"215053.77\",\"0.133\"\n";
        assert_eq!(rate_in_csv(text), Some(215_053.77));
        assert_eq!(rate_in_csv("\"test\",\"rps\"\n"), None);
        assert_eq!(rate_in_csv(""), None);
    }
}

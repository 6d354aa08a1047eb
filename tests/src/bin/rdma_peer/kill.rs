//! Clients that die in the middle of everything.

use crate::flood::DEPTH;
use anyhow::{Context as _, anyhow, ensure};
use clap::Args;
use forebay_fabric::client::Address;
use forebay_tests::vm::sleep;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// How many there are at a time: each waits for the kernel most of its short life.
const AT_A_TIME: u32 = 4;

#[derive(Args, Debug)]
pub(crate) struct Kill {
    /// Where the server is
    address: Address,
    /// How many
    #[arg(long)]
    times: u32,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Kill {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let this = &self;
        let in_flight_least = thread::scope(|scope| {
            let threads: Vec<_> =
                (0..AT_A_TIME).map(|number| scope.spawn(move || this.kill(number))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
                .try_fold(DEPTH as u64, |least, one| anyhow::Ok(least.min(one?)))
        })?;
        let ended =
            json!({ "is": "ended", "killed": self.times, "in_flight_least": in_flight_least });
        println!("{ended}");
        Ok(())
    }

    /// Every so-manieth of them; what one had in flight at least.
    fn kill(&self, number: u32) -> anyhow::Result<u64> {
        let mut rng = fastrand::Rng::with_seed(self.seed + u64::from(number));
        let mut least = DEPTH as u64;
        for time in (number..self.times).step_by(AT_A_TIME as usize) {
            // In the first answers' way as well as in full flight.
            let wait = Duration::from_millis(rng.u64(..300));
            let in_flight = self.kill_one(wait).with_context(|| format!("client {time}"))?;
            least = least.min(in_flight);
            println!("{}", json!({ "is": "killed", "client": time, "in_flight": in_flight }));
        }
        Ok(least)
    }

    /// Starts one and kills it; what it had in flight.
    fn kill_one(&self, wait: Duration) -> anyhow::Result<u64> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("flood").arg(self.address.to_string()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().context("its output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let said: Value = serde_json::from_str(&line).with_context(|| format!("{line:?}"))?;
        sleep(wait);
        child.kill()?;
        let status = child.wait()?;
        ensure!(status.signal() == Some(9), "it ended with {status}");
        said["in_flight"].as_u64().context("how many were in flight")
    }
}

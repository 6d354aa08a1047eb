//! A good client that keeps book.
//!
//! Guarantees: it goes on whatever happens to its connections; what it says at the end counts every store
//! that it submitted, and every key that it wrote to. What breaks it: a server that never comes back.

use crate::watch::Watch;
use anyhow::{Context as _, bail};
use clap::Args;
use forebay_fabric::client::{Address, Client, ClientConfig, Pipeline};
use forebay_tests::vm::{Audit, Ledger, Written, now, sleep};
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Between two lines that say how far it is.
const TELL: Duration = Duration::from_millis(200);
/// How long the look at the end may be kept waiting by a server that is not there.
const AUDIT: Duration = Duration::from_secs(120);
/// How long a turn waits for something to end.
const WAIT: Duration = Duration::from_millis(10);

#[derive(Args, Debug)]
pub(crate) struct Write {
    /// Where the server is
    address: Address,
    /// Where it looks at the end, if that is not where it stores
    #[arg(long)]
    look_at: Option<Address>,
    /// It stores until this file is there
    #[arg(long)]
    until: PathBuf,
    #[arg(long, default_value_t = 120)]
    keys: u64,
    /// The longest value, in bytes
    #[arg(long, default_value_t = 64 << 10)]
    length_max: usize,
    /// Stores in flight
    #[arg(long, default_value_t = 16)]
    depth: u16,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The deadline of each
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u32,
    #[arg(long, default_value_t = 2_000)]
    keep_alive_ms: u32,
}

impl Write {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut ledger = Ledger::new(self.keys, self.length_max, self.seed);
        let mut client =
            Pipeline::connect(self.config(&self.address)).context("the first connection")?;
        let written = self.write(&mut ledger, &mut client)?;
        let rest = ledger.drain(&mut client)?;
        let counters = client.counters();
        drop(client);
        tell("drained", &rest);
        let Audit { sound, lost, failed } = self.audit(&mut ledger)?;
        let failures: Vec<_> = failed.values().map(ToString::to_string).collect();
        println!(
            "{}",
            json!({
                "is": "ended",
                "acknowledged": written.acknowledged + rest.acknowledged,
                "failed": written.failed + rest.failed,
                "longest_ms": written.longest.max(rest.longest).as_millis() as u64,
                "connections": counters.connections,
                "replays": counters.replays,
                "sound": sound.len(), "lost": lost, "unanswered": failures,
            })
        );
        Ok(())
    }

    fn config(&self, address: &Address) -> ClientConfig {
        ClientConfig {
            queue_depth: self.depth,
            timeout_us: self.timeout_ms * 1000,
            keep_alive_ms: self.keep_alive_ms,
            connect_timeout_ms: 10_000,
            ..ClientConfig::new(vec![address.clone()])
        }
    }

    fn write(&self, ledger: &mut Ledger, client: &mut Pipeline) -> anyhow::Result<Written> {
        let (depth, mut told) = (usize::from(self.depth), now());
        let watch = Watch::start(WAIT);
        ledger.write(client, depth, |so_far| {
            watch.turned();
            if told.elapsed() < TELL {
                return Ok(true);
            }
            told = now();
            tell("writing", &so_far);
            Ok(!self.until.exists())
        })
    }

    /// Looks at all keys, with a new connection whenever one is lost.
    fn audit(&self, ledger: &mut Ledger) -> anyhow::Result<Audit> {
        let began = now();
        let patient = |since: Instant| since.elapsed() < AUDIT;
        while patient(began) {
            match Client::connect(self.config(self.look_at.as_ref().unwrap_or(&self.address))) {
                Ok(mut client) => return ledger.audit(&mut client),
                Err(error) => println!("{}", json!({ "is": "waiting", "why": error.to_string() })),
            }
            sleep(Duration::from_secs(1));
        }
        bail!("the server does not come back")
    }
}

fn tell(what: &str, so_far: &Written) {
    let Written { acknowledged, failed, longest } = so_far;
    let longest_ms = longest.as_millis() as u64;
    println!(
        "{}",
        json!({ "is": what, "acknowledged": acknowledged, "failed": failed, "longest_ms": longest_ms })
    );
}

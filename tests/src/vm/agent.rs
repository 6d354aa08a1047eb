//! The test's end of the conversation with the agent in the guest.

use super::clock::now;
use super::lines::Lines;
use super::wire::{Ask, Tell};
use anyhow::{Context as _, bail, ensure};
use std::collections::BTreeMap;
use std::time::Duration;

/// How much later than its own timeout an answer may come: the guest is slow.
const GRACE: Duration = Duration::from_secs(30);

/// How a script ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The exit status; 128 and the signal's number for a signal; 124 if time was up.
    pub status: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// The status of a process in the background, once it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// As in [`Output::status`].
    pub status: i32,
}

#[derive(Debug)]
pub(super) struct Agent {
    lines: Lines,
    asked: u64,
    ended: BTreeMap<u32, Ended>,
}

impl Agent {
    /// Waits until the guest is up.
    pub(super) fn greet(lines: Lines, patience: Duration) -> anyhow::Result<Self> {
        let mut agent = Self { lines, asked: 0, ended: BTreeMap::new() };
        match agent.hear(patience)? {
            Some(Tell::Ready) => Ok(agent),
            Some(other) => bail!("the agent began with {other:?}"),
            None => bail!("the guest did not come up in {} s", patience.as_secs()),
        }
    }

    pub(super) fn run(&mut self, script: &str, timeout: Duration) -> anyhow::Result<Output> {
        let timeout_ms = u64::try_from(timeout.as_millis()).context("a shorter timeout")?;
        match self.ask(&Ask::Run { script: script.to_owned(), timeout_ms }, timeout)? {
            Tell::Ran { status, stdout, stderr, .. } => Ok(Output { status, stdout, stderr }),
            other => bail!("{other:?}"),
        }
    }

    pub(super) fn spawn(&mut self, script: &str, log: &str) -> anyhow::Result<u32> {
        let ask = Ask::Spawn { script: script.to_owned(), log: log.to_owned() };
        match self.ask(&ask, Duration::ZERO)? {
            Tell::Spawned { pid, .. } => Ok(pid),
            other => bail!("{other:?}"),
        }
    }

    /// How the process `pid` ended, if it has by the end of `patience`.
    pub(super) fn ended(&mut self, pid: u32, patience: Duration) -> anyhow::Result<Option<Ended>> {
        let until = now() + patience;
        loop {
            if let Some(ended) = self.ended.get(&pid) {
                return Ok(Some(*ended));
            }
            let left = until.saturating_duration_since(now());
            // What has arrived already is heard even without patience.
            match self.hear(left.max(Duration::from_millis(1)))? {
                Some(tell) => ensure!(self.note(&tell), "unasked, the agent says {tell:?}"),
                None if left.is_zero() => return Ok(None),
                None => {}
            }
        }
    }

    fn ask(&mut self, ask: &Ask, timeout: Duration) -> anyhow::Result<Tell> {
        self.asked += 1;
        self.lines.send(&ask.to_json(self.asked))?;
        loop {
            let Some(tell) = self.hear(timeout + GRACE)? else {
                bail!("the guest hangs: no answer to {ask:?}");
            };
            if self.note(&tell) {
                continue;
            }
            match tell {
                Tell::Failed { why, .. } => bail!("{ask:?}: {why}"),
                Tell::Ran { id, .. } | Tell::Spawned { id, .. } if id == self.asked => {
                    return Ok(tell);
                }
                // The late answer to a question that was given up.
                _ => {}
            }
        }
    }

    /// Keeps the end of a process; `false` if it is something else.
    fn note(&mut self, tell: &Tell) -> bool {
        let Tell::Ended { pid, status } = tell else { return false };
        self.ended.insert(*pid, Ended { status: *status });
        true
    }

    fn hear(&mut self, patience: Duration) -> anyhow::Result<Option<Tell>> {
        let Some(value) = self.lines.receive(now() + patience)? else { return Ok(None) };
        Tell::from_json(&value).map(Some).with_context(|| format!("the agent says {value}"))
    }
}

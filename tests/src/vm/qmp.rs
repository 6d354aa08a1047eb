//! QMP, QEMU's control protocol: a command and its answer at a time, events in between.

use super::clock::now;
use super::lines::Lines;
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::Duration;

/// How long QEMU may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// QEMU said no.
#[derive(Debug, thiserror::Error)]
#[error("{command}: {message}")]
pub struct QmpError {
    /// What was asked.
    pub command: String,
    /// What it said.
    pub message: String,
}

/// QEMU's control socket.
#[derive(Debug)]
pub struct Qmp {
    lines: Lines,
    events: VecDeque<Value>,
}

impl Qmp {
    pub(super) fn greet(lines: Lines) -> anyhow::Result<Self> {
        let mut qmp = Self { lines, events: VecDeque::new() };
        let greeting = qmp.lines.receive(now() + PATIENCE)?.context("QEMU does not greet")?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU greets with {greeting}");
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command; what it returns.
    ///
    /// # Errors
    /// [`QmpError`], or QEMU is gone.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        self.lines.send(&json!({ "execute": command, "arguments": arguments }))?;
        let until = now() + PATIENCE;
        loop {
            let Some(mut said) = self.lines.receive(until)? else {
                bail!("QEMU does not answer {command}");
            };
            if said.get("event").is_some() {
                self.events.push_back(said);
            } else if let Some(error) = said.get("error") {
                let message = error["desc"].as_str().unwrap_or_default().to_owned();
                return Err(QmpError { command: command.to_owned(), message }.into());
            } else {
                return Ok(said["return"].take());
            }
        }
    }

    /// Waits for an event of this name; its data. Earlier events of other names are forgotten.
    ///
    /// # Errors
    /// It does not come in time.
    pub fn event(&mut self, name: &str, patience: Duration) -> anyhow::Result<Value> {
        let until = now() + patience;
        loop {
            let said = match self.events.pop_front() {
                Some(event) => event,
                None => match self.lines.receive(until)? {
                    Some(said) => said,
                    None => bail!("no event {name} in {} s", patience.as_secs()),
                },
            };
            if said["event"] == name {
                return Ok(said["data"].clone());
            }
        }
    }
}

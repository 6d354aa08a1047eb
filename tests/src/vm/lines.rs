//! JSON over a socket, a line for each value: QMP and the agent both speak so.

use super::clock::now;
use anyhow::{Context as _, bail};
use serde_json::Value;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// One end of such a socket.
#[derive(Debug)]
pub(super) struct Lines {
    stream: UnixStream,
    /// What came and is no whole line yet, behind whole lines that nobody took.
    buffer: Vec<u8>,
}

impl Lines {
    pub(super) fn connect(socket: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        // A machine that takes nothing any more must not hold its test.
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    pub(super) fn send(&mut self, value: &Value) -> anyhow::Result<()> {
        let line = format!("{value}\n");
        self.stream.write_all(line.as_bytes()).context("the machine takes no more commands")
    }

    /// The next value, or nothing by `until`.
    ///
    /// # Errors
    /// The other end is gone, or talks no JSON.
    pub(super) fn receive(&mut self, until: Instant) -> anyhow::Result<Option<Value>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let value = serde_json::from_slice(&line);
                return Ok(Some(value.with_context(|| {
                    format!("not JSON: {}", String::from_utf8_lossy(&line).trim())
                })?));
            }
            let left = until.saturating_duration_since(now());
            if left.is_zero() || !self.read(left)? {
                return Ok(None);
            }
        }
    }

    /// Reads what is there; `false` if nothing came in `patience`.
    fn read(&mut self, patience: Duration) -> anyhow::Result<bool> {
        // A timeout of less than the kernel's tick would be none.
        self.stream.set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => bail!("the machine is gone"),
            Ok(count) => {
                self.buffer.extend_from_slice(&bytes[..count]);
                Ok(true)
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(false),
                ErrorKind::Interrupted => Ok(true),
                _ => Err(error).context("the machine is gone"),
            },
        }
    }
}

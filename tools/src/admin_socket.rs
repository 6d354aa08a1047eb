//! Asking a daemon on this machine, through its admin socket.

use anyhow::Context as _;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long a daemon may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// One line asks, one line of JSON answers.
pub(crate) fn ask(socket: &Path, request: &str) -> anyhow::Result<Value> {
    let shown = socket.display();
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("cannot connect to {shown}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    writeln!(stream, "\"{request}\"").with_context(|| format!("cannot ask {shown}"))?;
    let mut text = String::new();
    BufReader::new(stream)
        .read_line(&mut text)
        .with_context(|| format!("no answer from {shown}"))?;
    serde_json::from_str(&text).with_context(|| format!("{shown} does not answer in JSON"))
}

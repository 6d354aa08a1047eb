//! What every command gets: where the server is, and how to print.

use crate::cli::{Globals, Output};
use crate::exit::{Code, Failure};
use crate::progress::Progress;
use forebay_fabric::client::{Address, Client, ClientConfig, ClientError};
use serde::Serialize;
use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;

/// The global options, resolved when they are needed.
pub(crate) struct Context {
    globals: Globals,
}

impl Context {
    pub(crate) fn new(globals: Globals) -> Self {
        Self { globals }
    }

    /// The server as it was given.
    pub(crate) fn server(&self) -> &str {
        &self.globals.server
    }

    /// The addresses in `--server`.
    pub(crate) fn addresses(&self) -> anyhow::Result<Vec<Address>> {
        let mut addresses = Vec::new();
        for part in self.globals.server.split(',').map(str::trim) {
            let (transport, place) = part.split_once(':').unwrap_or_default();
            match transport {
                "shm" if !place.is_empty() => addresses.push(Address::shm(Path::new(place))),
                "rdma" => addresses.extend(resolve(part, place)?.map(Address::Rdma)),
                "auto" => addresses.extend(resolve(part, place)?.flat_map(Address::auto)),
                "tcp" => addresses.extend(resolve(part, place)?.map(Address::Tcp)),
                _ => addresses.extend(resolve(part, part)?.map(Address::Tcp)),
            }
        }
        Ok(addresses)
    }

    /// How to connect, with the deadline of `--timeout`.
    pub(crate) fn client_config(&self) -> anyhow::Result<ClientConfig> {
        let timeout_us = self.globals.timeout.saturating_mul(1_000_000);
        Ok(ClientConfig { timeout_us, ..ClientConfig::new(self.addresses()?) })
    }

    /// A connected client.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Client::connect(self.client_config()?).map_err(with_hint)
    }

    pub(crate) fn is_json(&self) -> bool {
        self.globals.output == Output::Json
    }

    /// Prints a result: `value` as JSON, or what `text` makes.
    pub(crate) fn emit(
        &self,
        value: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        let mut out = match self.globals.output {
            Output::Json => serde_json::to_string(value)?,
            Output::Text => text(),
        };
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        io::stdout().write_all(out.as_bytes())?;
        Ok(())
    }

    /// Says on stderr what went wrong.
    pub(crate) fn complain(&self, error: &anyhow::Error, code: Code) {
        match self.globals.output {
            _ if Failure::was_told(error) => {}
            Output::Json => {
                let json = serde_json::json!({"error": format!("{error:#}"), "code": code as u8});
                eprintln!("{json}");
            }
            Output::Text => eprintln!("forebay: {error:#}"),
        }
    }

    /// A progress bar over `total_bytes`.
    pub(crate) fn progress(&self, total_bytes: u64, what: &str) -> Progress {
        Progress::of_bytes(total_bytes, what)
    }
}

/// The addresses of `place`, a name or a number with a port, in the part `part` of `--server`.
fn resolve(part: &str, place: &str) -> anyhow::Result<std::vec::IntoIter<SocketAddr>> {
    let instead =
        "write ADDRESS:PORT (with tcp:, rdma: or auto: before it, if need be) or shm:PATH";
    let failed = |error| Failure::new(Code::Usage, format!("--server {part}: {error}; {instead}"));
    Ok(place.to_socket_addrs().map_err(failed)?)
}

/// The error of a connection that could not be made, and what to do about it.
pub(crate) fn with_hint(error: ClientError) -> anyhow::Error {
    match error {
        ClientError::Connect { .. } => {
            let hint = "is forebayd running there? (forebayd --dev DIR starts one)";
            Failure::new(Code::Unreachable, format!("{error}; {hint}")).into()
        }
        other => other.into(),
    }
}

/// Whether the reader of stdout went away, as `head` does: no error of ours.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io_error = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    io_error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

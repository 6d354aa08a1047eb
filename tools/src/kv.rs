//! `forebay kv`: single keys, by hand.

use crate::context::Context;
use crate::exit::{Code, Failure};
use crate::output;
use anyhow::Context as _;
use clap::Subcommand;
use forebay_fabric::client::{Client, NamespaceId};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The namespace
    #[arg(short, long, default_value = "default", global = true)]
    namespace: String,
    /// Keys are given and printed in hexadecimal
    #[arg(long, global = true)]
    hex: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Store a value: the argument's, a file's, or stdin's
    Put {
        key: String,
        /// The value; without it and without --file, stdin is read to its end
        value: Option<String>,
        /// Take the value from this file
        #[arg(short, long, conflicts_with = "value")]
        file: Option<PathBuf>,
    },
    /// Retrieve a value, or a range of its bytes
    Get {
        key: String,
        /// Write it to this file instead of stdout
        #[arg(short, long)]
        file: Option<PathBuf>,
        /// The first byte wanted
        #[arg(long, default_value_t = 0)]
        offset: u64,
        /// How many bytes are wanted; to the end without it
        #[arg(long)]
        length: Option<u32>,
    },
    /// Delete keys
    Rm {
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// List the keys that begin with PREFIX, in no particular order
    Ls {
        #[arg(default_value = "")]
        prefix: String,
        /// Stop after so many
        #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
        limit: usize,
        /// Show the length of each value
        #[arg(short, long)]
        long: bool,
    },
    /// Is each key there? Ends with code 3 if one is not
    Exists {
        #[arg(required = true)]
        keys: Vec<String>,
    },
}

/// One command on one namespace.
struct Session<'a> {
    client: Client,
    namespace: NamespaceId,
    hex: bool,
    context: &'a Context,
}

pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let Args { namespace, hex, command } = args;
    let mut client = context.client()?;
    let namespace = client.namespace(&namespace)?;
    let mut session = Session { client, namespace, hex, context };
    match command {
        Command::Put { key, value, file } => session.put(&key, value, file),
        Command::Get { key, file, offset, length } => session.get(&key, file, offset, length),
        Command::Rm { keys } => session.rm(&keys),
        Command::Ls { prefix, limit, long } => session.ls(&prefix, limit, long),
        Command::Exists { keys } => session.exists(&keys),
    }
}

impl Session<'_> {
    fn put(
        &mut self,
        key: &str,
        value: Option<String>,
        file: Option<PathBuf>,
    ) -> anyhow::Result<()> {
        let value = match (value, file) {
            (Some(value), _) => value.into_bytes(),
            (None, Some(file)) => {
                std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?
            }
            (None, None) => {
                let mut value = Vec::new();
                io::stdin().read_to_end(&mut value).context("cannot read stdin")?;
                value
            }
        };
        let (bytes, limit) = (value.len(), self.client.pipeline().value_bytes_max());
        if bytes > limit as usize {
            let (have, most) = (output::bytes(bytes as u64), output::bytes(u64::from(limit)));
            let what = format!("the value has {have}, and a key takes {most} at most");
            return Err(Failure::new(Code::Failure, what).into());
        }
        self.client.store(self.namespace, &self.key(key)?, value)?;
        self.context.emit(&json!({"key": key, "bytes": bytes}), String::new)
    }

    fn get(
        &mut self,
        key: &str,
        file: Option<PathBuf>,
        offset: u64,
        length: Option<u32>,
    ) -> anyhow::Result<()> {
        let name = self.key(key)?;
        let value = match (offset, length) {
            (0, None) => self.client.retrieve(self.namespace, &name)?,
            (offset, length) => {
                let length = length.unwrap_or(u32::MAX);
                self.client.retrieve_range(self.namespace, &name, offset, length)?
            }
        };
        let value = value.ok_or_else(|| no_such_keys(&[key]))?;
        if let Some(file) = file {
            let shown = file.display().to_string();
            std::fs::write(&file, &value).with_context(|| format!("cannot write {shown}"))?;
            let json = json!({"key": key, "bytes": value.len(), "file": shown});
            return self.context.emit(&json, String::new);
        }
        if !self.context.is_json() {
            io::stdout().write_all(&value)?;
            return Ok(());
        }
        let (field, text) = match std::str::from_utf8(&value) {
            Ok(text) => ("value", text.to_owned()),
            Err(_) => ("value_hex", to_hex(&value)),
        };
        self.context.emit(&json!({"key": key, "bytes": value.len(), field: text}), String::new)
    }

    fn rm(&mut self, keys: &[String]) -> anyhow::Result<()> {
        let mut absent = Vec::new();
        for key in keys {
            if !self.client.delete(self.namespace, &self.key(key)?)? {
                absent.push(key.as_str());
            }
        }
        let json = json!({"deleted": keys.len() - absent.len(), "absent": absent});
        self.context.emit(&json, String::new)?;
        if absent.is_empty() { Ok(()) } else { Err(no_such_keys(&absent)) }
    }

    fn ls(&mut self, prefix: &str, limit: usize, long: bool) -> anyhow::Result<()> {
        let prefix = self.key(prefix)?;
        let mut rows: Vec<Value> = Vec::new();
        for entry in self.client.list(self.namespace, &prefix).take(limit) {
            let (key, bytes) = entry?;
            let shown = if self.hex { to_hex(&key) } else { key.escape_ascii().to_string() };
            if self.context.is_json() {
                let (field, text) = match String::from_utf8(key) {
                    Ok(text) if !self.hex => ("key", text),
                    _ if self.hex => ("key", shown),
                    _ => ("key_escaped", shown),
                };
                rows.push(json!({field: text, "bytes": bytes}));
            } else if long {
                writeln!(io::stdout(), "{bytes:>10}  {shown}")?;
            } else {
                writeln!(io::stdout(), "{shown}")?;
            }
        }
        if self.context.is_json() { self.context.emit(&rows, String::new) } else { Ok(()) }
    }

    fn exists(&mut self, keys: &[String]) -> anyhow::Result<()> {
        let (mut rows, mut lines, mut absent) = (Vec::new(), String::new(), Vec::new());
        for key in keys {
            let bytes = self.client.exist(self.namespace, &self.key(key)?)?;
            rows.push(json!({"key": key, "exists": bytes.is_some(), "bytes": bytes}));
            match bytes {
                Some(bytes) => lines += &format!("{key}: {bytes} bytes\n"),
                None => absent.push(key.as_str()),
            }
        }
        self.context.emit(&rows, || lines)?;
        if absent.is_empty() { Ok(()) } else { Err(no_such_keys(&absent)) }
    }

    /// The bytes of a key as it was typed.
    fn key(&self, typed: &str) -> anyhow::Result<Vec<u8>> {
        if !self.hex {
            return Ok(typed.as_bytes().to_vec());
        }
        from_hex(typed).ok_or_else(|| {
            Failure::new(Code::Usage, format!("\"{typed}\" is not hexadecimal")).into()
        })
    }
}

fn no_such_keys(keys: &[&str]) -> anyhow::Error {
    let noun = if keys.len() == 1 { "no such key" } else { "no such keys" };
    Failure::new(Code::NotFound, format!("{noun}: {}", keys.join(", "))).into()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_goes_both_ways_and_refuses_what_is_none() {
        assert_eq!(from_hex("00ff10"), Some(vec![0, 255, 16]));
        assert_eq!(to_hex(&[0, 255, 16]), "00ff10");
        assert_eq!(from_hex(""), Some(vec![]));
        for bad in ["0", "0g", "é0"] {
            assert_eq!(from_hex(bad), None, "{bad}");
        }
    }
}

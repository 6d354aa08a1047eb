//! `forebay demo`: the whole path once, with a crash in the middle.
//!
//! What it shows, and fails loudly if it is not so: after SIGKILL with writes in flight, every write
//! that was acknowledged is there byte for byte, no write is half there, and the checkpoint loads
//! byte-identical. What was in flight may have happened or not; both are right.

mod blocks;
mod crash;
mod daemon;
mod flow;
mod model;

use crate::clock;
use crate::context::Context;
use crate::exit::{Code, Failure};
use crate::output;
use anyhow::{Context as _, bail, ensure};
use blocks::Block;
use crash::Crash;
use daemon::Daemon;
use flow::Timing;
use forebay_fabric::client::{Client, NamespaceId, Pipeline, Request};
use serde::Serialize;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The checkpoint's name.
const CHECKPOINT: &str = "demo/1";
/// Commands in flight.
const DEPTH: usize = 32;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A safetensors file to save as a checkpoint; without one, tensors are made
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Where the Markdown documents are whose tokens are stored
    #[arg(long, value_name = "DIR", default_value = ".")]
    docs: PathBuf,
    /// How many tokens
    #[arg(long, default_value_t = 4096)]
    tokens: usize,
    /// Where the temporary folder is made; the system's own place without it
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The daemon's binary; the one beside this without it
    #[arg(long, value_name = "FILE")]
    daemon: Option<PathBuf>,
    /// Leave the temporary folder behind
    #[arg(long)]
    keep: bool,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    what: String,
    count: u64,
    bytes: u64,
    seconds: f64,
    p99_us: Option<f64>,
}

impl Row {
    fn new(what: impl Into<String>, timing: Timing) -> Self {
        let Timing { count, bytes, seconds, p99_us } = timing;
        Self { what: what.into(), count, bytes, seconds, p99_us }
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.what.clone(),
            self.count.to_string(),
            if self.bytes > 0 { output::bytes(self.bytes) } else { "-".to_owned() },
            format!("{:.2} s", self.seconds),
            if self.bytes > 0 { output::rate(self.bytes, self.seconds) } else { "-".to_owned() },
            self.p99_us.map_or("-".to_owned(), |us| output::nanoseconds((us * 1e3) as u64)),
        ]
    }
}

pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("forebay-demo-");
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let folder = builder.tempdir_in(&parent).context("cannot make a temporary folder")?;
    let mut rows = Vec::new();
    let outcome = Demo::new(&args, folder.path(), &mut rows).and_then(Demo::play);
    if args.keep || outcome.is_err() {
        eprintln!("the demo's files are left in {}", folder.keep().display());
    }
    let (line, code) = match &outcome {
        Ok(line) => (format!("demo: ok - {line}"), None),
        Err(error) => (format!("demo: FAILED - {error:#}"), Some(Code::of(error))),
    };
    let json = serde_json::json!({"ok": outcome.is_ok(), "line": line, "rows": rows});
    context.emit(&json, || {
        let cells: Vec<_> = rows.iter().map(Row::cells).collect();
        let heads = ["what", "count", "size", "time", "rate", "p99"];
        format!("\n{}\n{line}", output::table(&heads, &cells))
    })?;
    code.map_or(Ok(()), |code| Err(Failure::told(code).into()))
}

struct Demo<'a> {
    args: &'a Args,
    folder: &'a Path,
    rows: &'a mut Vec<Row>,
    address: SocketAddr,
    daemon: Daemon,
}

impl<'a> Demo<'a> {
    fn new(args: &'a Args, folder: &'a Path, rows: &'a mut Vec<Row>) -> anyhow::Result<Self> {
        let binary = args.daemon.clone().map_or_else(daemon::beside_this, Ok)?;
        let address = daemon::free_address()?;
        say(&format!("starting {} in {}, on {address}", binary.display(), folder.display()));
        let daemon = Daemon::start(&binary, folder, address)?;
        Ok(Self { args, folder, rows, address, daemon })
    }

    /// Everything in its order; the last line's end if it went well.
    fn play(mut self) -> anyhow::Result<String> {
        let model = self.model()?;
        self.save(&model)?;
        let blocks = self.blocks()?;
        self.store(&blocks)?;

        let crash = self.crash()?;
        self.restart()?;

        self.verify_blocks(&blocks)?;
        let verified = self.verify_crash(&crash)?;
        let model_bytes = self.load_and_compare(&model)?;
        self.daemon.stop()?;
        Ok(format!(
            "killed with {} writes in flight: {} sessions hold the last of their {} acknowledged \
             writes, and {} KV blocks and the checkpoint of {} are there, byte for byte",
            crash.in_flight,
            verified,
            crash.acknowledged(),
            blocks.len(),
            output::bytes(model_bytes),
        ))
    }

    /// The file to save: the one given, or tensors made here.
    fn model(&self) -> anyhow::Result<PathBuf> {
        if let Some(model) = &self.args.model {
            ensure!(model.is_file(), "there is no model {}", model.display());
            return Ok(model.clone());
        }
        let path = self.folder.join("made.safetensors");
        say("no --model given: making random tensors of about 90 MB in its place");
        model::make(&path).context("cannot make tensors")?;
        Ok(path)
    }

    fn save(&mut self, model: &Path) -> anyhow::Result<()> {
        say(&format!("saving {} as checkpoint {CHECKPOINT}", model.display()));
        let timing = self.checkpoint(&["save".as_ref(), model.as_ref(), CHECKPOINT.as_ref()])?;
        let name = model.file_name().unwrap_or_default().to_string_lossy();
        self.rows.push(Row::new(format!("checkpoint save ({name})"), timing));
        Ok(())
    }

    /// Runs this very program's `ckpt`, and reads the numbers of its JSON.
    fn checkpoint(&self, arguments: &[&std::ffi::OsStr]) -> anyhow::Result<Timing> {
        let started_ns = clock::now_ns();
        let program = std::env::current_exe().context("this program's own path")?;
        let output = Command::new(program)
            .args(["--server", &self.address.to_string(), "--timeout", "60", "-o", "json", "ckpt"])
            .args(arguments)
            .output()
            .context("cannot run forebay ckpt")?;
        let seconds = clock::seconds_between(started_ns, clock::now_ns());
        if !output.status.success() {
            bail!("forebay ckpt: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let json: Value = serde_json::from_slice(&output.stdout).context("the JSON of ckpt")?;
        let number = |key: &str| json.get(key).and_then(Value::as_f64);
        Ok(Timing {
            count: 1,
            bytes: number("bytes").unwrap_or_default() as u64,
            seconds: number("seconds").unwrap_or(seconds),
            p99_us: number("p99_us"),
        })
    }

    fn blocks(&self) -> anyhow::Result<Vec<Block>> {
        let documents = blocks::documents(&self.args.docs);
        let blocks = blocks::chain(&documents, self.args.tokens);
        ensure!(!blocks.is_empty(), "no text to take tokens from");
        say(&format!(
            "storing the KV blocks of {} tokens of {} documents, {} tokens a block",
            blocks.len() * blocks::BLOCK_TOKENS,
            documents.len(),
            blocks::BLOCK_TOKENS
        ));
        Ok(blocks)
    }

    fn connect(&self) -> anyhow::Result<(Pipeline, NamespaceId)> {
        let mut client = Client::connect(flow::config(self.address))?;
        let namespace = client.namespace("default")?;
        Ok((Pipeline::connect(flow::config(self.address))?, namespace))
    }

    fn store(&mut self, blocks: &[Block]) -> anyhow::Result<()> {
        let (mut pipeline, namespace) = self.connect()?;
        let request = |index: usize, submit: &mut dyn FnMut(Request<'_>) -> bool| {
            submit(Request::store(namespace, &blocks[index].key, blocks[index].value()))
        };
        let bytes = |index: usize, _: &[u8]| Ok(blocks[index].value_bytes() as u64);
        let timing = flow::run(&mut pipeline, blocks.len(), DEPTH, request, bytes)?;
        self.rows.push(Row::new("KV blocks stored (durable)", timing));
        Ok(())
    }

    /// Writes until SIGKILL.
    fn crash(&mut self) -> anyhow::Result<Crash> {
        say("writing, and killing the daemon with SIGKILL in the middle of it");
        let (pipeline, namespace) = self.connect()?;
        let daemon = &mut self.daemon;
        let crash = Crash::write_until_killed(pipeline, namespace, DEPTH, || daemon.kill())?;
        ensure!(crash.in_flight > 0, "no write was in flight when the daemon was killed");
        self.rows.push(Row::new("session writes until SIGKILL", crash.timing));
        Ok(crash)
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        say("starting it again");
        let started_ns = clock::now_ns();
        self.daemon.restart()?;
        let seconds = clock::seconds_between(started_ns, clock::now_ns());
        let timing = Timing { count: 1, bytes: 0, seconds, p99_us: None };
        self.rows.push(Row::new("restart to first answer", timing));
        Ok(())
    }

    fn verify_blocks(&mut self, blocks: &[Block]) -> anyhow::Result<()> {
        let (mut pipeline, namespace) = self.connect()?;
        let request = |index: usize, submit: &mut dyn FnMut(Request<'_>) -> bool| {
            submit(Request::retrieve(namespace, &blocks[index].key, 0, u32::MAX))
        };
        let compare = |index: usize, data: &[u8]| {
            if blocks[index].value() != data {
                let what = format!("KV block {index} came back with wrong bytes");
                return Err(Failure::new(Code::Integrity, what).into());
            }
            Ok(data.len() as u64)
        };
        let timing = flow::run(&mut pipeline, blocks.len(), DEPTH, request, compare)?;
        self.rows.push(Row::new("KV blocks verified", timing));
        Ok(())
    }

    /// How many sessions were written: each holds its last acknowledged write, or the one that was
    /// in flight.
    fn verify_crash(&mut self, crash: &Crash) -> anyhow::Result<u64> {
        let (pipeline, namespace) = self.connect()?;
        let timing = crash.verify(pipeline, namespace, DEPTH)?;
        self.rows.push(Row::new("sessions verified, last writes", timing));
        Ok(timing.count)
    }

    fn load_and_compare(&mut self, model: &Path) -> anyhow::Result<u64> {
        say("loading the checkpoint, and comparing it byte for byte");
        let loaded = self.folder.join("loaded.safetensors");
        let timing = self.checkpoint(&["load".as_ref(), CHECKPOINT.as_ref(), loaded.as_ref()])?;
        let bytes = model::compare(model, &loaded)?;
        self.rows.push(Row::new("checkpoint load, byte-identical", Timing { bytes, ..timing }));
        Ok(bytes)
    }
}

/// What happens now, for the person who watches.
fn say(what: &str) {
    eprintln!("demo: {what}");
}

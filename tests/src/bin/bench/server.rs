//! Forebay as its users have it: `forebayd` as a process, asked by `forebay perf`.

use crate::machine::{Machine, Process, free_address, output};
use anyhow::{Context as _, ensure};
use forebay_fabric::client::{Client, ClientConfig};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Arena of the daemon, in MiB.
const ARENA_MIB: u64 = 128;
/// Index of the daemon, in MiB: 1.8 million keys.
const INDEX_MIB: u64 = 64;
/// Keys of a namespace are the same whatever their values: each size has its own.
pub(crate) const NAMESPACES: [&str; 3] = ["small", "medium", "large"];

/// A running daemon on a file of its own.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) process: Process,
    core: usize,
    folder: PathBuf,
    address: SocketAddr,
}

/// One run of `forebay perf`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) namespace: &'static str,
    pub(crate) op: &'static str,
    pub(crate) value_bytes: u64,
    pub(crate) keys: u64,
    pub(crate) dist: &'static str,
    pub(crate) depth: u32,
}

/// What a run of `forebay perf` has measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) ops_per_s: f64,
    pub(crate) bytes_per_s: f64,
}

impl Server {
    /// Starts a daemon in `folder`, on a new file of `device_mib`, and waits until it answers.
    pub(crate) fn start(machine: &Machine, folder: &Path, device_mib: u64) -> anyhow::Result<Self> {
        let (core, address) = (machine.server_core, free_address()?);
        let config = configuration(folder, core, address, device_mib);
        std::fs::write(folder.join("forebay.toml"), config)?;
        let process = spawn(core, folder)?;
        let mut server = Self { process, core, folder: folder.to_owned(), address };
        server.wait()?;
        Ok(server)
    }

    /// Starts it again on the same file: seconds until a client's first retrieve of `key`.
    pub(crate) fn restart(&mut self, namespace: &str, key: &[u8]) -> anyhow::Result<f64> {
        let began = crate::machine::now();
        self.process = spawn(self.core, &self.folder)?;
        let mut client = self.wait()?;
        let namespace = client.namespace(namespace)?;
        let value = client.retrieve(namespace, key)?;
        let seconds = began.elapsed().as_secs_f64();
        ensure!(value.is_some(), "a stored key is gone after the restart");
        Ok(seconds)
    }

    fn wait(&mut self) -> anyhow::Result<Client> {
        let config = ClientConfig::new(vec![self.address]);
        self.process.wait_until(|| Ok(Client::connect(config.clone())?))
    }

    /// Stores every key of `load` once.
    pub(crate) fn fill(&self, core: usize, load: Load) -> anyhow::Result<()> {
        // Asking whether one key is there measures nothing: it is what comes before that counts.
        let load = Load { op: "exist", ..load };
        self.run(core, load, &["--prefill", "--warmup", "0", "--ops", "1"]).map(drop)
    }

    /// Measures `load` for `seconds`, behind a second that does not count.
    pub(crate) fn measure(
        &self,
        core: usize,
        load: Load,
        seconds: u32,
    ) -> anyhow::Result<Measured> {
        self.run(core, load, &["--warmup", "1", "--duration", &seconds.to_string()])
    }

    fn run(&self, core: usize, load: Load, options: &[&str]) -> anyhow::Result<Measured> {
        let Load { namespace, op, value_bytes, keys, dist, depth } = load;
        let mut command = Command::new(built("forebay")?);
        command
            .args(["--server", &self.address.to_string(), "-o", "json", "perf"])
            .args(["--namespace", namespace, "--op", op, "--dist", dist])
            .args(["--value-size", &value_bytes.to_string(), "--keys", &keys.to_string()])
            .args(["--depth", &depth.to_string(), "--connections", "1"])
            .args(options);
        measured(&output(core, &mut command)?).with_context(|| format!("perf of {load:?}"))
    }

    /// Bytes of all index tables, as the daemon tells on its admin socket.
    pub(crate) fn index_bytes(&self) -> anyhow::Result<u64> {
        let status = self.ask("status")?;
        let reactors = status["reactors"].as_array().context("no reactors in the status")?;
        let bytes = reactors.iter().map(|reactor| reactor["index_bytes"].as_u64());
        bytes.sum::<Option<u64>>().context("no index_bytes in the status")
    }

    /// Bytes of the arena.
    pub(crate) fn arena_bytes(&self) -> u64 {
        ARENA_MIB << 20
    }

    fn ask(&self, what: &str) -> anyhow::Result<Value> {
        let mut stream = UnixStream::connect(self.folder.join("admin.sock"))?;
        writeln!(stream, "\"{what}\"")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        serde_json::from_str(&line).context("the answer of the admin socket")
    }
}

fn spawn(core: usize, folder: &Path) -> anyhow::Result<Process> {
    let mut command = Command::new(built("forebayd")?);
    Process::start(core, command.arg("--config").arg(folder.join("forebay.toml")))
}

/// A program that was built beside this one.
fn built(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("this program's own path")?.with_file_name(name);
    ensure!(path.is_file(), "there is no {}; run `make bench`", path.display());
    Ok(path)
}

fn configuration(folder: &Path, core: usize, address: SocketAddr, device_mib: u64) -> String {
    let folder = folder.display();
    let namespace = |name| format!("\n[[namespace]]\nname = \"{name}\"\nclass = \"durable\"\n");
    format!(
        "[daemon]\ncores = [{core}]\narena = \"{ARENA_MIB}MiB\"\nindex = \"{INDEX_MIB}MiB\"\n\
         admin_socket = \"{folder}/admin.sock\"\n\n\
         [[device]]\ndriver = \"uring\"\npath = \"{folder}/forebay.img\"\nsize = \"{device_mib}MiB\"\n\
         format_if_blank = true\n\n\
         [[listen]]\ntransport = \"tcp\"\naddress = \"{address}\"\n{}\n\
         [log]\nlevel = \"warn\"\n",
        NAMESPACES.map(namespace).concat(),
    )
}

/// Reads the JSON of `forebay perf`; operations that failed are no measurement.
fn measured(text: &str) -> anyhow::Result<Measured> {
    let json: Value = serde_json::from_str(text).context("the JSON of forebay perf")?;
    let number = |key: &str| json[key].as_f64().with_context(|| format!("no {key} in the JSON"));
    let failed = json["errors"].as_object().is_none_or(|errors| !errors.is_empty());
    ensure!(!failed && number("absent")? == 0.0, "operations failed: {json}");
    Ok(Measured { ops_per_s: number("ops_per_s")?, bytes_per_s: number("bytes_per_s")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_config::{Config, Machine as Cpus};

    #[test]
    fn the_daemon_takes_the_configuration() {
        let address = "127.0.0.1:7400".parse().unwrap();
        let text = configuration(Path::new("/dev/shm/bench"), 1, address, 4096);
        let config = Config::parse("bench", &text, &Cpus { cpus: 2 }).expect("no problem");
        assert_eq!(config.daemon.cores, [1]);
        assert_eq!(config.devices[0].size_bytes, Some(4 << 30));
        assert_eq!(config.namespaces.len(), NAMESPACES.len());
    }

    #[test]
    fn failed_operations_are_no_measurement() {
        let good = r#"{"ops_per_s": 5.0, "bytes_per_s": 50.0, "absent": 0, "errors": {}}"#;
        assert_eq!(measured(good).unwrap().bytes_per_s, 50.0);
        assert!(measured(&good.replace("{}", r#"{"NoSpace": 1}"#)).is_err());
        assert!(measured(&good.replace("\"absent\": 0", "\"absent\": 3")).is_err());
        assert!(measured("{}").is_err());
    }
}

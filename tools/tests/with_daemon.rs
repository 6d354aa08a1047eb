//! The command against a real daemon over TCP. The daemon is this test's own executable, started
//! again to run nothing but [`the_daemon_itself`]: no other binary has to be built first.

use forebay_config::{Config, Listen};
use serde_json::Value;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const FOLDER: &str = "FOREBAY_TEST_FOLDER";
const LISTEN: &str = "FOREBAY_TEST_LISTEN";

/// What `forebayd --dev` runs, but smaller.
#[test]
#[ignore = "the other tests run it, as their daemon"]
fn the_daemon_itself() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let mut config = Config::embedded(&folder);
    config.devices[0].size_bytes = Some(512 << 20);
    config.daemon.arena_bytes = 64 << 20;
    config.daemon.index_bytes = 16 << 20;
    let address = std::env::var(LISTEN).unwrap().parse().unwrap();
    let path = folder.join("shm");
    config.listeners =
        vec![Listen::Tcp { address, preference: 0 }, Listen::Shm { path, mode: 0o600 }];
    forebayd::runtime::run(&config).unwrap();
}

struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
    address: SocketAddr,
}

impl Daemon {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("an address");
        drop(free);
        let log = std::fs::File::create(folder.path().join("log")).expect("a log");
        let child = Command::new(std::env::current_exe().expect("this test"))
            .args(["the_daemon_itself", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(FOLDER, folder.path())
            .env(LISTEN, address.to_string())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the daemon starts");
        let mut daemon = Self { child, folder, address };
        daemon.wait();
        daemon
    }

    fn wait(&mut self) {
        for _ in 0..600 {
            if self.forebay(&["status"]).status.success() {
                return;
            }
            let ended = self.child.try_wait().expect("a child");
            let log = || std::fs::read_to_string(self.folder.path().join("log"));
            assert!(ended.is_none(), "the daemon ended: {}", log().expect("its log"));
        }
        panic!("the daemon does not answer");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(["--server", &self.address.to_string()]).args(arguments);
        command
    }

    fn forebay(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the command runs")
    }

    /// Runs a command that has to end with `code`; its JSON, if it prints any.
    fn json(&self, arguments: &[&str], code: i32) -> Value {
        let output = self.forebay(&[&["-o", "json"], arguments].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    fn device(&self) -> PathBuf {
        self.folder.path().join("forebay.img")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it can be waited for");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is UTF-8")
}

#[test]
fn a_value_comes_back_from_an_argument_a_file_and_stdin() {
    let daemon = Daemon::start();
    daemon.json(&["kv", "put", "a", "hello"], 0);
    assert_eq!(daemon.json(&["kv", "get", "a"], 0)["value"], "hello");
    let part = daemon.json(&["kv", "get", "a", "--offset", "1", "--length", "3"], 0);
    assert_eq!(part["value"], "ell");

    let (file, copy) = (daemon.folder.path().join("v"), daemon.folder.path().join("w"));
    let value: Vec<u8> = (0..200_001u64).map(|n| ((n * n) >> 7) as u8).collect();
    std::fs::write(&file, &value).unwrap();
    assert_eq!(daemon.json(&["kv", "put", "b", "--file", text(&file)], 0)["bytes"], 200_001);
    daemon.json(&["kv", "get", "b", "--file", text(&copy)], 0);
    assert!(std::fs::read(&copy).unwrap() == value, "the file came back changed");

    let mut put = daemon.command(&["kv", "put", "c"]).stdin(Stdio::piped()).spawn().unwrap();
    put.stdin.take().unwrap().write_all(&value[..70_000]).unwrap();
    assert!(put.wait().unwrap().success());
    assert!(daemon.forebay(&["kv", "get", "c"]).stdout == value[..70_000]);
}

#[test]
fn keys_are_listed_told_apart_and_deleted() {
    let daemon = Daemon::start();
    for key in ["run/1", "run/2", "other"] {
        daemon.json(&["kv", "put", key, "x"], 0);
    }
    let keys = |prefix: &str| {
        let listed = daemon.json(&["kv", "ls", prefix], 0);
        let key = |row: &Value| row["key"].as_str().unwrap().to_owned();
        let mut keys: Vec<String> = listed.as_array().unwrap().iter().map(key).collect();
        keys.sort();
        keys
    };
    assert_eq!(keys("run/"), ["run/1", "run/2"]);
    assert_eq!(keys("").len(), 3);
    assert_eq!(daemon.json(&["kv", "exists", "run/1", "nope"], 3)[1]["exists"], false);
    assert_eq!(daemon.json(&["kv", "rm", "run/1"], 0)["deleted"], 1);
    daemon.json(&["kv", "rm", "run/1"], 3);
    daemon.json(&["kv", "get", "run/1"], 3);
    daemon.json(&["kv", "--namespace", "nonsuch", "ls"], 3);
    assert_eq!(keys("run/"), ["run/2"]);

    daemon.json(&["kv", "--hex", "put", "ff00", "x"], 0);
    daemon.json(&["kv", "--hex", "exists", "ff00"], 0);
    assert_eq!(daemon.json(&["kv", "--hex", "ls", "ff"], 0)[0]["key"], "ff00");

    let status = daemon.json(&["status"], 0);
    assert_eq!(status["reactors"].as_array().unwrap().len(), 1);
    assert_eq!(status["namespaces"].as_array().unwrap().len(), 2);
    let socket = daemon.folder.path().join("admin.sock");
    assert!(daemon.json(&["status", "--admin", text(&socket)], 0)["pool"].is_string());
}

#[test]
fn perf_verifies_every_byte_and_tells_wrong_ones() {
    let daemon = Daemon::start();
    let common = ["--keys", "300", "--value-size", "5000", "--warmup", "0", "--verify"];
    let perf =
        |arguments: &[&str], code| daemon.json(&[&["perf"], &common[..], arguments].concat(), code);
    let retrieved = perf(&["--prefill", "--ops", "2000", "--connections", "2"], 0);
    assert_eq!(retrieved["ops"], 2000);
    assert_eq!(retrieved["absent"], 0);
    let batched = perf(&["--ops", "999", "--batch", "16", "--dist", "zipf:1.1"], 0);
    assert_eq!((&batched["ops"], &batched["absent"]), (&Value::from(999), &Value::from(0)));
    for batch in ["1", "16"] {
        let landed = perf(&["--region", "--ops", "999", "--batch", batch], 0);
        assert_eq!((&landed["ops"], &landed["absent"]), (&Value::from(999), &Value::from(0)));
    }
    let wrong = perf(&["--region", "--ops", "50", "--seed", "2"], 6);
    assert!(wrong["mismatched"].as_u64().unwrap() > 40, "{wrong}");
    // Another seed expects other values.
    let wrong = perf(&["--ops", "50", "--seed", "2"], 6);
    assert!(wrong["mismatched"].as_u64().unwrap() > 40, "{wrong}");
    let mixed = perf(&["--op", "mixed", "--ops", "1000", "--read-percent", "70"], 0);
    assert_eq!(mixed["mismatched"], 0);
    assert_eq!(perf(&["--op", "delete", "--dist", "sequential", "--ops", "300"], 0)["absent"], 0);
    assert_eq!(perf(&["--op", "exist", "--dist", "sequential", "--ops", "300"], 0)["absent"], 300);
}

/// However loaded the machine is, each due command is either measured or counted as never sent.
#[test]
fn an_open_loop_accounts_for_every_command_of_its_timetable() {
    let daemon = Daemon::start();
    let log = daemon.folder.path().join("run.hdr");
    let common = ["perf", "--prefill", "--keys", "100", "--duration", "1", "--warmup", "0"];
    for (rate, total) in [("2000", 2000), ("3000000", 3_000_000)] {
        let rest = ["--connections", "2", "--hdr-log", text(&log), "--rate", rate];
        let report = daemon.json(&[&common[..], &rest].concat(), 0);
        let (ops, unsent) = (report["ops"].as_u64().unwrap(), report["unsent"].as_u64().unwrap());
        // Two workers' timetables, each rounded to whole nanoseconds.
        assert!((ops + unsent).abs_diff(total) <= 2, "{report}");
        assert!(ops > 0, "{report}");
    }
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.lines().any(|line| line.contains(",HISTFAAAA")), "{log}");
}

#[test]
fn inspect_finds_the_keys_that_the_daemon_wrote() {
    let daemon = Daemon::start();
    let value = "0123456789".repeat(10_000);
    let file = daemon.folder.path().join("v");
    std::fs::write(&file, &value).unwrap();
    daemon.json(&["kv", "put", "large", "--file", text(&file)], 0);
    daemon.json(&["kv", "-n", "cache", "put", "small", "x"], 0);
    daemon.json(&["kv", "put", "gone", "x"], 0);
    daemon.json(&["kv", "rm", "gone"], 0);
    let device = daemon.device();
    let key = |name: &str, namespace: &str, code| {
        daemon.json(&["inspect", "key", name, text(&device), "--namespace", namespace], code)
    };
    let large = key("large", "default", 0);
    assert_eq!((&large["bytes"], &large["sound"]), (&Value::from(100_000), &Value::from(true)));
    assert_eq!(key("small", "cache", 0)["sound"], true);
    key("gone", "default", 3);
    key("small", "default", 3);
    key("small", "nonsuch", 3);

    // One bit of the value on media: the index still finds it, and its checksum tells.
    let media = std::fs::OpenOptions::new().read(true).write(true).open(&device).unwrap();
    let offset = large["offset_bytes"].as_u64().unwrap();
    let mut byte = [0];
    media.read_exact_at(&mut byte, offset + 50_000).unwrap();
    assert_eq!(byte[0], value.as_bytes()[50_000]);
    media.write_all_at(&[byte[0] ^ 1], offset + 50_000).unwrap();
    assert_eq!(key("large", "default", 6)["sound"], false);
}

/// The daemon's place in its own memory and among its descriptors.
fn footprint(daemon: &Daemon) -> (u64, u64, usize, usize) {
    let reactor = reactor(daemon);
    let free = reactor["memory_free_bytes"].as_u64().expect("what the daemon and the kernel tell");
    let open = reactor["listeners"][1]["connections_open"]
        .as_u64()
        .expect("what the daemon and the kernel tell");
    let proc = PathBuf::from(format!("/proc/{}", daemon.child.id()));
    let descriptors =
        std::fs::read_dir(proc.join("fd")).expect("what the daemon and the kernel tell").count();
    let maps =
        std::fs::read_to_string(proc.join("maps")).expect("what the daemon and the kernel tell");
    (free, open, descriptors, maps.matches("memfd:forebay").count())
}

fn reactor(daemon: &Daemon) -> Value {
    let socket = daemon.folder.path().join("admin.sock");
    let status = daemon.json(&["status", "--admin", text(&socket)], 0);
    status["reactors"][0].clone()
}

fn requests(daemon: &Daemon) -> u64 {
    reactor(daemon)["listeners"][1]["requests"]
        .as_u64()
        .expect("what the daemon and the kernel tell")
}

#[test]
fn clients_over_shared_memory_killed_at_work_leave_nothing_behind() {
    let daemon = Daemon::start();
    let shm = format!("shm:{}", text(&daemon.folder.path().join("shm")));
    let perf = |op: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(["--server", &shm, "perf", "--op", op, "--value-size", "64KiB"]);
        command.args(["--keys", "200", "--depth", "64", "--warmup", "0"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let filled = perf("exist").args(["--prefill", "--ops", "1"]).status().unwrap();
    assert!(filled.success());
    let settled = |expected: Option<(u64, u64, usize, usize)>| {
        let mut found = footprint(&daemon);
        for _ in 0..300 {
            if found.1 == 0 && found.3 == 0 && expected.is_none_or(|expected| expected == found) {
                break;
            }
            found = footprint(&daemon);
        }
        found
    };
    let before = settled(None);
    for round in 0..100 {
        let mut perf = perf(if round % 2 == 0 { "store" } else { "retrieve" });
        let seen = requests(&daemon);
        let mut client = perf.args(["--duration", "60"]).spawn().unwrap();
        // From then on it keeps 64 in flight.
        while requests(&daemon) < seen + 80 {
            assert!(client.try_wait().unwrap().is_none(), "the client ended by itself");
        }
        client.kill().unwrap();
        client.wait().unwrap();
    }
    assert_eq!(settled(Some(before)), before, "arena, connections, descriptors, mappings");
    let good = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["--server", &shm, "kv", "put", "a", "hello"])
        .status();
    assert!(good.unwrap().success());
    assert_eq!(daemon.json(&["kv", "get", "a"], 0)["value"], "hello", "the same store over TCP");
}

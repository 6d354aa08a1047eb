//! Starts that cannot be, and what they say.

use crate::daemon::{BINARY, Daemon, Place, free_ports, value};
use forebay_fabric::client::{Client, ClientConfig};
use std::os::unix::fs::FileExt;
use std::process::{Command, Output, Stdio};

fn run(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The one line that says why the daemon did not start.
fn refusal(place: &Place, config: &str) -> String {
    let file = place.path("other.toml");
    std::fs::write(&file, config).unwrap();
    let output = run(&["--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    let said: Vec<_> = stderr.lines().filter(|line| line.starts_with("forebayd: ")).collect();
    assert_eq!(said.len(), 1, "{stderr}");
    said[0].to_owned()
}

fn config(place: &Place, device: &str, size: &str, format_if_blank: bool, port: u16) -> String {
    let (device, socket) = (place.path(device), place.path("other.sock"));
    format!(
        "[daemon]\ncores = [0]\narena = \"64MiB\"\nindex = \"16MiB\"\nadmin_socket = {socket:?}\n\
         [[device]]\ndriver = \"uring\"\npath = {device:?}\nsize = \"{size}\"\n\
         format_if_blank = {format_if_blank}\n\
         [[listen]]\ntransport = \"tcp\"\naddress = \"127.0.0.1:{port}\"\n\
         [[namespace]]\nname = \"default\"\nclass = \"cache\"\n"
    )
}

#[test]
fn check_says_ok_or_every_problem_with_its_line() {
    let place = Place::new(1);
    let good = place.path("good.toml");
    std::fs::write(&good, config(&place, "device", "1GiB", true, 7400)).unwrap();
    let output = run(&["--check", good.to_str().unwrap()]);
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), "ok\n");

    let bad = place.path("bad.toml");
    let wrong = config(&place, "device", "1GiB", true, 7400).replace("cache", "cash");
    std::fs::write(&bad, wrong.replace("cores", "coers")).unwrap();
    let output = run(&["--check", bad.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let lines = text(&output.stdout);
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert!(lines.contains("bad.toml:2:") && lines.contains("bad.toml:16:"), "{lines}");
    assert!(!place.path("device").exists(), "a check touches nothing");
}

#[test]
fn the_embedded_daemon_makes_its_folder_and_serves_it_again() {
    let place = Place::new(1);
    let folder = place.path("made/for/it");
    let mut command = Command::new(BINARY);
    command.arg("--dev").arg(&folder).args(["--listen", "127.0.0.1:0"]);
    let daemon = Daemon::spawn(&mut command);
    let mut client = daemon.client();
    let namespace = client.namespace("default").unwrap();
    client.store(namespace, b"key", value(1, 1000)).unwrap();
    daemon.kill();
    let daemon = Daemon::spawn(&mut command);
    assert_eq!(daemon.client().retrieve(namespace, b"key").unwrap(), Some(value(1, 1000)));
}

#[test]
fn a_device_that_another_daemon_uses_is_refused() {
    let place = Place::new(1);
    let daemon = place.start();
    let said = refusal(&place, &config(&place, "forebay.img", "512MiB", true, 1));
    assert!(said.contains("in use by another daemon"), "{said}");
    daemon.client().namespaces().unwrap();
}

#[test]
fn a_device_that_holds_anything_is_never_formatted() {
    let place = Place::new(1);
    let mut options = std::fs::File::options();
    let file = options.read(true).write(true).create(true).open(place.path("disk")).unwrap();
    file.set_len(512 << 20).unwrap();
    let unwilling = config(&place, "disk", "512MiB", false, 7400);
    let said = refusal(&place, &unwilling);
    assert!(said.contains("run `forebay format`"), "{said}");

    file.write_all_at(b"a partition table", 510 << 20).unwrap();
    let said = refusal(&place, &config(&place, "disk", "512MiB", true, 7400));
    assert!(said.contains("not blank"), "{said}");
    let mut there = [0; 17];
    file.read_exact_at(&mut there, 510 << 20).unwrap();
    assert_eq!(&there, b"a partition table");
}

#[test]
fn a_device_that_is_too_small_says_what_it_needs() {
    let place = Place::new(1);
    let said = refusal(&place, &config(&place, "tiny", "64MiB", true, 7400));
    assert!(said.contains("too small") && said.contains("need at least"), "{said}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let place = Place::new(1);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let said = refusal(&place, &config(&place, "device", "512MiB", true, port));
    assert!(said.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{said}");
}

#[test]
fn a_namespace_does_not_change_its_class_behind_its_values() {
    let place = Place::new(1);
    place.start().kill();
    let said = refusal(&place, &config(&place, "forebay.img", "512MiB", true, 7400));
    assert!(said.contains("\"default\" is durable, and the configuration says cache"), "{said}");
}

#[test]
fn one_torn_superblock_is_mended_and_three_are_too_many() {
    let place = Place::new(1);
    let daemon = place.start();
    let mut client = daemon.client();
    let namespace = client.namespace("default").unwrap();
    client.store(namespace, b"key", value(1, 1000)).unwrap();
    daemon.kill();
    let device = std::fs::File::options().write(true).open(place.path("forebay.img")).unwrap();
    device.write_all_at(&[0xff; 600], 3000).unwrap();
    let daemon = place.start();
    assert_eq!(daemon.client().retrieve(namespace, b"key").unwrap(), Some(value(1, 1000)));
    daemon.kill();
    for place in [0, 1 << 20, (512 << 20) - (1 << 20)] {
        device.write_all_at(&[0xff; 4096], place).unwrap();
    }
    let said = refusal(&place, &config(&place, "forebay.img", "512MiB", true, 7400));
    assert!(said.contains("fewer than two of its four superblocks are good"), "{said}");
}

#[test]
fn every_listener_serves_the_same_values() {
    let place = Place::new(1);
    let port = free_ports(2);
    let mut text = config(&place, "device", "512MiB", true, port);
    let second = std::net::SocketAddr::from(([127, 0, 0, 1], port + 1));
    text += &format!("[[listen]]\ntransport = \"tcp\"\naddress = \"{second}\"\n");
    let file = place.path("two.toml");
    std::fs::write(&file, text).unwrap();
    let daemon = Daemon::spawn(Command::new(BINARY).arg("--config").arg(file));
    let mut one = daemon.client();
    let mut other = Client::connect(ClientConfig::new(vec![second])).unwrap();
    let namespace = one.namespace("default").unwrap();
    for n in 0..50 {
        let key = format!("key {n}");
        one.store(namespace, key.as_bytes(), value(n, 20_000)).unwrap();
        assert_eq!(other.retrieve(namespace, key.as_bytes()).unwrap(), Some(value(n, 20_000)));
        assert!(other.delete(namespace, key.as_bytes()).unwrap());
        assert_eq!(one.exist(namespace, key.as_bytes()).unwrap(), None);
    }
}

//! The command as a shell sees it: exit codes, stdout, stderr. No daemon runs here.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn forebay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(arguments)
        .env_remove("FOREBAY_SERVER")
        .output()
        .expect("the command runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ended by itself")
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is UTF-8")
}

#[test]
fn help_lists_every_exit_code() {
    let output = forebay(&["--help"]);
    assert_eq!(code(&output), 0);
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    for number in 0..=6 {
        assert!(help.lines().any(|line| line.starts_with(&format!("  {number}  "))), "{help}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    for wrong in [
        &["fly"][..],
        &["perf", "--op", "fly"],
        &["perf", "--dist", "zipf:x"],
        &["perf", "--batch", "1000"],
        &["--server", "nowhere", "kv", "ls"],
        &["format"],
        &["devices", "bind"],
        &["devices", "bind", "/dev/nvme0n1"],
        &["devices", "format", "0000:03:00.0"],
        &["devices", "format", "0000:03:00.0", "--lba-format", "1", "--block-size", "4096"],
    ] {
        let output = forebay(wrong);
        assert_eq!(code(&output), 2, "{wrong:?}: {}", stderr(&output));
    }
}

#[test]
fn a_server_that_is_not_there_ends_with_5_and_says_what_to_do() {
    // Port 1 of the loopback: nobody listens there.
    for command in [&["kv", "get", "x"][..], &["kv", "ls"], &["status"], &["perf"]] {
        let output = forebay(&[&["--server", "127.0.0.1:1"], command].concat());
        assert_eq!(code(&output), 5, "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("is forebayd running there?"), "{}", stderr(&output));
    }
    let output = forebay(&["-o", "json", "--server", "127.0.0.1:1", "kv", "ls"]);
    let error: Value = serde_json::from_str(&stderr(&output)).unwrap();
    assert_eq!(error["code"], 5);
}

#[test]
fn drives_are_listed_and_one_that_is_not_there_is_not_found() {
    let listed = forebay(&["-o", "json", "devices", "list"]);
    assert_eq!(code(&listed), 0, "{}", stderr(&listed));
    assert!(json(&listed).is_array());
    for command in ["bind", "unbind", "smart", "identify"] {
        let output = forebay(&["devices", command, "ffff:ff:1f.7"]);
        assert_eq!(code(&output), 3, "{command}: {}", stderr(&output));
        assert!(stderr(&output).contains("forebay devices list"), "{}", stderr(&output));
    }
}

#[test]
fn completions_come_for_a_shell() {
    let output = forebay(&["completions", "bash"]);
    assert_eq!(code(&output), 0);
    assert!(String::from_utf8_lossy(&output.stdout).contains("_forebay"));
}

#[test]
fn a_formatted_file_is_inspected_and_not_formatted_again_unless_named_twice() {
    let folder = tempfile::tempdir().unwrap();
    let device = folder.path().join("pool.img");
    let device = text(&device);
    let made = forebay(&["-o", "json", "format", device, "--size", "320MiB"]);
    assert_eq!(code(&made), 0, "{}", stderr(&made));
    let pool = json(&made)["pool"].clone();
    assert_eq!(json(&made)["device_bytes"], 320 << 20);

    let seen = forebay(&["-o", "json", "inspect", "superblock", device]);
    assert_eq!(code(&seen), 0, "{}", stderr(&seen));
    assert_eq!(json(&seen)[0]["quorum"]["pool"], pool);
    let copies = json(&seen)[0]["copies"].as_array().unwrap().clone();
    assert_eq!(copies.iter().filter(|copy| copy["good"] == true).count(), 4);
    assert!(!String::from_utf8_lossy(&seen.stdout).contains("hash_key"), "the secret is told");

    let again = forebay(&["format", device]);
    assert_eq!(code(&again), 4);
    assert!(stderr(&again).contains("holds a Forebay pool"), "{}", stderr(&again));
    let seen = forebay(&["-o", "json", "inspect", "superblock", device]);
    assert_eq!(json(&seen)[0]["quorum"]["pool"], pool);

    let confirmed = forebay(&["-o", "json", "format", device, "--confirm", device]);
    assert_eq!(code(&confirmed), 0, "{}", stderr(&confirmed));
    assert_ne!(json(&confirmed)["pool"], pool);
}

#[test]
fn a_torn_superblock_is_told_and_the_others_still_speak() {
    use std::os::unix::fs::FileExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool.img");
    let device = text(&path);
    assert_eq!(code(&forebay(&["format", device, "--size", "320MiB"])), 0);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xff; 512], 1000).unwrap();
    let seen = forebay(&["-o", "json", "inspect", "superblock", device]);
    assert_eq!(code(&seen), 0);
    assert_eq!(json(&seen)[0]["copies"][0]["good"], false);
    assert!(json(&seen)[0]["quorum"].is_object());
    file.write_all_at(&[0xff; 512], (1 << 20) + 1000).unwrap();
    file.write_all_at(&[0xff; 512], (319 << 20) + 1000).unwrap();
    let seen = forebay(&["-o", "json", "inspect", "superblock", device]);
    assert_eq!(code(&seen), 6, "{}", stderr(&seen));
    assert!(json(&seen)[0]["quorum"].is_null());
}

#[test]
fn an_empty_pool_has_segments_and_no_keys() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool.img");
    let device = text(&path);
    assert_eq!(code(&forebay(&["format", device, "--size", "320MiB"])), 0);
    let shards = forebay(&["-o", "json", "inspect", "segment", device]);
    assert_eq!(code(&shards), 0, "{}", stderr(&shards));
    assert!(json(&shards).as_array().unwrap().iter().all(|shard| shard["keys"] == 0));
    let key = forebay(&["inspect", "key", "x", device, "--namespace", "16"]);
    assert_eq!(code(&key), 3, "{}", stderr(&key));
    let beyond = forebay(&["inspect", "segment", device, "--shard", "9999"]);
    assert_eq!(code(&beyond), 3);
}

#[test]
fn a_device_too_small_says_what_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.img");
    let output = forebay(&["format", text(&path), "--size", "8MiB"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("is too small"), "{}", stderr(&output));
}

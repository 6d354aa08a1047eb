//! What the daemon serves by TCP it serves by RDMA: in one machine, between two, and over its own ends.

use crate::rdma::{Writer, address, assert_kept, one_place, prepared, two_places};
use forebay_tests::vm::{Daemon, Drive, Machine};
use serde_json::Value;
use std::time::Duration;

/// How long one command of the tool may take here.
const COMMAND: Duration = Duration::from_secs(120);

/// Runs `forebay` in the guest; what it printed.
#[track_caller]
fn forebay(client: &Machine<'_>, arguments: &str) -> String {
    let program = client.place().binary("forebay");
    let script = format!("cd /vm && {} --server {} {arguments}", program.display(), address());
    let said = client.run(&script, COMMAND).unwrap();
    assert_eq!(said.status, 0, "forebay {arguments}: {}{}", said.stdout, said.stderr);
    said.stdout
}

#[track_caller]
fn forebay_json(client: &Machine<'_>, arguments: &str) -> Value {
    serde_json::from_str(&forebay(client, &format!("-o json {arguments}"))).unwrap()
}

/// Every command of the tool, with small values and with the largest.
fn everything_is_served_by_rdma(client: &Machine<'_>) {
    let share = client.place().share();
    let mut large = vec![0; 4 << 20];
    fastrand::Rng::with_seed(1).fill(&mut large);
    std::fs::write(share.join("large"), &large).unwrap();
    forebay(client, "kv put greeting hello");
    assert_eq!(forebay(client, "kv get greeting"), "hello");
    assert_eq!(forebay(client, "kv get greeting --offset 1 --length 3"), "ell");
    forebay(client, "kv put large --file large");
    forebay(client, "kv get large --file large.back");
    assert!(std::fs::read(share.join("large.back")).unwrap() == large);
    forebay(client, "kv get large --offset 1000001 --length 2000003 --file range.back");
    assert!(std::fs::read(share.join("range.back")).unwrap() == large[1_000_001..3_000_004]);
    forebay(client, "kv exists greeting large");
    let listed = forebay_json(client, "kv ls");
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    forebay(client, "kv rm greeting large");
    assert_eq!(forebay_json(client, "kv ls"), Value::Array(vec![]));

    // Batches of stores and retrieves by two threads, every byte compared.
    let mixed = "perf --op mixed --prefill --verify --warmup 0 --connections 2 --depth 16";
    for (size, keys, ops, batch) in
        [("1000", 400, 800, 8), ("20000", 100, 200, 4), ("300000", 20, 40, 1), ("4194304", 4, 8, 1)]
    {
        let sizes = format!("--value-size {size} --keys {keys} --ops {ops} --batch {batch}");
        forebay(client, &format!("{mixed} {sizes}"));
    }
    forebay(client, "perf --op exist --batch 16 --keys 400 --ops 400 --warmup 0");
    forebay(client, "perf --op delete --batch 16 --keys 400 --ops 400 --warmup 0");

    std::fs::write(share.join("model.safetensors"), model(3 << 20)).unwrap();
    forebay(client, "ckpt save model.safetensors run7/1000");
    // The folder that is shared with the host knows no rename that spares what is there.
    forebay(client, "ckpt load run7/1000 /tmp/model.back");
    client.sh("mv /tmp/model.back /vm/").unwrap();
    assert!(std::fs::read(share.join("model.back")).unwrap() == model(3 << 20));
    assert_eq!(forebay_json(client, "ckpt ls").as_array().unwrap().len(), 1);
    forebay(client, "ckpt rm run7/1000");
    assert_eq!(forebay_json(client, "ckpt ls"), Value::Array(vec![]));
}

/// A file in the format of safetensors with two tensors, `bytes` together.
fn model(bytes: usize) -> Vec<u8> {
    let half = bytes / 2;
    let header = format!(
        "{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{half}],\"data_offsets\":[0,{half}]}},\
          \"b\":{{\"dtype\":\"U8\",\"shape\":[{half}],\"data_offsets\":[{half},{bytes}]}}}}"
    );
    let mut data = vec![0; bytes];
    fastrand::Rng::with_seed(2).fill(&mut data);
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

#[test]
#[ignore = "takes its time: `make test-rdma` runs it"]
fn everything_is_served_by_rdma_between_two_processes() {
    let Some(place) = one_place() else { return };
    let guest = place.boot().unwrap();
    let daemon = Daemon::start(&guest, &prepared(&guest)).unwrap();
    everything_is_served_by_rdma(&guest);
    let connections = daemon.rdma_count("connections").unwrap();
    assert!(connections >= 20, "{connections} connections by RDMA");
    assert_eq!(daemon.rdma_count("protocol_errors").unwrap(), 0);
    daemon.stop().unwrap();
}

#[test]
#[cfg_attr(not(feature = "rdma"), ignore = "RDMA is not built in")]
fn everything_is_served_by_rdma_between_two_machines() {
    let Some((server, client)) = two_places(Drive::file) else { return };
    let client = client.boot().unwrap();
    let server = client.boot_beside(&server).unwrap();
    client.rdma_up().unwrap();
    let daemon = Daemon::start(&server, &prepared(&server)).unwrap();
    everything_is_served_by_rdma(&client);
    assert_eq!(daemon.rdma_count("protocol_errors").unwrap(), 0);
    daemon.stop().unwrap();
}

#[test]
#[ignore = "takes its time: `make test-rdma` runs it"]
fn a_client_by_rdma_goes_on_over_every_end_of_the_daemon() {
    let Some(place) = one_place() else { return };
    let guest = place.boot().unwrap();
    let options = prepared(&guest);
    let daemon = Daemon::start(&guest, &options).unwrap();
    // A minute: longer than a restart takes here.
    let writer = Writer::start(&guest, "writer", "--timeout-ms 60000 --length-max 262144");
    writer.goes_on(50);
    daemon.kill().unwrap();
    let daemon = Daemon::start(&guest, &options).unwrap();
    writer.goes_on(50);
    daemon.kill().unwrap();
    let daemon = Daemon::start(&guest, &options).unwrap();
    writer.goes_on(50);
    daemon.stop().unwrap();
    let daemon = Daemon::start(&guest, &options).unwrap();
    writer.goes_on(50);
    let last = writer.end();
    assert_kept(&last, Duration::from_secs(60), Duration::from_secs(2));
    assert_eq!(last["failed"], 0, "every store was done, if late: {last}");
    // Two reactors each time.
    assert!(last["connections"].as_u64() >= Some(8), "{last}");
    daemon.stop().unwrap();
}

//! The end in good order: SIGTERM, SIGINT, the admin socket.

use crate::daemon::{Place, namespace, value};
use nix::sys::signal::Signal;
use serde_json::json;
use std::io::Read;
use std::net::TcpStream;

#[test]
fn sigterm_and_sigint_end_well_and_say_goaway_to_idle_clients() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let place = Place::new(2);
        let daemon = place.start();
        let mut client = daemon.client();
        let namespace = namespace(&mut client);
        client.store(namespace, b"key", value(1, 5_000)).unwrap();
        daemon.signal(signal);
        let (ended, log) = daemon.wait();
        assert!(ended.success(), "{signal}: {log:#?}");
        assert!(client.store(namespace, b"key", value(2, 5_000)).is_err(), "nobody is there");
        assert_eq!(
            place.start().client().retrieve(namespace, b"key").unwrap(),
            Some(value(1, 5_000))
        );
    }
}

#[test]
fn a_second_signal_does_not_wait_for_a_client_that_does_not_read() {
    let place = Place::new(1);
    let daemon = place.start_with(600_000);
    let held = hold(daemon.address);
    daemon.signal(Signal::SIGTERM);
    // The first one is heard before the second: they would merge otherwise.
    while place.admin("\"status\"")["phase"] != "draining" {}
    daemon.signal(Signal::SIGTERM);
    let (ended, log) = daemon.wait();
    assert_eq!(ended.code(), Some(1), "{log:#?}");
    drop(held);
}

/// A client that asks for far more than the sockets hold and reads none of it: the daemon cannot
/// drain while that is queued.
fn hold(address: std::net::SocketAddr) -> TcpStream {
    use forebay_fabric::client::{NamespaceId, Request};
    let config = forebay_fabric::client::ClientConfig::new(vec![address]);
    let mut client = forebay_fabric::client::Pipeline::connect(config).unwrap();
    let namespace = NamespaceId(16);
    let stored =
        client.call(Request::store(namespace, b"large", value(1, 4 << 20).into())).unwrap();
    assert_eq!(stored.status, forebay_fabric::Status::Ok);
    crate::hostile::greedy(address, namespace.0, b"large", 16)
}

#[test]
fn a_drain_that_takes_too_long_ends_all_the_same() {
    let place = Place::new(1);
    let daemon = place.start_with(300);
    let mut held = hold(daemon.address);
    daemon.signal(Signal::SIGTERM);
    let (ended, log) = daemon.wait();
    assert!(ended.success(), "{log:#?}");
    assert!(log.iter().any(|line| line.contains("did not drain in time")), "{log:#?}");
    let mut rest = Vec::new();
    held.read_to_end(&mut rest).map(drop).unwrap_or_default();
    assert_eq!(
        place.start().client().exist(forebay_fabric::client::NamespaceId(16), b"large").unwrap(),
        Some(4 << 20)
    );
}

#[test]
fn the_admin_socket_tells_of_every_reactor_and_can_end_the_daemon() {
    let place = Place::new(2);
    let daemon = place.start();
    let mut client = daemon.client();
    let namespace = namespace(&mut client);
    client.store(namespace, b"key", value(1, 5_000)).unwrap();
    let status = place.admin("\"status\"");
    assert_eq!(status["phase"], "serving");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    let reactors = status["reactors"].as_array().unwrap();
    let stored: u64 =
        reactors.iter().map(|one| one["counters"]["bytes_stored"].as_u64().unwrap()).sum();
    assert_eq!(stored, 5_000);
    let namespaces = place.admin("\"namespaces\"");
    assert_eq!(namespaces[0]["name"], "default");
    assert_eq!(namespaces[0]["used_bytes"], 5_000);
    assert!(place.admin("what?")["error"].is_string());
    assert_eq!(place.admin("\"drain\""), json!({"draining": true}));
    let (ended, log) = daemon.wait();
    assert!(ended.success(), "{log:#?}");
    assert!(!place.path("admin.sock").exists());
}

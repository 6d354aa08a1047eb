//! Networks that go, come back, lose, mix up and damage what they carry.

use crate::rdma::{Holdings, Writer, assert_kept, one_place, prepared, two_places};
use forebay_tests::vm::{Daemon, Drive, sleep, wait_until};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// How much later than its deadline a guest may be to tell.
const LATE: Duration = Duration::from_secs(2);
/// Who has connected says so within the server's own keep-alive, which is ten seconds unless it is configured.
const HELLO: Duration = Duration::from_secs(10);

/// What this does not show is a client that comes back by RDMA: in Linux 6.1, soft-RoCE whose interface was
/// taken down under traffic makes no connection any more, not even for `rping`. The plug below shows it.
#[test]
#[ignore = "takes its time: `make test-rdma` runs it"]
fn operations_end_by_their_deadlines_when_the_interface_goes_down_and_the_daemon_serves_on() {
    let Some(place) = one_place() else { return };
    let guest = place.boot().unwrap();
    let daemon = Daemon::start(&guest, &prepared(&guest)).unwrap();
    let look_at = format!("--look-at 127.0.0.1:{}", guest.port());
    let options = format!("--timeout-ms 3000 --keep-alive-ms 1000 {look_at}");
    let writer = Writer::start(&guest, "writer", &options);
    writer.goes_on(50);
    guest.set_interface(false).unwrap();
    let open = || daemon.rdma_count("connections_open");
    let ended = || Ok((daemon.rdma_count("connections")? > open()?).then_some(()));
    wait_until("the end of its connection", 3 * SECOND + LATE, ended).unwrap();
    // Now and then it has made another one just before, whose HELLO never comes.
    wait_until("the end of all", HELLO + LATE, || Ok((open()? == 0).then_some(()))).unwrap();
    wait_until("operations that fail", 20 * SECOND, || {
        Ok((writer.count("failed") >= 32).then_some(()))
    })
    .unwrap();
    guest.set_interface(true).unwrap();
    let last = writer.end();
    println!("{last}");
    assert_kept(&last, 3 * SECOND, LATE);
    daemon.stop().unwrap();
}

#[test]
#[ignore = "takes its time: `make test-rdma` runs it"]
fn a_client_behind_a_pulled_plug_is_reaped_in_three_keep_alives_and_comes_back_by_itself() {
    let Some((server, client)) = two_places(Drive::file) else { return };
    let client = client.boot().unwrap();
    let server = client.boot_beside(&server).unwrap();
    client.rdma_up().unwrap();
    let daemon = Daemon::start(&server, &prepared(&server)).unwrap();
    let warm = Writer::start(&client, "warm", "");
    warm.goes_on(200);
    warm.end();
    sleep(3 * SECOND);
    let idle = Holdings::busy(&server, &daemon).unwrap();
    let writer = Writer::start(&client, "writer", "--timeout-ms 3000 --keep-alive-ms 2000");
    writer.goes_on(50);
    client.set_plugged(false).unwrap();
    // Three keep-alives, and what it takes to look.
    let took = idle.come_back(&server, &daemon, 3 * 2 * SECOND + LATE);
    println!("reaped in {:.1} s", took.as_secs_f64());
    client.set_plugged(true).unwrap();
    writer.goes_on(50);
    let last = writer.end();
    assert_kept(&last, 3 * SECOND, LATE);
    assert!(last["connections"].as_u64() >= Some(4), "it has connected again by itself: {last}");
    daemon.stop().unwrap();
}

#[test]
#[ignore = "takes its time: `make test-rdma` runs it"]
fn loss_reordering_and_corruption_change_no_value_and_hold_no_operation_past_its_deadline() {
    let Some((server, client)) = two_places(Drive::file) else { return };
    let client = client.boot().unwrap();
    let server = client.boot_beside(&server).unwrap();
    client.rdma_up().unwrap();
    let daemon = Daemon::start(&server, &prepared(&server)).unwrap();
    let faults = [
        "loss 1%",
        "delay 2ms reorder 95% 50%",
        "corrupt 1%",
        "loss 0.5% duplicate 1% corrupt 0.5% delay 1ms reorder 97%",
    ];
    for (number, how) in faults.into_iter().enumerate() {
        for guest in [&client, &server] {
            guest.netem(how).unwrap();
        }
        // Each store is one or some dozens of packets: most of them meet the fault.
        let options = format!("--keys 60 --depth 8 --timeout-ms 20000 --seed {}", number + 1);
        let writer = Writer::start(&client, &format!("writer{number}"), &options);
        writer.goes_on(150);
        let last = writer.end();
        println!("{how}: {last}");
        assert_kept(&last, 20 * SECOND, LATE);
        for guest in [&client, &server] {
            let (drops, packets) = guest.netem_counts().unwrap();
            println!("{how}: {packets} packets, {drops} dropped");
            assert!(packets > 500, "{packets} packets");
            assert!(!how.starts_with("loss") || drops > 0);
            guest.network_is_good().unwrap();
        }
    }
    assert_eq!(daemon.rdma_count("protocol_errors").unwrap(), 0);
    daemon.stop().unwrap();
}

/// A packet that waits to be sent holds on to its queue pair. Who destroys that one waits for the packet: on
/// soft-RoCE for up to 50 s.
#[test]
#[ignore = "takes its time: `make test-rdma` runs it"]
fn no_operation_waits_for_packets_of_a_connection_that_is_dead() {
    let Some((server, client)) = two_places(Drive::file) else { return };
    let client = client.boot().unwrap();
    let server = client.boot_beside(&server).unwrap();
    client.rdma_up().unwrap();
    let daemon = Daemon::start(&server, &prepared(&server)).unwrap();
    let writer = Writer::start(&client, "writer", "--timeout-ms 3000 --keep-alive-ms 1000");
    writer.goes_on(50);
    client.hold_packets().unwrap();
    wait_until("operations that fail", 60 * SECOND, || {
        Ok((writer.count("failed") >= 32).then_some(()))
    })
    .unwrap();
    client.network_is_good().unwrap();
    writer.goes_on(50);
    let last = writer.end();
    println!("{last}");
    assert_kept(&last, 3 * SECOND, LATE);
    daemon.stop().unwrap();
}

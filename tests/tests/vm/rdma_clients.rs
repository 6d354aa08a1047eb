//! Clients by RDMA that die, lie, or come by the thousand: the daemon serves the good ones, and keeps
//! nothing of the others.

use crate::rdma::{Holdings, SERVER, Writer, address, assert_kept, ended, lines};
use crate::rdma::{one_place, peer, prepared};
use forebay_tests::vm::{Daemon, RDMA_PORT, sleep};
use std::time::Duration;

/// How long what dead clients held may stay, once they are dead: the daemon's drives are slow, too.
const AFTER_DEATH: Duration = Duration::from_secs(30);

#[test]
#[ignore = "takes its time: `make test-rdma` runs it"]
fn a_hundred_clients_killed_in_full_flight_leave_nothing_behind() {
    let Some(place) = one_place() else { return };
    let guest = place.boot().unwrap();
    let daemon = Daemon::start(&guest, &prepared(&guest)).unwrap();
    let kill = |times: u32| {
        let arguments = format!("kill {} --times {times}", address());
        let killer = guest.spawn("killer", &peer(&guest, &arguments)).unwrap();
        ended(&killer, Duration::from_secs(600))
    };
    // What the store keeps in memory once there are values is no leak.
    kill(2);
    sleep(Duration::from_secs(3));
    let before = Holdings::idle(&guest, &daemon).unwrap();
    let last = kill(100);
    assert!(last["in_flight_least"].as_u64() >= Some(56), "{last}");
    before.come_back(&guest, &daemon, AFTER_DEATH);
    daemon.stop().unwrap();
}

#[test]
#[cfg_attr(not(feature = "rdma"), ignore = "RDMA is not built in")]
fn memory_that_a_client_does_not_have_costs_it_its_queue_pair_and_nobody_else() {
    let Some(place) = one_place() else { return };
    let guest = place.boot().unwrap();
    // One reactor: every key is its own, whatever the pool's random key is.
    let daemon = Daemon::start(&guest, &prepared(&guest).reactors(1)).unwrap();
    let writer = Writer::start(&guest, "writer", "--depth 4");
    writer.goes_on(10);
    let before = Holdings::busy(&guest, &daemon).unwrap();
    let lie = format!("lie {SERVER}:{RDMA_PORT}");
    let liar = guest.spawn("liar", &peer(&guest, &lie)).unwrap();
    let last = ended(&liar, Duration::from_secs(300));
    let log = liar.log();
    for said in lines(&log).filter(|line| line["is"] == "lie") {
        assert_eq!(said["died"], true, "{said}");
    }
    // Each of them is in the log, with its reason.
    let log = daemon.process().log();
    let noted = log.matches("protocol error: memory that the peer does not have").count() as u64;
    assert!(Some(noted) >= last["lies"].as_u64(), "{noted} of {last}:\n{log}");
    before.come_back(&guest, &daemon, AFTER_DEATH);
    let last = writer.end();
    assert_kept(&last, Duration::from_secs(10), Duration::ZERO);
    assert_eq!(
        (last["failed"].as_u64(), last["connections"].as_u64()),
        (Some(0), Some(1)),
        "{last}"
    );
    daemon.stop().unwrap();
}

#[test]
#[ignore = "takes its time: `make test-rdma` runs it"]
fn a_thousand_connects_and_garbage_in_them_disturb_no_good_client() {
    let Some(place) = one_place() else { return };
    let guest = place.boot().unwrap();
    let daemon = Daemon::start(&guest, &prepared(&guest)).unwrap();
    let writer =
        Writer::start(&guest, "writer", "--depth 4 --timeout-ms 20000 --keep-alive-ms 10000");
    writer.goes_on(10);
    let before = Holdings::busy(&guest, &daemon).unwrap();
    let garbage = format!("garbage {SERVER}:{RDMA_PORT}");
    let garbage = guest.spawn("garbage", &peer(&guest, &garbage)).unwrap();
    ended(&garbage, Duration::from_secs(120));
    let storm = format!("storm {SERVER}:{RDMA_PORT} --connects 1000 --at-a-time 80");
    let storm = guest.spawn("storm", &peer(&guest, &storm)).unwrap();
    let last = ended(&storm, Duration::from_secs(600));
    println!("{last}");
    assert!(last["greeted"].as_u64() >= Some(450), "{last}");
    // What takes the kernel's connection manager longer than its own retries.
    assert!(last["failed"].as_u64() <= Some(20), "{last}:\n{}", storm.log());
    writer.goes_on(10);
    let log = daemon.process().log();
    let refused = log.matches("whose connection request is not of this protocol").count();
    assert!(refused >= 30, "{refused} refusals:\n{log}");
    before.come_back(&guest, &daemon, AFTER_DEATH);
    let last = writer.end();
    assert_kept(&last, Duration::from_secs(20), Duration::ZERO);
    assert_eq!(
        (last["failed"].as_u64(), last["connections"].as_u64()),
        (Some(0), Some(2)),
        "{last}"
    );
    daemon.stop().unwrap();
}

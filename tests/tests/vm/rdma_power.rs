//! The server loses its power while the client of another machine stores by RDMA.

use crate::rdma::{Writer, assert_kept, prepared, two_places};
use forebay_tests::vm::{Daemon, Drive, sleep};
use std::time::Duration;

#[test]
#[ignore = "takes its time: `make test-rdma` runs it"]
fn what_was_acknowledged_by_rdma_survives_the_servers_power_cuts_and_its_client_goes_on() {
    let Some((server, client)) = two_places(Drive::volatile) else { return };
    let client = client.boot().unwrap();
    client.rdma_up().unwrap();
    let timeout = Duration::from_secs(5);
    let mut machine = client.boot_beside(&server).unwrap();
    let mut rng = fastrand::Rng::with_seed(3);
    let mut writer = None;
    for _ in 0..2 {
        let daemon = Daemon::start(&machine, &prepared(&machine)).unwrap();
        let writing = writer.get_or_insert_with(|| {
            Writer::start(&client, "writer", "--timeout-ms 5000 --length-max 131072")
        });
        writing.goes_on(100);
        // In the midst of everything.
        sleep(Duration::from_millis(rng.u64(..200)));
        drop(daemon);
        machine.power_cut().unwrap();
        machine = client.boot_beside(&server).unwrap();
    }
    let daemon = Daemon::start(&machine, &prepared(&machine)).unwrap();
    let writer = writer.unwrap();
    // The one client, which was there all the time, has connected again.
    writer.goes_on(100);
    let log = writer.process.log();
    log.lines().filter(|line| line.contains(r#""late""#)).for_each(|line| println!("{line}"));
    let last = writer.end();
    println!("{last}");
    assert_kept(&last, timeout, Duration::from_secs(2));
    assert!(last["failed"].as_u64() > Some(0), "the boot takes longer than a deadline: {last}");
    assert!(last["connections"].as_u64() >= Some(6), "{last}");
    daemon.stop().unwrap();
}

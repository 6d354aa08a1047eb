//! The RDMA transport over real verbs: soft-RoCE on a network device of the guest's own.

use crate::place;
use std::path::Path;
use std::time::Duration;

/// Names the tests of `forebay-fabric` over real verbs, which `make test-rdma` builds: that takes more than
/// the other tests here do.
const TESTS: &str = "FOREBAY_RXE_TESTS";

#[test]
#[ignore = "needs libibverbs: `make test-rdma` runs it"]
fn real_verbs_do_what_the_simulated_ones_do() {
    let tests = std::env::var_os(TESTS).expect("the program with the tests: run `make test-rdma`");
    let Some(place) = place() else { return };
    let guest = place.boot().unwrap();
    guest
        .sh("modprobe -a crc32_generic dummy rdma_rxe rdma_ucm ib_uverbs && \
             ip link add dummy0 type dummy && ip addr add 10.9.0.1/24 dev dummy0 && \
             ip link set dummy0 up && rdma link add rxe0 type rxe netdev dummy0")
        .unwrap();
    // The machine is slow, and one test after the other has it for itself.
    let run = format!(
        "ulimit -l unlimited; FOREBAY_RXE=10.9.0.1 {} --test-threads=1 --nocapture 2>&1",
        Path::new(&tests).display()
    );
    let said = guest.run(&run, Duration::from_secs(1200)).unwrap();
    println!("{}", said.stdout);
    assert_eq!(said.status, 0, "{}", said.stdout);
    assert!(!said.stdout.contains("skipped"), "there is a device, and every test uses it");
}

#[test]
#[ignore = "needs perftest: `make test-rdma` runs it"]
fn two_machines_speak_rdma_over_a_wire() {
    let Some(place) = place() else { return };
    let (far, near) = (place.with_wire(), crate::place().unwrap());
    let near = near.wired_to(&far);
    let far = far.boot().unwrap();
    let near = far.boot_beside(&near).unwrap();
    println!("{} {}", far.rdma_up().unwrap(), near.rdma_up().unwrap());
    println!("{}", far.sh("ping -c 3 10.9.0.1; ibv_devinfo | head -30; ip a").unwrap());
    let server = near.spawn("rping", "rping -s -a 10.9.0.1 -C 100 -v").unwrap();
    let said = far.run("sleep 1; time rping -c -a 10.9.0.1 -C 100 -V 2>&1", Duration::from_secs(60));
    println!("{said:?} {:?} {}", server.ended(), server.log());
    let server = near.spawn("bw", "ib_write_bw -s 1048576 -n 60 -F -x 1").unwrap();
    let said = far.run("sleep 2; ib_write_bw -s 1048576 -n 60 -F -x 1 10.9.0.1 2>&1", Duration::from_secs(60)).unwrap();
    println!("{} {:?} {}", said.stdout, server.ended(), server.log());
    println!("{:?}", near.rdma_objects(None));
}

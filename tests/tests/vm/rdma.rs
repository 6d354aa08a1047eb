//! What the tests over RDMA share: a daemon on drives of its own that listens by it, and its clients, which
//! run in a guest, too: `rdma-peer`, and `forebay` itself. And the machine, the wire and the verbs under them.

use crate::vfio::{bound, with_two_drives};
use crate::{place, vfio};
use forebay_tests::vm::{
    Daemon, DaemonOptions, Drive, Machine, Place, Process, RDMA_PORT, RdmaObjects, now, wait_until,
};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// Names the tests of `forebay-fabric` over real verbs, which `make test-rdma` builds: that takes more than
/// the other tests here do.
const TESTS: &str = "FOREBAY_RXE_TESTS";
/// Where the daemon listens.
pub(crate) const SERVER: &str = "10.9.0.1";
/// How long a client may take from its end's beginning to its last word: it looks at all keys.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// One machine with the drives of a pool.
pub(crate) fn one_place() -> Option<Place> {
    vfio::two_drives(Drive::file)
}

/// Two places: the server's, with the drives of a pool, and the client's, which is booted first.
pub(crate) fn two_places(one: fn(u64) -> Drive) -> Option<(Place, Place)> {
    let client = place()?.with_wire().unwrap();
    Some((with_two_drives(place()?, one).wired_to(&client), client))
}

/// Brings RDMA up and gives the drives to the daemon, which is to listen by it.
pub(crate) fn prepared(guest: &Machine<'_>) -> DaemonOptions {
    bound(guest).rdma(guest.rdma_up().unwrap())
}

/// The command line of a client.
pub(crate) fn peer(guest: &Machine<'_>, arguments: &str) -> String {
    let program = guest.place().helper("rdma-peer");
    format!("exec {} {arguments}", program.display())
}

/// Where the daemon is, as its clients write it.
pub(crate) fn address() -> String {
    format!("rdma:{SERVER}:{RDMA_PORT}")
}

/// A client that writes without end, and keeps book.
pub(crate) struct Writer<'m, 'p> {
    pub(crate) process: Process<'m, 'p>,
    guest: &'m Machine<'p>,
    name: String,
}

impl<'m, 'p> Writer<'m, 'p> {
    pub(crate) fn start(guest: &'m Machine<'p>, name: &str, options: &str) -> Self {
        let arguments = format!("write {} --until /vm/{name}.end {options}", address());
        let process = guest.spawn(name, &peer(guest, &arguments)).unwrap();
        Self { process, guest, name: name.to_owned() }
    }

    /// How far it is: the last number that it gave.
    pub(crate) fn count(&self, what: &str) -> u64 {
        lines(&self.process.log()).rev().find_map(|line| line[what].as_u64()).unwrap_or(0)
    }

    /// Waits until so many more stores were acknowledged.
    #[track_caller]
    pub(crate) fn goes_on(&self, more: u64) {
        let enough = self.count("acknowledged") + more;
        wait_until("more acknowledged stores", PATIENCE, || {
            assert_eq!(self.process.ended()?, None, "{}", self.process.log());
            Ok((self.count("acknowledged") >= enough).then_some(()))
        })
        .unwrap();
    }

    /// Has it end; its last word.
    #[track_caller]
    pub(crate) fn end(self) -> Value {
        self.guest.sh(&format!("touch /vm/{}.end", self.name)).unwrap();
        ended(&self.process, PATIENCE)
    }
}

/// Waits for the good end of a client; its last word.
#[track_caller]
pub(crate) fn ended(process: &Process<'_, '_>, patience: Duration) -> Value {
    let status = process.wait(patience).unwrap();
    let log = process.log();
    assert_eq!(status, 0, "{log}");
    let last = lines(&log).rev().find(|line| line["is"] == "ended");
    last.unwrap_or_else(|| panic!("no last word:\n{log}"))
}

/// What it said in JSON.
pub(crate) fn lines(log: &str) -> impl DoubleEndedIterator<Item = Value> + '_ {
    log.lines().filter_map(|line| serde_json::from_str(line).ok())
}

/// Nothing that was acknowledged is lost, every key could be looked at, and no store took longer than its
/// deadline and `late` more: a guest is slow to notice.
#[track_caller]
pub(crate) fn assert_kept(last: &Value, timeout: Duration, late: Duration) {
    assert_eq!(
        (&last["lost"], &last["unanswered"]),
        (&Value::Array(vec![]), &Value::Array(vec![]))
    );
    assert!(last["sound"].as_u64() > Some(0), "{last}");
    let longest = Duration::from_millis(last["longest_ms"].as_u64().unwrap());
    assert!(longest <= timeout + late, "{last}");
}

/// What the daemon, and the kernel for it, hold for clients by RDMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holdings {
    objects: RdmaObjects,
    connections: u64,
    /// Of the arena; only where the daemon is idle before and after.
    free_bytes: Option<u64>,
}

impl Holdings {
    /// Of an idle daemon, and of all other processes.
    pub(crate) fn idle(guest: &Machine<'_>, daemon: &Daemon<'_, '_>) -> anyhow::Result<Self> {
        Ok(Self {
            objects: guest.rdma_objects(None)?,
            connections: daemon.rdma_count("connections_open")?,
            free_bytes: Some(daemon.arena_free_bytes()?),
        })
    }

    /// Of a daemon that serves others meanwhile.
    pub(crate) fn busy(guest: &Machine<'_>, daemon: &Daemon<'_, '_>) -> anyhow::Result<Self> {
        Ok(Self {
            objects: guest.rdma_objects(Some(daemon.process().pid()))?,
            connections: daemon.rdma_count("connections_open")?,
            free_bytes: None,
        })
    }

    /// Waits until it is the same again; how long that took.
    #[track_caller]
    pub(crate) fn come_back(
        &self,
        guest: &Machine<'_>,
        daemon: &Daemon<'_, '_>,
        patience: Duration,
    ) -> Duration {
        let (since, mut last) = (now(), None);
        let back = wait_until("all that dead clients held", patience, || {
            let found = match self.free_bytes {
                Some(_) => Self::idle(guest, daemon)?,
                None => Self::busy(guest, daemon)?,
            };
            last = Some(found);
            Ok((found == *self).then_some(()))
        });
        if let Err(error) = back {
            panic!("{error:#}: {last:?} is not {self:?}\n{}", daemon.process().log());
        }
        since.elapsed()
    }
}

#[test]
#[ignore = "needs a program with tests: `make test-rdma` builds it"]
fn real_verbs_do_what_the_simulated_ones_do() {
    let tests = std::env::var_os(TESTS).expect("the program with the tests: run `make test-rdma`");
    let Some(place) = place() else { return };
    let guest = place.boot().unwrap();
    let address = guest.rdma_up().unwrap();
    // The machine is slow, and one test after the other has it for itself.
    let run = format!(
        "ulimit -l unlimited; FOREBAY_RXE={address} {} --test-threads=1 --nocapture 2>&1",
        Path::new(&tests).display()
    );
    let said = guest.run(&run, Duration::from_secs(1200)).unwrap();
    println!("{}", said.stdout);
    assert_eq!(said.status, 0, "{}", said.stdout);
    assert!(!said.stdout.contains("skipped"), "there is a device, and every test uses it");
}

#[test]
#[ignore = "needs perftest and rdmacm-utils: `make test-rdma` runs it"]
fn two_machines_reach_each_other_by_rdma_over_their_wire() {
    let Some((server, client)) = two_places(Drive::file) else { return };
    let client = client.boot().unwrap();
    let server = client.boot_beside(&server).unwrap();
    let (here, there) = (client.rdma_up().unwrap(), server.rdma_up().unwrap());
    assert_ne!(here, there);
    let pinger = server.spawn("rping", &format!("rping -s -a {there} -C 50 -v")).unwrap();
    client.sh(&format!("sleep 1; rping -c -a {there} -C 50")).unwrap();
    assert_eq!(pinger.wait(Duration::from_secs(30)).unwrap(), 0, "{}", pinger.log());

    let before = server.rdma_objects(None).unwrap();
    let measure = "ib_write_bw -F -x 1 -s 1048576 -n 30";
    let writer = server.spawn("bw", measure).unwrap();
    let said = client.sh(&format!("sleep 2; {measure} {there}")).unwrap();
    println!("{said}");
    assert_eq!(writer.wait(Duration::from_secs(30)).unwrap(), 0, "{}", writer.log());
    assert_eq!(server.rdma_objects(None).unwrap(), before);
}

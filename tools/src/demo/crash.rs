//! Writes until the daemon is killed, and what has to be there afterwards.
//!
//! Sessions are overwritten again and again, with at most one write of each in flight. A session
//! whose write number n was the last one acknowledged holds write n, or n + 1 if that one was in
//! flight when the daemon died; anything else is a lost write, a deleted one come back, or a torn
//! one.

use super::flow::{self, Stopwatch, Timing};
use crate::clock;
use crate::exit::{Code, Failure};
use crate::perf::mix;
use anyhow::Context as _;
use bytes::Bytes;
use fastrand::Rng;
use forebay_fabric::Status;
use forebay_fabric::client::{NamespaceId, Pipeline, Request};

/// Sessions that are written.
const SESSIONS: usize = 256;
/// The daemon is killed after so many acknowledged writes and so many seconds, whichever is later…
const KILL_AFTER_WRITES: u64 = 2000;
const KILL_AFTER_S: f64 = 0.5;
/// …but not later than this, in seconds.
const KILL_AT_LAST_S: f64 = 10.0;

/// One session: how many writes of it were sent, and how many of them were acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Session {
    sent: u64,
    acknowledged: u64,
    began_ns: u64,
}

/// What was written before the daemon died.
pub(crate) struct Crash {
    sessions: Vec<Session>,
    pub(crate) in_flight: usize,
    pub(crate) timing: Timing,
}

impl Crash {
    /// Keeps `depth` writes in flight, calls `kill` in the middle of it, and takes the
    /// acknowledgements that had left the daemon by then.
    pub(crate) fn write_until_killed(
        mut pipeline: Pipeline,
        namespace: NamespaceId,
        depth: usize,
        kill: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let mut sessions = vec![Session::default(); SESSIONS];
        let mut watch = Stopwatch::start();
        let mut turn = 0;
        loop {
            while pipeline.in_flight() < depth {
                let number = turn % SESSIONS;
                let session = &mut sessions[number];
                // Its last write is still under way: later.
                if session.sent == session.acknowledged {
                    session.began_ns = clock::now_ns();
                    let (key, value) = (key(number), value(number, session.sent + 1));
                    let request = Request::store(namespace, &key, value);
                    if pipeline.submit(request.with_tag(number as u64)).is_err() {
                        break;
                    }
                    session.sent += 1;
                }
                turn += 1;
            }
            let so_far = watch.timing();
            let enough = so_far.count >= KILL_AFTER_WRITES && so_far.seconds >= KILL_AFTER_S;
            if enough || so_far.seconds >= KILL_AT_LAST_S {
                break;
            }
            take(&mut pipeline, 100_000, &mut sessions, &mut watch, true)?;
        }
        // What was submitted last may still lie in this process: let it leave.
        take(&mut pipeline, 0, &mut sessions, &mut watch, true)?;
        let timing = watch.timing();
        let in_flight = pipeline.in_flight();
        kill()?;
        // Acknowledgements that the dead daemon had sent are acknowledgements.
        while take(&mut pipeline, 20_000, &mut sessions, &mut watch, false)? > 0 {}
        Ok(Self { sessions, in_flight, timing })
    }

    /// How many writes were acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.sessions.iter().map(|session| session.acknowledged).sum()
    }

    /// Reads every session back and compares it with what has to be there.
    pub(crate) fn verify(
        &self,
        mut pipeline: Pipeline,
        namespace: NamespaceId,
        depth: usize,
    ) -> anyhow::Result<Timing> {
        let written: Vec<usize> =
            (0..SESSIONS).filter(|number| self.sessions[*number].acknowledged > 0).collect();
        let request = |index: usize, submit: &mut dyn FnMut(Request<'_>) -> bool| {
            submit(Request::retrieve(namespace, &key(written[index]), 0, u32::MAX))
        };
        let compare = |index: usize, data: &[u8]| {
            let number = written[index];
            check(number, self.sessions[number], data)?;
            Ok(data.len() as u64)
        };
        let timing = flow::run(&mut pipeline, written.len(), depth, request, compare);
        timing.context("reading back what was acknowledged before the crash")
    }
}

/// Takes what has ended, and returns how much that was. Before the kill every write has to succeed.
fn take(
    pipeline: &mut Pipeline,
    timeout_us: u64,
    sessions: &mut [Session],
    watch: &mut Stopwatch,
    alive: bool,
) -> anyhow::Result<usize> {
    let mut done = Vec::new();
    match pipeline.poll(&mut done, timeout_us) {
        Ok(_) => {}
        Err(error) if alive => return Err(error).context("the connection"),
        // The daemon is dead: that is what this is about.
        Err(_) => return Ok(0),
    }
    let mut acknowledged = 0;
    for done in done {
        let number = done.tag as usize;
        let session = &mut sessions[number];
        if done.status == Status::Ok {
            session.acknowledged = session.sent;
            let bytes = value_bytes(number, session.sent) as u64;
            watch.lap(session.began_ns, bytes);
            acknowledged += 1;
        } else if alive {
            return Err(anyhow::Error::new(done.status).context(format!("session {number}")));
        }
    }
    Ok(acknowledged)
}

/// Whether `data` may be the value of a session.
fn check(number: usize, session: Session, data: &[u8]) -> anyhow::Result<()> {
    let Session { sent, acknowledged, .. } = session;
    if (acknowledged..=sent).any(|write| value(number, write) == data) {
        return Ok(());
    }
    let old = (1..acknowledged).rev().find(|write| value(number, *write) == data);
    let what = match old {
        Some(old) => format!("holds write {old}, but write {acknowledged} was acknowledged: LOST"),
        None => format!("holds bytes that nobody wrote; write {acknowledged} was acknowledged"),
    };
    Err(Failure::new(Code::Integrity, format!("session {number} {what}")).into())
}

fn key(number: usize) -> [u8; 16] {
    let mut key = *b"session/00000000";
    let digits = format!("{number:08}");
    key[8..].copy_from_slice(digits.as_bytes());
    key
}

/// 1 to 32 KiB, not in whole blocks.
fn value_bytes(number: usize, write: u64) -> usize {
    1024 + (mix(number as u64 ^ mix(write)) % (31 << 10)) as usize
}

fn value(number: usize, write: u64) -> Bytes {
    let mut value = vec![0; value_bytes(number, write)];
    Rng::with_seed(mix(number as u64) ^ write).fill(&mut value);
    value.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_acknowledged_write_or_the_one_in_flight_pass() {
        let session = Session { sent: 8, acknowledged: 7, began_ns: 0 };
        for (write, good) in [(6, false), (7, true), (8, true), (9, false)] {
            let outcome = check(3, session, &value(3, write));
            assert_eq!(outcome.is_ok(), good, "write {write}: {outcome:?}");
        }
        let lost = check(3, session, &value(3, 6)).unwrap_err();
        assert_eq!(Code::of(&lost), Code::Integrity);
        assert!(lost.to_string().contains("LOST"), "{lost}");
        let mut torn = value(3, 8).to_vec();
        torn[600] ^= 1;
        assert!(check(3, session, &torn).unwrap_err().to_string().contains("nobody wrote"));
        assert!(check(3, session, &value(4, 7)).is_err());
    }

    #[test]
    fn values_stay_within_their_bounds() {
        for write in 1..500 {
            assert!((1024..=32 << 10).contains(&value(9, write).len()));
        }
        assert_eq!(&key(42), b"session/00000042");
    }
}

//! Many connections, and connection requests that say nonsense.
//!
//! Guarantees: at most so many connections are held at a time, and each request is followed to its end.

use crate::line::{Heard, Lines, PATIENCE, Peer, lines, turn};
use anyhow::{Context as _, bail, ensure};
use clap::Args;
use forebay_fabric::pdu::{GoAway, GoAwayReason, PduType};
use forebay_fabric::rdma::client::client_shape;
use forebay_fabric::rdma::{Event, Greeting, Note, Provider as _, Qp, Shape};
use forebay_fabric::verbs::{Verbs, VerbsConfig};
use forebay_tests::vm::{now, sleep};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

#[derive(Args, Debug)]
pub(crate) struct Storm {
    /// Where the server is: IP:PORT
    address: SocketAddr,
    /// Connections in all
    #[arg(long)]
    connects: u32,
    /// How many of them there are at a time
    #[arg(long)]
    at_a_time: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What a visitor comes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// It is gone in a moment, whether it was taken or not.
    Fleeting,
    /// It is there, and never says a word.
    Silent,
    /// It shakes hands and goes.
    Polite,
    /// It shakes hands and stays.
    Idle,
}

const PLANS: [Plan; 4] = [Plan::Fleeting, Plan::Silent, Plan::Polite, Plan::Idle];

struct Visitor {
    peer: Peer,
    plan: Plan,
    came: Instant,
    /// How long it stays.
    stay: Duration,
    greeted: bool,
}

/// How a visit has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Greeted,
    /// As it was planned, without a greeting.
    Left,
    /// The server was full.
    Full,
    /// The server has closed, or did not answer.
    Failed,
}

impl Storm {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let (lines, mut rng) = (lines(4)?, fastrand::Rng::with_seed(self.seed));
        let (mut visitors, mut came) = (Vec::new(), 0);
        let mut ends = BTreeMap::<End, u32>::new();
        while came < self.connects || !visitors.is_empty() {
            while came < self.connects && visitors.len() < self.at_a_time {
                visitors.push(Visitor::come(&lines, self.address, came, &mut rng)?);
                came += 1;
                if came % 100 == 0 {
                    println!("{}", json!({ "is": "storming", "connects": came }));
                }
            }
            turn(&lines);
            visitors.retain_mut(|visitor| {
                let end = visitor.step();
                end.inspect(|end| *ends.entry(*end).or_default() += 1).is_none()
            });
        }
        let count = |end| ends.get(&end).copied().unwrap_or(0);
        let (greeted, left) = (count(End::Greeted), count(End::Left));
        let (full, failed) = (count(End::Full), count(End::Failed));
        println!(
            "{}",
            json!({ "is": "ended", "greeted": greeted, "left": left, "full": full, "failed": failed })
        );
        Ok(())
    }
}

impl Visitor {
    fn come(
        lines: &Lines,
        address: SocketAddr,
        number: u32,
        rng: &mut fastrand::Rng,
    ) -> anyhow::Result<Self> {
        let mut peer = Peer::connect(lines, address)?;
        let plan = PLANS[number as usize % PLANS.len()];
        if matches!(plan, Plan::Polite | Plan::Idle) {
            peer.greet()?;
        }
        let stay = match plan {
            Plan::Fleeting => rng.u64(..1000),
            Plan::Silent | Plan::Idle => 2000,
            Plan::Polite => 0,
        };
        Ok(Self { peer, plan, came: now(), stay: Duration::from_millis(stay), greeted: false })
    }

    /// Its end, when it has come.
    fn step(&mut self) -> Option<End> {
        let waits = matches!(self.plan, Plan::Polite | Plan::Idle) && !self.greeted;
        match self.peer.look() {
            Ok(Some(Heard::Pdu(pdu))) => return self.told(&pdu),
            Ok(Some(Heard::Nothing) | None) => {}
            ended => return Some(self.failed(&format!("{ended:?}"))),
        }
        let stay = if waits { PATIENCE } else { self.stay };
        if self.came.elapsed() < stay {
            return None;
        }
        Some(match (self.greeted, waits) {
            (true, _) => End::Greeted,
            (false, true) => self.failed("no answer"),
            (false, false) => End::Left,
        })
    }

    fn failed(&self, why: &str) -> End {
        let (plan, after_ms) = (format!("{:?}", self.plan), self.came.elapsed().as_millis() as u64);
        println!("{}", json!({ "is": "failed", "plan": plan, "after_ms": after_ms, "why": why }));
        End::Failed
    }

    fn told(&mut self, pdu: &[u8]) -> Option<End> {
        if let Ok(reason) = GoAway::parse(pdu) {
            let full = reason == GoAwayReason::Full;
            return Some(if full { End::Full } else { self.failed(&format!("{reason:?}")) });
        }
        self.greeted |= pdu.first() == Some(&(PduType::AuthAck as u8));
        None
    }
}

#[derive(Args, Debug)]
pub(crate) struct Garbage {
    /// Where the server is: IP:PORT
    address: SocketAddr,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Garbage {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut verbs: Verbs<Vec<u8>> = Verbs::new(VerbsConfig::default())?;
        let notes = notes(self.seed);
        let count = notes.len();
        // All at once: the kernel takes its time for each.
        let mut asked = BTreeMap::new();
        for (number, note) in notes.into_iter().enumerate() {
            asked.insert(verbs.connect(self.address, note, client_shape(8))?, (number, note));
        }
        let began = now();
        while !asked.is_empty() {
            ensure!(began.elapsed() < PATIENCE, "no answer to {asked:02x?}");
            refusals(&mut verbs, began, &mut asked)?;
            sleep(Duration::from_millis(1));
        }
        // And still it takes one that is right.
        let mut peer = Peer::connect(&lines(8)?, self.address)?;
        peer.shake_hands()?;
        if let Heard::Closed = peer.hear(Duration::from_millis(100))? {
            bail!("a good connection does not last");
        }
        println!("{}", json!({ "is": "ended", "refused": count }));
        Ok(())
    }
}

/// Takes out of `asked` those who were told in the server's own words that this was no greeting.
fn refusals(
    verbs: &mut Verbs<Vec<u8>>,
    began: Instant,
    asked: &mut BTreeMap<Qp, (usize, Note)>,
) -> anyhow::Result<()> {
    let mut events = Vec::new();
    verbs.poll(began.elapsed().as_micros() as u64, &mut events);
    for event in events {
        let Event::Refused { qp, answer } = event else { bail!("{event:?} of {asked:02x?}") };
        verbs.release(qp, &mut |_, _| {});
        let note = asked.remove(&qp).context("nobody asked for that")?;
        let told = answer.bytes().get(..size_of::<GoAway>()).map(GoAway::parse);
        let right = told == Some(Ok(GoAwayReason::Protocol));
        ensure!(right, "{note:02x?} was told {:02x?}", answer.bytes());
    }
    Ok(())
}

/// Nothing, noise, greetings with a bit too many, and greetings that promise what cannot be.
fn notes(seed: u64) -> Vec<Note> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut notes = Vec::new();
    for length in [0, 1, 7, 24, 25, 56] {
        let mut noise = vec![0; length];
        rng.fill(&mut noise);
        notes.push(Note::new(&noise));
    }
    let good = Greeting::of(&Shape { ..client_shape(8) }).note();
    for _ in 0..24 {
        let mut bent = good.bytes().to_vec();
        bent[rng.usize(..24)] ^= 1 << rng.u8(..8);
        notes.push(Note::new(&bent));
    }
    for (receives, receive_bytes) in
        [(0, 16 << 10), (3, 16 << 10), (4097, 16 << 10), (u32::MAX, u32::MAX), (24, 0), (24, 8191)]
    {
        notes.push(Greeting { receives, receive_bytes }.note());
    }
    notes.push(Note::new(&good.bytes()[..23]));
    notes
}

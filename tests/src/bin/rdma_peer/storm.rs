//! Many connections, and connection requests that say nonsense.
//!
//! Guarantees: at most so many connections are held at a time, and each request is followed to its end.

use crate::line::{Heard, Lines, PATIENCE, Peer, lines};
use anyhow::{Context as _, bail, ensure};
use clap::Args;
use forebay_fabric::pdu::{GoAway, GoAwayReason};
use forebay_fabric::rdma::client::client_shape;
use forebay_fabric::rdma::{Event, Greeting, Note, Provider as _, Shape};
use forebay_fabric::verbs::{Verbs, VerbsConfig};
use forebay_tests::vm::now;
use serde_json::json;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Args, Debug)]
pub(crate) struct Storm {
    /// Where the server is: IP:PORT
    address: SocketAddr,
    /// Connections in all
    #[arg(long)]
    connects: u32,
    /// How many of them are held at a time
    #[arg(long)]
    at_a_time: usize,
}

#[derive(Debug, Default)]
struct Counts {
    greeted: u32,
    full: u32,
    silent: u32,
    failed: u32,
}

impl Storm {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let lines = lines(4)?;
        let (mut held, mut counts) = (VecDeque::new(), Counts::default());
        for number in 0..self.connects {
            if held.len() == self.at_a_time {
                // Those that are dropped say nothing more: their queue pairs are gone.
                held.pop_front();
            }
            held.extend(self.one(&lines, number, &mut counts));
            if number % 100 == 99 {
                println!("{}", json!({ "is": "storming", "connects": number + 1 }));
            }
        }
        let Counts { greeted, full, silent, failed } = counts;
        println!(
            "{}",
            json!({ "is": "ended", "greeted": greeted, "full": full, "silent": silent, "failed": failed })
        );
        Ok(())
    }

    /// One more, in one of four ways; the connection, if it is to be held.
    fn one(&self, lines: &Lines, number: u32, counts: &mut Counts) -> Option<Peer> {
        let Ok(mut peer) = Peer::connect(lines, self.address) else {
            counts.failed += 1;
            return None;
        };
        match number % 4 {
            // Gone before the server has taken it.
            0 => {
                counts.silent += 1;
                return None;
            }
            // There, and never says a word.
            1 => {
                counts.silent += 1;
                return Some(peer);
            }
            _ => {}
        }
        match peer.shake_hands(number as u8) {
            Ok(()) => counts.greeted += 1,
            Err(error) if error.to_string().contains("is no HelloAck") => counts.full += 1,
            Err(_) => counts.failed += 1,
        }
        (number % 4 == 3).then_some(peer)
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
        for (number, note) in notes.into_iter().enumerate() {
            self.refused(&mut verbs, note)
                .with_context(|| format!("note {number}: {note:02x?}"))?;
        }
        // And still it takes one that is right.
        let mut peer = Peer::connect(&lines(8)?, self.address)?;
        peer.shake_hands(1)?;
        if let Heard::Closed = peer.hear(Duration::from_millis(100))? {
            bail!("a good connection does not last");
        }
        println!("{}", json!({ "is": "ended", "refused": count }));
        Ok(())
    }

    /// Asks, and is told in the server's own words that this was no greeting.
    fn refused(&self, verbs: &mut Verbs<Vec<u8>>, ask: Note) -> anyhow::Result<()> {
        let qp = verbs.connect(self.address, ask, client_shape(8))?;
        let (began, mut events) = (now(), Vec::new());
        while began.elapsed() < PATIENCE {
            verbs.poll(began.elapsed().as_micros() as u64, &mut events);
            for event in events.drain(..) {
                let Event::Refused { answer, .. } = event else { bail!("{event:?}") };
                verbs.release(qp, &mut |_, _| {});
                let told = answer.bytes().get(..size_of::<GoAway>()).map(GoAway::parse);
                ensure!(told == Some(Ok(GoAwayReason::Protocol)), "told {:02x?}", answer.bytes());
                return Ok(());
            }
            std::thread::yield_now();
        }
        bail!("no answer")
    }
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

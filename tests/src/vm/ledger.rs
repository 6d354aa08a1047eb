//! What was written, and what must therefore be there.
//!
//! Guarantees: a value that was acknowledged is expected until a later one of the same key was
//! asked for; each later one that was asked for and not acknowledged may be there instead. Values
//! follow from their seeds, so the ledger is small, and survives the machine.

use super::clock::now;
use anyhow::{Context as _, ensure};
use forebay_fabric::Status;
use forebay_fabric::client::{Client, Done, NamespaceId, Pipeline, Request};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What one key may hold.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The seed of the last value that was acknowledged.
    certain: Option<u64>,
    /// The seeds of later ones that were asked for.
    possible: Vec<u64>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Ledger {
    keys: u64,
    length_max: usize,
    next_seed: u64,
    known: BTreeMap<u64, Known>,
    /// Since when each key has a store in flight.
    in_flight: BTreeMap<u64, Instant>,
}

/// How far a round of writing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Stores that were acknowledged.
    pub acknowledged: u64,
    /// Stores that ended otherwise.
    pub failed: u64,
    /// How long the longest of them took, from its submission to its end.
    pub longest: Duration,
}

/// What a look at every key has found.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    /// Keys that hold what they should.
    pub sound: Vec<u64>,
    /// Keys that do not, or are not there, though a value was acknowledged.
    pub lost: Vec<u64>,
    /// Keys that answered with an error.
    pub failed: BTreeMap<u64, Status>,
}

impl Ledger {
    /// For `keys` keys with values of up to `length_max` bytes; all follows from `seed`.
    #[must_use]
    pub fn new(keys: u64, length_max: usize, seed: u64) -> Self {
        // Above the 32 bits that count a run's values.
        let (known, in_flight) = (BTreeMap::new(), BTreeMap::new());
        Self { keys, length_max, next_seed: seed << 32, known, in_flight }
    }

    /// The name of key number `key`.
    #[must_use]
    pub fn name(key: u64) -> String {
        format!("key/{key}")
    }

    /// The value of a seed. Most are small.
    #[must_use]
    pub fn value(&self, seed: u64) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let length = match rng.u32(..4) {
            0 => rng.usize(..=self.length_max),
            _ => rng.usize(..=self.length_max / 16),
        };
        let mut value = vec![0; length];
        rng.fill(&mut value);
        value
    }

    /// The value that key number `key` certainly holds.
    #[must_use]
    pub fn certain(&self, key: u64) -> Option<Vec<u8>> {
        let known = self.known.get(&key)?;
        known.certain.filter(|_| known.possible.is_empty()).map(|seed| self.value(seed))
    }

    /// Stores under one key after the other, round and round, with up to `depth` in flight, for as
    /// long as `go_on` says so. What is in flight then stays so: dropped, or drained by the caller.
    ///
    /// # Errors
    /// The connection cannot go on. That a store failed is no error.
    pub fn write(
        &mut self,
        client: &mut Pipeline,
        depth: usize,
        mut go_on: impl FnMut(Written) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Written> {
        let mut written = Written::default();
        while go_on(written)? {
            self.turn(client, depth, u64::MAX, &mut written)?;
        }
        Ok(written)
    }

    /// Waits for everything in flight.
    ///
    /// # Errors
    /// As [`Ledger::write`].
    pub fn drain(&mut self, client: &mut Pipeline) -> anyhow::Result<Written> {
        let mut written = Written::default();
        while client.in_flight() > 0 {
            self.turn(client, 0, 0, &mut written)?;
        }
        Ok(written)
    }

    /// Stores each key once.
    ///
    /// # Errors
    /// A store failed.
    pub fn fill(&mut self, client: &mut Pipeline) -> anyhow::Result<()> {
        let (end, mut written) = (self.next_seed + self.keys, Written::default());
        while self.next_seed < end || client.in_flight() > 0 {
            self.turn(client, 16, end, &mut written)?;
        }
        ensure!(written.failed == 0, "{} stores failed", written.failed);
        Ok(())
    }

    /// Submits seeds below `end` until `depth` are in flight, and hears what has ended.
    fn turn(
        &mut self,
        client: &mut Pipeline,
        depth: usize,
        end: u64,
        written: &mut Written,
    ) -> anyhow::Result<()> {
        if client.in_flight() == 0 {
            // Those of a client that was dropped.
            self.in_flight.clear();
        }
        while client.in_flight() < depth && self.next_seed < end && self.submit(client) {}
        let mut done = Vec::new();
        client.poll(&mut done, 10_000)?;
        for Done { tag, status, .. } in done {
            let key = tag % self.keys;
            let took = self.in_flight.remove(&key).map(|since| since.elapsed());
            written.longest = written.longest.max(took.unwrap_or_default());
            let known = self.known.get_mut(&key).context("no such store")?;
            if status == Status::Ok {
                written.acknowledged += 1;
                *known = Known { certain: Some(tag), possible: Vec::new() };
            } else {
                written.failed += 1;
            }
        }
        Ok(())
    }

    /// `false` if the next key has to wait for its turn.
    fn submit(&mut self, client: &mut Pipeline) -> bool {
        let (key, seed) = (self.next_seed % self.keys, self.next_seed);
        let (name, value) = (Self::name(key), self.value(seed));
        let request = Request::store(NAMESPACE, name.as_bytes(), value.into()).with_tag(seed);
        // Of two stores of one key in flight, either may be the last.
        if self.in_flight.contains_key(&key) || client.submit(request).is_err() {
            return false;
        }
        self.next_seed += 1;
        self.in_flight.insert(key, now());
        self.known.entry(key).or_default().possible.push(seed);
        true
    }

    /// Looks at every key that was ever stored. What it finds is certain from then on.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub fn audit(&mut self, client: &mut Client) -> anyhow::Result<Audit> {
        let mut audit = Audit::default();
        for key in self.known.keys().copied().collect::<Vec<_>>() {
            let got = match client.retrieve(NAMESPACE, Self::name(key).as_bytes()) {
                Ok(got) => got,
                Err(error) => {
                    let status = error.status().ok_or(error)?;
                    audit.failed.insert(key, status);
                    continue;
                }
            };
            if self.settle(key, got.as_deref()) { &mut audit.sound } else { &mut audit.lost }
                .push(key);
        }
        Ok(audit)
    }

    /// Is `got` something that the key may hold?
    fn settle(&mut self, key: u64, got: Option<&[u8]>) -> bool {
        let Known { certain, possible } = self.known.remove(&key).unwrap_or_default();
        let held = |seed: &u64| got.is_some_and(|got| *got == self.value(*seed));
        let found = possible.iter().rev().chain(&certain).copied().find(held);
        let sound = found.is_some() || (got.is_none() && certain.is_none());
        let certain = if sound { found } else { certain };
        self.known.insert(key, Known { certain, possible: Vec::new() });
        sound
    }
}

/// The first namespace of a configuration.
const NAMESPACE: NamespaceId = NamespaceId(16);

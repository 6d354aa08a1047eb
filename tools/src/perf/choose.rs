//! Which key, and which operation, is next.

use super::knobs::{Dist, Op, Plan};
use super::value::mix;
use super::zipf::Zipf;
use fastrand::Rng;
use std::ops::Range;

/// Part `part` of 0..`total` cut in `parts`, as even as it goes.
pub(crate) fn share(total: u64, parts: u64, part: u64) -> Range<u64> {
    let cut = |part: u64| (u128::from(total) * u128::from(part) / u128::from(parts)) as u64;
    cut(part)..cut(part + 1)
}

/// One worker's choices: the same for the same seed and number.
pub(crate) struct Chooser {
    worker: u64,
    rng: Rng,
    keys: u64,
    op: Op,
    read_percent: u8,
    next: Next,
}

enum Next {
    /// Through the worker's own share of the keys, round and round.
    Sequential {
        share: Range<u64>,
        at: u64,
    },
    Uniform,
    Zipf(Zipf),
}

impl Chooser {
    pub(crate) fn new(plan: &Plan, worker: u64) -> Self {
        let next = match plan.dist {
            Dist::Sequential => {
                let share = share(plan.keys, plan.connections, worker);
                Next::Sequential { at: share.start, share }
            }
            Dist::Uniform => Next::Uniform,
            Dist::Zipf { theta } => Next::Zipf(Zipf::new(plan.keys, theta)),
        };
        Self {
            worker,
            rng: Rng::with_seed(mix(plan.seed ^ mix(worker))),
            keys: plan.keys,
            op: plan.op,
            read_percent: plan.read_percent,
            next,
        }
    }

    /// The number of the worker whose choices these are.
    pub(crate) fn worker(&self) -> u64 {
        self.worker
    }

    /// The number of the next key.
    pub(crate) fn key(&mut self) -> u64 {
        match &mut self.next {
            Next::Sequential { share, at } => {
                let key = *at;
                *at = if key + 1 == share.end { share.start } else { key + 1 };
                key
            }
            Next::Uniform => self.rng.u64(..self.keys),
            Next::Zipf(zipf) => zipf.draw(&mut self.rng),
        }
    }

    /// The next operation; never [`Op::Mixed`].
    pub(crate) fn op(&mut self) -> Op {
        match self.op {
            Op::Mixed if self.rng.u8(..100) < self.read_percent => Op::Retrieve,
            Op::Mixed => Op::Store,
            op => op,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::knobs::Knobs;
    use super::*;

    fn plan(text: &str) -> Plan {
        toml::from_str::<Knobs>(text).expect("TOML").plan().expect("a plan")
    }

    #[test]
    fn shares_cover_everything_once() {
        for (total, parts) in [(10, 3), (7, 7), (100, 1), (5, 4)] {
            let all: Vec<u64> = (0..parts).flat_map(|part| share(total, parts, part)).collect();
            assert_eq!(all, (0..total).collect::<Vec<_>>());
        }
    }

    #[test]
    fn sequential_workers_visit_each_key_once_a_round() {
        let plan = plan("dist = \"sequential\"\nkeys = 10\nconnections = 3");
        let mut seen: Vec<u64> = (0..3)
            .flat_map(|worker| {
                let mut chooser = Chooser::new(&plan, worker);
                let own = share(10, 3, worker);
                (own.start..own.end).map(move |_| chooser.key()).collect::<Vec<_>>()
            })
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn the_same_seed_makes_the_same_choices_and_workers_differ() {
        let plan = plan("dist = \"zipf:0.9\"\nop = \"mixed\"\nread_percent = 30\nkeys = 1000");
        let run = |worker| {
            let mut chooser = Chooser::new(&plan, worker);
            (0..500).map(|_| (chooser.op(), chooser.key())).collect::<Vec<_>>()
        };
        assert_eq!(run(0), run(0));
        assert_ne!(run(0), run(1));
        let reads = run(0).iter().filter(|(op, _)| *op == Op::Retrieve).count();
        assert!((100..200).contains(&reads), "{reads} of 500 at 30 %");
    }
}

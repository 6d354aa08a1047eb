//! Who may send how much, where many connections share one pool of receives.
//!
//! Guarantees: what all connections have been granted is never more than the pool has; each connection
//! keeps at least [`GRANT_MIN`], whatever the others do, so that none of them stands still. Beyond that a
//! connection is granted more when it has used up nearly all that it was told of, up to its queue depth's
//! worth, and never holds much more than a part of what is still free: so there is always something for
//! the next one, and receives that were used up are not granted again when they are short. What was
//! granted is not taken back: a client that is granted much and says nothing keeps it.

use super::credits::{Credits, GRANT_MIN};

/// What a connection begins with, if there is so much: the handshake, and some commands.
const GRANT_FIRST: u32 = 8;
/// One connection holds at most this part of what is free, beyond what it always has.
const PART: u32 = 16;

/// Receives that connections share.
#[derive(Debug)]
pub(super) struct Pool {
    free: u32,
}

/// One connection's part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// What it is to have, if the pool allows.
    wanted: u32,
    most: u32,
}

impl Pool {
    /// Of so many receives, none of which is granted.
    pub(super) fn new(receives: u32) -> Self {
        Self { free: receives }
    }

    /// Receives that are granted to nobody.
    #[cfg(test)]
    pub(super) fn free(&self) -> u32 {
        self.free
    }

    /// What a new connection that may have `most` begins with; `None`: there is not enough for another one.
    pub(super) fn admit(&mut self, most: u32) -> Option<u32> {
        let first = GRANT_FIRST.min(most).min(self.free);
        if first < GRANT_MIN {
            return None;
        }
        self.free -= first;
        Some(first)
    }

    /// Receives have been used and posted again, or will not be used by whom they were granted to.
    pub(super) fn came_back(&mut self, count: u32) {
        self.free += count;
    }
}

impl Share {
    /// Of a connection that begins with `first` and may have `most`.
    pub(super) fn new(first: u32, most: u32) -> Self {
        Self { wanted: first, most: most.max(first) }
    }

    /// A receive of this connection has come back to the pool: grants it what it is to have again.
    pub(super) fn refill(&mut self, credits: &mut Credits, pool: &mut Pool) {
        if credits.others_left() <= self.wanted / 4 {
            self.wanted = (2 * self.wanted).min(self.most);
        }
        let has = credits.outstanding();
        let part = GRANT_MIN + pool.free / PART;
        // The receive that came back is there, so that the least can always be granted.
        let count = self.wanted.min(part).max(GRANT_MIN).saturating_sub(has).min(pool.free);
        credits.grant(count);
        pool.free -= count;
    }
}

#[cfg(test)]
mod tests {
    use super::super::credits::GRANT_MAX;
    use super::*;

    /// Uses `count` credits and lets the other side hear of what it is granted.
    fn use_up(share: &mut Share, credits: &mut Credits, pool: &mut Pool, count: u32) {
        for _ in 0..count {
            credits.hear(GRANT_MAX).unwrap();
            pool.came_back(1);
            share.refill(credits, pool);
        }
        credits.send();
    }

    #[test]
    fn who_uses_all_that_it_has_gets_more_and_who_uses_little_does_not() {
        let mut pool = Pool::new(4096);
        let first = pool.admit(144).unwrap();
        assert_eq!(first, 8);
        let (mut modest, mut modest_credits) =
            (Share::new(first, 144), Credits::new(first, GRANT_MAX));
        for _ in 0..50 {
            use_up(&mut modest, &mut modest_credits, &mut pool, 1);
        }
        assert_eq!(modest_credits.outstanding(), 8);
        let first = pool.admit(144).unwrap();
        let (mut greedy, mut credits) = (Share::new(first, 144), Credits::new(first, GRANT_MAX));
        for _ in 0..10 {
            let all = credits.others_left() - 1;
            use_up(&mut greedy, &mut credits, &mut pool, all);
        }
        assert_eq!(credits.outstanding(), 144, "its queue depth's worth");
    }

    #[test]
    fn the_greedy_leave_something_for_newcomers_and_give_back_when_there_are_many() {
        let mut pool = Pool::new(1024);
        let mut all = Vec::new();
        let come = |pool: &mut Pool, all: &mut Vec<(Share, Credits)>| {
            let first = pool.admit(144)?;
            all.push((Share::new(first, 144), Credits::new(first, GRANT_MAX)));
            for (share, credits) in all.iter_mut() {
                for _ in 0..10 {
                    let left = credits.others_left();
                    use_up(share, credits, pool, left.saturating_sub(1));
                }
            }
            Some(())
        };
        (0..4).for_each(|_| come(&mut pool, &mut all).unwrap());
        let before = all[0].1.outstanding();
        (0..96).for_each(|_| come(&mut pool, &mut all).unwrap());
        assert!(all[0].1.outstanding() < before / 3, "it gives back what it has used");
        while come(&mut pool, &mut all).is_some() {}
        assert!(all.len() >= 200, "{} connections share 1024 receives", all.len());
        assert!(all.iter().all(|(_, credits)| credits.outstanding() >= GRANT_MIN));
    }
}

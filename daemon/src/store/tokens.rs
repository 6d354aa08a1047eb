//! Idempotency: which writes have been taken already.
//!
//! A client that lost its connection replays its writes with their tokens. A shard remembers the
//! newest tokens; they are in the journal records, so a restart remembers what the ring still holds.

/// What is known of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The record is in the journal but not yet durable.
    Pending,
    /// Done; for a delete, whether the key was there.
    Done(bool),
}

const WAYS: usize = 4;
const SETS: usize = 1024;

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    token: u64,
    /// Grows; the lowest is the oldest.
    age: u64,
    outcome: Option<bool>,
}

/// The newest tokens of a shard: four-way associative, the oldest of a set makes room.
#[derive(Debug)]
pub(super) struct TokenWindow {
    sets: Vec<[Seen; WAYS]>,
    age: u64,
}

impl Default for TokenWindow {
    fn default() -> Self {
        Self { sets: vec![[Seen::default(); WAYS]; SETS], age: 0 }
    }
}

impl TokenWindow {
    fn set(&mut self, token: u64) -> &mut [Seen; WAYS] {
        // Fibonacci hashing (Knuth, TAOCP 3, 6.4): clients count their tokens up.
        let spread = token.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        &mut self.sets[spread as usize % SETS]
    }

    /// What is known of `token`; 0 is never known.
    pub(super) fn get(&mut self, token: u64) -> Option<Known> {
        if token == 0 {
            return None;
        }
        let seen = self.set(token).iter().find(|seen| seen.token == token)?;
        Some(seen.outcome.map_or(Known::Pending, Known::Done))
    }

    /// Notes that `token`'s record is in the journal (`None`), or what came of it.
    pub(super) fn note(&mut self, token: u64, outcome: Option<bool>) {
        self.age += 1;
        self.put(Seen { token, age: self.age, outcome });
    }

    /// Notes a token from page `sequence` of the journal. Pages come in any order: what is newer stays.
    /// A delete's own outcome is not on media; a replayed delete is told that the key was there.
    pub(super) fn recover(&mut self, token: u64, sequence: u64) {
        self.age = self.age.max(sequence);
        self.put(Seen { token, age: sequence, outcome: Some(true) });
    }

    fn put(&mut self, new: Seen) {
        if new.token == 0 {
            return;
        }
        let set = self.set(new.token);
        let place = match set.iter().position(|seen| seen.token == new.token) {
            Some(place) => place,
            None => (0..WAYS).min_by_key(|place| set[*place].age).expect("a set has ways"),
        };
        if set[place].age <= new.age {
            set[place] = new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_pending_then_done_and_zero_is_never_known() {
        let mut window = TokenWindow::default();
        assert_eq!(window.get(5), None);
        window.note(5, None);
        assert_eq!(window.get(5), Some(Known::Pending));
        window.note(5, Some(true));
        assert_eq!(window.get(5), Some(Known::Done(true)));
        window.note(0, Some(true));
        assert_eq!(window.get(0), None);
    }

    #[test]
    fn older_tokens_that_are_recovered_later_do_not_push_newer_ones_out() {
        let mut window = TokenWindow::default();
        for token in 1..=100_000u64 {
            window.recover(token, 1_000_000 - token);
        }
        let known = (1..=1000).filter(|token| window.get(*token).is_some()).count();
        assert_eq!(known, 1000);
        window.note(7, None);
        assert_eq!(window.get(7), Some(Known::Pending));
    }

    #[test]
    fn the_newest_thousand_tokens_are_remembered() {
        let mut window = TokenWindow::default();
        for token in 1..=100_000u64 {
            window.note(token, Some(false));
        }
        let known = (99_001..=100_000).filter(|token| window.get(*token).is_some()).count();
        assert_eq!(known, 1000);
    }
}

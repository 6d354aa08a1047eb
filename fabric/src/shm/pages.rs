//! Which pages of an area are lent. No two runs that are lent overlap.

/// Pages that are lent in turn before the first one's turn is again: 2 MiB. The server writes into a
/// page twice as fast if the client's own cache has forgotten it meanwhile; more would leave the cache
/// that both share.
const TURN_PAGES: usize = 512;

/// Which pages of the area are lent: a bit each. The first that fit behind those which were lent last
/// are taken, and from the beginning again after [`TURN_PAGES`], so that a client which keeps few in
/// flight uses few pages.
#[derive(Debug)]
pub(super) struct Pages {
    lent: Box<[u64]>,
    count: usize,
    /// Where the next search begins.
    next: usize,
}

impl Pages {
    pub(super) fn new(count: usize) -> Self {
        Self { lent: vec![0; count.div_ceil(64)].into_boxed_slice(), count, next: 0 }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    fn is_lent(&self, page: usize) -> bool {
        self.lent[page / 64] >> (page % 64) & 1 != 0
    }

    /// `count` free pages in a row.
    pub(super) fn take(&mut self, count: usize) -> Option<usize> {
        let from = std::mem::take(&mut self.next);
        let start = self.find(from, count).or_else(|| self.find(0, count))?;
        self.set(start, count, true);
        self.next = if start + count < TURN_PAGES { start + count } else { 0 };
        Some(start)
    }

    /// The first `count` free pages in a row, from `start` on.
    fn find(&self, mut start: usize, count: usize) -> Option<usize> {
        let mut page = start;
        while page < self.count {
            if page.is_multiple_of(64) && self.lent[page / 64] == u64::MAX {
                page += 64;
                start = page;
            } else if page.is_multiple_of(64) && self.lent[page / 64] == 0 {
                page += 64;
            } else {
                page += 1;
                if self.is_lent(page - 1) {
                    start = page;
                }
            }
            if page.min(self.count) >= start + count {
                return Some(start);
            }
        }
        None
    }

    /// They are free again.
    pub(super) fn give(&mut self, start: usize, count: usize) {
        debug_assert!((start..start + count).all(|page| self.is_lent(page)), "given back twice");
        self.set(start, count, false);
    }

    fn set(&mut self, start: usize, count: usize, lent: bool) {
        let (mut page, end) = (start, start + count);
        while page < end {
            let run = (64 - page % 64).min(end - page);
            let mask = (u64::MAX >> (64 - run)) << (page % 64);
            let word = &mut self.lent[page / 64];
            *word = if lent { *word | mask } else { *word & !mask };
            page += run;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_are_lent_never_overlap_and_all_come_back() {
        for seed in 0..50 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (count, mut next) = (rng.usize(1..1000), 0);
            let mut pages = Pages::new(count);
            let (mut model, mut held) = (vec![false; count], Vec::new());
            for _ in 0..1000 {
                if rng.bool() {
                    let wanted =
                        if rng.u8(..5) == 0 { rng.usize(1..=count) } else { rng.usize(1..8) };
                    let fits = |start: &usize| !model[*start..*start + wanted].contains(&true);
                    let places = (count + 1).saturating_sub(wanted);
                    let expected = (next..places).chain(0..places).find(fits);
                    assert_eq!(pages.take(wanted), expected, "seed {seed}: {wanted} of {count}");
                    next = expected.map_or(0, |start| start + wanted);
                    next = if next < TURN_PAGES { next } else { 0 };
                    if let Some(start) = expected {
                        model[start..start + wanted].fill(true);
                        held.push((start, wanted));
                    }
                } else if !held.is_empty() {
                    let (start, wanted) = held.swap_remove(rng.usize(..held.len()));
                    pages.give(start, wanted);
                    model[start..start + wanted].fill(false);
                }
            }
            held.into_iter().for_each(|(start, wanted)| pages.give(start, wanted));
            assert_eq!(pages.take(count), Some(0), "seed {seed}");
        }
    }
}

//! The buddy allocator: which pages of a pool are taken. Pure bookkeeping, no memory access.
//!
//! Guarantees:
//!
//! * [`Buddy::take`] never returns a range that overlaps one that is taken;
//! * a block of 2ⁿ pages is aligned to 2ⁿ pages;
//! * what is given back merges at once, so that a pool with nothing taken is whole;
//! * both are O([`ORDERS`]) and allocate nothing.
//!
//! What breaks it: giving back what was not taken, which is an assertion.
//!
//! The free lists are threaded through an array beside the memory, not through the memory itself:
//! a free page is never touched, and a device that writes late cannot break the lists.

/// Block sizes: 2⁰ … 2¹⁰ pages (4 KiB … 4 MiB).
pub(super) const ORDERS: usize = 11;
/// Pages in a block of the largest order.
pub(super) const PAGES_MAX: u32 = 1 << (ORDERS - 1);

const NONE: u32 = u32::MAX;

/// What is known of the page that a block begins at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// No block begins here.
    Inside,
    Free(u8),
    Taken(u8),
}

#[derive(Clone, Copy, Debug)]
struct Page {
    start: Start,
    next: u32,
    previous: u32,
}

#[derive(Debug)]
pub(super) struct Buddy {
    pages: Box<[Page]>,
    /// First free block of each order.
    heads: [u32; ORDERS],
    /// Bit n: there is a free block of order n.
    orders_free: u32,
    free_pages: u32,
    low_water_pages: u32,
}

impl Buddy {
    /// All of `pages` free. They come in whole blocks of the largest order.
    pub(super) fn new(pages: u32) -> Self {
        assert!(pages > 0 && pages < NONE && pages.is_multiple_of(PAGES_MAX));
        let blank = Page { start: Start::Inside, next: NONE, previous: NONE };
        let mut buddy = Self {
            pages: vec![blank; pages as usize].into_boxed_slice(),
            heads: [NONE; ORDERS],
            orders_free: 0,
            free_pages: pages,
            low_water_pages: pages,
        };
        // Pushed from the back, so that the front is handed out first.
        for block in (0..pages / PAGES_MAX).rev() {
            buddy.push(block * PAGES_MAX, ORDERS - 1);
        }
        buddy
    }

    pub(super) fn free_pages(&self) -> u32 {
        self.free_pages
    }

    pub(super) fn low_water_pages(&self) -> u32 {
        self.low_water_pages
    }

    /// Takes a block of 2^`order` pages, and returns its first page.
    pub(super) fn take(&mut self, order: usize) -> Option<u32> {
        let larger = self.orders_free >> order;
        if larger == 0 {
            return None;
        }
        let mut found = order + larger.trailing_zeros() as usize;
        let page = self.heads[found];
        self.unlink(page, found);
        while found > order {
            found -= 1;
            self.push(page + (1 << found), found);
        }
        self.pages[page as usize].start = Start::Taken(order as u8);
        self.free_pages -= 1 << order;
        self.low_water_pages = self.low_water_pages.min(self.free_pages);
        Some(page)
    }

    /// Gives back what [`Buddy::take`] returned for this order.
    pub(super) fn give(&mut self, mut page: u32, mut order: usize) {
        let start = &mut self.pages[page as usize].start;
        assert_eq!(*start, Start::Taken(order as u8), "page {page} given back but not taken");
        *start = Start::Inside;
        self.free_pages += 1 << order;
        while order < ORDERS - 1 {
            let other = page ^ (1 << order);
            if self.pages[other as usize].start != Start::Free(order as u8) {
                break;
            }
            self.unlink(other, order);
            page = page.min(other);
            order += 1;
        }
        self.push(page, order);
    }

    fn push(&mut self, page: u32, order: usize) {
        let next = self.heads[order];
        self.pages[page as usize] = Page { start: Start::Free(order as u8), next, previous: NONE };
        if next != NONE {
            self.pages[next as usize].previous = page;
        }
        self.heads[order] = page;
        self.orders_free |= 1 << order;
    }

    fn unlink(&mut self, page: u32, order: usize) {
        let Page { next, previous, .. } = self.pages[page as usize];
        self.pages[page as usize].start = Start::Inside;
        if next != NONE {
            self.pages[next as usize].previous = previous;
        }
        if previous != NONE {
            self.pages[previous as usize].next = next;
            return;
        }
        self.heads[order] = next;
        if next == NONE {
            self.orders_free &= !(1 << order);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Takes and gives at random against a map of what is taken.
    fn churn(seed: u64, pages: u32, steps: usize) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut buddy = Buddy::new(pages);
        let mut taken: BTreeMap<u32, usize> = BTreeMap::new();
        let mut held: Vec<u32> = Vec::new();
        for _ in 0..steps {
            if rng.u32(..100) < 55 {
                let order = rng.usize(..ORDERS).min(rng.usize(..ORDERS));
                let Some(page) = buddy.take(order) else { continue };
                let end = page + (1 << order);
                assert_eq!(page % (1 << order), 0, "seed {seed}: unaligned");
                assert!(end <= pages, "seed {seed}: past the end");
                let before = taken.range(..end).next_back();
                assert!(
                    before.is_none_or(|(start, order)| start + (1 << order) <= page),
                    "seed {seed}: {page}+{order} overlaps {before:?}"
                );
                taken.insert(page, order);
                held.push(page);
            } else if !held.is_empty() {
                let page = held.swap_remove(rng.usize(..held.len()));
                buddy.give(page, taken.remove(&page).unwrap());
            }
            let in_use: u32 = taken.values().map(|order| 1 << order).sum();
            assert_eq!(buddy.free_pages(), pages - in_use, "seed {seed}");
        }
        for page in held {
            buddy.give(page, taken.remove(&page).unwrap());
        }
        assert_eq!(buddy.free_pages(), pages);
        for block in 0..pages / PAGES_MAX {
            assert!(buddy.take(ORDERS - 1).is_some(), "seed {seed}: block {block} did not merge");
        }
        assert_eq!(buddy.take(0), None);
    }

    #[test]
    fn blocks_never_overlap_and_merge_back_to_a_whole() {
        for seed in 0..64 {
            churn(seed, PAGES_MAX * (1 + seed as u32 % 3), 2000);
        }
    }

    #[test]
    fn every_page_can_be_taken_alone() {
        let mut buddy = Buddy::new(PAGES_MAX);
        let mut pages: Vec<u32> = std::iter::from_fn(|| buddy.take(0)).collect();
        pages.sort_unstable();
        assert_eq!(pages, (0..PAGES_MAX).collect::<Vec<_>>());
        assert_eq!((buddy.free_pages(), buddy.low_water_pages()), (0, 0));
    }

    #[test]
    #[should_panic(expected = "given back but not taken")]
    fn giving_back_twice_is_caught() {
        let mut buddy = Buddy::new(PAGES_MAX);
        let page = buddy.take(3).unwrap();
        buddy.give(page, 3);
        buddy.give(page, 3);
    }
}

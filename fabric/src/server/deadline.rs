//! Deadlines of commands: a heap in which every entry knows its place.
//!
//! A command costs one push when it arrives and one removal when it ends, both O(log n) and without
//! allocation: everything is sized at set-up. The earliest deadline is always at hand.

/// "Not in the heap."
const NOWHERE: u32 = u32::MAX;

/// Deadlines of numbered nodes, each node at most once.
#[derive(Debug)]
pub(super) struct Deadlines {
    /// (deadline, node), a binary heap with the earliest first.
    heap: Vec<(u64, u32)>,
    /// Where in `heap` a node is.
    places: Vec<u32>,
}

impl Deadlines {
    /// Room for nodes `0..nodes`.
    pub(super) fn new(nodes: usize) -> Self {
        Self { heap: Vec::with_capacity(nodes), places: vec![NOWHERE; nodes] }
    }

    /// Sets the deadline of `node`, whether it had one or not.
    pub(super) fn set(&mut self, node: u32, deadline_us: u64) {
        self.remove(node);
        self.heap.push((deadline_us, node));
        self.rise(self.heap.len() - 1);
    }

    /// Forgets `node`.
    pub(super) fn remove(&mut self, node: u32) {
        let place = self.places[node as usize];
        if place == NOWHERE {
            return;
        }
        self.places[node as usize] = NOWHERE;
        self.heap.swap_remove(place as usize);
        if (place as usize) < self.heap.len() {
            self.sink(place as usize);
            self.rise(place as usize);
        }
    }

    /// The earliest deadline.
    pub(super) fn next_us(&self) -> Option<u64> {
        self.heap.first().map(|(deadline_us, _)| *deadline_us)
    }

    /// Takes out a node whose deadline has passed, the earliest first.
    pub(super) fn expired(&mut self, now_us: u64) -> Option<u32> {
        let (deadline_us, node) = *self.heap.first()?;
        if deadline_us > now_us {
            return None;
        }
        self.remove(node);
        Some(node)
    }

    fn rise(&mut self, mut place: usize) {
        let entry = self.heap[place];
        while place > 0 && entry < self.heap[(place - 1) / 2] {
            self.put(place, self.heap[(place - 1) / 2]);
            place = (place - 1) / 2;
        }
        self.put(place, entry);
    }

    fn sink(&mut self, mut place: usize) {
        let entry = self.heap[place];
        loop {
            let left = 2 * place + 1;
            let Some(&first) = self.heap.get(left) else { break };
            let (child, least) = match self.heap.get(left + 1) {
                Some(&second) if second < first => (left + 1, second),
                _ => (left, first),
            };
            if entry <= least {
                break;
            }
            self.put(place, least);
            place = child;
        }
        self.put(place, entry);
    }

    fn put(&mut self, place: usize, entry: (u64, u32)) {
        self.heap[place] = entry;
        self.places[entry.1 as usize] = place as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::Deadlines;
    use std::collections::BTreeMap;

    #[test]
    fn agrees_with_a_sorted_map() {
        const NODES: u32 = 64;
        let mut rng = fastrand::Rng::with_seed(7);
        let mut deadlines = Deadlines::new(NODES as usize);
        let mut model = BTreeMap::new();
        for step in 0..100_000_u64 {
            let node = rng.u32(..NODES);
            match rng.u8(..4) {
                0 | 1 => {
                    let deadline_us = step + rng.u64(..100);
                    deadlines.set(node, deadline_us);
                    model.insert(node, deadline_us);
                }
                2 => {
                    deadlines.remove(node);
                    model.remove(&node);
                }
                _ => {
                    let earliest =
                        model.iter().map(|(n, d)| (*d, *n)).min().filter(|(d, _)| *d <= step);
                    assert_eq!(deadlines.expired(step), earliest.map(|(_, n)| n), "step {step}");
                    if let Some((_, n)) = earliest {
                        model.remove(&n);
                    }
                }
            }
            assert_eq!(deadlines.next_us(), model.values().min().copied(), "step {step}");
        }
    }
}

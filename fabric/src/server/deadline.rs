//! Deadlines of commands: a heap that is told of a change only when the change would come first.
//!
//! A command costs two stores: its deadline when it arrives, and that it has none when it ends. Its node
//! stays in the heap with a time at or before the true one, which is looked up once that time has come.
//! A client whose commands end in time so moves each of its nodes once in a deadline's length, however many
//! commands go by. Nothing allocates: everything is sized at set-up.

/// "Not in the heap."
const NOWHERE: u32 = u32::MAX;
/// "No deadline."
const NEVER: u64 = u64::MAX;

/// Deadlines of numbered nodes, each node at most once.
#[derive(Debug)]
pub(super) struct Deadlines {
    /// (time, node), a binary heap with the earliest first. The time is never later than the deadline.
    heap: Vec<(u64, u32)>,
    nodes: Vec<Node>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    deadline_us: u64,
    /// Where in `heap` it is.
    place: u32,
}

impl Deadlines {
    /// Room for nodes `0..nodes`.
    pub(super) fn new(nodes: usize) -> Self {
        let none = Node { deadline_us: NEVER, place: NOWHERE };
        Self { heap: Vec::with_capacity(nodes), nodes: vec![none; nodes] }
    }

    /// Sets the deadline of `node`, whether it had one or not.
    pub(super) fn set(&mut self, node: u32, deadline_us: u64) {
        let known = &mut self.nodes[node as usize];
        known.deadline_us = deadline_us;
        let place = known.place as usize;
        match self.heap.get_mut(place) {
            Some((time_us, _)) if *time_us <= deadline_us => {}
            Some((time_us, _)) => {
                *time_us = deadline_us;
                self.rise(place);
            }
            None => {
                self.heap.push((deadline_us, node));
                self.rise(self.heap.len() - 1);
            }
        }
    }

    /// Forgets `node`.
    pub(super) fn remove(&mut self, node: u32) {
        self.nodes[node as usize].deadline_us = NEVER;
    }

    /// When to ask again for what has [`Deadlines::expired`]: no deadline is earlier.
    pub(super) fn next_us(&self) -> Option<u64> {
        self.heap.first().map(|(time_us, _)| *time_us)
    }

    /// Takes out a node whose deadline has passed, the earliest first.
    pub(super) fn expired(&mut self, now_us: u64) -> Option<u32> {
        loop {
            let (time_us, node) = *self.heap.first()?;
            if time_us > now_us {
                return None;
            }
            match self.nodes[node as usize].deadline_us {
                NEVER => self.pop(),
                deadline_us if deadline_us > time_us => {
                    self.heap[0].0 = deadline_us;
                    self.sink(0);
                }
                _ => {
                    self.remove(node);
                    self.pop();
                    return Some(node);
                }
            }
        }
    }

    /// Takes the first node out of the heap.
    fn pop(&mut self) {
        let (_, node) = self.heap.swap_remove(0);
        self.nodes[node as usize].place = NOWHERE;
        if !self.heap.is_empty() {
            self.sink(0);
        }
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
        self.nodes[entry.1 as usize].place = place as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::Deadlines;
    use std::collections::BTreeMap;

    #[test]
    fn commands_that_end_in_time_move_nothing() {
        let mut deadlines = Deadlines::new(2);
        deadlines.set(1, 900);
        for now_us in 0..500 {
            deadlines.set(0, now_us + 500);
            assert_eq!((deadlines.next_us(), deadlines.expired(now_us)), (Some(500), None));
            deadlines.remove(0);
        }
        assert_eq!((deadlines.expired(500), deadlines.next_us()), (None, Some(900)));
    }

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
            let (next_us, first) = (deadlines.next_us(), model.values().min().copied());
            assert!(first.is_none_or(|first| next_us.is_some_and(|next| next <= first)), "{step}");
        }
    }
}

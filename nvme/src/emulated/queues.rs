//! The controller's ends of submission and completion queues (NVMe Base 2.0, "Queues").
//!
//! Guarantees: an entry is posted only where the host has said that there is room; what does not fit waits. A
//! doorbell that the host must not write so is remembered as a violation, and ignored.

use std::collections::{BTreeSet, VecDeque};

use super::counters::Violation;
use super::device::Device;
use crate::spec::command::{SUBMISSION_BYTES, Submission};
use crate::spec::completion::{COMPLETION_BYTES, Completion};
use crate::spec::registers::DOORBELLS;

pub(super) type QueueId = u16;

#[derive(Debug)]
pub(super) struct SubmissionQueue {
    pub(super) base: u64,
    pub(super) entries: u32,
    pub(super) head: u32,
    pub(super) tail: u32,
    /// The head that the host can know from completions.
    reported_head: u32,
    /// Where its completions go.
    pub(super) completion: QueueId,
    /// In flight.
    pub(super) cids: BTreeSet<u16>,
    /// The controller looks at the shadow doorbell by itself; the host need not ring.
    watched: bool,
}

#[derive(Debug)]
pub(super) struct CompletionQueue {
    pub(super) base: u64,
    entries: u32,
    head: u32,
    tail: u32,
    phase: bool,
    /// Entries without room, and whether their phase is to be wrong.
    waiting: VecDeque<(Completion, bool)>,
}

impl SubmissionQueue {
    pub(super) fn new(base: u64, entries: u32, completion: QueueId) -> Self {
        let cids = BTreeSet::new();
        let watched = false;
        Self { base, entries, head: 0, tail: 0, reported_head: 0, completion, cids, watched }
    }

    /// Takes a new tail from the host.
    fn move_tail(&mut self, queue: QueueId, tail: u32) -> Result<(), Violation> {
        if tail >= self.entries {
            return Err(Violation::DoorbellValue { queue, value: tail });
        }
        let room = distance(self.tail, self.reported_head + self.entries - 1, self.entries);
        let fits = distance(self.tail, tail, self.entries) <= room;
        self.tail = tail;
        if fits { Ok(()) } else { Err(Violation::SubmissionOverrun { queue }) }
    }
}

impl CompletionQueue {
    pub(super) fn new(base: u64, entries: u32) -> Self {
        Self { base, entries, head: 0, tail: 0, phase: true, waiting: VecDeque::new() }
    }

    fn full(&self) -> bool {
        distance(self.head, self.tail, self.entries) == self.entries - 1
    }

    /// Takes a new head from the host, which cannot have taken what was not posted.
    fn move_head(&mut self, queue: QueueId, head: u32) -> Result<(), Violation> {
        if head >= self.entries {
            return Err(Violation::DoorbellValue { queue, value: head });
        }
        let posted = distance(self.head, self.tail, self.entries);
        if distance(self.head, head, self.entries) > posted {
            return Err(Violation::CompletionOverrun { queue });
        }
        self.head = head;
        Ok(())
    }
}

/// From `from` on to `to`, around a queue.
fn distance(from: u32, to: u32, entries: u32) -> u32 {
    (to % entries + entries - from) % entries
}

impl Device {
    /// The doorbell register of a queue: 0 is the tail, 1 the head.
    fn doorbell(&self, queue: QueueId, which: usize) -> usize {
        let stride = 4 << (self.config.registers.doorbell_stride & 15);
        DOORBELLS + (2 * usize::from(queue) + which) * stride
    }

    fn doorbell_queues(&self) -> QueueId {
        let stride = 4_usize << (self.config.registers.doorbell_stride & 15);
        let pairs = (self.bar_bytes - DOORBELLS) / (2 * stride);
        pairs.min(257) as QueueId
    }

    /// Listens to every doorbell.
    pub(super) fn hear(&mut self) {
        for queue in 0..self.doorbell_queues() {
            for which in 0..2 {
                if let Some(value) = self.registers.hear(self.doorbell(queue, which)) {
                    self.counters.doorbells += 1;
                    self.rung(queue, which, value);
                }
            }
        }
        self.watch();
    }

    /// Is there a doorbell, or a shadow that is watched, with news?
    pub(super) fn has_news(&self) -> bool {
        let rings = |queue| (0..2).any(|which| self.registers.rings(self.doorbell(queue, which)));
        (0..self.doorbell_queues()).any(rings)
            || self.submission.iter().any(|(queue, it)| {
                it.watched && self.shadow_value(*queue, 0).is_some_and(|tail| tail != it.tail)
            })
    }

    fn rung(&mut self, queue: QueueId, which: usize, value: u32) {
        if !self.is_on() {
            // A controller that broke down by itself is rung in good faith.
            if !self.is_fatal() {
                self.violation(Violation::DoorbellTooEarly { queue });
            }
            return;
        }
        let value = self.shadow_value(queue, which).unwrap_or(value);
        self.move_to(queue, which, value);
    }

    /// The host has moved on.
    fn move_to(&mut self, queue: QueueId, which: usize, value: u32) {
        let moved = match which {
            0 => self.submission.get_mut(&queue).map(|it| it.move_tail(queue, value)),
            _ => self.completion.get_mut(&queue).map(|it| it.move_head(queue, value)),
        };
        match moved {
            None => self.violation(Violation::DoorbellOfNoQueue { queue }),
            Some(Err(violation)) => {
                self.violation(violation);
                self.invalid_doorbell();
            }
            Some(Ok(())) => {}
        }
    }

    /// Looks at the shadows of the queues that are busy.
    fn watch(&mut self) {
        if self.shadow.is_none() || !self.is_on() {
            return;
        }
        let queues: Vec<QueueId> = self.submission.keys().copied().filter(|id| *id != 0).collect();
        for queue in queues {
            let watched = self.submission.get(&queue).is_some_and(|it| it.watched);
            let known = self.submission.get(&queue).map(|it| it.tail);
            if watched
                && let Some(tail) = self.shadow_value(queue, 0)
                && known != Some(tail)
            {
                self.move_to(queue, 0, tail);
            }
        }
    }

    /// The shadow of a doorbell, where there is one (Base, "Doorbell Buffer Config command"). The admin queue
    /// has none.
    fn shadow_value(&self, queue: QueueId, which: usize) -> Option<u32> {
        let (shadow, _) = self.shadow?;
        let at = self.shadow_offset(queue, which)?;
        let mut bytes = [0; 4];
        self.peek_memory(shadow + at, &mut bytes).then(|| u32::from_le_bytes(bytes))
    }

    fn shadow_offset(&self, queue: QueueId, which: usize) -> Option<u64> {
        let at = self.doorbell(queue, which) - DOORBELLS;
        (queue != 0 && at + 4 <= self.page_bytes).then_some(at as u64)
    }

    /// Tells the host from which value on it has to ring.
    fn set_event_index(&mut self, queue: QueueId, which: usize, value: u32) {
        let Some((_, events)) = self.shadow else { return };
        if let Some(at) = self.shadow_offset(queue, which) {
            self.write_memory(events + at, &value.to_le_bytes());
        }
    }

    /// Fetches everything that was submitted.
    pub(super) fn fetch(&mut self) {
        let queues: Vec<QueueId> = self.submission.keys().copied().collect();
        for queue in queues {
            while self.is_on() && self.fetch_one(queue) {}
        }
    }

    fn fetch_one(&mut self, queue: QueueId) -> bool {
        let Some(it) = self.submission.get_mut(&queue) else { return false };
        if it.head == it.tail {
            let watch = std::mem::replace(&mut it.watched, false);
            let tail = it.tail;
            return watch && self.rest(queue, tail);
        }
        let at = it.base + u64::from(it.head) * SUBMISSION_BYTES as u64;
        it.head = (it.head + 1) % it.entries;
        it.watched = true;
        let mut bytes = [0; SUBMISSION_BYTES];
        if !self.read_memory(at, &mut bytes) {
            self.fail_fatally();
            return false;
        }
        let words = bytes.as_chunks().0;
        let mut command = [0; 8];
        command.iter_mut().zip(words).for_each(|(to, from)| *to = u64::from_le_bytes(*from));
        self.accept(queue, Submission::from_words(command));
        true
    }

    /// Nothing left in a queue: asks to be rung for the next command, and looks once more, as the host may have
    /// missed that. Busy controllers do not ask, so that the host need not ring.
    fn rest(&mut self, queue: QueueId, tail: u32) -> bool {
        let Some(_) = self.shadow_value(queue, 0) else { return false };
        let chance = self.rng.u32(..4);
        if let Some(it) = self.submission.get_mut(&queue)
            && chance > if it.cids.is_empty() { 2 } else { 0 }
        {
            // It goes on watching for a while.
            it.watched = true;
            return false;
        }
        self.set_event_index(queue, 0, tail);
        let missed = self.shadow_value(queue, 0).is_some_and(|now| now != tail);
        if missed && let Some(now) = self.shadow_value(queue, 0) {
            self.move_to(queue, 0, now);
        }
        missed
    }

    /// Posts an entry, or lets it wait for room.
    pub(super) fn post(&mut self, queue: QueueId, entry: Completion, wrong_phase: bool) {
        if let Some(it) = self.completion.get_mut(&queue) {
            it.waiting.push_back((entry, wrong_phase));
        }
        self.drain(queue);
    }

    /// Posts what waited, as far as there is room now.
    pub(super) fn drain_all(&mut self) {
        let queues: Vec<QueueId> = self.completion.keys().copied().collect();
        queues.into_iter().for_each(|queue| self.drain(queue));
    }

    fn drain(&mut self, queue: QueueId) {
        while let Some(it) = self.completion.get_mut(&queue)
            && let Some((entry, wrong_phase)) = it.waiting.front().copied()
        {
            if it.full() {
                if self.finds_room(queue) {
                    continue;
                }
                self.counters.completion_queue_full += 1;
                return;
            }
            it.waiting.pop_front();
            let at = it.base + u64::from(it.tail) * COMPLETION_BYTES as u64;
            let [first, last] = entry.with_status(entry.status(), it.phase != wrong_phase).words();
            it.tail = (it.tail + 1) % it.entries;
            it.phase ^= it.tail == 0;
            let mut bytes = [0; COMPLETION_BYTES];
            bytes[..8].copy_from_slice(&first.to_le_bytes());
            bytes[8..].copy_from_slice(&last.to_le_bytes());
            self.counters.completions += 1;
            if !self.write_memory(at, &bytes) {
                self.fail_fatally();
            }
        }
    }

    /// A queue looks full: has the host moved on, without having to ring? If not, it has to ring now.
    fn finds_room(&mut self, queue: QueueId) -> bool {
        for _ in 0..2 {
            let Some(it) = self.completion.get(&queue) else { return false };
            let known = it.head;
            if let Some(head) = self.shadow_value(queue, 1).filter(|head| *head != known) {
                self.move_to(queue, 1, head);
                return self.completion.get(&queue).is_some_and(|it| !it.full());
            }
            self.set_event_index(queue, 1, known);
        }
        false
    }

    /// What the host can know of the head of a queue, once a completion has told it.
    pub(super) fn report_head(&mut self, queue: QueueId) -> u16 {
        let Some(it) = self.submission.get_mut(&queue) else { return 0 };
        it.reported_head = it.head;
        it.head as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_that_passes_the_head_that_the_host_knows_is_an_overrun() {
        let mut queue = SubmissionQueue::new(0, 4, 1);
        assert_eq!(queue.move_tail(1, 3), Ok(()));
        queue.head = 3;
        assert_eq!(queue.move_tail(1, 0), Err(Violation::SubmissionOverrun { queue: 1 }));
        let mut queue = SubmissionQueue { tail: 3, head: 3, reported_head: 3, ..queue };
        assert_eq!(queue.move_tail(1, 2), Ok(()));
        assert_eq!(queue.move_tail(1, 4), Err(Violation::DoorbellValue { queue: 1, value: 4 }));
    }

    #[test]
    fn a_head_that_passes_the_tail_is_an_overrun() {
        let mut queue = CompletionQueue::new(0, 4);
        assert_eq!(queue.move_head(1, 1), Err(Violation::CompletionOverrun { queue: 1 }));
        queue.tail = 3;
        assert!(queue.full());
        assert_eq!((queue.move_head(1, 3), queue.full()), (Ok(()), false));
    }
}

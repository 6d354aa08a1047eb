//! Space in a shard's segments: who may write where, what is alive, and when a segment is free again.
//!
//! Nothing of this is on media. What is alive follows from the index, so recovery rebuilds it by adding
//! up the entries. A segment is free again only when nothing in it is alive (each unlinking record is
//! durable by then: the index changes after the journal) and no read or write in flight pins it.

use super::format::UNIT_BYTES;
use forebay_nvme::BLOCK_BYTES;

/// Units in a block.
pub const UNITS_PER_BLOCK: u64 = BLOCK_BYTES as u64 / UNIT_BYTES;

/// Free segments that only the cleaner may open: it always has somewhere to move values to.
pub const CLEANER_RESERVE: usize = 2;

/// Whose values a segment collects. Separate, so that values that die together lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SegmentClass {
    /// Durable namespaces, and the catalog.
    Durable = 0,
    /// Cache namespaces.
    Cache = 1,
    /// What the cleaner moved: it has proved to live long.
    Cleaner = 2,
}

impl SegmentClass {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Durable, Self::Cache, Self::Cleaner];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Open,
    Sealed,
    /// Holds a value that cannot be read any more: never cleaned, never written again.
    Quarantined,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    state: State,
    live_units: u64,
    /// Units that have been given out.
    written_units: u64,
    /// Units of them that hold nothing and that moving the values would not give back, because
    /// they do not fit more densely.
    lost_units: u64,
    pins: u32,
}

impl Segment {
    /// Units that cleaning gives back.
    fn dead_units(&self) -> u64 {
        self.written_units - self.lost_units - self.live_units
    }
}

#[derive(Clone, Copy, Debug)]
struct Open {
    segment: u32,
    next_block: u64,
}

/// The segments of one shard.
#[derive(Debug)]
pub struct Space {
    segment_blocks: u64,
    segments: Vec<Segment>,
    free: std::collections::VecDeque<u32>,
    open: [Option<Open>; 3],
    live_units: u64,
    /// Units given out for values that are not linked yet.
    promised_units: u64,
    /// The cleaner found no room for what it moves: it rests until a segment is free again.
    is_stuck: bool,
}

impl Space {
    /// All segments free.
    #[must_use]
    pub fn new(segments: u32, segment_blocks: u32) -> Self {
        let empty =
            Segment { state: State::Free, live_units: 0, written_units: 0, lost_units: 0, pins: 0 };
        Self {
            segment_blocks: u64::from(segment_blocks),
            segments: vec![empty; segments as usize],
            free: (0..segments).collect(),
            open: [None; 3],
            live_units: 0,
            promised_units: 0,
            is_stuck: false,
        }
    }

    /// Units that can be alive at most: what lies beyond is the room in which cleaning works. Ten
    /// per cent, and never less than what is open or kept for the cleaner.
    #[must_use]
    pub fn limit_units(&self) -> u64 {
        let kept = (self.segments.len() / 10).max(CLEANER_RESERVE + 3);
        (self.segments.len() - kept) as u64 * self.segment_blocks * UNITS_PER_BLOCK
    }

    /// Units alive.
    #[must_use]
    pub fn live_units(&self) -> u64 {
        self.live_units
    }

    /// Would `units` more keep to the limit, with all that is on its way?
    #[must_use]
    pub fn has_room(&self, units: u64) -> bool {
        self.live_units + self.promised_units + units <= self.limit_units()
    }

    /// `units` have been given out for values that will be linked.
    pub fn promise(&mut self, units: u64) {
        self.promised_units += units;
    }

    /// They have been linked, or will not be.
    pub fn keep_promise(&mut self, units: u64) {
        self.promised_units -= units;
    }

    /// Segments free.
    #[must_use]
    pub fn free_segments(&self) -> usize {
        self.free.len()
    }

    /// How many segments there are.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// The segment that holds `address`.
    #[must_use]
    pub fn segment_of(&self, address: u64) -> u32 {
        (address / (self.segment_blocks * UNITS_PER_BLOCK)) as u32
    }

    /// Does `units` from `address` on lie inside one segment? What comes from media is asked this.
    #[must_use]
    pub fn contains(&self, address: u64, units: u64) -> bool {
        let last = address.saturating_add(units.saturating_sub(1));
        self.segment_of(address) == self.segment_of(last)
            && (self.segment_of(last) as usize) < self.segments.len()
            && last / (self.segment_blocks * UNITS_PER_BLOCK) < self.segments.len() as u64
    }

    /// Takes `blocks` blocks for a value of `class` and pins their segment. Returns the address in
    /// units, or `None` if only the cleaner's reserve is left.
    pub fn allocate(&mut self, class: SegmentClass, blocks: u64) -> Option<u64> {
        assert!(blocks <= self.segment_blocks, "a value larger than a segment");
        if self.open[class as usize]
            .is_none_or(|open| open.next_block + blocks > self.segment_blocks)
        {
            self.open_segment(class)?;
        }
        let open = self.open[class as usize].as_mut().expect("it was opened above");
        let block = u64::from(open.segment) * self.segment_blocks + open.next_block;
        open.next_block += blocks;
        let segment = &mut self.segments[open.segment as usize];
        segment.pins += 1;
        segment.written_units += blocks * UNITS_PER_BLOCK;
        Some(block * UNITS_PER_BLOCK)
    }

    fn open_segment(&mut self, class: SegmentClass) -> Option<()> {
        let reserve = if class == SegmentClass::Cleaner { 0 } else { CLEANER_RESERVE };
        if self.free.len() <= reserve {
            return None;
        }
        self.seal(class);
        let segment = self.free.pop_front()?;
        let fresh = &mut self.segments[segment as usize];
        (fresh.state, fresh.written_units, fresh.lost_units) = (State::Open, 0, 0);
        self.open[class as usize] = Some(Open { segment, next_block: 0 });
        Some(())
    }

    /// Ends the open segment of `class`.
    pub fn seal(&mut self, class: SegmentClass) {
        if let Some(open) = self.open[class as usize].take() {
            self.segments[open.segment as usize].state = State::Sealed;
            self.free_if_dead(open.segment);
        }
    }

    /// Keeps the segment of `address` from being reused while a read or write is in flight.
    pub fn pin(&mut self, address: u64) {
        let segment = self.segment_of(address);
        self.segments[segment as usize].pins += 1;
    }

    /// Ends a pin.
    pub fn unpin(&mut self, address: u64) {
        let segment = self.segment_of(address);
        self.segments[segment as usize].pins -= 1;
        self.free_if_dead(segment);
    }

    /// An entry now points at `units` from `address` on.
    pub fn link(&mut self, address: u64, units: u64) {
        let segment = self.segment_of(address);
        self.segments[segment as usize].live_units += units;
        self.live_units += units;
    }

    /// No entry points there any more, and the record that says so is durable.
    pub fn unlink(&mut self, address: u64, units: u64) {
        let segment = self.segment_of(address);
        self.segments[segment as usize].live_units -= units;
        self.live_units -= units;
        self.free_if_dead(segment);
    }

    fn free_if_dead(&mut self, number: u32) {
        let segment = &mut self.segments[number as usize];
        if segment.state == State::Sealed && segment.live_units == 0 && segment.pins == 0 {
            segment.state = State::Free;
            self.free.push_back(number);
            self.is_stuck = false;
        }
    }

    /// Of what was given out at `address`, `units` hold nothing and cannot be packed more densely.
    pub fn lose(&mut self, address: u64, units: u64) {
        let segment = self.segment_of(address);
        self.segments[segment as usize].lost_units += units;
    }

    /// After recovery: every segment in which something is alive is sealed, the others are free.
    ///
    /// What was lost to packing is not known any more: it counts as dead until it has been moved once.
    pub fn recovered(&mut self) {
        self.free.clear();
        for (number, segment) in self.segments.iter_mut().enumerate() {
            segment.written_units = self.segment_blocks * UNITS_PER_BLOCK;
            if segment.live_units == 0 {
                segment.state = State::Free;
                self.free.push_back(number as u32);
            } else {
                segment.state = State::Sealed;
            }
        }
    }

    /// The segment whose cleaning gives most: sealed, unpinned, most dead. `None` if cleaning any
    /// would give back less than a sixteenth of a segment, or there is nowhere to move values to.
    ///
    /// What was dead in a victim is gone when it has been cleaned, and the cleaner leaves nothing dead
    /// behind: so cleaning comes to an end.
    #[must_use]
    pub fn victim(&self) -> Option<u32> {
        let candidates = self.segments.iter().enumerate();
        candidates
            .filter(|(_, segment)| segment.pins == 0 && self.is_worth_cleaning(segment))
            .max_by_key(|(_, segment)| segment.dead_units())
            .map(|(number, _)| number as u32)
    }

    fn is_worth_cleaning(&self, segment: &Segment) -> bool {
        let least = self.segment_blocks * UNITS_PER_BLOCK / 16;
        !self.is_stuck && segment.state == State::Sealed && segment.dead_units() >= least
    }

    /// The cleaner found no room for a value.
    pub fn cleaner_is_stuck(&mut self) {
        self.is_stuck = true;
    }

    /// So few segments are free that cleaning should begin.
    #[must_use]
    pub fn is_low(&self) -> bool {
        self.free.len() < CLEANER_RESERVE + 2 + self.segments.len() / 32
    }

    /// Would cleaning give space back, now or when what pins a segment has ended?
    #[must_use]
    pub fn is_cleanable(&self) -> bool {
        self.segments.iter().any(|segment| self.is_worth_cleaning(segment))
    }

    /// The segment holds a value that cannot be read: leave it as it is.
    pub fn quarantine(&mut self, segment: u32) {
        self.segments[segment as usize].state = State::Quarantined;
    }

    /// Units alive in a segment, and whether it is free, for `inspect`.
    #[must_use]
    pub fn segment(&self, number: u32) -> Option<(u64, bool)> {
        self.segments.get(number as usize).map(|one| (one.live_units, one.state == State::Free))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_reused_only_when_dead_sealed_and_unpinned() {
        let mut space = Space::new(8, 4);
        let address = space.allocate(SegmentClass::Durable, 4).expect("space");
        space.link(address, 256);
        space.seal(SegmentClass::Durable);
        assert_eq!(space.free_segments(), 7);
        space.pin(address);
        space.unlink(address, 256);
        assert_eq!(space.free_segments(), 7, "the write and the read still pin it");
        space.unpin(address);
        assert_eq!(space.free_segments(), 7, "the read still pins it");
        space.unpin(address);
        assert_eq!(space.free_segments(), 8);
    }

    #[test]
    fn the_last_free_segments_are_the_cleaners() {
        let mut space = Space::new(8, 1);
        let mut taken = 0;
        while space.allocate(SegmentClass::Durable, 1).is_some() {
            taken += 1;
        }
        assert_eq!(taken, 8 - CLEANER_RESERVE);
        assert!(space.allocate(SegmentClass::Cache, 1).is_none());
        assert!(space.allocate(SegmentClass::Cleaner, 1).is_some());
    }

    #[test]
    fn an_address_outside_the_segments_is_not_contained() {
        let space = Space::new(8, 4);
        assert!(space.contains(0, 256) && space.contains(7 * 256, 256));
        assert!(!space.contains(1, 256), "it crosses into the next segment");
        assert!(!space.contains(8 * 256, 1) && !space.contains(u64::MAX, 2));
    }
}

//! Commands of one queue, by their identifier.
//!
//! Guarantees: an identifier carries the generation of its place, so that a completion that comes twice, or
//! for a command of long ago, is known as such; nothing is allocated after set-up.

/// Places a queue can have: the lower bits of a CID are the place, the upper ones its generation.
pub(super) const PLACES_MAX: u32 = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 10;
const PLACE_MASK: u16 = (1 << PLACE_BITS) - 1;

/// The place that an identifier names.
pub(super) fn place_of(cid: u16) -> u16 {
    cid & PLACE_MASK
}

/// Where a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// There is none.
    Nowhere,
    /// In the submission queue or with the controller.
    Device,
    /// It is to be submitted again, at the earliest then (microseconds).
    Waiting(u64),
}

/// One NVMe command: a request, or a part of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command {
    /// Blocks from the request's first one.
    pub(super) offset: u64,
    pub(super) blocks: u32,
    /// The request's place.
    pub(super) request: u16,
    cid: u16,
    pub(super) tries: u8,
    /// An abort was asked for.
    pub(super) aborted: bool,
    pub(super) place: Where,
    /// Since when it has been with the device, or aborted; not known before the first scan that meets it.
    pub(super) since_us: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Commands {
    places: Box<[Command]>,
    free: Vec<u16>,
}

impl Commands {
    pub(super) fn new(places: u32) -> Self {
        assert!((1..=PLACES_MAX).contains(&places));
        let blank = |cid| Command {
            offset: 0,
            blocks: 0,
            request: 0,
            cid,
            tries: 0,
            aborted: false,
            place: Where::Nowhere,
            since_us: None,
        };
        let numbers = 0..places as u16;
        Self { places: numbers.clone().map(blank).collect(), free: numbers.rev().collect() }
    }

    /// A new command, which is with the device from now on. `None`: there is no place.
    #[inline]
    pub(super) fn insert(&mut self, request: u16, offset: u64, blocks: u32) -> Option<u16> {
        let place = self.free.pop()?;
        let command = &mut self.places[usize::from(place)];
        let cid = command.cid;
        *command = Command {
            offset,
            blocks,
            request,
            cid,
            tries: 0,
            aborted: false,
            place: Where::Device,
            since_us: None,
        };
        Some(cid)
    }

    /// The command that the device completes with this identifier, if it has one of that name.
    #[inline]
    pub(super) fn completed(&mut self, cid: u16) -> Option<&mut Command> {
        let command = self.places.get_mut(usize::from(cid & PLACE_MASK))?;
        (command.cid == cid && command.place == Where::Device).then_some(command)
    }

    /// The command is over: its place is free, under another name.
    #[inline]
    pub(super) fn remove(&mut self, cid: u16) {
        let place = cid & PLACE_MASK;
        let command = &mut self.places[usize::from(place)];
        command.cid = cid.wrapping_add(1 << PLACE_BITS);
        command.place = Where::Nowhere;
        self.free.push(place);
    }

    /// Gives a command another name, for the next try: the last one may still be heard of.
    pub(super) fn rename(&mut self, cid: u16) -> (u16, &mut Command) {
        let command = &mut self.places[usize::from(cid & PLACE_MASK)];
        command.cid = cid.wrapping_add(1 << PLACE_BITS);
        (command.cid, command)
    }

    /// The identifier of the first command of this kind.
    pub(super) fn find(&self, is: impl Fn(&Command) -> bool) -> Option<u16> {
        let found = |command: &&Command| command.place != Where::Nowhere && is(command);
        self.places.iter().find(found).map(|command| command.cid)
    }

    /// Every command that there is, with its identifier.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut Command)> {
        let there = self.places.iter_mut().filter(|command| command.place != Where::Nowhere);
        there.map(|command| (command.cid, command))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_that_comes_twice_or_late_is_known() {
        let mut commands = Commands::new(3);
        let first = commands.insert(7, 0, 1).unwrap();
        assert!(commands.completed(first).is_some_and(|command| command.request == 7));
        commands.remove(first);
        assert!(commands.completed(first).is_none(), "twice");
        for _ in 0..63 {
            let cid = commands.insert(1, 0, 1).unwrap();
            assert_ne!(cid, first, "the same name within a generation");
            assert!(commands.completed(first).is_none(), "late");
            commands.remove(cid);
        }
        assert!(commands.completed(u16::MAX).is_none(), "unknown");
    }

    #[test]
    fn names_in_use_are_different_and_places_come_back() {
        let mut commands = Commands::new(PLACES_MAX);
        let mut names: Vec<u16> =
            (0..PLACES_MAX).map(|_| commands.insert(0, 0, 1).unwrap()).collect();
        assert_eq!(commands.insert(0, 0, 1), None, "full");
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len() as u32, PLACES_MAX);
        names.iter().for_each(|cid| commands.remove(*cid));
        assert_eq!(commands.free.len() as u32, PLACES_MAX);
    }
}

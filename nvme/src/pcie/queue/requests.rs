//! Requests of one queue: what was asked for, and how much of it is done.
//!
//! Guarantees: a request stays in its place, with its buffer, until none of its commands is with the device.

use crate::{BlockError, Operation, Request};

/// A request under way.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) request: Request,
    /// Blocks for which commands have been made.
    pub(super) issued: u64,
    /// Blocks in all; 1 for a flush.
    pub(super) blocks: u64,
    /// Commands that are not over.
    pub(super) running: u32,
    pub(super) result: Result<(), BlockError>,
    /// It is not tried again after that, in microseconds. Not known before the first scan that meets it: the
    /// time of the last poll may be long ago when a request comes.
    pub(super) deadline_us: Option<u64>,
}

impl Pending {
    /// Its time is not over at `at_us`.
    pub(super) fn has_time(&self, at_us: u64) -> bool {
        self.deadline_us.is_none_or(|deadline_us| at_us < deadline_us)
    }

    /// Nothing is left to be done or waited for.
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.running == 0 && self.issued == self.blocks
    }
}

#[derive(Debug)]
pub(super) struct Requests {
    places: Box<[Option<Pending>]>,
    free: Vec<u16>,
}

impl Requests {
    pub(super) fn new(places: u32) -> Self {
        Self {
            places: (0..places).map(|_| None).collect(),
            free: (0..places as u16).rev().collect(),
        }
    }

    pub(super) fn used(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// The caller has checked that there is a place.
    #[inline]
    pub(super) fn insert(&mut self, request: Request) -> u16 {
        let place = self.free.pop().expect("no more requests than places");
        let blocks = blocks_of(&request.operation);
        self.places[usize::from(place)] = Some(Pending {
            request,
            issued: 0,
            blocks,
            running: 0,
            result: Ok(()),
            deadline_us: None,
        });
        place
    }

    #[inline]
    pub(super) fn get_mut(&mut self, place: u16) -> &mut Pending {
        self.places[usize::from(place)].as_mut().expect("a command's request is there")
    }

    #[inline]
    pub(super) fn remove(&mut self, place: u16) -> Pending {
        let taken = self.places[usize::from(place)].take();
        self.free.push(place);
        taken.expect("a command's request is there")
    }

    /// Every request that there is.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Pending> {
        self.places.iter_mut().flatten()
    }

    /// The first request of this kind.
    pub(super) fn find(&self, is: impl Fn(&Pending) -> bool) -> Option<u16> {
        let place = self.places.iter().position(|slot| slot.as_ref().is_some_and(&is))?;
        Some(place as u16)
    }
}

fn blocks_of(operation: &Operation) -> u64 {
    match operation {
        Operation::Read { blocks, .. }
        | Operation::Write { blocks, .. }
        | Operation::Compare { blocks, .. } => u64::from(*blocks),
        Operation::Discard { blocks, .. }
        | Operation::WriteZeroes { blocks, .. }
        | Operation::Verify { blocks, .. } => *blocks,
        Operation::Flush => 1,
    }
}

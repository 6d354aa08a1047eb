//! The requests that the kernel may be working on.
//!
//! Guarantees: a fixed number of places, none allocated after set-up; a request stays where it is,
//! with its buffer, until it is taken out by the number that its completion carries.

use crate::Request;

#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) request: Request,
    /// How much of a read or write has been transferred by earlier, short completions.
    pub(super) done_bytes: usize,
}

#[derive(Debug)]
pub(super) struct Slots {
    places: Box<[Option<InFlight>]>,
    free: Vec<u32>,
}

impl Slots {
    pub(super) fn new(depth: u32) -> Self {
        Self { places: (0..depth).map(|_| None).collect(), free: (0..depth).rev().collect() }
    }

    pub(super) fn used(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// The caller has checked that there is a place.
    pub(super) fn insert(&mut self, request: Request) -> u32 {
        let slot = self.free.pop().expect("no more requests than slots");
        self.places[slot as usize] = Some(InFlight { request, done_bytes: 0 });
        slot
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> &mut InFlight {
        self.places[slot as usize].as_mut().expect("a completion names a slot in use")
    }

    pub(super) fn remove(&mut self, slot: u32) -> Request {
        let taken = self.places[slot as usize].take().expect("a completion names a slot in use");
        self.free.push(slot);
        taken.request
    }
}

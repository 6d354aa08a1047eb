//! Requests of one queue: what was asked for, and how much of it is done.
//!
//! Guarantees: a request stays in its place, with its buffer, until none of its commands is with the device.

use super::encode::Plan;
use crate::{BlockError, Completion, DmaBuf};

/// A request under way.
#[derive(Debug)]
pub(super) struct Pending {
    tag: u64,
    /// Held while the device may use it.
    buffer: Option<DmaBuf>,
    pub(super) plan: Plan,
    /// Blocks for which commands have been made.
    pub(super) issued: u64,
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

    /// All that was asked for is done but for a flush: from now on it is that flush. The buffer stays until its end.
    fn becomes_flush(&mut self) -> bool {
        let due = self.plan.then_flush && self.result.is_ok();
        if due {
            (self.plan, self.issued) = (Plan::FLUSH, 0);
        }
        due
    }

    /// It has become a flush, and that is not issued yet.
    pub(super) fn is_new_flush(&self) -> bool {
        self.issued == 0 && self.plan.failure == BlockError::Flush
    }

    /// Its tag and its buffer go back.
    #[inline(always)]
    fn end(&mut self) -> Completion {
        Completion { tag: self.tag, result: self.result, buffer: self.buffer.take() }
    }

    /// Nothing is left to be done or waited for.
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.running == 0 && self.issued == self.plan.blocks
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

    /// Places that are free.
    #[inline]
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    #[inline]
    pub(super) fn used(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// The caller has checked that there is a place.
    #[inline]
    pub(super) fn insert(
        &mut self,
        tag: u64,
        plan: Plan,
        buffer: Option<DmaBuf>,
    ) -> (u16, &mut Pending) {
        let place = self.free.pop().expect("no more requests than places");
        let slot = &mut self.places[usize::from(place)];
        let result = Ok(());
        // With this check there is nothing to drop.
        assert!(slot.is_none(), "a free place is empty");
        let pending =
            Pending { tag, buffer, plan, issued: 0, running: 0, result, deadline_us: None };
        (place, slot.insert(pending))
    }

    #[inline]
    pub(super) fn get_mut(&mut self, place: u16) -> &mut Pending {
        self.places[usize::from(place)].as_mut().expect("a command's request is there")
    }

    /// One of the request's commands is over. The end of the request, if nothing of it is left; if that is a flush,
    /// it is to be issued.
    #[inline(always)]
    pub(super) fn one_over(&mut self, place: u16) -> Option<Completion> {
        let slot = &mut self.places[usize::from(place)];
        let pending = slot.as_mut().expect("a command's request is there");
        pending.running -= 1;
        if !pending.is_over() || pending.becomes_flush() {
            return None;
        }
        self.free.push(place);
        let completion = pending.end();
        *slot = None;
        Some(completion)
    }

    /// Ends a request of which the device has nothing.
    pub(super) fn end(&mut self, place: u16) -> Completion {
        let completion = self.get_mut(place).end();
        self.places[usize::from(place)] = None;
        self.free.push(place);
        completion
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

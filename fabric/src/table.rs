//! What the transports have in common: a table of connections, and pulls that ended outside of `poll`.
//!
//! Guarantees: a number is of one connection until it is given back, and each connection under it has a
//! generation of its own, so that a stale [`ConnId`] is told from the one that is there.

use crate::transport::{ConnId, Sink};

/// Connections by their numbers.
#[derive(Debug)]
pub(crate) struct Table<C> {
    slots: Vec<Slot<C>>,
    free: Vec<u16>,
}

#[derive(Debug)]
struct Slot<C> {
    generation: u16,
    connection: Option<Box<C>>,
}

impl<C> Table<C> {
    /// Room for `count` connections.
    pub(crate) fn new(count: u16) -> Self {
        let slots = (0..count).map(|_| Slot { generation: 0, connection: None }).collect();
        Self { slots, free: (0..count).rev().collect() }
    }

    /// How many numbers are in use.
    pub(crate) fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Every number, used or not.
    pub(crate) fn numbers(&self) -> std::ops::Range<u16> {
        0..self.slots.len() as u16
    }

    /// A number for another connection, if one is left.
    pub(crate) fn reserve(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// A number that was reserved is free again.
    pub(crate) fn give_back(&mut self, number: u16) {
        debug_assert!(self.get(number).is_none(), "a number that is still of a connection");
        self.free.push(number);
    }

    /// Puts the connection that `make` makes under a number that was reserved.
    pub(crate) fn put(&mut self, number: u16, make: impl FnOnce(ConnId) -> C) {
        let slot = &mut self.slots[usize::from(number)];
        slot.generation = slot.generation.wrapping_add(1);
        let id = ConnId { slot: number, generation: slot.generation };
        slot.connection = Some(Box::new(make(id)));
    }

    /// Takes a connection out; its number stays reserved.
    pub(crate) fn take(&mut self, number: u16) -> Option<Box<C>> {
        self.slots[usize::from(number)].connection.take()
    }

    pub(crate) fn get(&self, number: u16) -> Option<&C> {
        self.slots.get(usize::from(number))?.connection.as_deref()
    }

    pub(crate) fn at(&mut self, number: u16) -> Option<&mut C> {
        self.slots.get_mut(usize::from(number))?.connection.as_deref_mut()
    }

    /// All connections.
    pub(crate) fn all(&self) -> impl Iterator<Item = &C> {
        self.slots.iter().filter_map(|slot| slot.connection.as_deref())
    }
}

/// A pull that ended outside of `poll`, to be reported by the next one.
#[derive(Debug)]
struct Ended<B> {
    conn: ConnId,
    cid: u16,
    buffer: B,
    complete: bool,
}

/// Pulls that have ended and were not reported.
#[derive(Debug)]
pub(crate) struct EndedPulls<B>(Vec<Ended<B>>);

impl<B> EndedPulls<B> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn add(&mut self, conn: ConnId, cid: u16, buffer: B, complete: bool) {
        self.0.push(Ended { conn, cid, buffer, complete });
    }

    /// Tells `sink` of all of them; `true` if there were any.
    pub(crate) fn report(&mut self, sink: &mut dyn Sink<B>) -> bool {
        let any = !self.is_empty();
        for Ended { conn, cid, buffer, complete } in self.0.drain(..) {
            sink.pulled(conn, cid, buffer, complete);
        }
        any
    }
}

//! Commands in service, each in a slot that was allocated at the start.
//!
//! Guarantees: a slot is taken by exactly one command from its arrival to its reply, whatever the
//! connection does meanwhile; what the command needs has been copied out of the capsule, so nothing
//! here borrows from the network; taking and freeing a slot allocates nothing.

use crate::executor::{Ready, TaskId};
use crate::store::PendingRetrieve;
use forebay_fabric::Status;
use forebay_fabric::pdu::{Capsule, Command, Item, KEY_BYTES, Opcode, command_flags};
use forebay_fabric::server::RequestId;
use forebay_nvme::DmaBuf;
use std::cell::RefCell;
use std::ops::{Deref, Range};
use std::task::Poll;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Longest key, in bytes.
const KEY_BYTES_MAX: usize = *KEY_BYTES.end();

/// Names a slot.
pub type SlotIndex = u16;

/// Where a command came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Which of the reactor's listeners.
    pub listener: u8,
    /// The server's name for the command.
    pub id: RequestId,
}

/// How far the transfer of the client's data has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pull {
    No,
    UnderWay(TaskId),
    Done { complete: bool },
}

/// A key with room for the longest one.
#[derive(Debug)]
struct Key {
    bytes: Box<[u8; KEY_BYTES_MAX]>,
    length: usize,
}

/// The key of a single command, lent to its task: back in the slot when this is dropped.
#[derive(Debug)]
pub struct LentKey<'a> {
    key: Option<Key>,
    home: &'a RefCell<Slot>,
}

impl Deref for LentKey<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.key.as_ref().map_or(&[], |key| &key.bytes[..key.length])
    }
}

impl Drop for LentKey<'_> {
    fn drop(&mut self) {
        self.home.borrow_mut().key = self.key.take();
    }
}

/// The items of a batch and their keys, copied from the capsule.
#[derive(Debug)]
pub struct Words {
    buffer: DmaBuf,
    items: usize,
}

impl Words {
    fn copy(capsule: &Capsule<'_>, mut buffer: DmaBuf) -> Self {
        let items = capsule.items.as_bytes();
        let (to_items, to_keys) = buffer.as_mut().split_at_mut(items.len());
        to_items.copy_from_slice(items);
        to_keys[..capsule.keys.len()].copy_from_slice(capsule.keys);
        Self { buffer, items: capsule.items.len() }
    }

    /// The items in order.
    #[must_use]
    pub fn items(&self) -> &[Item] {
        let cut = <[Item]>::ref_from_prefix_with_elems(self.buffer.as_ref(), self.items);
        cut.expect("they were copied in whole").0
    }

    /// The key at `range` of all keys.
    #[must_use]
    pub fn key(&self, range: Range<usize>) -> &[u8] {
        &self.buffer.as_ref()[self.items * size_of::<Item>()..][range]
    }
}

/// One command in service.
#[derive(Debug)]
pub struct Slot {
    origin: Option<Origin>,
    /// The command as it came.
    pub command: Command,
    /// What it asks.
    pub opcode: Opcode,
    /// When the server gives up on it, in the reactor's microseconds.
    pub deadline_us: u64,
    /// Of a single command; lent out while its task works with it.
    key: Option<Key>,
    /// Of a batch.
    words: Option<Words>,
    /// The client's data: a value, the values of a batch, or a checkpoint command's payload.
    data: Option<DmaBuf>,
    pull: Pull,
    /// The server has answered already, or the client is gone: finish what was begun, begin nothing.
    pub abandoned: bool,
    /// A single retrieve whose reads are under way: nothing else of the slot is filled in for it.
    pub retrieve: Option<PendingRetrieve>,
}

impl Slot {
    fn empty() -> Self {
        Self {
            origin: None,
            command: Command::new_zeroed(),
            opcode: Opcode::Stats,
            deadline_us: 0,
            key: Some(Key { bytes: Box::new([0; KEY_BYTES_MAX]), length: 0 }),
            words: None,
            data: None,
            pull: Pull::No,
            abandoned: false,
            retrieve: None,
        }
    }

    /// The namespace that the command names.
    #[must_use]
    pub fn namespace(&self) -> u32 {
        self.command.namespace.get()
    }

    /// The key of a single command; empty while it is lent.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        self.key.as_ref().map_or(&[], |key| &key.bytes[..key.length])
    }

    /// The items of a batch, once; `None`: a single command.
    #[must_use]
    pub fn take_words(&mut self) -> Option<Words> {
        self.words.take()
    }

    fn clear(&mut self) {
        let Self { origin, command: _, opcode: _, deadline_us: _, key: _, words, data, .. } = self;
        (*origin, *words, *data) = (None, None, None);
        self.retrieve = None;
        (self.pull, self.abandoned) = (Pull::No, false);
    }

    /// Copies what is needed out of the capsule. `alloc` gives memory, or does not.
    fn fill(
        &mut self,
        capsule: &Capsule<'_>,
        alloc: impl Fn(usize) -> Option<DmaBuf>,
    ) -> Result<(), Status> {
        self.command = *capsule.command;
        if capsule.items.is_empty() {
            let key = self.key.as_mut().expect("the last task has given the key back");
            let room = key.bytes.get_mut(..capsule.keys.len()).ok_or(Status::KeyLength)?;
            room.copy_from_slice(capsule.keys);
            key.length = capsule.keys.len();
        } else {
            let bytes = size_of_val(capsule.items) + capsule.keys.len();
            let buffer = alloc(bytes).ok_or(Status::Busy)?;
            self.words = Some(Words::copy(capsule, buffer));
        }
        if capsule.command.opflags & command_flags::IN_CAPSULE != 0 {
            let mut data = alloc(capsule.data.len()).ok_or(Status::Busy)?;
            data.as_mut()[..capsule.data.len()].copy_from_slice(capsule.data);
            self.data = Some(data);
        }
        Ok(())
    }
}

/// All slots of one reactor, and which command is in which.
#[derive(Debug)]
pub struct Slots {
    slots: Box<[RefCell<Slot>]>,
    free: RefCell<Vec<SlotIndex>>,
    directory: RefCell<Directory>,
    ready: Ready,
}

impl Slots {
    /// `count` empty slots for commands of `listeners` listeners, whose connections have at most
    /// `queue_depth` commands in flight each.
    #[must_use]
    pub fn new(ready: &Ready, count: SlotIndex, listeners: usize, queue_depth: u16) -> Self {
        Self {
            slots: (0..count).map(|_| RefCell::new(Slot::empty())).collect(),
            free: RefCell::new((0..count).rev().collect()),
            directory: RefCell::new(Directory::new(listeners, queue_depth)),
            ready: ready.clone(),
        }
    }

    /// The slot `index`.
    #[must_use]
    pub fn at(&self, index: SlotIndex) -> &RefCell<Slot> {
        &self.slots[usize::from(index)]
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// How many commands are in service.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.slots.len() - self.free.borrow().len()
    }

    /// There is no slot for another command.
    #[must_use]
    pub fn are_taken(&self) -> bool {
        self.free.borrow().is_empty()
    }

    /// Takes a slot for a retrieve that has begun.
    ///
    /// # Errors
    /// `Busy`: there is none.
    pub fn take_for_retrieve(
        &self,
        origin: Origin,
        retrieve: PendingRetrieve,
    ) -> Result<SlotIndex, Status> {
        let index = self.free.borrow_mut().pop().ok_or(Status::Busy)?;
        let mut slot = self.at(index).borrow_mut();
        slot.origin = Some(origin);
        slot.retrieve = Some(retrieve);
        *self.directory.borrow_mut().place(origin) = Some(index);
        Ok(index)
    }

    /// Takes a slot for a command.
    ///
    /// # Errors
    /// `Busy`: no slot or no memory; `KeyLength`: the key is too long for a slot.
    pub fn take(
        &self,
        origin: Origin,
        opcode: Opcode,
        capsule: &Capsule<'_>,
        deadline_us: u64,
        alloc: impl Fn(usize) -> Option<DmaBuf>,
    ) -> Result<SlotIndex, Status> {
        let index = self.free.borrow_mut().pop().ok_or(Status::Busy)?;
        let mut slot = self.at(index).borrow_mut();
        if let Err(status) = slot.fill(capsule, alloc) {
            slot.clear();
            self.free.borrow_mut().push(index);
            return Err(status);
        }
        slot.origin = Some(origin);
        slot.opcode = opcode;
        slot.deadline_us = deadline_us;
        *self.directory.borrow_mut().place(origin) = Some(index);
        Ok(index)
    }

    /// Waits until there is a command in `index`. Whoever takes the slot wakes the task.
    pub async fn taken(&self, index: SlotIndex) {
        std::future::poll_fn(|_| match self.at(index).borrow().origin {
            Some(_) => Poll::Ready(()),
            None => Poll::Pending,
        })
        .await;
    }

    /// Frees a slot; its command ends with the reply that the caller now sends.
    ///
    /// # Panics
    /// When the slot is free.
    pub fn give_back(&self, index: SlotIndex) -> Origin {
        let mut slot = self.at(index).borrow_mut();
        let origin = slot.origin.expect("only a taken slot is given back");
        slot.clear();
        let mut directory = self.directory.borrow_mut();
        let place = directory.place(origin);
        // The connection may have died and its number be in use again by a newer command.
        if *place == Some(index) {
            *place = None;
        }
        self.free.borrow_mut().push(index);
        origin
    }

    /// The slot of the command `origin`, if it is still in service.
    #[must_use]
    pub fn find(&self, origin: Origin) -> Option<SlotIndex> {
        let is_in = |index: SlotIndex| self.at(index).borrow().origin == Some(origin);
        match *self.directory.borrow_mut().place(origin) {
            Some(index) if is_in(index) => Some(index),
            // The place belongs to a newer command, because this one was abandoned.
            _ => (0..self.slots.len() as SlotIndex).find(|index| is_in(*index)),
        }
    }

    /// Takes note that `index` has asked for the client's data, and that the polled task waits.
    ///
    /// # Panics
    /// When the slot is free.
    pub fn pulling(&self, index: SlotIndex) -> Origin {
        let mut slot = self.at(index).borrow_mut();
        slot.pull = Pull::UnderWay(self.ready.current());
        slot.origin.expect("only a command in service pulls")
    }

    /// The pull of `index` has ended with `buffer`.
    pub fn pulled(&self, index: SlotIndex, buffer: DmaBuf, complete: bool) {
        let mut slot = self.at(index).borrow_mut();
        slot.data = Some(buffer);
        if let Pull::UnderWay(task) = std::mem::replace(&mut slot.pull, Pull::Done { complete }) {
            self.ready.wake(task);
        }
    }

    /// Waits until the pull that was begun has ended.
    ///
    /// # Errors
    /// `Disconnected`: the data did not all come.
    pub async fn wait_pulled(&self, index: SlotIndex) -> Result<DmaBuf, Status> {
        let complete = std::future::poll_fn(|_| match self.at(index).borrow().pull {
            Pull::Done { complete } => Poll::Ready(complete),
            Pull::No | Pull::UnderWay(_) => Poll::Pending,
        })
        .await;
        let buffer = self.take_data(index);
        buffer.filter(|_| complete).ok_or(Status::Disconnected)
    }

    /// Lends the key of the single command in `index` to its task.
    ///
    /// # Panics
    /// When it is lent already.
    #[must_use]
    pub fn lend_key(&self, index: SlotIndex) -> LentKey<'_> {
        let home = self.at(index);
        let key = home.borrow_mut().key.take();
        assert!(key.is_some(), "the key is lent already");
        LentKey { key, home }
    }

    /// The data that has come with the capsule or by a pull, if it was not taken yet.
    #[must_use]
    pub fn take_data(&self, index: SlotIndex) -> Option<DmaBuf> {
        self.at(index).borrow_mut().data.take()
    }
}

/// Which slot each command in service is in: for every connection a row as wide as its queue is deep.
#[derive(Debug)]
struct Directory {
    listeners: Vec<Vec<Box<[Option<SlotIndex>]>>>,
    queue_depth: usize,
}

impl Directory {
    fn new(listeners: usize, queue_depth: u16) -> Self {
        let listeners = (0..listeners).map(|_| Vec::new()).collect();
        Self { listeners, queue_depth: queue_depth.into() }
    }

    /// The place of `origin`. Rows are made when a connection is the first to use its number.
    fn place(&mut self, origin: Origin) -> &mut Option<SlotIndex> {
        let rows = &mut self.listeners[usize::from(origin.listener)];
        let row = usize::from(origin.id.conn.slot);
        if row >= rows.len() {
            let depth = self.queue_depth;
            rows.resize_with(row + 1, || vec![None; depth].into_boxed_slice());
        }
        &mut rows[row][usize::from(origin.id.cid)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_fabric::transport::ConnId;
    use forebay_nvme::{Arena, Pool};

    fn origin(slot: u16, cid: u16, generation: u32) -> Origin {
        let conn = ConnId { slot, generation: 1 };
        Origin { listener: 0, id: RequestId { conn, cid, generation } }
    }

    fn command(key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut command = Command::new(Opcode::Store, 1);
        command.seal(&[], key, value);
        [command.as_bytes(), key, value].concat()
    }

    fn slots(count: u16) -> (Slots, Pool) {
        let pool = Arena::on_demand(4 << 20).unwrap().pool();
        (Slots::new(&Ready::new(8), count, 1, 4), pool)
    }

    fn take(slots: &Slots, pool: &Pool, from: Origin, pdu: &[u8]) -> Result<SlotIndex, Status> {
        let capsule = Capsule::parse(pdu).unwrap();
        slots.take(from, Opcode::Store, &capsule, 0, |bytes| pool.alloc(bytes))
    }

    #[test]
    fn a_slot_keeps_what_it_needs_of_the_capsule_and_is_empty_after_it() {
        let (slots, pool) = slots(1);
        let free_bytes = pool.free_bytes();
        for value in [&b"value"[..], b""] {
            let pdu = command(b"key", value);
            let at = take(&slots, &pool, origin(0, 1, 1), &pdu).unwrap();
            drop(pdu);
            assert_eq!(*slots.lend_key(at), *b"key");
            assert_eq!(*slots.lend_key(at), *b"key", "it came back");
            if !value.is_empty() {
                let data = slots.take_data(at).unwrap();
                assert_eq!(data.as_ref()[..value.len()], *value);
            }
            slots.give_back(at);
            assert_eq!((slots.in_use(), pool.free_bytes()), (0, free_bytes));
        }
    }

    #[test]
    fn without_a_slot_or_memory_the_answer_is_busy_and_nothing_is_kept() {
        let (slots, pool) = slots(2);
        let pdu = command(b"key", b"value");
        let held = pool.alloc(4 << 20).unwrap();
        assert_eq!(take(&slots, &pool, origin(0, 0, 1), &pdu), Err(Status::Busy));
        assert_eq!(slots.in_use(), 0);
        drop(held);
        assert!(take(&slots, &pool, origin(0, 0, 1), &pdu).is_ok());
        assert!(take(&slots, &pool, origin(0, 1, 1), &pdu).is_ok());
        assert_eq!(take(&slots, &pool, origin(0, 2, 1), &pdu), Err(Status::Busy));
    }

    #[test]
    fn a_command_is_found_though_a_newer_one_has_its_identifier() {
        let (slots, pool) = slots(4);
        let pdu = command(b"key", b"value");
        let old = take(&slots, &pool, origin(9, 3, 1), &pdu).unwrap();
        let new = take(&slots, &pool, origin(9, 3, 2), &pdu).unwrap();
        assert_eq!(slots.find(origin(9, 3, 1)), Some(old));
        assert_eq!(slots.find(origin(9, 3, 2)), Some(new));
        slots.give_back(old);
        assert_eq!(slots.find(origin(9, 3, 1)), None);
        assert_eq!(slots.find(origin(9, 3, 2)), Some(new));
        slots.give_back(new);
        assert_eq!(slots.find(origin(9, 3, 2)), None);
    }
}

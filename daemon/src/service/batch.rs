//! Batches: up to 64 items of one command, each with its own status.
//!
//! All items are started before the first is awaited, so a batch costs the time of its slowest item,
//! not their sum. The answer is one [`ItemResult`] per item, then the items' data, in order, each from the
//! buffer that the device filled. An item
//! that fails does not touch the others; what concerns the command as a whole refuses it as a whole.

use super::context::Context;
use super::serve::{Refusal, client_data, user};
use super::slots::{SlotIndex, Words};
use crate::store::{Fragment, PendingDelete, PendingStore, Retrieve, StoreRequest};
use forebay_fabric::Status;
use forebay_fabric::pdu::{
    ITEMS_MAX, Item, ItemResult, Opcode, VALUE_BYTES_MAX, crc32c, response_flags,
};
use forebay_fabric::server::Reply;
use forebay_fabric::transport::Payload;
use forebay_nvme::{Buffer, DmaBuf};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use zerocopy::IntoBytes;

const RESULT_BYTES: usize = size_of::<ItemResult>();

/// One item under way.
#[derive(Debug)]
pub(super) enum Pending<'k> {
    /// It ended before it began, or it needs no device.
    Done(Result<u32, Refusal>),
    /// There was no memory for it; to be started again once the items before it are done.
    Again(Place),
    /// A store.
    Store(PendingStore<'k>),
    /// A retrieve.
    Retrieve(Retrieve),
    /// A delete.
    Delete(PendingDelete),
}

/// Where an item is: in the batch's keys, and in the data that came with the command.
#[derive(Debug)]
pub(super) struct Place {
    item: Item,
    key: Range<usize>,
    data: Range<usize>,
}

/// What all items of a batch have in common.
struct Batch<'a> {
    cx: &'a Context,
    opcode: Opcode,
    namespace: u32,
    deadline_us: u64,
    words: &'a Words,
    /// The values of a store.
    data: Option<DmaBuf>,
}

/// The end of a batch: a reply, and the data that goes with it.
pub(super) type Batched = (Reply<Buffer>, Vec<Payload<Buffer>>);

/// Carries out the batch in slot `at`.
pub(super) async fn serve(
    cx: &Rc<Context>,
    at: SlotIndex,
    words: &Words,
) -> Result<Batched, Refusal> {
    let (opcode, namespace, deadline_us) = {
        let slot = cx.slots.at(at).borrow();
        (slot.opcode, user(slot.namespace())?, slot.deadline_us)
    };
    let (items, bytes) = (words.items().len(), places(words).last().map_or(0, |p| p.data.end));
    cx.counters.items.add(items as u64);
    let data = match opcode {
        Opcode::Store => Some(store_data(cx, at, bytes).await?),
        Opcode::Retrieve if bytes > VALUE_BYTES_MAX => return Err(Status::ValueLength.into()),
        Opcode::Retrieve | Opcode::Delete | Opcode::Exist => None,
        _ => return Err(Status::Unsupported.into()),
    };
    let mut table = cx.memory.alloc(items * RESULT_BYTES, deadline_us).await?;
    let batch = Batch { cx, opcode, namespace, deadline_us, words, data };
    let mut pending = cx.batches.take_pending();
    pending.extend(places(words).map(|place| batch.start(place)));
    let mut parts = cx.batches.take_parts();
    batch.finish(&mut pending, &mut table, &mut parts).await;
    cx.batches.give_back_pending(pending);
    let crc = crc32c(&table.as_ref()[..items * RESULT_BYTES]);
    parts.insert(0, Payload { buffer: table.into(), range: 0..items * RESULT_BYTES });
    let flags = response_flags::ITEMS;
    Ok((Reply { status: Status::Ok, result: 0, flags, data_crc: crc, payload: None }, parts))
}

/// The items in order, with where their keys and values are.
fn places(words: &Words) -> impl Iterator<Item = Place> {
    let (mut key, mut data) = (0, 0);
    words.items().iter().map(move |item| {
        let place = Place {
            item: *item,
            key: key..key + usize::from(item.key_length.get()),
            data: data..data + item.data_length.get() as usize,
        };
        (key, data) = (place.key.end, place.data.end);
        place
    })
}

/// The values of a store, one behind the other: `bytes` in all.
async fn store_data(cx: &Rc<Context>, at: SlotIndex, bytes: usize) -> Result<DmaBuf, Refusal> {
    if bytes != cx.slots.at(at).borrow().command.data_length.get() as usize {
        return Err(Status::Malformed.into());
    }
    client_data(cx, at).await
}

impl<'a> Batch<'a> {
    fn start(&self, place: Place) -> Pending<'a> {
        match self.try_start(&place) {
            Ok(pending) => pending,
            Err(Refusal { status: Status::Busy, .. }) => Pending::Again(place),
            Err(refusal) => Pending::Done(Err(refusal)),
        }
    }

    fn try_start(&self, place: &Place) -> Result<Pending<'a>, Refusal> {
        let Self { cx, namespace, words, .. } = *self;
        let key = words.key(place.key.clone());
        cx.check(namespace, key)?;
        let item = &place.item;
        Ok(match self.opcode {
            Opcode::Store => Pending::Store(self.start_store(key, place)?),
            Opcode::Retrieve => {
                let (offset, length) = (item.offset.get(), item.data_length.get());
                Pending::Retrieve(cx.store.start_retrieve(namespace, key, offset, length)?)
            }
            Opcode::Delete => {
                Pending::Delete(cx.store.start_delete(namespace, key, item.token.get())?)
            }
            _ => Pending::Done(Ok(cx.store.exist(namespace, key)?)),
        })
    }

    /// A value of a batch is copied to memory of its own: the device wants it aligned.
    fn start_store(&self, key: &'a [u8], place: &Place) -> Result<PendingStore<'a>, Refusal> {
        let values = self.data.as_ref().ok_or(Status::Internal)?.as_ref();
        let bytes = values.get(place.data.clone()).ok_or(Status::Malformed)?;
        let mut value = self.cx.memory.pool().alloc(bytes.len()).ok_or(Status::Busy)?;
        value.as_mut()[..bytes.len()].copy_from_slice(bytes);
        self.cx.counters.bytes_copied.add(bytes.len() as u64);
        let (namespace, length) = (self.namespace, bytes.len() as u32);
        let (crc, token) = (place.item.data_crc.get(), place.item.token.get());
        let request = StoreRequest { namespace, key, value, length, crc, token };
        let pending = self.cx.store.start_store(request)?;
        self.cx.counters.bytes_stored.add(length.into());
        Ok(pending)
    }

    /// Starts an item for which there was no memory, once there is.
    async fn start_again(&self, place: &Place) -> Pending<'a> {
        let start = || match self.try_start(place) {
            Err(Refusal { status: Status::Busy, .. }) => Err(Status::Busy),
            ended => Ok(ended),
        };
        let started = self.cx.memory.patiently(self.deadline_us, start).await;
        let started = started.unwrap_or_else(|status| Err(status.into()));
        started.unwrap_or_else(|refusal| Pending::Done(Err(refusal)))
    }

    /// Waits for every item; writes its result into `table` and adds its data to `parts`.
    async fn finish(
        &self,
        pending: &mut Vec<Pending<'a>>,
        table: &mut DmaBuf,
        parts: &mut Vec<Payload<Buffer>>,
    ) {
        for (index, mut item) in pending.drain(..).enumerate() {
            if let Pending::Again(place) = &item {
                item = self.start_again(place).await;
            }
            let ended = self.finish_item(item, parts).await;
            let at = index * RESULT_BYTES;
            table.as_mut()[at..at + RESULT_BYTES].copy_from_slice(item_result(ended).as_bytes());
        }
    }

    async fn finish_item(
        &self,
        item: Pending<'a>,
        parts: &mut Vec<Payload<Buffer>>,
    ) -> Result<Ended, Refusal> {
        Ok(match item {
            Pending::Done(ended) => Ended::of(ended?),
            Pending::Again(_) => return Err(Status::Busy.into()),
            Pending::Store(pending) => {
                pending.finish().await?;
                Ended::of(0)
            }
            Pending::Delete(pending) => Ended::of(pending.finish().await?.into()),
            Pending::Retrieve(pending) => {
                let Fragment { buffer, range, crc, value_length } = pending.finish().await?;
                let length = range.len() as u32;
                self.cx.counters.bytes_retrieved.add(length.into());
                parts.push(Payload { buffer, range });
                Ended { result: value_length, length, crc }
            }
        })
    }
}

/// How an item that went well ended.
struct Ended {
    result: u32,
    length: u32,
    crc: u32,
}

impl Ended {
    fn of(result: u32) -> Self {
        Self { result, length: 0, crc: 0 }
    }
}

fn item_result(ended: Result<Ended, Refusal>) -> ItemResult {
    let (status, ended) = match ended {
        Ok(ended) => (Status::Ok, ended),
        Err(Refusal { status, result }) => (status, Ended::of(result as u32)),
    };
    ItemResult::new(status, ended.length, ended.result, ended.crc)
}

/// Vectors for the items of batches under way and for their data, used again and again. There are enough for one
/// client from the start; more are made when more batches than ever are under way.
#[derive(Debug)]
pub(super) struct Batches {
    pending: RefCell<Vec<Vec<Pending<'static>>>>,
    parts: RefCell<Vec<Vec<Payload<Buffer>>>>,
}

impl Batches {
    /// Vectors for so many batches at a time.
    pub(super) fn new(count: usize) -> Self {
        let pending = (0..count).map(|_| Vec::with_capacity(ITEMS_MAX)).collect();
        let parts = (0..count).map(|_| Vec::with_capacity(1 + ITEMS_MAX)).collect();
        Self { pending: RefCell::new(pending), parts: RefCell::new(parts) }
    }

    fn take_pending<'k>(&self) -> Vec<Pending<'k>> {
        let used = self.pending.borrow_mut().pop();
        used.unwrap_or_else(|| Vec::with_capacity(ITEMS_MAX))
    }

    /// Empties `items` and keeps its memory, which an empty vector of another lifetime takes over.
    fn give_back_pending(&self, mut items: Vec<Pending<'_>>) {
        items.clear();
        let empty = items.into_iter().map(|_| unreachable!("it is empty")).collect();
        self.pending.borrow_mut().push(empty);
    }

    fn take_parts(&self) -> Vec<Payload<Buffer>> {
        let used = self.parts.borrow_mut().pop();
        used.unwrap_or_else(|| Vec::with_capacity(1 + ITEMS_MAX))
    }

    /// Takes back a vector whose parts have been sent.
    pub(super) fn give_back_parts(&self, mut parts: Vec<Payload<Buffer>>) {
        parts.clear();
        self.parts.borrow_mut().push(parts);
    }
}

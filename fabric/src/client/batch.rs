//! Batches: split into one command per reactor (or more, by its limits), joined again in order.
//!
//! Every part is an operation of its own, replayed and timed out like any other; a part of one item
//! travels as a plain command. The batch ends when its last part does, and its items are in the
//! order in which the caller gave them, whatever the order of the answers.

use super::data::Data;
use super::error::LinkError;
use super::landing::{self, Landed};
use super::link::{Answer, item_results};
use super::operation::{Buffers, OpId, State, crc_of, writes};
use super::request::{Body, Done, ItemDone, NamespaceId, Request, Target, Ticket};
use super::router::Router;
use crate::Status;
use crate::pdu::{
    Command, Fragment as Named, ITEMS_MAX, Item, ItemResult, Opcode, Welcome, crc32c, features,
};
use crate::region::{Fragment, Held};
use bytes::Bytes;

/// The most items that one [`Request`] may hold, over all its parts.
const BATCH_ITEMS_MAX: usize = 1 << 16;

/// What one command may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Limits {
    pub capsule_bytes: usize,
    pub items_max: usize,
    pub value_bytes_max: u32,
}

impl Limits {
    pub(super) fn of(welcome: &Welcome) -> Self {
        let batches = welcome.features & features::BATCH != 0;
        Self {
            capsule_bytes: welcome.capsule_bytes as usize,
            items_max: if batches { usize::from(welcome.items_max).clamp(1, ITEMS_MAX) } else { 1 },
            value_bytes_max: welcome.value_bytes_max,
        }
    }
}

#[derive(Debug)]
struct Group {
    ticket: Ticket,
    tag: u64,
    /// Parts that have not ended.
    parts_left: u32,
    items: Vec<ItemDone>,
    parts: Vec<Data>,
}

/// The batches that have not ended, and memory for the next ones.
#[derive(Debug, Default)]
pub(super) struct Groups {
    slots: Vec<Group>,
    free: Vec<u32>,
    spare_items: Vec<Vec<ItemDone>>,
    spare_parts: Vec<Vec<Data>>,
    /// The part of each reactor that still takes items, while a batch is being split.
    open: Vec<Option<OpId>>,
}

impl Groups {
    fn take(&mut self, ticket: Ticket, tag: u64, count: usize) -> u32 {
        let mut items = self.spare_items.pop().unwrap_or_default();
        items.clear();
        items.resize(count, ItemDone::PENDING);
        let parts = self.spare_parts.pop().unwrap_or_default();
        let group = Group { ticket, tag, parts_left: 0, items, parts };
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = group;
                slot
            }
            None => {
                self.slots.push(group);
                (self.slots.len() - 1) as u32
            }
        }
    }

    fn at(&mut self, slot: u32) -> &mut Group {
        &mut self.slots[slot as usize]
    }

    fn finish(&mut self, slot: u32) -> Done {
        self.free.push(slot);
        let group = self.at(slot);
        let items = std::mem::take(&mut group.items);
        let failed = items.iter().map(|item| item.status).find(|status| *status != Status::Ok);
        let mut done = Done::single(group.ticket, group.tag, failed.unwrap_or(Status::Ok));
        done.parts = std::mem::take(&mut group.parts);
        done.items = items;
        done
    }

    /// Takes back the memory of a batch that the caller is done with.
    pub(super) fn give(
        &mut self,
        items: Vec<ItemDone>,
        mut parts: Vec<Data>,
        buffers: &mut Buffers,
    ) {
        parts.drain(..).for_each(|part| buffers.give(part));
        if items.capacity() > 0 {
            self.spare_items.push(items);
        }
        if parts.capacity() > 0 {
            self.spare_parts.push(parts);
        }
    }
}

/// What all items of a batch have in common.
#[derive(Clone, Copy)]
struct Common {
    group: u32,
    opcode: Opcode,
    namespace: NamespaceId,
    deadline_us: u64,
    was_sent: bool,
}

/// One item on its way into a part.
struct Placed<'a> {
    index: u16,
    key: &'a [u8],
    offset: u64,
    length: u32,
    data: Bytes,
    held: Option<Held>,
    token: u64,
    data_crc: u32,
}

impl<'a> Body<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::One { .. } | Self::Fragments { .. } => 1,
            Self::Store(items) => items.len(),
            Self::StoreFrom(items) => items.len(),
            Self::Retrieve(items) => items.len(),
            Self::RetrieveInto(items) => items.len(),
            Self::Keys(keys) => keys.len(),
        }
    }

    fn key(&self, index: usize) -> &'a [u8] {
        match self {
            Self::One { key, .. } | Self::Fragments { key, .. } => key,
            Self::Store(items) => items[index].key,
            Self::StoreFrom(items) => items[index].key,
            Self::Retrieve(items) => items[index].key,
            Self::RetrieveInto(items) => items[index].key,
            Self::Keys(keys) => keys[index],
        }
    }

    fn value_bytes(&self, index: usize) -> usize {
        match self {
            Self::Store(items) => items[index].data.len(),
            Self::StoreFrom(items) => items[index].fragment.len() as usize,
            _ => 0,
        }
    }

    /// The fragment of an item.
    fn fragment(&self, index: usize) -> Option<&'a Fragment> {
        match self {
            Self::StoreFrom(items) => Some(&items[index].fragment),
            Self::RetrieveInto(items) => Some(&items[index].fragment),
            _ => None,
        }
    }

    /// Offset, length and data of an item.
    fn wanted(&self, index: usize, longest: u32) -> (u64, u32, Bytes) {
        match self {
            Self::Store(items) => (0, items[index].data.len() as u32, items[index].data.clone()),
            Self::StoreFrom(items) => (0, items[index].fragment.len(), Bytes::new()),
            Self::Retrieve(items) => {
                (items[index].offset, items[index].length.min(longest), Bytes::new())
            }
            Self::RetrieveInto(items) => {
                (items[index].offset, items[index].fragment.len().min(longest), Bytes::new())
            }
            Self::One { .. } | Self::Fragments { .. } | Self::Keys(_) => (0, 0, Bytes::new()),
        }
    }
}

impl Router {
    pub(super) fn submit_batch<'a>(
        &mut self,
        request: Request<'a>,
        now_us: u64,
    ) -> Result<Ticket, Request<'a>> {
        let count = request.body.len();
        let namespace = request.namespace.0;
        let full = |index| {
            let link = self.reactor_of(namespace, request.body.key(index));
            !self.peers[link].has_room()
        };
        if (0..count).any(full) {
            return Err(request);
        }
        let ticket = self.next_ticket();
        let refused = if self.is_hopeless() {
            Some(Status::Disconnected)
        } else {
            (count > BATCH_ITEMS_MAX).then_some(Status::Malformed)
        };
        if count == 0 || refused.is_some() {
            self.deliver(Done::single(ticket, request.tag, refused.unwrap_or(Status::Ok)));
            return Ok(ticket);
        }
        let group = self.groups.take(ticket, request.tag, count);
        let common = Common {
            group,
            opcode: request.opcode,
            namespace: request.namespace,
            deadline_us: self.deadline_us(request.timeout_us, now_us),
            was_sent: false,
        };
        self.split(&request.body, common);
        self.end_if_joined(group);
        Ok(ticket)
    }

    fn split(&mut self, body: &Body<'_>, common: Common) {
        self.begin_placing();
        for index in 0..body.len() {
            let (key, fragment) = (body.key(index), body.fragment(index));
            let refused = self.refuse(common.opcode, key, body.value_bytes(index));
            let refused = refused.or_else(|| refuse_fragments(common.opcode, fragment, false));
            if let Some(status) = refused {
                self.groups.at(common.group).items[index].status = status;
                continue;
            }
            let (offset, length, data) = body.wanted(index, self.limits.value_bytes_max);
            let token = if writes(common.opcode) { self.next_token() } else { 0 };
            let held = fragment.map(Held::new);
            let sent = held.as_slice().iter().filter(|_| common.opcode.sends_data()).count();
            let data_crc = if sent > 0 { crc_of(held.as_slice()) } else { crc32c(&data) };
            let index = index as u16;
            self.place(common, Placed { index, key, offset, length, data, held, token, data_crc });
        }
        self.end_placing();
    }

    /// Splits a part anew whose items now belong to several reactors, maybe.
    pub(super) fn split_again(&mut self, id: OpId) {
        let op = &mut self.ops[id];
        let common = Common {
            group: op.part.group,
            opcode: op.opcode,
            namespace: NamespaceId(op.namespace),
            deadline_us: op.deadline_us,
            was_sent: op.was_sent,
        };
        let items = std::mem::take(&mut op.items);
        let keys = std::mem::take(&mut op.keys);
        let indices = std::mem::take(&mut op.part.indices);
        let mut values = std::mem::take(&mut op.values).into_iter();
        let mut fragments = std::mem::take(&mut op.fragments).into_iter();
        self.ops.release(id);
        self.begin_placing();
        let mut rest = keys.as_slice();
        for (item, index) in items.iter().zip(indices) {
            let (key, behind) = rest.split_at(item.key_length.get().into());
            rest = behind;
            let length = item.data_length.get();
            let held = fragments.next();
            let has_value = common.opcode == Opcode::Store && length > 0 && held.is_none();
            let data = if has_value { values.next().unwrap_or_default() } else { Bytes::new() };
            let (offset, token) = (item.offset.get(), item.token.get());
            let data_crc = item.data_crc.get();
            self.place(common, Placed { index, key, offset, length, data, held, token, data_crc });
        }
        self.end_placing();
        self.groups.at(common.group).parts_left -= 1;
    }

    fn begin_placing(&mut self) {
        self.groups.open.clear();
        self.groups.open.resize(self.peers.len(), None);
    }

    /// Puts one item into the open part of its reactor, or into a new one.
    fn place(&mut self, common: Common, placed: Placed<'_>) {
        let Placed { index, key, offset, length, data, held, token, data_crc } = placed;
        let link = self.reactor_of(common.namespace.0, key);
        let named = if held.is_some() { size_of::<Named>() } else { 0 };
        let id = match self.groups.open[link] {
            Some(id) if self.fits(id, key.len() + named, length) && self.names(id, link) => id,
            full => {
                if let Some(full) = full {
                    self.seal_part(full, link);
                }
                let id = self.new_part(common);
                self.groups.open[link] = Some(id);
                id
            }
        };
        let op = &mut self.ops[id];
        op.keys.extend_from_slice(key);
        op.items.push(Item::new(key.len() as u16, offset, length, token, data_crc));
        op.part.indices.push(index);
        op.data_length += length;
        if !data.is_empty() {
            op.value_bytes += length;
            op.values.push(data);
        }
        if let Some(held) = held {
            op.value_bytes += if common.opcode.sends_data() { length } else { 0 };
            op.fragments.push(held);
        }
    }

    fn new_part(&mut self, common: Common) -> OpId {
        let Common { group, opcode, namespace, deadline_us, was_sent } = common;
        self.groups.at(group).parts_left += 1;
        let id = self.ops.take();
        let op = &mut self.ops[id];
        op.begin(opcode, Target::Key, namespace, deadline_us);
        op.was_sent = was_sent;
        op.is_part = true;
        op.part.group = group;
        id
    }

    /// `key_bytes`: of the key, and of what names the item's fragment.
    fn fits(&self, id: OpId, key_bytes: usize, length: u32) -> bool {
        let op = &self.ops[id];
        // One more, for the results.
        let named = (op.fragments.len() + 1).min(2 * op.fragments.len()) * size_of::<Named>();
        let capsule_bytes = op.capsule_bytes() + named + size_of::<Item>() + key_bytes;
        op.items.len() < self.limits.items_max
            && capsule_bytes <= self.limits.capsule_bytes
            && op.data_length.saturating_add(length) <= self.limits.value_bytes_max
    }

    /// The part's command can name one more fragment, besides that for the results: of more than the server
    /// takes, the data would be copied.
    fn names(&self, id: OpId, link: usize) -> bool {
        let (most, fragments) = (self.peers[link].link.fragments_max(), &self.ops[id].fragments);
        most == 0 || fragments.is_empty() || fragments.len() + 2 <= most
    }

    fn end_placing(&mut self) {
        for link in 0..self.groups.open.len() {
            if let Some(id) = self.groups.open[link].take() {
                self.seal_part(id, link);
            }
        }
    }

    /// No more items come: the part is ready to be sent.
    fn seal_part(&mut self, id: OpId, link: usize) {
        let op = &mut self.ops[id];
        let asked_bytes = if op.opcode == Opcode::Retrieve { op.data_length } else { 0 };
        if let [item] = op.items.as_slice() {
            op.offset = item.offset.get();
            op.token = item.token.get();
            op.data_crc = item.data_crc.get();
            op.answer_bytes_max = asked_bytes;
            op.items.clear();
        } else {
            let results = size_of::<ItemResult>() * op.items.len();
            op.answer_bytes_max = asked_bytes + results as u32;
        }
        debug_assert!(op.capsule_bytes() >= size_of::<Command>() && op.state == State::Free);
        self.enqueue(id, link);
    }

    /// Sorts the answer to a part into its batch, and ends that if it was the last one.
    pub(super) fn join(&mut self, id: OpId, answer: Answer) -> Result<(), LinkError> {
        let op = &self.ops[id];
        let slot = op.part.group;
        let group = self.groups.at(slot);
        let part = group.parts.len() as u32;
        let mut outcome = Ok(());
        if let ([], [index]) = (op.items.as_slice(), op.part.indices.as_slice()) {
            let (status, result) = (answer.status, answer.result);
            let (length, unchecked_crc) = (answer.length(), answer.unchecked_crc());
            let part = if answer.landed.is_some() { u32::MAX } else { part };
            group.items[usize::from(*index)] =
                ItemDone { status, result, length, unchecked_crc, part, start: 0 };
        } else if answer.has_items && answer.status == Status::Ok {
            outcome = sort_in(&answer, &op.part.indices, part, &mut group.items);
        } else {
            let broken = answer.status == Status::Ok;
            let status = if broken { Status::Internal } else { answer.status };
            mark(status, &op.part.indices, &mut group.items);
        }
        group.parts.push(answer.data);
        group.parts_left -= 1;
        self.end_if_joined(slot);
        outcome
    }

    fn end_if_joined(&mut self, slot: u32) {
        if self.groups.at(slot).parts_left == 0 {
            let done = self.groups.finish(slot);
            self.deliver(done);
        }
    }
}

/// The items of one part, from the item results of its answer.
fn sort_in(
    answer: &Answer,
    indices: &[u16],
    part: u32,
    items: &mut [ItemDone],
) -> Result<(), LinkError> {
    if let Some(landed) = answer.landed {
        sort_landed(answer, landed, indices, items);
        return Ok(());
    }
    let (results, mut start) = match item_results(answer, indices.len()) {
        Ok(found) => found,
        Err(error) => {
            mark(Status::Internal, indices, items);
            return Err(error);
        }
    };
    for (found, index) in results.iter().zip(indices) {
        let length = found.data_length.get();
        let data = &answer.data[start..start + length as usize];
        let intact = data.is_empty() || crc32c(data) == found.data_crc.get();
        items[usize::from(*index)] = ItemDone {
            status: if intact { found.outcome() } else { Status::DataChecksum },
            result: found.result.get().into(),
            length,
            unchecked_crc: None,
            part,
            start: start as u32,
        };
        start += length as usize;
    }
    Ok(())
}

/// [`sort_in`] for data that is in fragments, and was checked on its way there.
fn sort_landed(answer: &Answer, landed: Landed, indices: &[u16], items: &mut [ItemDone]) {
    let results = landing::results(&answer.data, indices.len());
    for (number, (found, index)) in results.iter().zip(indices).enumerate() {
        let has = |bits: u64| bits >> number & 1 != 0;
        let broken = has(landed.broken);
        items[usize::from(*index)] = ItemDone {
            status: if broken { Status::DataChecksum } else { found.outcome() },
            result: found.result.get().into(),
            length: found.data_length.get(),
            unchecked_crc: has(landed.unseen).then(|| found.data_crc.get()),
            ..ItemDone::PENDING
        };
    }
}

/// What keeps fragments from being used by a command of this kind; `knows_crc`: so does the caller.
pub(super) fn refuse_fragments<'a>(
    opcode: Opcode,
    fragments: impl IntoIterator<Item = &'a Fragment>,
    knows_crc: bool,
) -> Option<Status> {
    let sends = opcode.sends_data();
    let is_wrong = |fragment: &Fragment| {
        let region = fragment.region();
        let usage = region.usage();
        let wrong_way = if sends { !usage.stores() } else { !usage.retrieves() };
        wrong_way || region.is_viewed() || (sends && !region.is_visible() && !knows_crc)
    };
    fragments.into_iter().any(is_wrong).then_some(Status::Memory)
}

fn mark(status: Status, indices: &[u16], items: &mut [ItemDone]) {
    for index in indices {
        items[usize::from(*index)].status = status;
    }
}

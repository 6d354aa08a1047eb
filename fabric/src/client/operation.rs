//! What is kept of a command until it has ended: enough to send it, and to send it again.
//!
//! Slots are used again with the memory they hold, so that once as many commands have been in
//! flight as ever will be, a new one allocates nothing. A slot is freed when both sides are done
//! with it: the caller has its answer, and no connection refers to it any more (a command that
//! timed out keeps its slot, its data and its fragments until the server has answered or the connection
//! is gone).

use super::batch::Limits;
use super::data::Data;
use super::request::{NamespaceId, Target, Ticket};
use crate::crc32c::Digest;
use crate::pdu::{Command, Item, ItemResult, Opcode, Transfer, VALUE_BYTES_MAX, crc32c};
use crate::region::{Fragment, Held};
use bytes::Bytes;
use zerocopy::little_endian::{U32, U64};

/// The longest text that explains why a checkpoint command failed, in bytes.
const TEXT_BYTES_MAX: u32 = 64 << 10;

/// Index of an operation in [`Operations`].
pub(super) type OpId = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum State {
    #[default]
    Free,
    /// In the backlog of its link.
    Queued,
    /// In flight on its link under this command identifier.
    Sent(u16),
    /// The caller has been answered; the link still holds this identifier.
    Ended(u16),
}

/// Which batch a command is a part of.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    pub group: u32,
    /// Which items of the batch, in the order in which they travel.
    pub indices: Vec<u16>,
}

#[derive(Debug)]
pub(super) struct Operation {
    pub state: State,
    pub link: u16,
    pub ticket: Ticket,
    pub tag: u64,
    pub opcode: Opcode,
    pub target: Target,
    pub namespace: u32,
    pub offset: u64,
    /// As it travels in [`Command::data_length`].
    pub data_length: u32,
    pub data_crc: u32,
    pub token: u64,
    pub deadline_us: u64,
    /// The key, or the keys of all items one behind the other.
    pub keys: Vec<u8>,
    /// Empty: a single command.
    pub items: Vec<Item>,
    /// What the client sends: one value, or those of all items.
    pub values: Vec<Bytes>,
    /// Instead of values, or where the answer's data goes: that of a batch's items one each.
    pub fragments: Vec<Held>,
    /// Bytes that the client sends.
    pub value_bytes: u32,
    /// The most bytes of data that an answer may have.
    pub answer_bytes_max: u32,
    /// Bytes that R2Ts of this sending have asked for.
    pub transferred: u32,
    /// It has been on a connection.
    pub was_sent: bool,
    /// How often a reactor has sent it on to another.
    pub redirects: u8,
    pub is_part: bool,
    pub part: Part,
}

impl Operation {
    fn new() -> Self {
        Self {
            state: State::Free,
            link: 0,
            ticket: Ticket(0),
            tag: 0,
            opcode: Opcode::Exist,
            target: Target::Key,
            namespace: 0,
            offset: 0,
            data_length: 0,
            data_crc: 0,
            token: 0,
            deadline_us: 0,
            keys: Vec::new(),
            items: Vec::new(),
            values: Vec::new(),
            fragments: Vec::new(),
            value_bytes: 0,
            answer_bytes_max: 0,
            transferred: 0,
            was_sent: false,
            redirects: 0,
            is_part: false,
            part: Part::default(),
        }
    }

    /// Common to all operations that begin; what varies in size is empty.
    pub(super) fn begin(
        &mut self,
        opcode: Opcode,
        target: Target,
        namespace: NamespaceId,
        deadline_us: u64,
    ) {
        (self.opcode, self.target, self.namespace) = (opcode, target, namespace.0);
        self.deadline_us = deadline_us;
        (self.offset, self.data_length, self.data_crc, self.token) = (0, 0, 0, 0);
        (self.value_bytes, self.answer_bytes_max) = (0, 0);
        (self.was_sent, self.redirects, self.is_part) = (false, 0, false);
    }

    /// `data_crc`: of `data`, if the caller knows it.
    pub(super) fn set_value(&mut self, data: Bytes, data_crc: Option<u32>) {
        if !data.is_empty() {
            self.value_bytes = data.len() as u32;
            self.data_crc = data_crc.unwrap_or_else(|| crc32c(&data));
            self.values.push(data);
        }
    }

    /// What the client sends is in `fragments`, whose checksum is `data_crc` if the caller knows it.
    pub(super) fn set_fragments(&mut self, fragments: &[Fragment], data_crc: Option<u32>) {
        self.fragments.extend(fragments.iter().map(Held::new));
        if self.opcode.sends_data() {
            self.value_bytes = fragments.iter().map(Fragment::len).sum();
            self.data_crc = data_crc.unwrap_or_else(|| crc_of(&self.fragments));
        }
    }

    /// The answer's data goes to fragments.
    pub(super) fn lands(&self) -> bool {
        !self.fragments.is_empty() && !self.opcode.sends_data()
    }

    /// Some of its memory is seen by no processor.
    pub(super) fn is_unseen(&self) -> bool {
        self.fragments.iter().any(|held| !held.region().is_visible())
    }

    /// May be carried out twice, or is recognised by its token.
    pub(super) fn can_replay(&self) -> bool {
        match self.opcode {
            Opcode::Store
            | Opcode::Retrieve
            | Opcode::List
            | Opcode::Delete
            | Opcode::Exist
            | Opcode::Namespaces
            | Opcode::CheckpointBegin
            | Opcode::CheckpointReserve
            | Opcode::CheckpointPut
            | Opcode::CheckpointSeal
            | Opcode::CheckpointCommit
            | Opcode::CheckpointList
            | Opcode::CheckpointManifest
            | Opcode::CheckpointRead
            | Opcode::Stats => true,
            // The second time they would say that there is nothing to abort or delete.
            Opcode::CheckpointAbort | Opcode::CheckpointDelete => false,
        }
    }

    /// Bytes of the capsule without its data.
    pub(super) fn capsule_bytes(&self) -> usize {
        size_of::<Command>() + size_of_val(self.items.as_slice()) + self.keys.len()
    }

    /// Bytes of memory that the server needs on this side: what is sent, or what may come back.
    pub(super) fn memory_bytes(&self) -> usize {
        if self.opcode.sends_data() {
            return self.value_bytes as usize;
        }
        match self.data_length as usize {
            0 => 0,
            bytes => bytes + self.items.len() * size_of::<ItemResult>(),
        }
    }

    /// The command as it travels now; still to be sealed.
    pub(super) fn command(&self, cid: u16, timeout_us: u32) -> Command {
        let mut command = Command::new(self.opcode, cid);
        command.timeout_us = U32::new(timeout_us);
        command.namespace = U32::new(self.namespace);
        command.offset = U64::new(self.offset);
        command.data_length = U32::new(self.data_length);
        command.token = U64::new(self.token);
        command.data_crc = U32::new(self.data_crc);
        command
    }

    /// Accounts for an R2T; `false` if it asks for what there is not.
    pub(super) fn transfer(&mut self, transfer: Transfer) -> bool {
        let end = u64::from(transfer.offset) + u64::from(transfer.length);
        let total = u64::from(self.transferred) + u64::from(transfer.length);
        if end.max(total) > u64::from(self.value_bytes) {
            return false;
        }
        self.transferred += transfer.length;
        true
    }

    /// The pieces of the values that `transfer` covers.
    pub(super) fn pieces(&self, transfer: Transfer) -> impl Iterator<Item = Bytes> + '_ {
        let mut skip = transfer.offset as usize;
        let mut rest = transfer.length as usize;
        self.values.iter().filter_map(move |value| {
            let from = skip.min(value.len());
            let count = rest.min(value.len() - from);
            skip -= from;
            rest -= count;
            (count > 0).then(|| value.slice(from..from + count))
        })
    }

    fn clear(&mut self) {
        self.state = State::Free;
        self.keys.clear();
        self.items.clear();
        self.values.clear();
        self.fragments.clear();
        self.part.indices.clear();
    }
}

/// The checksum of all that is in `fragments`.
pub(super) fn crc_of(fragments: &[Held]) -> u32 {
    let mut digest = Digest::new();
    fragments.iter().for_each(|held| held.add_to(&mut digest, 0..held.len() as usize));
    digest.finalize()
}

/// Bytes of data that a command sends or asks for.
pub(super) struct Sizes {
    pub data_length: u32,
    pub answer_bytes_max: u32,
}

impl Sizes {
    pub(super) fn of(opcode: Opcode, sent_bytes: u32, asked_bytes: u32, limits: &Limits) -> Self {
        let asked_bytes = asked_bytes.min(limits.value_bytes_max);
        let (data_length, answer_bytes_max) = match opcode {
            Opcode::Store | Opcode::Delete | Opcode::Exist => (sent_bytes, 0),
            Opcode::Retrieve | Opcode::List => (asked_bytes, asked_bytes),
            Opcode::CheckpointList | Opcode::CheckpointManifest | Opcode::CheckpointRead => {
                (asked_bytes, asked_bytes.max(TEXT_BYTES_MAX))
            }
            _ => (sent_bytes, VALUE_BYTES_MAX as u32),
        };
        Self { data_length, answer_bytes_max }
    }
}

/// The command changes something, so that its replay has to be recognised.
pub(super) fn writes(opcode: Opcode) -> bool {
    !matches!(
        opcode,
        Opcode::Retrieve
            | Opcode::List
            | Opcode::Exist
            | Opcode::Namespaces
            | Opcode::Stats
            | Opcode::CheckpointList
            | Opcode::CheckpointManifest
            | Opcode::CheckpointRead
    )
}

/// All operations that have not ended on both sides.
#[derive(Debug, Default)]
pub(super) struct Operations {
    slots: Vec<Operation>,
    free: Vec<OpId>,
}

impl Operations {
    /// A free slot, with its variable parts empty.
    pub(super) fn take(&mut self) -> OpId {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(Operation::new());
            (self.slots.len() - 1) as OpId
        })
    }

    pub(super) fn release(&mut self, id: OpId) {
        self[id].clear();
        self.free.push(id);
    }

    pub(super) fn ids(&self) -> std::ops::Range<OpId> {
        0..self.slots.len() as OpId
    }
}

impl std::ops::Index<OpId> for Operations {
    type Output = Operation;
    fn index(&self, id: OpId) -> &Operation {
        &self.slots[id as usize]
    }
}

impl std::ops::IndexMut<OpId> for Operations {
    fn index_mut(&mut self, id: OpId) -> &mut Operation {
        &mut self.slots[id as usize]
    }
}

/// Memory that answers are received into, used again when the caller gives it back.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    spare: Vec<Vec<u8>>,
    spare_bytes: usize,
    /// Buffers that had to be made or enlarged.
    pub fresh: u64,
}

impl Buffers {
    /// What is kept for later, in bytes; more than this goes back to the allocator.
    const SPARE_BYTES_MAX: usize = 256 << 20;

    /// An initialised buffer of `length` bytes; what it holds is whatever was there before.
    pub(super) fn take(&mut self, length: usize) -> Vec<u8> {
        let mut buffer = self.spare(length);
        buffer.resize(length, 0);
        buffer
    }

    /// A buffer that holds a copy of `bytes`.
    pub(super) fn copy(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut buffer = self.spare(bytes.len());
        buffer.clear();
        buffer.extend_from_slice(bytes);
        buffer
    }

    fn spare(&mut self, length: usize) -> Vec<u8> {
        if length == 0 {
            return Vec::new();
        }
        let buffer = self.spare.pop().unwrap_or_default();
        self.spare_bytes -= buffer.capacity();
        self.fresh += u64::from(buffer.capacity() < length);
        buffer
    }

    pub(super) fn give(&mut self, data: impl Into<Data>) {
        let Some(buffer) = data.into().into_buffer() else { return };
        let bytes = buffer.capacity();
        if bytes > 0 && self.spare_bytes + bytes <= Self::SPARE_BYTES_MAX {
            self.spare_bytes += bytes;
            self.spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_exactly_what_an_r2t_asks_for() {
        let mut ops = Operations::default();
        let id = ops.take();
        let values: Vec<Bytes> = vec![
            Bytes::from_static(b"abc"),
            Bytes::new(),
            Bytes::from_static(b"defgh"),
            Bytes::from_static(b"i"),
        ];
        ops[id].value_bytes = 9;
        ops[id].values = values;
        for offset in 0..9u32 {
            for length in 1..=9 - offset {
                let transfer = Transfer { cid: 0, offset, length };
                let joined: Vec<u8> = ops[id].pieces(transfer).flatten().collect();
                assert_eq!(joined, b"abcdefghi"[offset as usize..(offset + length) as usize]);
            }
        }
    }

    #[test]
    fn r2ts_may_not_ask_for_more_than_there_is() {
        let mut ops = Operations::default();
        let id = ops.take();
        ops[id].value_bytes = 10;
        assert!(!ops[id].transfer(Transfer { cid: 0, offset: 5, length: 6 }));
        assert!(ops[id].transfer(Transfer { cid: 0, offset: 0, length: 6 }));
        assert!(!ops[id].transfer(Transfer { cid: 0, offset: 0, length: 6 }));
        assert!(ops[id].transfer(Transfer { cid: 0, offset: 6, length: 4 }));
    }
}

//! The command capsule: a 64-byte command, items, fragments, keys, and in-capsule data.

use super::{CommonHeader, DecodeError, ItemResult, PduType};
use crate::crc32c::Digest;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What a command asks. Key-value opcodes are those of the NVMe Key Value Command Set 1.0
/// (section 3.2); the checkpoint's lie in the vendor-specific range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Store a value under a key.
    Store = 0x01,
    /// Retrieve a value, or a byte range of it.
    Retrieve = 0x02,
    /// List keys: the command's `offset` is the cursor; the key field may hold a prefix.
    List = 0x06,
    /// Delete a key.
    Delete = 0x10,
    /// Does a key exist? `result` is the value's length.
    Exist = 0x14,
    /// The namespaces: names, numbers, classes and use.
    Namespaces = 0x80,
    /// Open a checkpoint session (BEGIN).
    CheckpointBegin = 0x81,
    /// Declare a rank's tensor boxes; answers what is there already.
    CheckpointReserve = 0x82,
    /// Put one chunk; routed by its key like a store.
    CheckpointPut = 0x83,
    /// Seal a rank's partial manifest.
    CheckpointSeal = 0x84,
    /// Merge, check and commit.
    CheckpointCommit = 0x85,
    /// Give a session up and free its chunks.
    CheckpointAbort = 0x86,
    /// List committed checkpoints.
    CheckpointList = 0x87,
    /// The manifest of a committed checkpoint.
    CheckpointManifest = 0x88,
    /// One chunk of a committed checkpoint, or a range of it; routed by its key like a retrieve.
    CheckpointRead = 0x89,
    /// Delete a checkpoint.
    CheckpointDelete = 0x8a,
    /// Counters of this reactor as JSON.
    Stats = 0xf0,
}

impl Opcode {
    /// Every opcode.
    pub const ALL: [Self; 17] = [
        Self::Store,
        Self::Retrieve,
        Self::List,
        Self::Delete,
        Self::Exist,
        Self::Namespaces,
        Self::CheckpointBegin,
        Self::CheckpointReserve,
        Self::CheckpointPut,
        Self::CheckpointSeal,
        Self::CheckpointCommit,
        Self::CheckpointAbort,
        Self::CheckpointList,
        Self::CheckpointManifest,
        Self::CheckpointRead,
        Self::CheckpointDelete,
        Self::Stats,
    ];

    /// The client sends data with it: in the capsule, or pulled by the server.
    #[must_use]
    pub fn sends_data(self) -> bool {
        match self {
            Self::Store
            | Self::CheckpointBegin
            | Self::CheckpointReserve
            | Self::CheckpointPut
            | Self::CheckpointSeal
            | Self::CheckpointCommit
            | Self::CheckpointAbort => true,
            Self::Retrieve
            | Self::List
            | Self::Delete
            | Self::Exist
            | Self::Namespaces
            | Self::CheckpointList
            | Self::CheckpointManifest
            | Self::CheckpointRead
            | Self::CheckpointDelete
            | Self::Stats => false,
        }
    }

    /// The opcode with this number, if there is one.
    #[must_use]
    pub fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|opcode| *opcode as u8 == number)
    }
}

/// Bits of [`Command::opflags`].
pub mod command_flags {
    /// The value lies in the capsule, behind the keys; `data_crc` covers it.
    pub const IN_CAPSULE: u8 = 1 << 0;
    /// The client's memory is a list of [`super::Fragment`]s behind the items, not `address`.
    pub const FRAGMENTS: u8 = 1 << 1;
    /// Every bit that is known.
    pub const KNOWN: u8 = IN_CAPSULE | FRAGMENTS;
}

/// The fixed 64 bytes of a command capsule. Behind them: `items` [`Item`]s (none: the command
/// itself is the one item), `fragments` [`Fragment`]s, the keys in the order of the items, then the
/// in-capsule data.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Command {
    /// Type [`super::PduType::Command`]; `length` covers all that is behind the command, too.
    pub header: CommonHeader,
    /// An [`Opcode`].
    pub opcode: u8,
    /// [`command_flags`].
    pub opflags: u8,
    /// Bytes of the key behind the command; 0 in a batch, whose items have their own.
    pub key_length: U16,
    /// The client's deadline, in microseconds from arrival; 0 asks for the server's longest.
    pub timeout_us: U32,
    /// The namespace's number.
    pub namespace: U32,
    /// Items of a batch; 0 for a single operation.
    pub items: U16,
    /// Fragments of the client's memory; 0: `address` and `memory_key` name it, if anything does.
    pub fragments: U16,
    /// Retrieve: the first byte wanted. List: the cursor. Otherwise 0 (a version, later).
    pub offset: U64,
    /// The client's memory, where the transport can reach it; 0 with fragments.
    pub address: U64,
    /// The key of that memory region; 0 with fragments, or if no memory is named.
    pub memory_key: U32,
    /// Where the client sends data ([`Opcode::sends_data`]): how many bytes; in a batch of stores,
    /// those of all values. Retrieve: the most bytes wanted, from `offset` on. List: the most bytes
    /// of answer.
    pub data_length: U32,
    /// Names this write among all writes, so that a replay is recognised; 0: none.
    pub token: U64,
    /// CRC32C of the data that the client sends; 0 in a batch, whose items have their own.
    pub data_crc: U32,
    /// CRC32C of the 60 bytes before it and of the items, fragments and keys behind it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<Command>() == 64);
const _: () = assert!(std::mem::offset_of!(Command, header_crc) == HEADER_CRC_OFFSET);

/// Where the checksum of a command lies.
const HEADER_CRC_OFFSET: usize = 60;

impl Command {
    /// A command with every other field zero; fill them in, then [`Command::seal`] it.
    #[must_use]
    pub fn new(opcode: Opcode, cid: u16) -> Self {
        let mut command = Self::new_zeroed();
        command.header = CommonHeader::new(PduType::Command, cid, size_of::<Self>());
        command.opcode = opcode as u8;
        command
    }

    /// Fills in what follows from the bytes behind the command: `length`, `items`, `key_length`,
    /// with in-capsule data its flag and `data_length`, and last the checksum. On the wire stand
    /// the command, `items`, `keys` and `data`, in that order.
    pub fn seal(&mut self, items: &[Item], keys: &[u8], data: &[u8]) {
        if !data.is_empty() {
            self.data_length = U32::new(data.len() as u32);
        }
        self.seal_all(items, &[], keys, data);
    }

    /// [`Command::seal`] for a command whose data is, or goes, where `fragments` say. On the wire
    /// stand the command, `items`, `fragments` and `keys`, in that order.
    pub fn seal_fragments(&mut self, items: &[Item], fragments: &[Fragment], keys: &[u8]) {
        self.seal_all(items, fragments, keys, &[]);
    }

    fn seal_all(&mut self, items: &[Item], fragments: &[Fragment], keys: &[u8], data: &[u8]) {
        let behind = size_of_val(items) + size_of_val(fragments) + keys.len() + data.len();
        self.header.length = U32::new((size_of::<Self>() + behind) as u32);
        self.items = U16::new(items.len() as u16);
        self.fragments = U16::new(fragments.len() as u16);
        self.key_length = U16::new(if items.is_empty() { keys.len() as u16 } else { 0 });
        let flag = |flag: u8, is_set: bool| if is_set { flag } else { 0 };
        self.opflags &= !command_flags::KNOWN;
        self.opflags |= flag(command_flags::IN_CAPSULE, !data.is_empty());
        self.opflags |= flag(command_flags::FRAGMENTS, !fragments.is_empty());
        self.header_crc = U32::new(self.checksum(items, fragments, keys));
    }

    fn checksum(&self, items: &[Item], fragments: &[Fragment], keys: &[u8]) -> u32 {
        let fixed = &self.as_bytes()[..HEADER_CRC_OFFSET];
        let lists = Digest::new().and(fixed).and(items.as_bytes()).and(fragments.as_bytes());
        lists.and(keys).finalize()
    }
}

/// One item of a batch: 32 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Item {
    /// Bytes of this item's key.
    pub key_length: U16,
    /// Zero.
    pub reserved: U16,
    /// Store: bytes of the value. Retrieve: the most bytes wanted.
    pub data_length: U32,
    /// Retrieve: the first byte wanted.
    pub offset: U64,
    /// Names this item's write, so that a replay is recognised; 0: none.
    pub token: U64,
    /// Store: CRC32C of the value.
    pub data_crc: U32,
    /// Zero.
    pub reserved2: U32,
}
const _: () = assert!(size_of::<Item>() == 32);

impl Item {
    /// An item of a batch whose key is `key_length` bytes.
    #[must_use]
    pub fn new(key_length: u16, offset: u64, data_length: u32, token: u64, data_crc: u32) -> Self {
        Self {
            key_length: U16::new(key_length),
            reserved: U16::ZERO,
            data_length: U32::new(data_length),
            offset: U64::new(offset),
            token: U64::new(token),
            data_crc: U32::new(data_crc),
            reserved2: U32::ZERO,
        }
    }
}

/// A piece of the client's memory: 16 bytes. Data moves to or from a command's fragments one behind
/// the other; in a batch of retrieves the first takes the item results, and each other one the data
/// of its own item and nothing else.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Fragment {
    /// Where it begins.
    pub address: U64,
    /// The key of its memory region; never 0.
    pub key: U32,
    /// Its bytes; there may be none.
    pub length: U32,
}
const _: () = assert!(size_of::<Fragment>() == 16);

impl Fragment {
    /// `length` bytes from `address` on, in the region that `key` names.
    #[must_use]
    pub fn new(address: u64, key: u32, length: u32) -> Self {
        Self { address: U64::new(address), key: U32::new(key), length: U32::new(length) }
    }

    /// Bytes of all `fragments` together.
    #[must_use]
    pub fn bytes(fragments: &[Self]) -> u64 {
        fragments.iter().map(|fragment| u64::from(fragment.length.get())).sum()
    }
}

/// A command capsule whose checksum, lengths and counts have been checked: what the rest of the
/// house trusts. Borrows the bytes it was parsed from.
#[derive(Clone, Copy, Debug)]
pub struct Capsule<'a> {
    /// The fixed part.
    pub command: &'a Command,
    /// What it asks; opcodes that are not known are refused with a status, not a closed connection.
    pub opcode: Option<Opcode>,
    /// The batch's items; empty for a single operation.
    pub items: &'a [Item],
    /// The client's memory in pieces: none has the key 0, and together they are less than 4 GiB.
    /// Empty: the command's `address` and `memory_key` say what it names.
    pub fragments: &'a [Fragment],
    /// The key, or all keys of the batch one behind the other.
    pub keys: &'a [u8],
    /// The in-capsule data.
    pub data: &'a [u8],
}

impl<'a> Capsule<'a> {
    /// Checks `pdu`, a whole PDU of type Command.
    ///
    /// # Errors
    /// [`DecodeError`]: checksum, reserved fields, or lengths that do not add up. What concerns one
    /// operation only (key of 0 bytes, value over the limit, [`Capsule::fragments_fit`]) is left to
    /// its status.
    pub fn parse(pdu: &'a [u8]) -> Result<Self, DecodeError> {
        let (command, rest) = Command::ref_from_prefix(pdu).map_err(|_| DecodeError::Truncated)?;
        if command.header.pdu_type != PduType::Command as u8 {
            return Err(DecodeError::Type);
        }
        if command.header.length.get() as usize != pdu.len() {
            return Err(DecodeError::Length);
        }
        if command.header.flags != 0 || command.opflags & !command_flags::KNOWN != 0 {
            return Err(DecodeError::Reserved);
        }
        let (items, rest) = Self::items(command, rest)?;
        let (fragments, rest) = Self::fragments(command, rest)?;
        let key_bytes = items.iter().fold(usize::from(command.key_length.get()), |sum, item| {
            sum + usize::from(item.key_length.get())
        });
        let (keys, data) = rest.split_at_checked(key_bytes).ok_or(DecodeError::Truncated)?;
        if command.checksum(items, fragments, keys) != command.header_crc.get() {
            return Err(DecodeError::Checksum);
        }
        let in_capsule = command.opflags & command_flags::IN_CAPSULE != 0;
        let expected = if in_capsule { command.data_length.get() as usize } else { 0 };
        if data.len() != expected {
            return Err(DecodeError::Length);
        }
        let opcode = Opcode::from_wire(command.opcode);
        Ok(Self { command, opcode, items, fragments, keys, data })
    }

    /// Cuts the items off `rest`.
    fn items(command: &Command, rest: &'a [u8]) -> Result<(&'a [Item], &'a [u8]), DecodeError> {
        let count = usize::from(command.items.get());
        if count > super::ITEMS_MAX {
            return Err(DecodeError::Field("too many items"));
        }
        if count > 0 && command.key_length.get() != 0 {
            return Err(DecodeError::Field("a batch with a key of its own"));
        }
        let (items, rest) = <[Item]>::ref_from_prefix_with_elems(rest, count)
            .map_err(|_| DecodeError::Truncated)?;
        if items.iter().any(|item| item.reserved.get() != 0 || item.reserved2.get() != 0) {
            return Err(DecodeError::Reserved);
        }
        Ok((items, rest))
    }

    /// Cuts the fragments off `rest`.
    fn fragments(
        command: &Command,
        rest: &'a [u8],
    ) -> Result<(&'a [Fragment], &'a [u8]), DecodeError> {
        let count = usize::from(command.fragments.get());
        if count > super::FRAGMENTS_MAX {
            return Err(DecodeError::Field("too many fragments"));
        }
        if (command.opflags & command_flags::FRAGMENTS != 0) != (count > 0) {
            return Err(DecodeError::Field("a number of fragments that contradicts the flag"));
        }
        if count == 0 {
            return Ok((&[], rest));
        }
        if command.opflags & command_flags::IN_CAPSULE != 0 {
            return Err(DecodeError::Field("data in the capsule and in fragments"));
        }
        if command.address.get() != 0 || command.memory_key.get() != 0 {
            return Err(DecodeError::Field("fragments and an address"));
        }
        let (fragments, rest) = <[Fragment]>::ref_from_prefix_with_elems(rest, count)
            .map_err(|_| DecodeError::Truncated)?;
        if fragments.iter().any(|fragment| fragment.key.get() == 0) {
            return Err(DecodeError::Field("a fragment without a key"));
        }
        if Fragment::bytes(fragments) > u64::from(u32::MAX) {
            return Err(DecodeError::Field("fragments of 4 GiB and more"));
        }
        Ok((fragments, rest))
    }

    /// The fragments, if there are any, are those that the command needs. Data that is sent: exactly
    /// `data_length` bytes. A batch of retrieves: one that takes the item results, and one for each
    /// item that takes what it wants. Everything else: room for `data_length` bytes and for the
    /// results of the items.
    #[must_use]
    #[inline]
    pub fn fragments_fit(&self) -> bool {
        self.fragments.is_empty() || self.named_fragments_fit()
    }

    fn named_fragments_fit(&self) -> bool {
        let Self { command, opcode, items, fragments, .. } = self;
        let (bytes, results) = (Fragment::bytes(fragments), size_of::<ItemResult>() * items.len());
        let data_length = u64::from(command.data_length.get());
        if opcode.is_some_and(Opcode::sends_data) {
            return bytes == data_length;
        }
        if *opcode != Some(Opcode::Retrieve) || items.is_empty() {
            return bytes >= data_length + results as u64;
        }
        let (first, rest) = (fragments[0], &fragments[1..]);
        let holds = |(room, item): (&Fragment, &Item)| room.length.get() >= item.data_length.get();
        first.length.get() as usize >= results
            && rest.len() == items.len()
            && rest.iter().zip(*items).all(holds)
    }

    /// The value lies in the capsule: there is nothing to pull.
    #[must_use]
    pub fn is_in_capsule(&self) -> bool {
        self.command.opflags & command_flags::IN_CAPSULE != 0
    }

    /// The items of a batch, each with its key.
    pub fn items_with_keys(&self) -> impl Iterator<Item = (&'a Item, &'a [u8])> + use<'a> {
        let mut keys = self.keys;
        self.items.iter().map(move |item| {
            // `parse` has checked that the keys are as long as the items say together.
            let (key, rest) = keys.split_at(usize::from(item.key_length.get()));
            keys = rest;
            (item, key)
        })
    }
}

//! The command capsule: a 64-byte command, item descriptors, keys, and in-capsule data.

use super::{CommonHeader, DecodeError};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

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
    /// Every bit that is known.
    pub const KNOWN: u8 = IN_CAPSULE;
}

/// The fixed 64 bytes of a command capsule. Behind them: `items` [`Item`]s (none: the command
/// itself is the one item), the keys in the same order, then the in-capsule data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Command {
    /// Type [`super::PduType::Command`]; `length` covers items, keys and in-capsule data.
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
    pub items: U32,
    /// Retrieve: the first byte wanted. List: the cursor. Otherwise 0 (a version, later).
    pub offset: U64,
    /// The client's memory, where the transport can reach it.
    pub address: U64,
    /// The key of that memory region.
    pub memory_key: U32,
    /// Store: bytes of the value(s). Retrieve: the most bytes wanted, from `offset` on.
    /// List: the most bytes of answer.
    pub data_length: U32,
    /// Names this write among all writes, so that a replay is recognised; 0: none.
    pub token: U64,
    /// CRC32C of the value (single store).
    pub data_crc: U32,
    /// CRC32C of the 60 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<Command>() == 64);

/// One item of a batch: 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
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
    /// operation only (key of 0 bytes, value over the limit) is left to its status.
    pub fn parse(pdu: &'a [u8]) -> Result<Self, DecodeError> {
        let (command, rest) = Command::ref_from_prefix(pdu).map_err(|_| DecodeError::Truncated)?;
        if command.header.length.get() as usize != pdu.len() {
            return Err(DecodeError::Length);
        }
        if super::crc32c(&pdu[..60]) != command.header_crc.get() {
            return Err(DecodeError::Checksum);
        }
        if command.header.flags != 0 || command.opflags & !command_flags::KNOWN != 0 {
            return Err(DecodeError::Reserved);
        }
        let count = command.items.get() as usize;
        if count > super::ITEMS_MAX {
            return Err(DecodeError::Field("items"));
        }
        let (items, rest) =
            <[Item]>::ref_from_prefix_with_elems(rest, count).map_err(|_| DecodeError::Truncated)?;
        let key_bytes = items.iter().fold(usize::from(command.key_length.get()), |sum, item| {
            sum + usize::from(item.key_length.get())
        });
        if count > 0 && command.key_length.get() != 0 {
            return Err(DecodeError::Field("key length"));
        }
        if items.iter().any(|item| item.reserved.get() != 0 || item.reserved2.get() != 0) {
            return Err(DecodeError::Reserved);
        }
        let (keys, data) = rest.split_at_checked(key_bytes).ok_or(DecodeError::Truncated)?;
        let expected = if command.opflags & command_flags::IN_CAPSULE != 0 {
            command.data_length.get() as usize
        } else {
            0
        };
        if data.len() != expected {
            return Err(DecodeError::Length);
        }
        Ok(Self { command, opcode: Opcode::from_wire(command.opcode), items, keys, data })
    }
}

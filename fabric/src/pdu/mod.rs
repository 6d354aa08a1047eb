//! Protocol data units: fixed little-endian layouts and the checks that make bytes trusted.
//!
//! Every PDU begins with a [`CommonHeader`]; its `length` covers the whole PDU. Fixed parts carry a
//! CRC32C of themselves, so a flipped bit closes the connection instead of moving the wrong bytes.
//! Each struct has its size asserted beneath it; `PROTOCOL.md` holds the same tables for readers.
//!
//! The layouts ([`Hello`], [`Command`], …) are bytes and prove nothing. What has been checked is
//! another type: each layout's `parse` is the only way from received bytes to [`Offer`],
//! [`Welcome`], [`Capsule`], [`Outcome`], [`Transfer`] and plain numbers, and its `new` or
//! `encode` the only way back, with lengths and checksums filled in. No parser panics, and none
//! allocates by a number that it has not checked.

mod check;
mod command;
mod control;
mod hello;
mod list;
mod response;

pub use command::{Capsule, Command, Fragment, Item, Opcode, command_flags};
pub use control::{Auth, Cancel, Data, GoAway, GoAwayReason, Ping, ReadyToTransfer, Transfer};
pub use hello::{
    ENDPOINT_BYTES, Endpoint, Hello, HelloAck, Offer, TRANSPORT_RDMA, TRANSPORT_SHM, TRANSPORT_TCP,
    Welcome, features,
};
pub use list::{ListEntries, ListEntry, ListHeader};
pub use response::{ItemResult, Outcome, Response, response_flags};

pub use crate::crc32c::crc32c;

use std::ops::RangeInclusive;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The only protocol version there is.
pub const VERSION: u16 = 1;
/// Shortest and longest key, in bytes.
pub const KEY_BYTES: RangeInclusive<usize> = 1..=1024;
/// The largest value that one store takes, in bytes; larger objects are manifests of chunks.
pub const VALUE_BYTES_MAX: usize = 4 << 20;
/// The most items in one batch.
pub const ITEMS_MAX: usize = 64;
/// The most fragments of memory that one command names.
pub const FRAGMENTS_MAX: usize = 256;
/// The largest capsule (header, items, fragments, keys and in-capsule data) that is ever negotiated,
/// in bytes.
pub const CAPSULE_BYTES_MAX: usize = 128 << 10;
/// The capsule size that a server offers by default, in bytes: a 4 KiB value with its key fits.
pub const CAPSULE_BYTES_DEFAULT: usize = 16 << 10;
/// The smallest capsule size that is ever granted, in bytes: a command with the longest key fits.
pub const CAPSULE_BYTES_MIN: usize = 2 << 10;
/// The most data behind one response, in bytes: a value, or a batch's with its item results.
pub const RESPONSE_DATA_BYTES_MAX: usize = VALUE_BYTES_MAX + ITEMS_MAX * size_of::<ItemResult>();
/// The most bytes of an authentication method's own.
pub const AUTH_BYTES_MAX: usize = 4 << 10;
/// The most reactors that a server announces.
pub const REACTORS_MAX: u16 = 1024;
/// The most endpoints that a server announces: each reactor's, of each listener.
pub const ENDPOINTS_MAX: u16 = 4096;
/// The most virtual shards of a pool.
pub const SHARDS_MAX: u16 = 4096;
/// The most commands in flight on one connection that is ever negotiated.
pub const QUEUE_DEPTH_MAX: u16 = 1024;

/// What a PDU is: the first byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PduType {
    /// Client → server, first: what it speaks.
    Hello = 0x01,
    /// Server → client: what is spoken, and where everything is.
    HelloAck = 0x02,
    /// Client → server, second: who it is (method `none` for now).
    Auth = 0x03,
    /// Server → client: welcome.
    AuthAck = 0x04,
    /// Client → server: a command capsule.
    Command = 0x10,
    /// Server → client: the end of one command, with its data behind it on a byte stream.
    Response = 0x11,
    /// Client → server, byte streams only: data that an R2T asked for.
    Data = 0x12,
    /// Server → client, byte streams only: ready to transfer.
    ReadyToTransfer = 0x13,
    /// Client → server: give up this command.
    Cancel = 0x14,
    /// Either way: are you there?
    Ping = 0x20,
    /// Either way: yes.
    Pong = 0x21,
    /// Either way: no new commands on this connection, and why.
    GoAway = 0x22,
}

impl PduType {
    /// The type with this number, if there is one.
    #[must_use]
    pub fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            0x01 => Self::Hello,
            0x02 => Self::HelloAck,
            0x03 => Self::Auth,
            0x04 => Self::AuthAck,
            0x10 => Self::Command,
            0x11 => Self::Response,
            0x12 => Self::Data,
            0x13 => Self::ReadyToTransfer,
            0x14 => Self::Cancel,
            0x20 => Self::Ping,
            0x21 => Self::Pong,
            0x22 => Self::GoAway,
            _ => return None,
        })
    }

    /// Which values `length` may have for this type, so that a receiver knows before the rest of
    /// the PDU arrives whether it can be one.
    #[must_use]
    pub fn length_bytes(self) -> RangeInclusive<usize> {
        let exactly = |bytes| bytes..=bytes;
        match self {
            Self::Hello => exactly(size_of::<Hello>()),
            Self::HelloAck => size_of::<HelloAck>() + 4..=HELLO_ACK_BYTES_MAX,
            Self::Auth | Self::AuthAck => size_of::<Auth>()..=size_of::<Auth>() + AUTH_BYTES_MAX,
            Self::Command => size_of::<Command>()..=CAPSULE_BYTES_MAX,
            Self::Response => {
                size_of::<Response>()..=size_of::<Response>() + RESPONSE_DATA_BYTES_MAX
            }
            Self::Data => size_of::<Data>() + 1..=size_of::<Data>() + VALUE_BYTES_MAX,
            Self::ReadyToTransfer => exactly(size_of::<ReadyToTransfer>()),
            Self::Cancel => exactly(size_of::<Cancel>()),
            Self::Ping | Self::Pong => exactly(size_of::<Ping>()),
            Self::GoAway => exactly(size_of::<GoAway>()),
        }
    }

    /// Every type.
    pub const ALL: [Self; 12] = [
        Self::Hello,
        Self::HelloAck,
        Self::Auth,
        Self::AuthAck,
        Self::Command,
        Self::Response,
        Self::Data,
        Self::ReadyToTransfer,
        Self::Cancel,
        Self::Ping,
        Self::Pong,
        Self::GoAway,
    ];
}

/// The longest HELLO_ACK, in bytes.
const HELLO_ACK_BYTES_MAX: usize = size_of::<HelloAck>()
    + ENDPOINT_BYTES * ENDPOINTS_MAX as usize
    + 2 * SHARDS_MAX as usize
    + size_of::<U32>();

/// The first 8 bytes of every PDU.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CommonHeader {
    /// A [`PduType`].
    pub pdu_type: u8,
    /// By type; unknown bits are refused.
    pub flags: u8,
    /// The command identifier: unique among the commands in flight on the connection, below the
    /// negotiated queue depth. 0 where the type has none.
    pub cid: U16,
    /// Bytes of the whole PDU, this header included.
    pub length: U32,
}
const _: () = assert!(size_of::<CommonHeader>() == 8);
/// Bytes of a [`CommonHeader`].
pub const COMMON_HEADER_BYTES: usize = size_of::<CommonHeader>();

impl CommonHeader {
    /// The header of a PDU of `length` bytes in all.
    #[must_use]
    pub fn new(pdu_type: PduType, cid: u16, length: usize) -> Self {
        debug_assert!(pdu_type.length_bytes().contains(&length));
        Self {
            pdu_type: pdu_type as u8,
            flags: 0,
            cid: U16::new(cid),
            length: U32::new(length as u32),
        }
    }

    /// It is a response whose data is in the memory that its command names.
    #[must_use]
    pub fn is_placed(&self) -> bool {
        self.pdu_type == PduType::Response as u8 && self.flags & response_flags::PLACED != 0
    }

    /// Looks at the beginning of a stream of PDUs: what the next one is, and how long. `None` until
    /// there are 8 bytes.
    ///
    /// # Errors
    /// [`DecodeError::Type`], or [`DecodeError::Length`] if no PDU of that type has that length.
    pub fn peek(bytes: &[u8]) -> Result<Option<(PduType, usize)>, DecodeError> {
        let Ok((header, _)) = Self::ref_from_prefix(bytes) else { return Ok(None) };
        let pdu_type = PduType::from_wire(header.pdu_type).ok_or(DecodeError::Type)?;
        let length = header.length.get() as usize;
        if !pdu_type.length_bytes().contains(&length) {
            return Err(DecodeError::Length);
        }
        Ok(Some((pdu_type, length)))
    }
}

/// Why bytes are not a PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than the type's fixed part, or than `length` says.
    #[error("the PDU is truncated")]
    Truncated,
    /// `length` cannot be for this type, or is over the negotiated limit.
    #[error("the PDU's length is impossible")]
    Length,
    /// A type that is not known or not expected here.
    #[error("unknown or unexpected PDU type")]
    Type,
    /// A flag or reserved field that is not zero.
    #[error("a reserved field is not zero")]
    Reserved,
    /// The header's CRC32C does not match.
    #[error("header checksum mismatch")]
    Checksum,
    /// A field is out of its bounds; the text names it.
    #[error("bad field: {0}")]
    Field(&'static str),
}

impl DecodeError {
    /// The same in a few words, for a log line or [`crate::transport::CloseReason::Protocol`].
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Truncated => "truncated PDU",
            Self::Length => "impossible PDU length",
            Self::Type => "unknown or unexpected PDU type",
            Self::Reserved => "reserved field is not zero",
            Self::Checksum => "header checksum mismatch",
            Self::Field(name) => name,
        }
    }
}

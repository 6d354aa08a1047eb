//! Protocol data units: fixed little-endian layouts and the checks that make bytes trusted.
//!
//! Every PDU begins with a [`CommonHeader`]; its `length` covers the whole PDU. Fixed parts carry a
//! CRC32C of themselves, so a flipped bit closes the connection instead of moving the wrong bytes.
//! Each struct has its size asserted beneath it; `PROTOCOL.md` holds the same tables for readers.

mod command;
mod control;
mod hello;
mod response;

pub use command::{Capsule, Command, Item, Opcode, command_flags};
pub use control::{Auth, Cancel, Data, GoAway, GoAwayReason, Ping, ReadyToTransfer};
pub use hello::{ENDPOINT_BYTES, Endpoint, Hello, HelloAck, features};
pub use response::{ItemResult, Response, response_flags};

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The only protocol version there is.
pub const VERSION: u16 = 1;
/// Shortest and longest key, in bytes.
pub const KEY_BYTES: std::ops::RangeInclusive<usize> = 1..=1024;
/// The largest value that one store takes, in bytes; larger objects are manifests of chunks.
pub const VALUE_BYTES_MAX: usize = 4 << 20;
/// The most items in one batch.
pub const ITEMS_MAX: usize = 64;
/// The largest capsule (header, items, keys and in-capsule data) that is ever negotiated, in bytes.
pub const CAPSULE_BYTES_MAX: usize = 128 << 10;
/// The capsule size that a server offers by default, in bytes: a 4 KiB value with its key fits.
pub const CAPSULE_BYTES_DEFAULT: usize = 16 << 10;
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
}

/// The first 8 bytes of every PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
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

/// CRC32C (Castagnoli; RFC 3720 B.4) of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

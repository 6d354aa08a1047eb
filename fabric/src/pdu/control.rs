//! The small PDUs: authentication slot, R2T and DATA, CANCEL, PING/PONG, GOAWAY.

use super::CommonHeader;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// AUTH and AUTH_ACK, 16 bytes: method 0 (`none`) is the only one so far; a method's own bytes
/// would follow, counted by `header.length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Auth {
    /// Type Auth or AuthAck.
    pub header: CommonHeader,
    /// 0: none.
    pub method: U16,
    /// Zero.
    pub reserved: U16,
    /// CRC32C of the 12 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<Auth>() == 16);

/// R2T, 24 bytes: the server has memory ready for `length` bytes of the value, from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ReadyToTransfer {
    /// Type ReadyToTransfer, the command's `cid`.
    pub header: CommonHeader,
    /// First byte wanted.
    pub offset: U32,
    /// Bytes wanted.
    pub length: U32,
    /// Zero.
    pub reserved: U32,
    /// CRC32C of the 20 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<ReadyToTransfer>() == 24);

/// DATA, 24 bytes and then the bytes that an R2T asked for, all of them; the value as a whole is
/// covered by the command's `data_crc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Data {
    /// Type Data, the command's `cid`; `length` counts the bytes that follow.
    pub header: CommonHeader,
    /// As in the R2T.
    pub offset: U32,
    /// As in the R2T.
    pub length: U32,
    /// Zero.
    pub reserved: U32,
    /// CRC32C of the 20 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<Data>() == 24);

/// CANCEL, 16 bytes: answer `cid` now with `Cancelled`, if it has not been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Cancel {
    /// Type Cancel, the `cid` to cancel.
    pub header: CommonHeader,
    /// Zero.
    pub reserved: U32,
    /// CRC32C of the 12 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<Cancel>() == 16);

/// PING and PONG, 24 bytes; a PONG returns the PING's `nonce`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ping {
    /// Type Ping or Pong.
    pub header: CommonHeader,
    /// Any number.
    pub nonce: U64,
    /// Zero.
    pub reserved: U32,
    /// CRC32C of the 20 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<Ping>() == 24);

/// GOAWAY, 16 bytes: no new commands on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GoAway {
    /// Type GoAway.
    pub header: CommonHeader,
    /// A [`GoAwayReason`].
    pub reason: U16,
    /// Zero.
    pub reserved: U16,
    /// CRC32C of the 12 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<GoAway>() == 16);

/// Why a side says GOAWAY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum GoAwayReason {
    /// The server drains: commands in flight are still answered; then it closes.
    Drain = 0,
    /// The peer broke the protocol; the connection closes at once.
    Protocol = 1,
    /// No version in common.
    Version = 2,
    /// Authentication was refused.
    Auth = 3,
    /// No room for another connection.
    Full = 4,
    /// The peer was silent for too long.
    KeepAlive = 5,
}

//! The response: 32 bytes that end one command, and the per-item results of a batch.

use super::CommonHeader;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bits of the common header's `flags` in a response.
pub mod response_flags {
    /// The data begins with one [`super::ItemResult`] per item.
    pub const ITEMS: u8 = 1 << 0;
}

/// The end of one command. On a byte stream `data_length` bytes follow (and `header.length` counts
/// them); on RDMA they have been written to the client's memory before this is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Response {
    /// Type [`super::PduType::Response`], the command's `cid`.
    pub header: CommonHeader,
    /// A [`crate::Status`].
    pub status: U16,
    /// How many commands the client may have in flight from now on.
    pub credit_limit: U16,
    /// Bytes of data delivered.
    pub data_length: U32,
    /// By opcode: retrieve and exist: the value's whole length; list: the next cursor (0: the end);
    /// delete: 1 if the key was there; wrong reactor: the right one.
    pub result: U64,
    /// CRC32C of the data.
    pub data_crc: U32,
    /// CRC32C of the 28 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<Response>() == 32);

/// The end of one item of a batch, 16 bytes; a batch's data begins with one for each item, in order,
/// followed by the items' data, each item's right behind the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ItemResult {
    /// A [`crate::Status`].
    pub status: U16,
    /// Zero.
    pub reserved: U16,
    /// Bytes of this item's data.
    pub data_length: U32,
    /// As [`Response::result`], for this item, modulo 2³².
    pub result: U32,
    /// CRC32C of this item's data.
    pub data_crc: U32,
}
const _: () = assert!(size_of::<ItemResult>() == 16);

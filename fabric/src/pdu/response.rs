//! The response: 32 bytes that end one command, and the per-item results of a batch.

use super::{CommonHeader, DecodeError, PduType, check};
use crate::Status;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bits of the common header's `flags` in a response.
pub mod response_flags {
    /// The data begins with one [`super::ItemResult`] per item.
    pub const ITEMS: u8 = 1 << 0;
    /// The data is not behind the response: it lies in the memory that the command named.
    pub const PLACED: u8 = 1 << 1;
    /// Every bit that is known.
    pub const KNOWN: u8 = ITEMS | PLACED;
}

/// The end of one command. `data_length` bytes follow, and `header.length` counts them; with
/// [`response_flags::PLACED`] none do, since they were written to the client's memory before.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
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
    /// CRC32C of the data; with [`response_flags::ITEMS`], of the item results alone, since every
    /// item's data has a checksum of its own.
    pub data_crc: U32,
    /// CRC32C of the 28 bytes before it.
    pub header_crc: U32,
}
const _: () = assert!(size_of::<Response>() == 32);

/// What a response says, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The command that ended.
    pub cid: u16,
    /// [`response_flags`].
    pub flags: u8,
    /// How it ended.
    pub status: Status,
    /// As [`Response::credit_limit`].
    pub credit_limit: u16,
    /// As [`Response::data_length`].
    pub data_length: u32,
    /// As [`Response::result`].
    pub result: u64,
    /// As [`Response::data_crc`].
    pub data_crc: u32,
}

impl Outcome {
    /// A command ended with `status`, and that is all there is to say.
    #[must_use]
    pub fn bare(cid: u16, status: Status, credit_limit: u16) -> Self {
        Self { cid, flags: 0, status, credit_limit, data_length: 0, result: 0, data_crc: 0 }
    }

    /// There is data, and memory of `length` bytes holds it.
    #[must_use]
    #[inline]
    pub fn fits(&self, length: u32) -> bool {
        (1..=length).contains(&self.data_length)
    }
}

impl Response {
    /// The bytes that say `outcome`.
    #[must_use]
    pub fn new(outcome: &Outcome) -> Self {
        Self::with_flags(outcome, outcome.flags)
    }

    /// The same, said of data that lies in the memory that the command named.
    #[must_use]
    pub fn placed(outcome: &Outcome) -> Self {
        Self::with_flags(outcome, outcome.flags | response_flags::PLACED)
    }

    fn with_flags(outcome: &Outcome, flags: u8) -> Self {
        let Outcome { cid, status, credit_limit, data_length, result, data_crc, .. } = *outcome;
        let length = size_of::<Self>() + behind(flags, data_length);
        let mut response = Self {
            header: CommonHeader::new(PduType::Response, cid, length),
            status: U16::new(status as u16),
            credit_limit: U16::new(credit_limit),
            data_length: U32::new(data_length),
            result: U64::new(result),
            data_crc: U32::new(data_crc),
            header_crc: U32::ZERO,
        };
        response.header.flags = flags;
        check::seal(&mut response);
        response
    }

    /// Checks the first 32 bytes of a response; its data has not been looked at.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn parse(pdu: &[u8]) -> Result<Outcome, DecodeError> {
        let response: &Self = check::fixed(pdu, PduType::Response)?;
        if response.header.flags & !response_flags::KNOWN != 0 {
            return Err(DecodeError::Reserved);
        }
        let data_length = response.data_length.get();
        let behind = behind(response.header.flags, data_length);
        if response.header.length.get() as usize != size_of::<Self>() + behind {
            return Err(DecodeError::Length);
        }
        Ok(Outcome {
            cid: response.header.cid.get(),
            flags: response.header.flags,
            status: Status::from_wire(response.status.get()),
            credit_limit: response.credit_limit.get(),
            data_length,
            result: response.result.get(),
            data_crc: response.data_crc.get(),
        })
    }
}

/// Bytes behind the 32.
fn behind(flags: u8, data_length: u32) -> usize {
    if flags & response_flags::PLACED != 0 { 0 } else { data_length as usize }
}

/// The end of one item of a batch, 16 bytes; a batch's data begins with one for each item, in order,
/// followed by the items' data, each item's right behind the one before.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
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

impl ItemResult {
    /// How one item ended.
    #[must_use]
    pub fn new(status: Status, data_length: u32, result: u32, data_crc: u32) -> Self {
        Self {
            status: U16::new(status as u16),
            reserved: U16::ZERO,
            data_length: U32::new(data_length),
            result: U32::new(result),
            data_crc: U32::new(data_crc),
        }
    }

    /// Cuts the results of `items` items off the data of a response whose `data_crc` is `crc`;
    /// what is left is exactly the items' data.
    ///
    /// # Errors
    /// [`DecodeError`]: fewer results than items, a wrong checksum, or lengths that do not add up.
    pub fn parse_all(data: &[u8], items: usize, crc: u32) -> Result<(&[Self], &[u8]), DecodeError> {
        let (results, rest) = <[Self]>::ref_from_prefix_with_elems(data, items)
            .map_err(|_| DecodeError::Truncated)?;
        Self::check_all(results, rest.len(), crc)?;
        Ok((results, rest))
    }

    /// Checks the results of a batch whose items have `data_bytes` of data together, which is elsewhere.
    ///
    /// # Errors
    /// [`DecodeError`], as in [`ItemResult::parse_all`].
    pub fn check_all(results: &[Self], data_bytes: usize, crc: u32) -> Result<(), DecodeError> {
        if super::crc32c(results.as_bytes()) != crc {
            return Err(DecodeError::Checksum);
        }
        if results.iter().any(|result| result.reserved.get() != 0) {
            return Err(DecodeError::Reserved);
        }
        let sum: u64 = results.iter().map(|result| u64::from(result.data_length.get())).sum();
        if sum == data_bytes as u64 { Ok(()) } else { Err(DecodeError::Length) }
    }

    /// How this item ended.
    #[must_use]
    pub fn outcome(&self) -> Status {
        Status::from_wire(self.status.get())
    }
}

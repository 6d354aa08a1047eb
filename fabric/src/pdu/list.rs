//! The data of a LIST response: keys one behind the other, each with its length and its value's.

use super::DecodeError;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What stands before each key: 6 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ListHeader {
    /// Bytes of the key.
    pub key_length: U16,
    /// Bytes of its value.
    pub value_length: U32,
}
const _: () = assert!(size_of::<ListHeader>() == 6);

/// One key of a LIST response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListEntry<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Bytes of its value.
    pub value_length: u32,
}

/// Walks the data of a LIST response; ends after the first error.
#[derive(Clone, Debug)]
pub struct ListEntries<'a> {
    data: &'a [u8],
}

impl<'a> ListEntries<'a> {
    /// The entries in `data`.
    #[must_use]
    pub fn new(data: &'a [u8]) -> Self {
        Self { data }
    }

    fn cut(&mut self) -> Option<ListEntry<'a>> {
        let (header, rest) = ListHeader::ref_from_prefix(self.data).ok()?;
        let (key, rest) = rest.split_at_checked(usize::from(header.key_length.get()))?;
        self.data = rest;
        Some(ListEntry { key, value_length: header.value_length.get() })
    }
}

impl<'a> Iterator for ListEntries<'a> {
    type Item = Result<ListEntry<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.data.is_empty() {
            return None;
        }
        let entry = self.cut();
        if entry.is_none() {
            self.data = &[];
        }
        Some(entry.ok_or(DecodeError::Truncated))
    }
}

impl ListEntry<'_> {
    /// Bytes that this entry takes in the data.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        size_of::<ListHeader>() + self.key.len()
    }

    /// Writes it to the beginning of `out`; returns how many bytes, or `None` if they do not fit.
    pub fn encode(&self, out: &mut [u8]) -> Option<usize> {
        let out = out.get_mut(..self.encoded_bytes())?;
        let header = ListHeader {
            key_length: U16::new(u16::try_from(self.key.len()).ok()?),
            value_length: U32::new(self.value_length),
        };
        let (front, key) = out.split_at_mut(size_of::<ListHeader>());
        front.copy_from_slice(header.as_bytes());
        key.copy_from_slice(self.key);
        Some(self.encoded_bytes())
    }
}

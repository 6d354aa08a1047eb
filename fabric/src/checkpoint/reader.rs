//! Takes checked pieces off the front of untrusted bytes. Every method either advances or fails.

use crate::pdu::DecodeError;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// What is left of the bytes.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// One fixed layout.
    pub(super) fn take<T>(&mut self) -> Result<&'a T, DecodeError>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        let (value, rest) = T::ref_from_prefix(self.rest).map_err(|_| DecodeError::Truncated)?;
        self.rest = rest;
        Ok(value)
    }

    /// `count` of one fixed layout, borrowed: a count that the bytes do not hold allocates nothing.
    pub(super) fn slice<T>(&mut self, count: usize) -> Result<&'a [T], DecodeError>
    where
        T: FromBytes + Immutable + Unaligned,
    {
        let (values, rest) = <[T]>::ref_from_prefix_with_elems(self.rest, count)
            .map_err(|_| DecodeError::Truncated)?;
        self.rest = rest;
        Ok(values)
    }

    /// `count` bytes.
    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// All that is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Fails unless everything was taken.
    pub(super) fn end(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Length) }
    }
}

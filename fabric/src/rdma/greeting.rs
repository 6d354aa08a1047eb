//! What both sides say in the connection manager's messages: how many PDUs they take, how long.
//!
//! The messages arrive with zeros behind them, and anybody may send anything: a greeting carries its
//! length, a version and a checksum.

use super::provider::{Note, Shape};
use crate::pdu::crc32c;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a greeting.
pub const GREETING_BYTES: usize = size_of::<Layout>();
const MAGIC: [u8; 4] = *b"FBRD";
const VERSION: u16 = 1;
/// Bounds of what a peer may say: fewer receives cannot carry credits, more are nonsense.
const RECEIVES: std::ops::RangeInclusive<u32> = 4..=4096;
/// The shortest receive that takes every fixed PDU and the longest AUTH.
const RECEIVE_BYTES_MIN: u32 = 8 << 10;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Layout {
    magic: [u8; 4],
    length: U16,
    version: U16,
    receives: U32,
    receive_bytes: U32,
    reserved: U32,
    crc: U32,
}
const _: () = assert!(size_of::<Layout>() == 24);

/// What one side takes, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Receives that are posted: the other side's first credits.
    pub receives: u32,
    /// Bytes of each: the longest PDU.
    pub receive_bytes: u32,
}

impl Greeting {
    /// What a side of this shape takes.
    #[must_use]
    pub fn of(shape: &Shape) -> Self {
        Self { receives: shape.receives.into(), receive_bytes: shape.receive_bytes }
    }

    /// As it travels.
    #[must_use]
    pub fn note(&self) -> Note {
        let mut layout = Layout {
            magic: MAGIC,
            length: U16::new(GREETING_BYTES as u16),
            version: U16::new(VERSION),
            receives: U32::new(self.receives),
            receive_bytes: U32::new(self.receive_bytes),
            reserved: U32::ZERO,
            crc: U32::ZERO,
        };
        layout.crc = U32::new(crc32c(&layout.as_bytes()[..GREETING_BYTES - 4]));
        Note::new(layout.as_bytes())
    }

    /// What a peer has said; `None` if it is not of this house, or takes too little.
    #[must_use]
    pub fn parse(note: &Note) -> Option<Self> {
        let (layout, _) = Layout::ref_from_prefix(note.bytes()).ok()?;
        let intact = layout.magic == MAGIC
            && usize::from(layout.length.get()) == GREETING_BYTES
            && layout.version.get() == VERSION
            && layout.reserved.get() == 0
            && layout.crc.get() == crc32c(&layout.as_bytes()[..GREETING_BYTES - 4]);
        let (receives, receive_bytes) = (layout.receives.get(), layout.receive_bytes.get());
        let sensible = RECEIVES.contains(&receives) && receive_bytes >= RECEIVE_BYTES_MIN;
        (intact && sensible).then_some(Self { receives, receive_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_survives_the_padding_of_the_connection_manager() {
        let greeting = Greeting { receives: 72, receive_bytes: 16 << 10 };
        let mut padded = [0; Note::BYTES_MAX];
        padded[..GREETING_BYTES].copy_from_slice(greeting.note().bytes());
        assert_eq!(Greeting::parse(&Note::new(&padded)), Some(greeting));
    }

    #[test]
    fn no_flipped_bit_and_no_garbage_is_taken_for_a_greeting() {
        let note = Greeting { receives: 72, receive_bytes: 16 << 10 }.note();
        for bit in 0..8 * GREETING_BYTES {
            let mut bytes = note.bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Greeting::parse(&Note::new(&bytes)), None, "bit {bit}");
        }
        let mut rng = fastrand::Rng::with_seed(1);
        for length in 0..=Note::BYTES_MAX {
            let bytes: Vec<u8> = (0..length).map(|_| rng.u8(..)).collect();
            assert_eq!(Greeting::parse(&Note::new(&bytes)), None);
        }
        for (receives, receive_bytes) in [(3, 8192), (4097, 8192), (4, 8191)] {
            let note = Greeting { receives, receive_bytes }.note();
            assert_eq!(Greeting::parse(&note), None, "{receives} {receive_bytes}");
        }
    }
}

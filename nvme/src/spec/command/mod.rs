//! The submission queue entry (Base, "Submission Queue Entry"), with a constructor for each command that
//! the appliance sends: admin commands in one file, NVM commands in the other.
//!
//! Guarantees: what is reserved is zero; any 64 bytes can be read as an entry. What breaks it: a
//! constructor that is given a number without an encoding (no blocks, more than 65 536, a queue of one
//! entry) panics: the driver has checked its limits before it builds a command. Every command is built
//! with command identifier 0; the queue gives it its own by [`Submission::with_cid`].

mod admin;
mod nvm;

use core::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

pub use admin::{DOORBELL_BUFFER_BYTES, IdentifyKind, SecureErase};
pub use nvm::{DatasetRange, LBAS_MAX, RANGES_MAX};

/// Size of an entry (Base, "Submission Queue Entry"): IOSQES 6.
pub const SUBMISSION_BYTES: usize = 64;
/// The namespace identifier that stands for all of them (Base, "Namespace Identifier").
pub const ALL_NAMESPACES: u32 = u32::MAX;

/// A command (Base, "Common Command Format").
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct Submission {
    /// Dword 0, bits 7:0 (OPC): see [`super::opcode`].
    pub opcode: u8,
    /// Dword 0, bits 15:8: fused operation (FUSE, 1:0), PRP or SGL (PSDT, 7:6).
    pub flags: u8,
    /// Dword 0, bits 31:16: which command of its queue this is (CID).
    pub cid: U16,
    /// Dword 1: the namespace (NSID).
    pub nsid: U32,
    /// Dword 2.
    pub cdw2: U32,
    /// Dword 3.
    pub cdw3: U32,
    /// Dwords 4 and 5: metadata pointer (MPTR).
    pub metadata: U64,
    /// Dwords 6 to 9: data pointer (DPTR), two PRPs or one SGL descriptor.
    pub data: [U64; 2],
    /// Dword 10.
    pub cdw10: U32,
    /// Dword 11.
    pub cdw11: U32,
    /// Dword 12.
    pub cdw12: U32,
    /// Dword 13.
    pub cdw13: U32,
    /// Dword 14.
    pub cdw14: U32,
    /// Dword 15.
    pub cdw15: U32,
}
const _: () = assert!(size_of::<Submission>() == SUBMISSION_BYTES);
const _: () = assert!(offset_of!(Submission, cid) == 2);
const _: () = assert!(offset_of!(Submission, nsid) == 4);
const _: () = assert!(offset_of!(Submission, metadata) == 16);
const _: () = assert!(offset_of!(Submission, data) == 24);
const _: () = assert!(offset_of!(Submission, cdw10) == 40);
const _: () = assert!(offset_of!(Submission, cdw15) == 60);

/// Where a command's data is, for the device: all addresses are I/O virtual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Physical region pages (Base, "Physical Region Page Entry and List"): the first page, and the second
    /// page or a list of those that follow.
    Prp(u64, u64),
    /// One SGL data block (Base, "Scatter Gather List", "SGL Data Block descriptor").
    Sgl {
        /// Where it begins.
        address: u64,
        /// How long it is.
        bytes: u32,
    },
}

/// FUSE, flags bits 1:0 (Base, "Command Dword 0").
const FUSE_MASK: u8 = 3;
/// PSDT, flags bits 7:6 (Base, "Command Dword 0"): 0 is PRPs.
const PSDT_SHIFT: u32 = 6;
/// PSDT 01b: SGLs, and any metadata in one buffer.
const PSDT_SGL: u8 = 1;
/// PSDT 10b: SGLs, for metadata too.
const PSDT_SGL_METADATA: u8 = 2;

impl Submission {
    const EMPTY: Self = Self {
        opcode: 0,
        flags: 0,
        cid: U16::ZERO,
        nsid: U32::ZERO,
        cdw2: U32::ZERO,
        cdw3: U32::ZERO,
        metadata: U64::ZERO,
        data: [U64::ZERO; 2],
        cdw10: U32::ZERO,
        cdw11: U32::ZERO,
        cdw12: U32::ZERO,
        cdw13: U32::ZERO,
        cdw14: U32::ZERO,
        cdw15: U32::ZERO,
    };

    /// A command without data, and with nothing but zero in its dwords 10 to 15.
    #[must_use]
    #[inline]
    pub const fn new(opcode: u8, nsid: u32) -> Self {
        Self { opcode, nsid: U32::new(nsid), ..Self::EMPTY }
    }

    /// The same, as command `cid` of its queue.
    #[must_use]
    #[inline]
    pub const fn with_cid(mut self, cid: u16) -> Self {
        self.cid = U16::new(cid);
        self
    }

    /// The same, with its data there.
    #[must_use]
    #[inline]
    pub const fn with_data(mut self, data: Data) -> Self {
        let (psdt, low, high) = match data {
            Data::Prp(first, second) => (0, first, second),
            // Descriptor type 0h, sub type 0h (an address), in the last byte: zero.
            Data::Sgl { address, bytes } => (PSDT_SGL, address, bytes as u64),
        };
        self.flags = self.flags & FUSE_MASK | psdt << PSDT_SHIFT;
        self.data = [U64::new(low), U64::new(high)];
        self
    }

    /// Where its data is; `None` if that is neither PRPs nor one SGL data block with an address.
    #[must_use]
    pub const fn data(&self) -> Option<Data> {
        let [low, high] = [self.data[0].get(), self.data[1].get()];
        match self.flags >> PSDT_SHIFT {
            0 => Some(Data::Prp(low, high)),
            PSDT_SGL | PSDT_SGL_METADATA if high >> 56 == 0 => {
                Some(Data::Sgl { address: low, bytes: high as u32 })
            }
            _ => None,
        }
    }

    /// Half of a fused operation (Base, "Fused Operations"), which we never send.
    #[must_use]
    pub const fn fused(&self) -> bool {
        self.flags & FUSE_MASK != 0
    }

    /// The entry as eight words, as numbers.
    #[must_use]
    #[inline]
    pub fn words(&self) -> [u64; 8] {
        let words: [U64; 8] = transmute!(*self);
        words.map(U64::get)
    }

    /// From an entry's eight words, as numbers.
    #[must_use]
    #[inline]
    pub fn from_words(words: [u64; 8]) -> Self {
        transmute!(words.map(U64::new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submission_is_its_golden_bytes() {
        let command = Submission {
            metadata: U64::new(0x1122_3344_5566_7788),
            cdw2: U32::new(2),
            cdw3: U32::new(3),
            cdw15: U32::new(15),
            ..Submission::new(0x81, 0x0102_0304)
        };
        let command = command.with_cid(0xabcd).with_data(Data::Prp(0x1000, 0x2000));
        let mut golden = [0; 64];
        golden[..8].copy_from_slice(&[0x81, 0, 0xcd, 0xab, 4, 3, 2, 1]);
        golden[8] = 2;
        golden[12] = 3;
        golden[16..24].copy_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        golden[25] = 0x10;
        golden[33] = 0x20;
        golden[60] = 15;
        assert_eq!(command.as_bytes(), golden);
        assert_eq!(command.words()[0], 0x0102_0304_abcd_0081);
    }

    #[test]
    fn an_sgl_is_a_data_block_descriptor() {
        let data = Data::Sgl { address: 0x1234_5678_9000, bytes: 0x2_0000 };
        let command = Submission::new(2, 1).with_data(data);
        assert_eq!(command.flags, 0x40);
        assert_eq!(
            command.as_bytes()[24..40],
            [0, 0x90, 0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0]
        );
        assert_eq!(command.data(), Some(data));
        let back = command.with_data(Data::Prp(1, 2));
        assert_eq!((back.flags, back.data()), (0, Some(Data::Prp(1, 2))));
    }

    #[test]
    fn what_is_no_data_block_has_no_data() {
        let mut command = Submission::new(2, 1).with_data(Data::Sgl { address: 0, bytes: 4096 });
        command.data[1] = U64::new(4096 | 0x30 << 56);
        assert_eq!(command.data(), None, "the last segment descriptor");
        command.flags = 0xc0;
        assert_eq!(command.data(), None, "the reserved PSDT");
    }

    #[test]
    fn words_and_entries_are_the_same() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..100_000 {
            let words = [(); 8].map(|()| rng.u64(..));
            let command = Submission::from_words(words);
            assert_eq!(command.words(), words);
            if let Some(data) = command.data() {
                assert_eq!(command.with_data(data).data(), Some(data));
            }
            assert_eq!(command.with_cid(command.cid.get()), command);
        }
    }
}

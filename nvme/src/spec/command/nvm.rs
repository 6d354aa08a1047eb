//! Commands of the NVM command set (NVM, "NVM Command Set Commands").

use core::mem::offset_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Data, Submission};
use crate::spec::opcode::io;

/// The most logical blocks that one command can name: NLB has 16 bits, and is one less (NVM, "Read
/// command").
pub const LBAS_MAX: u32 = 1 << 16;
/// The most ranges of one Dataset Management command (NVM, "Dataset Management command", NR).
pub const RANGES_MAX: u32 = 256;

/// Force Unit Access, dword 12 (NVM, "Write command", FUA).
const FUA: u32 = 1 << 30;
/// Deallocate, dword 12 (NVM, "Write Zeroes command", DEAC).
const DEALLOCATE: u32 = 1 << 25;
/// Attribute Deallocate, dword 11 (NVM, "Dataset Management command", AD).
const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;

/// A range of Dataset Management (NVM, "Dataset Management – Range Definition").
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
pub struct DatasetRange {
    /// Hints on how it is used: none from us.
    pub attributes: U32,
    /// How many logical blocks.
    pub lbas: U32,
    /// The first one.
    pub lba: U64,
}
const _: () = assert!(size_of::<DatasetRange>() == 16);
const _: () = assert!(offset_of!(DatasetRange, lbas) == 4);
const _: () = assert!(offset_of!(DatasetRange, lba) == 8);

impl DatasetRange {
    /// `lbas` logical blocks from `lba` on.
    #[must_use]
    pub const fn new(lba: u64, lbas: u32) -> Self {
        Self { attributes: U32::ZERO, lbas: U32::new(lbas), lba: U64::new(lba) }
    }
}

/// All that name logical blocks panic when `lbas` is 0 or more than [`LBAS_MAX`].
impl Submission {
    /// Read (NVM, "Read command").
    #[must_use]
    #[inline]
    pub const fn read(nsid: u32, lba: u64, lbas: u32, data: Data) -> Self {
        Self::blocks(io::READ, nsid, lba, lbas, 0).with_data(data)
    }

    /// Write; with `fua` it is on media when it completes (NVM, "Write command").
    #[must_use]
    #[inline]
    pub const fn write(nsid: u32, lba: u64, lbas: u32, data: Data, fua: bool) -> Self {
        let flags = if fua { FUA } else { 0 };
        Self::blocks(io::WRITE, nsid, lba, lbas, flags).with_data(data)
    }

    /// Flush: what has completed before is on media (Base, "Flush command").
    #[must_use]
    #[inline]
    pub const fn flush(nsid: u32) -> Self {
        Self::new(io::FLUSH, nsid)
    }

    /// Compare with what is on media: `compare failure` if it differs (NVM, "Compare command").
    #[must_use]
    pub const fn compare(nsid: u32, lba: u64, lbas: u32, data: Data) -> Self {
        Self::blocks(io::COMPARE, nsid, lba, lbas, 0).with_data(data)
    }

    /// Write Zeroes; with `deallocate` the drive may free the blocks, if they read as zeroes then (NVM,
    /// "Write Zeroes command").
    #[must_use]
    pub const fn write_zeroes(nsid: u32, lba: u64, lbas: u32, deallocate: bool) -> Self {
        let flags = if deallocate { DEALLOCATE } else { 0 };
        Self::blocks(io::WRITE_ZEROES, nsid, lba, lbas, flags)
    }

    /// Verify: the drive reads and checks, and transfers nothing (NVM, "Verify command").
    #[must_use]
    pub const fn verify(nsid: u32, lba: u64, lbas: u32) -> Self {
        Self::blocks(io::VERIFY, nsid, lba, lbas, 0)
    }

    /// Dataset Management: deallocates the `ranges` of [`DatasetRange`] at `data` (NVM, "Dataset
    /// Management command").
    ///
    /// # Panics
    /// When there are no ranges, or more than [`RANGES_MAX`].
    #[must_use]
    pub const fn dataset_management(nsid: u32, ranges: u32, data: Data) -> Self {
        assert!(ranges != 0 && ranges <= RANGES_MAX);
        let mut command =
            Self::new(io::DATASET_MANAGEMENT, nsid).with_data(data).with_cdw10(ranges - 1);
        command.cdw11 = U32::new(ATTRIBUTE_DEALLOCATE);
        command
    }

    #[inline]
    const fn blocks(opcode: u8, nsid: u32, lba: u64, lbas: u32, cdw12: u32) -> Self {
        assert!(lbas != 0 && lbas <= LBAS_MAX);
        let mut command = Self::new(opcode, nsid);
        command.cdw10 = U32::new(lba as u32);
        command.cdw11 = U32::new((lba >> 32) as u32);
        command.cdw12 = U32::new((lbas - 1) | cdw12);
        command
    }

    /// The first logical block of a command that names some (SLBA).
    #[must_use]
    pub const fn lba(&self) -> u64 {
        (self.cdw11.get() as u64) << 32 | self.cdw10.get() as u64
    }

    /// How many logical blocks it names (NLB + 1).
    #[must_use]
    pub const fn lbas(&self) -> u32 {
        (self.cdw12.get() & 0xffff) + 1
    }

    /// Force Unit Access is asked for.
    #[must_use]
    pub const fn fua(&self) -> bool {
        self.cdw12.get() & FUA != 0
    }

    /// A Write Zeroes that may deallocate.
    #[must_use]
    pub const fn deallocates(&self) -> bool {
        self.cdw12.get() & DEALLOCATE != 0
    }

    /// How many ranges a Dataset Management command has (NR + 1).
    #[must_use]
    pub const fn ranges(&self) -> u32 {
        (self.cdw10.get() & 0xff) + 1
    }

    /// A Dataset Management command that deallocates.
    #[must_use]
    pub const fn deallocates_ranges(&self) -> bool {
        self.cdw11.get() & ATTRIBUTE_DEALLOCATE != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: Data = Data::Prp(0xdead_b000, 0xbeef_0000);

    #[test]
    fn a_read_is_its_golden_bytes() {
        let read = Submission::read(1, 0x11_2233_4455, 8, DATA).with_cid(0x0102);
        let golden: [u8; 64] = [
            0x02, 0x00, 0x02, 0x01, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // opcode, CID, NSID
            0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0xb0, 0xad, 0xde, 0, 0, 0, 0, // MPTR, PRP1
            0x00, 0x00, 0xef, 0xbe, 0, 0, 0, 0, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0,
            0, // PRP2, SLBA
            7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // NLB
        ];
        assert_eq!(read.as_bytes(), golden);
        assert_eq!((read.lba(), read.lbas(), read.fua()), (0x11_2233_4455, 8, false));
    }

    #[test]
    fn a_forced_write_by_sgl_is_its_golden_bytes() {
        let data = Data::Sgl { address: 0x7000, bytes: 0x1000_0000 };
        let write = Submission::write(u32::MAX - 1, 3, 65536, data, true);
        assert_eq!(write.as_bytes()[..8], [0x01, 0x40, 0, 0, 0xfe, 0xff, 0xff, 0xff]);
        assert_eq!(
            write.as_bytes()[24..40],
            [0, 0x70, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0]
        );
        assert_eq!(
            write.as_bytes()[40..],
            [3, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
        assert!(write.fua() && write.lbas() == LBAS_MAX && write.data() == Some(data));
        assert!(!Submission::write(1, 3, 1, data, false).fua());
    }

    #[test]
    fn commands_without_data_are_their_golden_words() {
        let flush = Submission::flush(5);
        assert_eq!(flush.words(), [5 << 32, 0, 0, 0, 0, 0, 0, 0]);
        let zeroes = Submission::write_zeroes(1, 16, 256, true);
        assert_eq!(zeroes.words(), [1 << 32 | 8, 0, 0, 0, 0, 16, 0x0200_00ff, 0]);
        assert!(zeroes.deallocates() && !Submission::write_zeroes(1, 16, 256, false).deallocates());
        assert_eq!(Submission::verify(1, 16, 2).words(), [1 << 32 | 0x0c, 0, 0, 0, 0, 16, 1, 0]);
    }

    #[test]
    fn compare_and_dataset_management_are_their_golden_words() {
        let compare = Submission::compare(1, 16, 2, DATA);
        assert_eq!(compare.words(), [1 << 32 | 5, 0, 0, 0xdead_b000, 0xbeef_0000, 16, 1, 0]);
        let trim = Submission::dataset_management(1, 256, DATA);
        assert_eq!(
            trim.words(),
            [1 << 32 | 9, 0, 0, 0xdead_b000, 0xbeef_0000, 4 << 32 | 255, 0, 0]
        );
        assert!(trim.ranges() == RANGES_MAX && trim.deallocates_ranges());
        let range = DatasetRange::new(0x0102_0304_0506, 7);
        assert_eq!(range.as_bytes(), [0, 0, 0, 0, 7, 0, 0, 0, 6, 5, 4, 3, 2, 1, 0, 0]);
    }

    #[test]
    #[should_panic(expected = "lbas")]
    fn a_read_of_nothing_is_our_mistake() {
        let _nothing = Submission::read(1, 0, core::hint::black_box(0), DATA);
    }
}

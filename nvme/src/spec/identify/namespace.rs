//! Namespaces: Identify Namespace, the active list, and what identifies one for ever (Base, "Identify
//! command"; NVM, "Identify Namespace data structure, NVM Command Set").

use core::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{IDENTIFY_BYTES, IdentifyController};

/// A namespace, in the drive's words. Each field has the name that the specification gives it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Namespace Size, in logical blocks; 0 is a namespace that is not active.
    pub nsze: U64,
    /// Namespace Capacity, in logical blocks: how many can be allocated.
    pub ncap: U64,
    /// Namespace Utilization, in logical blocks.
    pub nuse: U64,
    /// Namespace Features.
    pub nsfeat: u8,
    /// Number of LBA Formats, which is one less.
    pub nlbaf: u8,
    /// Formatted LBA Size: see [`IdentifyNamespace::lba_format`].
    pub flbas: u8,
    /// Metadata Capabilities.
    pub mc: u8,
    /// End-to-end Data Protection Capabilities.
    pub dpc: u8,
    /// End-to-end Data Protection Type Settings: see [`IdentifyNamespace::protected`].
    pub dps: u8,
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
    pub nmic: u8,
    /// Reservation Capabilities.
    pub rescap: u8,
    /// Format Progress Indicator: see [`IdentifyNamespace::format_percent_left`].
    pub fpi: u8,
    /// Deallocate Logical Block Features.
    pub dlfeat: u8,
    /// Namespace Atomic Write Unit Normal, in logical blocks, which is one less.
    pub nawun: U16,
    /// Namespace Atomic Write Unit Power Fail: see [`IdentifyNamespace::atomic_lbas_power_fail`].
    pub nawupf: U16,
    /// Namespace Atomic Compare & Write Unit, in logical blocks, which is one less.
    pub nacwu: U16,
    /// Namespace Atomic Boundary Size Normal, in logical blocks, which is one less; 0 is none.
    pub nabsn: U16,
    /// Namespace Atomic Boundary Offset: the first boundary.
    pub nabo: U16,
    /// Namespace Atomic Boundary Size Power Fail, in logical blocks, which is one less; 0 is none.
    pub nabspf: U16,
    /// Namespace Optimal I/O Boundary, in logical blocks; 0 does not say.
    pub noiob: U16,
    /// NVM Capacity, in bytes.
    pub nvmcap: U128,
    /// Namespace Preferred Write Granularity: see [`IdentifyNamespace::write_granularity_lbas`].
    pub npwg: U16,
    /// Namespace Preferred Write Alignment: see [`IdentifyNamespace::write_alignment_lbas`].
    pub npwa: U16,
    /// Namespace Preferred Deallocate Granularity, in logical blocks, which is one less.
    pub npdg: U16,
    /// Namespace Preferred Deallocate Alignment, in logical blocks, which is one less.
    pub npda: U16,
    /// Namespace Optimal Write Size, in logical blocks, which is one less.
    pub nows: U16,
    /// Maximum Single Source Range Length of Copy, in logical blocks.
    pub mssrl: U16,
    /// Maximum Copy Length, in logical blocks.
    pub mcl: U32,
    /// Maximum Source Range Count of Copy, which is one less.
    pub msrc: u8,
    /// Reserved.
    pub reserved81: [u8; 11],
    /// ANA Group Identifier.
    pub anagrpid: U32,
    /// Reserved.
    pub reserved96: [u8; 3],
    /// Namespace Attributes.
    pub nsattr: u8,
    /// NVM Set Identifier.
    pub nvmsetid: U16,
    /// Endurance Group Identifier.
    pub endgid: U16,
    /// Namespace Globally Unique Identifier, its highest byte first; all zero is none.
    pub nguid: [u8; 16],
    /// IEEE Extended Unique Identifier, its highest byte first; all zero is none.
    pub eui64: [u8; 8],
    /// LBA Formats, of which [`IdentifyNamespace::lba_formats`] are there.
    pub lbaf: [LbaFormat; 64],
    /// The vendor's.
    pub vendor: [u8; 3712],
}
const _: () = assert!(size_of::<IdentifyNamespace>() == IDENTIFY_BYTES);
const _: () = assert!(offset_of!(IdentifyNamespace, nsfeat) == 24);
const _: () = assert!(offset_of!(IdentifyNamespace, flbas) == 26);
const _: () = assert!(offset_of!(IdentifyNamespace, dps) == 29);
const _: () = assert!(offset_of!(IdentifyNamespace, dlfeat) == 33);
const _: () = assert!(offset_of!(IdentifyNamespace, nawupf) == 36);
const _: () = assert!(offset_of!(IdentifyNamespace, noiob) == 46);
const _: () = assert!(offset_of!(IdentifyNamespace, nvmcap) == 48);
const _: () = assert!(offset_of!(IdentifyNamespace, npwg) == 64);
const _: () = assert!(offset_of!(IdentifyNamespace, nows) == 72);
const _: () = assert!(offset_of!(IdentifyNamespace, mssrl) == 74);
const _: () = assert!(offset_of!(IdentifyNamespace, anagrpid) == 92);
const _: () = assert!(offset_of!(IdentifyNamespace, nsattr) == 99);
const _: () = assert!(offset_of!(IdentifyNamespace, nguid) == 104);
const _: () = assert!(offset_of!(IdentifyNamespace, eui64) == 120);
const _: () = assert!(offset_of!(IdentifyNamespace, lbaf) == 128);
const _: () = assert!(offset_of!(IdentifyNamespace, vendor) == 384);

/// A form that logical blocks can have (NVM, "LBA Format Data Structure, NVM Command Set Specific").
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
pub struct LbaFormat {
    /// Metadata Size: bytes of metadata for each block.
    pub ms: U16,
    /// LBA Data Size, as a power of two: see [`LbaFormat::bytes`].
    pub lbads: u8,
    /// Relative Performance, bits 1:0: 0 is the best.
    pub rp: u8,
}
const _: () = assert!(size_of::<LbaFormat>() == 4);

impl LbaFormat {
    /// Blocks of `1 << shift` bytes with so much metadata.
    #[must_use]
    pub const fn new(shift: u8, metadata_bytes: u16) -> Self {
        Self { ms: U16::new(metadata_bytes), lbads: shift, rp: 0 }
    }

    /// Bytes of data in a block; `None` for what no block can have: less than 512, or 4 GiB and more.
    #[must_use]
    pub const fn bytes(&self) -> Option<u32> {
        match self.lbads {
            9..=31 => Some(1 << self.lbads),
            _ => None,
        }
    }

    /// Bytes of metadata for each block.
    #[must_use]
    pub const fn metadata_bytes(&self) -> u16 {
        self.ms.get()
    }

    /// How it compares with the others: 0 is the best, 3 the worst.
    #[must_use]
    pub const fn relative_performance(&self) -> u8 {
        self.rp & 3
    }
}

/// Namespace Features, NSFEAT.
mod nsfeat {
    pub(super) const THIN: u8 = 1 << 0;
    pub(super) const ATOMICS: u8 = 1 << 1;
    pub(super) const DEALLOCATED_ERROR: u8 = 1 << 2;
    pub(super) const OPTIMAL_PERFORMANCE: u8 = 1 << 4;
}

impl IdentifyNamespace {
    /// Which of the LBA formats it has (FLBAS: bits 3:0, and 6:5 above them where there are more than 16
    /// formats).
    #[must_use]
    pub const fn lba_format_index(&self) -> u8 {
        let (low, high) = (self.flbas & 15, self.flbas >> 5 & 3);
        if self.nlbaf < 16 { low } else { low | high << 4 }
    }

    /// The form of its logical blocks.
    #[must_use]
    pub const fn lba_format(&self) -> LbaFormat {
        self.lbaf[self.lba_format_index() as usize]
    }

    /// The forms that it can be formatted to; the index is what Format NVM takes.
    #[must_use]
    pub fn lba_formats(&self) -> &[LbaFormat] {
        &self.lbaf[..self.lbaf.len().min(usize::from(self.nlbaf) + 1)]
    }

    /// Its size in bytes; `None` if its blocks have none, or it does not fit.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        self.nsze.get().checked_mul(self.lba_format().bytes()?.into())
    }

    /// Protection information is on: blocks carry checks that the host has to write (DPS, bits 2:0).
    #[must_use]
    pub const fn protected(&self) -> bool {
        self.dps & 7 != 0
    }

    /// Metadata lies behind the data of each block, in the same buffer (FLBAS, bit 4).
    #[must_use]
    pub const fn extended_lbas(&self) -> bool {
        self.flbas & 1 << 4 != 0 && self.lba_format().metadata_bytes() != 0
    }

    /// Blocks are allocated as they are written (NSFEAT, bit 0).
    #[must_use]
    pub const fn thin(&self) -> bool {
        self.nsfeat & nsfeat::THIN != 0
    }

    /// Reading a deallocated block can be made an error (NSFEAT, bit 2).
    #[must_use]
    pub const fn reports_deallocated(&self) -> bool {
        self.nsfeat & nsfeat::DEALLOCATED_ERROR != 0
    }

    /// Other controllers can have it too (NMIC, bit 0).
    #[must_use]
    pub const fn shared(&self) -> bool {
        self.nmic & 1 != 0
    }

    /// It is write protected (NSATTR, bit 0).
    #[must_use]
    pub const fn write_protected(&self) -> bool {
        self.nsattr & 1 != 0
    }

    /// Deallocated blocks read as zeroes (DLFEAT, bits 2:0).
    #[must_use]
    pub const fn deallocated_reads_zeroes(&self) -> bool {
        self.dlfeat & 7 == 1
    }

    /// Write Zeroes may deallocate (DLFEAT, bit 3).
    #[must_use]
    pub const fn write_zeroes_deallocates(&self) -> bool {
        self.dlfeat & 1 << 3 != 0
    }

    /// How many blocks a write may have to be all or nothing in a power cut, if it crosses no boundary
    /// (NAWUPF where NSFEAT bit 1 has it and it is not 0, else the controller's AWUPF).
    #[must_use]
    pub fn atomic_lbas_power_fail(&self, controller: &IdentifyController) -> u32 {
        match self.nawupf.get() {
            own if own != 0 && self.nsfeat & nsfeat::ATOMICS != 0 => u32::from(own) + 1,
            _ => controller.atomic_lbas_power_fail(),
        }
    }

    /// A write that crosses a multiple of so many blocks, counted from block [`IdentifyNamespace::nabo`]
    /// on, is not atomic in a power cut; `None` is no boundary (NABSPF).
    #[must_use]
    pub fn atomic_boundary_power_fail_lbas(&self) -> Option<u32> {
        let boundary = u32::from(self.nabspf.get());
        (boundary != 0 && self.nsfeat & nsfeat::ATOMICS != 0).then_some(boundary + 1)
    }

    /// I/O is fastest that does not cross a multiple of so many blocks (NOIOB).
    #[must_use]
    pub fn optimal_boundary_lbas(&self) -> Option<u32> {
        let boundary = self.noiob.get();
        (boundary != 0).then_some(boundary.into())
    }

    /// Writes are best multiples of so many blocks (NPWG, where NSFEAT bit 4 has it).
    #[must_use]
    pub fn write_granularity_lbas(&self) -> Option<u32> {
        self.preferred(self.npwg)
    }

    /// Writes are best aligned to so many blocks (NPWA, where NSFEAT bit 4 has it).
    #[must_use]
    pub fn write_alignment_lbas(&self) -> Option<u32> {
        self.preferred(self.npwa)
    }

    /// Writes are best so large (NOWS, where NSFEAT bit 4 has it).
    #[must_use]
    pub fn optimal_write_lbas(&self) -> Option<u32> {
        self.preferred(self.nows)
    }

    /// Deallocation is best in multiples of so many blocks (NPDG, where NSFEAT bit 4 has it).
    #[must_use]
    pub fn deallocate_granularity_lbas(&self) -> Option<u32> {
        self.preferred(self.npdg)
    }

    /// Deallocation is best aligned to so many blocks (NPDA, where NSFEAT bit 4 has it).
    #[must_use]
    pub fn deallocate_alignment_lbas(&self) -> Option<u32> {
        self.preferred(self.npda)
    }

    /// How much of a format is still to do, in percent, where the drive says so (FPI: bit 7, bits 6:0).
    #[must_use]
    pub const fn format_percent_left(&self) -> Option<u8> {
        if self.fpi & 0x80 != 0 { Some(self.fpi & 0x7f) } else { None }
    }

    fn preferred(&self, field: U16) -> Option<u32> {
        let there = self.nsfeat & nsfeat::OPTIMAL_PERFORMANCE != 0;
        there.then(|| u32::from(field.get()) + 1)
    }
}

/// A page of the active namespaces, in ascending order; zero ends it (Base, "Active Namespace ID list").
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ActiveNamespaces {
    /// The identifiers.
    pub nsids: [U32; 1024],
}
const _: () = assert!(size_of::<ActiveNamespaces>() == IDENTIFY_BYTES);

impl ActiveNamespaces {
    /// The namespaces above `after_nsid`, which is what was asked for. A list that does not ascend from
    /// there ends where it does not: whoever asks again for what follows the last one comes to an end.
    pub fn after(&self, after_nsid: u32) -> impl Iterator<Item = u32> + '_ {
        self.nsids.iter().scan(after_nsid, |last, nsid| {
            let ascends = nsid.get() > *last;
            *last = nsid.get();
            ascends.then_some(*last)
        })
    }

    /// All namespaces of the first page.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.after(0)
    }

    /// The page is full: there may be more behind the last one.
    #[must_use]
    pub const fn full(&self) -> bool {
        self.nsids[self.nsids.len() - 1].get() != 0
    }
}

/// What identifies a namespace for ever (Base, "Namespace Identification Descriptor", NIDT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceIdentifier<'a> {
    /// IEEE Extended Unique Identifier (1h), its highest byte first.
    Eui64([u8; 8]),
    /// Namespace Globally Unique Identifier (2h), its highest byte first.
    Nguid([u8; 16]),
    /// A UUID (3h), its highest byte first.
    Uuid([u8; 16]),
    /// Which command set it follows (4h): 0 is NVM.
    CommandSet(u8),
    /// A type that is not known, or with a length that it cannot have.
    Other {
        /// Its type (NIDT).
        kind: u8,
        /// What it holds.
        bytes: &'a [u8],
    },
}

impl<'a> NamespaceIdentifier<'a> {
    fn parse(kind: u8, bytes: &'a [u8]) -> Self {
        let known = match kind {
            1 => bytes.try_into().map(Self::Eui64),
            2 => bytes.try_into().map(Self::Nguid),
            3 => bytes.try_into().map(Self::Uuid),
            4 => bytes.try_into().map(|[command_set]: [u8; 1]| Self::CommandSet(command_set)),
            _ => return Self::Other { kind, bytes },
        };
        known.unwrap_or(Self::Other { kind, bytes })
    }
}

/// The descriptors in what Identify has returned, up to the first that is empty or does not fit (Base,
/// "Namespace Identification Descriptor list").
pub fn descriptors(page: &[u8]) -> impl Iterator<Item = NamespaceIdentifier<'_>> {
    let mut rest = page;
    core::iter::from_fn(move || {
        let (&[kind, length, _, _], behind) = rest.split_first_chunk::<4>()?;
        if length == 0 {
            return None;
        }
        let (bytes, behind) = behind.split_at_checked(length.into())?;
        rest = behind;
        Some(NamespaceIdentifier::parse(kind, bytes))
    })
}

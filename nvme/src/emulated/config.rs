//! What controller to emulate.
//!
//! Guarantees: the default is an honest data-centre drive, which a driver has no excuse to refuse. Every field
//! is raw enough to be absurd: what a drive would return for it is returned, whether it makes sense or not.

use std::ops::Range;

use super::faults::{Chances, Scheduled};
use crate::sim::{Faults, Latency};
use crate::spec::registers::Version;

/// A controller, and what goes wrong with it.
#[derive(Clone, Debug)]
pub struct EmulatedConfig {
    /// What it is called, like a PCI address.
    pub name: String,
    /// Where all chance comes from.
    pub seed: u64,
    /// Its registers.
    pub registers: RegisterConfig,
    /// What Identify Controller says.
    pub identity: Identity,
    /// Its namespaces, by ascending identifier.
    pub namespaces: Vec<NamespaceConfig>,
    /// I/O queue pairs that it gives, however many it is asked for.
    pub queues: u32,
    /// How long things take.
    pub times: Times,
    /// I/O virtual addresses have so many bits.
    pub iova_bits: u32,
    /// What goes wrong by chance with I/O commands.
    pub io_chances: Chances,
    /// What goes wrong by chance with admin commands.
    pub admin_chances: Chances,
    /// What goes wrong by chance with the media.
    pub media_faults: Faults,
    /// What goes wrong at a given time, in microseconds.
    pub schedule: Vec<(u64, Scheduled)>,
    /// Keeps what was completed: see [`super::EmulatedController::trace`].
    pub trace: bool,
}

/// CAP, VS and CRTO (NVMe Base 2.0, "Controller Properties").
#[derive(Clone, Debug)]
pub struct RegisterConfig {
    /// CAP.MQES: the largest I/O queue, less one.
    pub mqes: u16,
    /// CAP.TO, in 500 ms.
    pub timeout: u8,
    /// CAP.DSTRD: doorbells are 4 << this apart.
    pub doorbell_stride: u8,
    /// CAP.MPSMIN: memory pages of at least 4096 << this.
    pub page_min: u8,
    /// CAP.MPSMAX: memory pages of at most 4096 << this.
    pub page_max: u8,
    /// CAP.CSS: 1 is the NVM command set.
    pub command_sets: u8,
    /// CAP.CRMS.
    pub ready_modes: u8,
    /// CRTO.
    pub ready_timeouts: u32,
    /// VS.
    pub version: Version,
    /// Size of the BAR; what the queues need without it.
    pub bar_bytes: Option<usize>,
}

/// What Identify Controller says.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// MDTS; 0 is no limit.
    pub mdts: u8,
    /// A volatile write cache is present.
    pub volatile_write_cache: bool,
    /// FUA is taken no notice of, against the specification.
    pub ignores_fua: bool,
    /// AWUPF: logical blocks, less one.
    pub awupf: u16,
    /// ONCS.
    pub oncs: u16,
    /// OACS.
    pub oacs: u16,
    /// SGLS.
    pub sgls: u32,
    /// ACL: aborts at a time, less one.
    pub acl: u8,
    /// AERL: asynchronous event requests at a time, less one.
    pub aerl: u8,
    /// OAES.
    pub oaes: u32,
    /// CRDT 1 to 3, in 100 ms.
    pub crdt: [u16; 3],
    /// NN; the highest namespace without it.
    pub nn: Option<u32>,
}

/// A namespace.
#[derive(Clone, Debug)]
pub struct NamespaceConfig {
    /// Its identifier.
    pub nsid: u32,
    /// Its size in logical blocks.
    pub lbas: u64,
    /// The LBA formats that it can have: size as a power of two, and bytes of metadata.
    pub formats: Vec<(u8, u16)>,
    /// Which of them it has.
    pub format: u8,
    /// DPS: 0 is no protection information.
    pub protection: u8,
    /// NOIOB, in logical blocks; 0 is none.
    pub boundary: u16,
    /// NPWG and NPWA, in logical blocks, less one.
    pub write_granularity: Option<u16>,
    /// NAWUPF, in logical blocks, less one.
    pub nawupf: Option<u16>,
}

/// How long things take, in microseconds: evenly spread over each range, which is not empty.
#[derive(Clone, Debug)]
pub struct Times {
    /// I/O commands.
    pub io: Latency,
    /// Admin commands.
    pub admin_us: Range<u64>,
    /// CSTS.RDY to follow CC.EN.
    pub enable_us: Range<u64>,
    /// CSTS.RDY to follow the clearing of CC.EN.
    pub disable_us: Range<u64>,
    /// CSTS.SHST to follow CC.SHN.
    pub shutdown_us: Range<u64>,
}

impl EmulatedConfig {
    /// Size of the BAR: to the end of the last doorbell, in whole pages.
    pub(super) fn bar_bytes(&self) -> usize {
        let stride = 4_usize << (self.registers.doorbell_stride & 15);
        let pairs = self.queues.min(256) as usize + 1;
        let needed = 0x1000 + 2 * pairs * stride;
        self.registers.bar_bytes.unwrap_or(needed).max(0x1008).next_multiple_of(4096)
    }
}

impl RegisterConfig {
    /// CAP.
    pub(super) fn capabilities(&self) -> u64 {
        u64::from(self.mqes)
            | 1 << 16
            | u64::from(self.timeout) << 24
            | u64::from(self.doorbell_stride & 15) << 32
            | u64::from(self.command_sets) << 37
            | u64::from(self.page_min & 15) << 48
            | u64::from(self.page_max & 15) << 52
            | u64::from(self.ready_modes & 3) << 59
    }
}

impl NamespaceConfig {
    /// A namespace of so many logical blocks of 1 << `shift` bytes.
    #[must_use]
    pub fn new(nsid: u32, lbas: u64, shift: u8) -> Self {
        Self {
            nsid,
            lbas,
            formats: vec![(shift, 0)],
            format: 0,
            protection: 0,
            boundary: 0,
            write_granularity: None,
            nawupf: None,
        }
    }

    /// Bytes of data in a logical block; 0 where its format has none that can be emulated.
    pub(super) fn lba_bytes(&self) -> u64 {
        match self.formats.get(usize::from(self.format)) {
            Some((shift @ 9..=16, 0)) => 1 << shift,
            _ => 0,
        }
    }
}

impl Default for EmulatedConfig {
    /// One namespace of 256 MiB in blocks of 4 KiB, 16 queues of up to 1024 entries, a volatile cache.
    fn default() -> Self {
        Self {
            name: "emulated:00.0".to_owned(),
            seed: 0,
            registers: RegisterConfig::default(),
            identity: Identity::default(),
            namespaces: vec![NamespaceConfig::new(1, 65_536, 12)],
            queues: 16,
            times: Times::default(),
            iova_bits: 48,
            io_chances: Chances::default(),
            admin_chances: Chances::default(),
            media_faults: Faults::default(),
            schedule: Vec::new(),
            trace: false,
        }
    }
}

impl Default for RegisterConfig {
    fn default() -> Self {
        Self {
            mqes: 1023,
            timeout: 20,
            doorbell_stride: 0,
            page_min: 0,
            page_max: 4,
            command_sets: 1,
            ready_modes: 1,
            ready_timeouts: 20,
            version: Version::new(2, 0, 0),
            bar_bytes: None,
        }
    }
}

/// ONCS bits (NVM Command Set 1.0, "Identify Controller data structure").
pub(super) mod oncs {
    pub(crate) const COMPARE: u16 = 1;
    pub(crate) const DATASET_MANAGEMENT: u16 = 1 << 2;
    pub(crate) const WRITE_ZEROES: u16 = 1 << 3;
    pub(crate) const VERIFY: u16 = 1 << 7;
}

/// OACS bits (NVMe Base 2.0, "Identify Controller data structure").
pub(super) mod oacs {
    pub(crate) const FORMAT: u16 = 1 << 1;
    pub(crate) const DOORBELL_BUFFERS: u16 = 1 << 8;
}

impl Identity {
    /// A model that is known to take no notice of FUA.
    #[must_use]
    pub fn ignoring_fua() -> Self {
        Self { model: "QEMU NVMe Ctrl".to_owned(), ignores_fua: true, ..Self::default() }
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            serial: "EMU0001".to_owned(),
            model: "Forebay emulated NVMe".to_owned(),
            firmware: "1.0".to_owned(),
            mdts: 5,
            volatile_write_cache: true,
            ignores_fua: false,
            awupf: 0,
            oncs: oncs::COMPARE | oncs::DATASET_MANAGEMENT | oncs::WRITE_ZEROES | oncs::VERIFY,
            oacs: oacs::FORMAT,
            sgls: 0,
            acl: 3,
            aerl: 3,
            oaes: 1 << 8 | 1 << 9,
            crdt: [1, 5, 20],
            nn: None,
        }
    }
}

impl Default for Times {
    /// A data-centre TLC drive that gets ready in some milliseconds.
    fn default() -> Self {
        Self {
            io: Latency::default(),
            admin_us: 50..300,
            enable_us: 2_000..20_000,
            disable_us: 100..5_000,
            shutdown_us: 1_000..50_000,
        }
    }
}

impl Times {
    /// Everything is done in the step that sees it.
    #[must_use]
    pub fn none() -> Self {
        Self {
            io: Latency::none(),
            admin_us: 0..1,
            enable_us: 0..1,
            disable_us: 0..1,
            shutdown_us: 0..1,
        }
    }
}

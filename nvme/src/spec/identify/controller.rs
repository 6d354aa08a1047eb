//! Identify Controller (Base, "Identify Controller Data Structure, I/O Command Set Independent"; NVM, "I/O
//! Command Set specific Identify Controller data structure").

use core::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{IDENTIFY_BYTES, ascii, bytes_max, celsius};
use crate::spec::registers::Version;

/// A controller, in its own words. Each field has the name that the specification gives it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI Vendor ID.
    pub vid: U16,
    /// PCI Subsystem Vendor ID.
    pub ssvid: U16,
    /// Serial Number: see [`IdentifyController::serial`].
    pub sn: [u8; 20],
    /// Model Number: see [`IdentifyController::model`].
    pub mn: [u8; 40],
    /// Firmware Revision: see [`IdentifyController::firmware`].
    pub fr: [u8; 8],
    /// Recommended Arbitration Burst, as a power of two.
    pub rab: u8,
    /// The manufacturer's OUI, its lowest byte first.
    pub ieee: [u8; 3],
    /// Multi-Path I/O and Namespace Sharing Capabilities.
    pub cmic: u8,
    /// Maximum Data Transfer Size: see [`IdentifyController::transfer_bytes_max`].
    pub mdts: u8,
    /// Controller ID, unique in its subsystem.
    pub cntlid: U16,
    /// Version: see [`IdentifyController::version`].
    pub ver: U32,
    /// RTD3 Resume Latency, in µs.
    pub rtd3r: U32,
    /// RTD3 Entry Latency, in µs: how long a normal shutdown may take.
    pub rtd3e: U32,
    /// Optional Asynchronous Events Supported: see [`crate::spec::feature::async_events`].
    pub oaes: U32,
    /// Controller Attributes.
    pub ctratt: U32,
    /// Read Recovery Levels Supported.
    pub rrls: U16,
    /// Reserved.
    pub reserved102: [u8; 9],
    /// Controller Type: 1 is an I/O controller; 0 does not say.
    pub cntrltype: u8,
    /// FRU Globally Unique Identifier, its highest byte first.
    pub fguid: [u8; 16],
    /// Command Retry Delay Time 1: see [`IdentifyController::retry_delay_ms`].
    pub crdt1: U16,
    /// Command Retry Delay Time 2.
    pub crdt2: U16,
    /// Command Retry Delay Time 3.
    pub crdt3: U16,
    /// Reserved.
    pub reserved134: [u8; 106],
    /// Reserved for the NVMe Management Interface.
    pub reserved240: [u8; 13],
    /// NVM Subsystem Report.
    pub nvmsr: u8,
    /// VPD Write Cycle Information.
    pub vwci: u8,
    /// Management Endpoint Capabilities.
    pub mec: u8,
    /// Optional Admin Command Support.
    pub oacs: U16,
    /// Abort Command Limit, which is one less.
    pub acl: u8,
    /// Asynchronous Event Request Limit, which is one less.
    pub aerl: u8,
    /// Firmware Updates: see [`IdentifyController::firmware_slots`].
    pub frmw: u8,
    /// Log Page Attributes.
    pub lpa: u8,
    /// Error Log Page Entries, which is one less.
    pub elpe: u8,
    /// Number of Power States Support, which is one less.
    pub npss: u8,
    /// Admin Vendor Specific Command Configuration.
    pub avscc: u8,
    /// Autonomous Power State Transition Attributes.
    pub apsta: u8,
    /// Warning Composite Temperature Threshold, in kelvin; 0 does not say.
    pub wctemp: U16,
    /// Critical Composite Temperature Threshold, in kelvin; 0 does not say.
    pub cctemp: U16,
    /// Maximum Time for Firmware Activation, in 100 ms; 0 does not say.
    pub mtfa: U16,
    /// Host Memory Buffer Preferred Size, in 4 KiB.
    pub hmpre: U32,
    /// Host Memory Buffer Minimum Size, in 4 KiB.
    pub hmmin: U32,
    /// Total NVM Capacity, in bytes; 0 does not say.
    pub tnvmcap: U128,
    /// Unallocated NVM Capacity, in bytes.
    pub unvmcap: U128,
    /// Replay Protected Memory Block Support.
    pub rpmbs: U32,
    /// Extended Device Self-test Time, in minutes.
    pub edstt: U16,
    /// Device Self-test Options.
    pub dsto: u8,
    /// Firmware Update Granularity, in 4 KiB; 0 does not say, FFh is none.
    pub fwug: u8,
    /// Keep Alive Support: granularity of the timer in 100 ms; 0 is no keep alive.
    pub kas: U16,
    /// Host Controlled Thermal Management Attributes.
    pub hctma: U16,
    /// Minimum Thermal Management Temperature, in kelvin.
    pub mntmt: U16,
    /// Maximum Thermal Management Temperature, in kelvin.
    pub mxtmt: U16,
    /// Sanitize Capabilities.
    pub sanicap: U32,
    /// Host Memory Buffer Minimum Descriptor Entry Size, in 4 KiB.
    pub hmminds: U32,
    /// Host Memory Maximum Descriptors Entries.
    pub hmmaxd: U16,
    /// NVM Set Identifier Maximum.
    pub nsetidmax: U16,
    /// Endurance Group Identifier Maximum.
    pub endgidmax: U16,
    /// ANA Transition Time, in seconds.
    pub anatt: u8,
    /// Asymmetric Namespace Access Capabilities.
    pub anacap: u8,
    /// ANA Group Identifier Maximum.
    pub anagrpmax: U32,
    /// Number of ANA Group Identifiers.
    pub nanagrpid: U32,
    /// Persistent Event Log Size, in 64 KiB.
    pub pels: U32,
    /// Domain Identifier.
    pub domainid: U16,
    /// Reserved.
    pub reserved358: [u8; 10],
    /// Max Endurance Group Capacity, in bytes.
    pub megcap: U128,
    /// Reserved.
    pub reserved384: [u8; 128],
    /// Submission Queue Entry Size, as powers of two: required in bits 3:0, the largest in 7:4.
    pub sqes: u8,
    /// Completion Queue Entry Size, in the same form.
    pub cqes: u8,
    /// Maximum Outstanding Commands; 0 does not say.
    pub maxcmd: U16,
    /// Number of Namespaces: the largest identifier.
    pub nn: U32,
    /// Optional NVM Command Support.
    pub oncs: U16,
    /// Fused Operation Support.
    pub fuses: U16,
    /// Format NVM Attributes.
    pub fna: u8,
    /// Volatile Write Cache: see [`IdentifyController::volatile_write_cache`].
    pub vwc: u8,
    /// Atomic Write Unit Normal, in logical blocks, which is one less.
    pub awun: U16,
    /// Atomic Write Unit Power Fail, in logical blocks, which is one less.
    pub awupf: U16,
    /// I/O Command Set Vendor Specific Command Configuration.
    pub icsvscc: u8,
    /// Namespace Write Protection Capabilities.
    pub nwpc: u8,
    /// Atomic Compare & Write Unit, in logical blocks, which is one less.
    pub acwu: U16,
    /// Copy Descriptor Formats Supported.
    pub cdfs: U16,
    /// SGL Support: see [`IdentifyController::sgl_support`].
    pub sgls: U32,
    /// Maximum Number of Allowed Namespaces.
    pub mnan: U32,
    /// Maximum Domain Namespace Attachments.
    pub maxdna: U128,
    /// Maximum I/O Controller Namespace Attachments.
    pub maxcna: U32,
    /// Reserved.
    pub reserved564: [u8; 204],
    /// NVM Subsystem NVMe Qualified Name: see [`IdentifyController::subsystem_name`].
    pub subnqn: [u8; 256],
    /// Reserved.
    pub reserved1024: [u8; 768],
    /// What belongs to NVMe over Fabrics.
    pub fabrics: [u8; 256],
    /// Power State Descriptors, of which [`IdentifyController::power_states`] are there.
    pub psd: [PowerState; 32],
    /// The vendor's.
    pub vendor: [u8; 1024],
}
const _: () = assert!(size_of::<IdentifyController>() == IDENTIFY_BYTES);
const _: () = assert!(offset_of!(IdentifyController, sn) == 4);
const _: () = assert!(offset_of!(IdentifyController, mn) == 24);
const _: () = assert!(offset_of!(IdentifyController, fr) == 64);
const _: () = assert!(offset_of!(IdentifyController, mdts) == 77);
const _: () = assert!(offset_of!(IdentifyController, cntlid) == 78);
const _: () = assert!(offset_of!(IdentifyController, ver) == 80);
const _: () = assert!(offset_of!(IdentifyController, oaes) == 92);
const _: () = assert!(offset_of!(IdentifyController, cntrltype) == 111);
const _: () = assert!(offset_of!(IdentifyController, crdt1) == 128);
const _: () = assert!(offset_of!(IdentifyController, nvmsr) == 253);
const _: () = assert!(offset_of!(IdentifyController, oacs) == 256);
const _: () = assert!(offset_of!(IdentifyController, elpe) == 262);
const _: () = assert!(offset_of!(IdentifyController, wctemp) == 266);
const _: () = assert!(offset_of!(IdentifyController, tnvmcap) == 280);
const _: () = assert!(offset_of!(IdentifyController, unvmcap) == 296);
const _: () = assert!(offset_of!(IdentifyController, kas) == 320);
const _: () = assert!(offset_of!(IdentifyController, sanicap) == 328);
const _: () = assert!(offset_of!(IdentifyController, anatt) == 342);
const _: () = assert!(offset_of!(IdentifyController, megcap) == 368);
const _: () = assert!(offset_of!(IdentifyController, sqes) == 512);
const _: () = assert!(offset_of!(IdentifyController, maxcmd) == 514);
const _: () = assert!(offset_of!(IdentifyController, nn) == 516);
const _: () = assert!(offset_of!(IdentifyController, oncs) == 520);
const _: () = assert!(offset_of!(IdentifyController, vwc) == 525);
const _: () = assert!(offset_of!(IdentifyController, awupf) == 528);
const _: () = assert!(offset_of!(IdentifyController, sgls) == 536);
const _: () = assert!(offset_of!(IdentifyController, subnqn) == 768);
const _: () = assert!(offset_of!(IdentifyController, fabrics) == 1792);
const _: () = assert!(offset_of!(IdentifyController, psd) == 2048);
const _: () = assert!(offset_of!(IdentifyController, vendor) == 3072);

/// A power state (Base, "Power State Descriptor Data Structure").
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct PowerState {
    /// Maximum Power: see [`PowerState::power_max_mw`].
    pub mp: U16,
    /// Reserved.
    pub reserved2: u8,
    /// Bit 0: Maximum Power is in 0.1 mW (MXPS); bit 1: no I/O is processed in this state (NOPS).
    pub flags: u8,
    /// Entry Latency, in µs.
    pub enlat: U32,
    /// Exit Latency, in µs.
    pub exlat: U32,
    /// Relative Read Throughput: 0 is the best.
    pub rrt: u8,
    /// Relative Read Latency.
    pub rrl: u8,
    /// Relative Write Throughput.
    pub rwt: u8,
    /// Relative Write Latency.
    pub rwl: u8,
    /// Idle Power.
    pub idlp: U16,
    /// Idle Power Scale, bits 7:6.
    pub ips: u8,
    /// Reserved.
    pub reserved19: u8,
    /// Active Power.
    pub actp: U16,
    /// Active Power Workload, bits 2:0, and Active Power Scale, bits 7:6.
    pub apws: u8,
    /// Reserved.
    pub reserved23: [u8; 9],
}
const _: () = assert!(size_of::<PowerState>() == 32);
const _: () = assert!(offset_of!(PowerState, enlat) == 4);
const _: () = assert!(offset_of!(PowerState, idlp) == 16);
const _: () = assert!(offset_of!(PowerState, actp) == 20);

impl PowerState {
    /// The most that the drive draws in this state, in mW; `None` if it does not say.
    #[must_use]
    pub fn power_max_mw(&self) -> Option<u32> {
        let (power, fine) = (u32::from(self.mp.get()), self.flags & 1 != 0);
        (power != 0).then(|| if fine { power.div_ceil(10) } else { power * 10 })
    }

    /// I/O is processed in this state.
    #[must_use]
    pub const fn operational(&self) -> bool {
        self.flags & 2 == 0
    }
}

/// How SGLs may be used for I/O commands (Base, "Identify Controller Data Structure", SGLS, bits 1:0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SglSupport {
    /// Not at all.
    None,
    /// With any alignment and length.
    Any,
    /// Addresses and lengths are multiples of 4.
    Dword,
    /// The reserved value: as good as none.
    Other,
}

/// Optional Admin Command Support, OACS.
mod oacs {
    pub(super) const FORMAT: u16 = 1 << 1;
    pub(super) const FIRMWARE: u16 = 1 << 2;
    pub(super) const NAMESPACE_MANAGEMENT: u16 = 1 << 3;
    pub(super) const DOORBELL_BUFFERS: u16 = 1 << 8;
}

/// Optional NVM Command Support, ONCS.
mod oncs {
    pub(super) const COMPARE: u16 = 1 << 0;
    pub(super) const WRITE_UNCORRECTABLE: u16 = 1 << 1;
    pub(super) const DATASET_MANAGEMENT: u16 = 1 << 2;
    pub(super) const WRITE_ZEROES: u16 = 1 << 3;
    pub(super) const RESERVATIONS: u16 = 1 << 5;
    pub(super) const TIMESTAMP: u16 = 1 << 6;
    pub(super) const VERIFY: u16 = 1 << 7;
    pub(super) const COPY: u16 = 1 << 8;
}

impl IdentifyController {
    /// Serial number.
    #[must_use]
    pub fn serial(&self) -> &str {
        ascii(&self.sn)
    }

    /// Model number.
    #[must_use]
    pub fn model(&self) -> &str {
        ascii(&self.mn)
    }

    /// Firmware revision.
    #[must_use]
    pub fn firmware(&self) -> &str {
        ascii(&self.fr)
    }

    /// NQN of the subsystem; empty before 1.2.1.
    #[must_use]
    pub fn subsystem_name(&self) -> &str {
        ascii(&self.subnqn)
    }

    /// The manufacturer's OUI as a number.
    #[must_use]
    pub const fn oui(&self) -> u32 {
        let [low, middle, high] = self.ieee;
        u32::from_le_bytes([low, middle, high, 0])
    }

    /// The NVMe version that it follows.
    #[must_use]
    pub const fn version(&self) -> Version {
        Version(self.ver.get())
    }

    /// It drives I/O: it is no discovery or administrative controller (CNTRLTYPE). What does not say, does.
    #[must_use]
    pub const fn drives_io(&self) -> bool {
        matches!(self.cntrltype, 0 | 1)
    }

    /// The most bytes that one command may transfer, where the smallest memory page has `page_bytes_min`
    /// (CAP.MPSMIN); `None` is no limit (MDTS).
    #[must_use]
    pub fn transfer_bytes_max(&self, page_bytes_min: usize) -> Option<u64> {
        bytes_max(self.mdts, page_bytes_min)
    }

    /// There is a cache that a power cut empties, unless a feature has turned it off (VWC, bit 0).
    #[must_use]
    pub const fn volatile_write_cache(&self) -> bool {
        self.vwc & 1 != 0
    }

    /// Flush may name all namespaces at once (VWC, bits 2:1).
    #[must_use]
    pub const fn flushes_all_namespaces(&self) -> bool {
        self.vwc >> 1 & 3 == 3
    }

    /// Delay `index` that a status asks for before a retry: 1 to 3; of any other index, none (CRDT1 to 3,
    /// in units of 100 ms).
    #[must_use]
    pub const fn retry_delay_ms(&self, index: u8) -> u64 {
        let units = match index {
            1 => self.crdt1.get(),
            2 => self.crdt2.get(),
            3 => self.crdt3.get(),
            _ => 0,
        };
        units as u64 * 100
    }

    /// How long a normal shutdown may take, in µs; `None` if it does not say (RTD3E).
    #[must_use]
    pub const fn shutdown_us(&self) -> Option<u64> {
        match self.rtd3e.get() {
            0 => None,
            us => Some(us as u64),
        }
    }

    /// The most Abort commands at a time (ACL).
    #[must_use]
    pub const fn aborts_max(&self) -> u32 {
        self.acl as u32 + 1
    }

    /// The most Asynchronous Event Requests at a time (AERL).
    #[must_use]
    pub const fn async_event_requests_max(&self) -> u32 {
        self.aerl as u32 + 1
    }

    /// How many entries the error log can have (ELPE).
    #[must_use]
    pub const fn error_log_entries(&self) -> u32 {
        self.elpe as u32 + 1
    }

    /// How many firmware slots there are (FRMW, bits 3:1): 1 to 7.
    #[must_use]
    pub const fn firmware_slots(&self) -> u8 {
        self.frmw >> 1 & 7
    }

    /// The power states that are there (NPSS).
    #[must_use]
    pub fn power_states(&self) -> &[PowerState] {
        &self.psd[..self.psd.len().min(usize::from(self.npss) + 1)]
    }

    /// The size of a submission queue entry that is required (SQES, bits 3:0).
    #[must_use]
    pub const fn sq_entry_bytes(&self) -> usize {
        1 << (self.sqes & 15)
    }

    /// The size of a completion queue entry that is required (CQES, bits 3:0).
    #[must_use]
    pub const fn cq_entry_bytes(&self) -> usize {
        1 << (self.cqes & 15)
    }

    /// How many logical blocks a write may have to be all or nothing in a power cut, whichever the
    /// namespace (AWUPF).
    #[must_use]
    pub const fn atomic_lbas_power_fail(&self) -> u32 {
        self.awupf.get() as u32 + 1
    }

    /// The temperature at which it warns, in °C (WCTEMP).
    #[must_use]
    pub fn warning_celsius(&self) -> Option<i32> {
        celsius(self.wctemp.get())
    }

    /// The temperature at which it is in danger, in °C (CCTEMP).
    #[must_use]
    pub fn critical_celsius(&self) -> Option<i32> {
        celsius(self.cctemp.get())
    }

    /// How SGLs may be used (SGLS, bits 1:0).
    #[must_use]
    pub const fn sgl_support(&self) -> SglSupport {
        match self.sgls.get() & 3 {
            0 => SglSupport::None,
            1 => SglSupport::Any,
            2 => SglSupport::Dword,
            _ => SglSupport::Other,
        }
    }

    /// Format NVM is there (OACS, bit 1).
    #[must_use]
    pub const fn has_format(&self) -> bool {
        self.oacs.get() & oacs::FORMAT != 0
    }

    /// Firmware Commit and Firmware Image Download are there (OACS, bit 2).
    #[must_use]
    pub const fn has_firmware_update(&self) -> bool {
        self.oacs.get() & oacs::FIRMWARE != 0
    }

    /// Namespace Management is there (OACS, bit 3).
    #[must_use]
    pub const fn has_namespace_management(&self) -> bool {
        self.oacs.get() & oacs::NAMESPACE_MANAGEMENT != 0
    }

    /// Doorbell Buffer Config is there (OACS, bit 8).
    #[must_use]
    pub const fn has_doorbell_buffers(&self) -> bool {
        self.oacs.get() & oacs::DOORBELL_BUFFERS != 0
    }

    /// Compare is there (ONCS, bit 0).
    #[must_use]
    pub const fn has_compare(&self) -> bool {
        self.oncs.get() & oncs::COMPARE != 0
    }

    /// Write Uncorrectable is there (ONCS, bit 1).
    #[must_use]
    pub const fn has_write_uncorrectable(&self) -> bool {
        self.oncs.get() & oncs::WRITE_UNCORRECTABLE != 0
    }

    /// Dataset Management is there (ONCS, bit 2).
    #[must_use]
    pub const fn has_dataset_management(&self) -> bool {
        self.oncs.get() & oncs::DATASET_MANAGEMENT != 0
    }

    /// Write Zeroes is there (ONCS, bit 3).
    #[must_use]
    pub const fn has_write_zeroes(&self) -> bool {
        self.oncs.get() & oncs::WRITE_ZEROES != 0
    }

    /// Reservations are there (ONCS, bit 5).
    #[must_use]
    pub const fn has_reservations(&self) -> bool {
        self.oncs.get() & oncs::RESERVATIONS != 0
    }

    /// The Timestamp feature is there (ONCS, bit 6).
    #[must_use]
    pub const fn has_timestamp(&self) -> bool {
        self.oncs.get() & oncs::TIMESTAMP != 0
    }

    /// Verify is there (ONCS, bit 7).
    #[must_use]
    pub const fn has_verify(&self) -> bool {
        self.oncs.get() & oncs::VERIFY != 0
    }

    /// Copy is there (ONCS, bit 8).
    #[must_use]
    pub const fn has_copy(&self) -> bool {
        self.oncs.get() & oncs::COPY != 0
    }

    /// A format of one namespace formats all of them (FNA, bit 0).
    #[must_use]
    pub const fn formats_all_namespaces(&self) -> bool {
        self.fna & 1 != 0
    }

    /// Secure erase of one namespace erases all of them (FNA, bit 1).
    #[must_use]
    pub const fn erases_all_namespaces(&self) -> bool {
        self.fna & 2 != 0
    }

    /// Cryptographic erase is there (FNA, bit 2).
    #[must_use]
    pub const fn has_cryptographic_erase(&self) -> bool {
        self.fna & 4 != 0
    }

    /// SMART can be asked for of one namespace (LPA, bit 0).
    #[must_use]
    pub const fn has_smart_per_namespace(&self) -> bool {
        self.lpa & 1 != 0
    }

    /// Log pages can be read from an offset on (LPA, bit 2).
    #[must_use]
    pub const fn has_log_offset(&self) -> bool {
        self.lpa & 4 != 0
    }
}

/// The NVM command set's limits (NVM, "I/O Command Set specific Identify Controller data structure for
/// the NVM Command Set"). Zero everywhere is no limit, or that it does not say.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IdentifyControllerNvm {
    /// Verify Size Limit, in the form of MDTS.
    pub vsl: u8,
    /// Write Zeroes Size Limit, in the form of MDTS.
    pub wzsl: u8,
    /// Write Uncorrectable Size Limit, in the form of MDTS.
    pub wusl: u8,
    /// Dataset Management Ranges Limit: the most ranges of one command.
    pub dmrl: u8,
    /// Dataset Management Range Size Limit: the most logical blocks of one range.
    pub dmrsl: U32,
    /// Dataset Management Size Limit: the most logical blocks of one command.
    pub dmsl: U64,
    /// Reserved.
    pub reserved16: [u8; 4080],
}
const _: () = assert!(size_of::<IdentifyControllerNvm>() == IDENTIFY_BYTES);
const _: () = assert!(offset_of!(IdentifyControllerNvm, dmrsl) == 4);
const _: () = assert!(offset_of!(IdentifyControllerNvm, dmsl) == 8);

impl IdentifyControllerNvm {
    /// The most bytes that one Verify may name; `None` is no limit (VSL).
    #[must_use]
    pub fn verify_bytes_max(&self, page_bytes_min: usize) -> Option<u64> {
        bytes_max(self.vsl, page_bytes_min)
    }

    /// The most bytes that one Write Zeroes may name; `None` is no limit (WZSL).
    #[must_use]
    pub fn write_zeroes_bytes_max(&self, page_bytes_min: usize) -> Option<u64> {
        bytes_max(self.wzsl, page_bytes_min)
    }
}

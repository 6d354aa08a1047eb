//! Log pages (Base, "Get Log Page command", "Log Specific Information").
//!
//! Guarantees: any bytes of the right length are each of the pages here. What to beware of: the counters of
//! 128 bits are the drive's words, and sums over them saturate.

use core::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::identify::{ascii, celsius};
use super::name_in;
use super::status::Status;

named! { u8;
    SUPPORTED_PAGES = 0x00, "supported log pages";
    ERROR = 0x01, "error information";
    SMART = 0x02, "SMART / health information";
    FIRMWARE_SLOT = 0x03, "firmware slot information";
    CHANGED_NAMESPACES = 0x04, "changed namespace list";
    COMMANDS_SUPPORTED = 0x05, "commands supported and effects";
    SELF_TEST = 0x06, "device self-test";
    TELEMETRY_HOST = 0x07, "telemetry host-initiated";
    TELEMETRY_CONTROLLER = 0x08, "telemetry controller-initiated";
    ENDURANCE_GROUP = 0x09, "endurance group information";
    PREDICTABLE_LATENCY = 0x0a, "predictable latency per NVM set";
    PREDICTABLE_LATENCY_EVENTS = 0x0b, "predictable latency event aggregate";
    ANA = 0x0c, "asymmetric namespace access";
    PERSISTENT_EVENTS = 0x0d, "persistent event log";
    LBA_STATUS = 0x0e, "LBA status information";
    ENDURANCE_GROUP_EVENTS = 0x0f, "endurance group event aggregate";
    MEDIA_UNIT_STATUS = 0x10, "media unit status";
    CAPACITY_CONFIGURATIONS = 0x11, "supported capacity configuration list";
    FEATURES_SUPPORTED = 0x12, "feature identifiers supported and effects";
    MI_COMMANDS_SUPPORTED = 0x13, "NVMe-MI commands supported and effects";
    LOCKDOWN = 0x14, "command and feature lockdown";
    BOOT_PARTITION = 0x15, "boot partition";
    ROTATIONAL_MEDIA = 0x16, "rotational media information";
    FDP_CONFIGURATIONS = 0x20, "FDP configurations";
    FDP_RECLAIM_UNITS = 0x21, "FDP reclaim unit handle usage";
    FDP_STATISTICS = 0x22, "FDP statistics";
    FDP_EVENTS = 0x23, "FDP events";
    DISCOVERY = 0x70, "discovery";
    RESERVATION = 0x80, "reservation notification";
    SANITIZE = 0x81, "sanitize status";
}

/// What a log page is called in a message.
#[must_use]
pub fn name(page: u8) -> &'static str {
    name_in(NAMES, page).unwrap_or("unknown log page")
}

/// Size of [`ErrorLogEntry`] (Base, "Error Information Log Entry Data Structure").
pub const ERROR_ENTRY_BYTES: usize = 64;
/// Size of [`SmartLog`] (Base, "SMART / Health Information Log Page").
pub const SMART_BYTES: usize = 512;
/// Size of [`FirmwareSlotLog`] (Base, "Firmware Slot Information Log Page").
pub const FIRMWARE_SLOT_BYTES: usize = 512;
/// Size of [`ChangedNamespaces`] (Base, "Changed Namespace List Log Page").
pub const CHANGED_NAMESPACES_BYTES: usize = 4096;

/// A command that failed (Base, "Error Information Log Entry Data Structure"). The newest is the first of
/// its page.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ErrorLogEntry {
    /// The number of this error since the drive was made; 0 is an entry that is not used.
    pub error_count: U64,
    /// The submission queue; FFFFh if it was no command's error.
    pub sqid: U16,
    /// The command's identifier.
    pub cid: U16,
    /// The status with its phase tag: see [`ErrorLogEntry::status`].
    pub status_field: U16,
    /// Where the fault lies in the command: byte in bits 7:0, bit in 10:8; FFFFh does not say.
    pub parameter_location: U16,
    /// The first logical block that failed.
    pub lba: U64,
    /// The namespace.
    pub nsid: U32,
    /// The vendor's log page that has more; 0 is none.
    pub vendor_page: u8,
    /// Transport type, as NVMe over Fabrics numbers them; 0 does not say.
    pub transport: u8,
    /// Reserved.
    pub reserved30: [u8; 2],
    /// What belongs to the command.
    pub command_specific: U64,
    /// What belongs to the transport.
    pub transport_specific: U16,
    /// Reserved.
    pub reserved42: [u8; 22],
}
const _: () = assert!(size_of::<ErrorLogEntry>() == ERROR_ENTRY_BYTES);
const _: () = assert!(offset_of!(ErrorLogEntry, status_field) == 12);
const _: () = assert!(offset_of!(ErrorLogEntry, lba) == 16);
const _: () = assert!(offset_of!(ErrorLogEntry, nsid) == 24);
const _: () = assert!(offset_of!(ErrorLogEntry, vendor_page) == 28);
const _: () = assert!(offset_of!(ErrorLogEntry, command_specific) == 32);
const _: () = assert!(offset_of!(ErrorLogEntry, transport_specific) == 40);

impl ErrorLogEntry {
    /// There is an error here.
    #[must_use]
    pub const fn used(&self) -> bool {
        self.error_count.get() != 0
    }

    /// How the command ended.
    #[must_use]
    pub const fn status(&self) -> Status {
        Status(self.status_field.get() >> 1)
    }

    /// The command that failed, as its queue and identifier; `None` if it was no command's error.
    #[must_use]
    pub const fn command(&self) -> Option<(u16, u16)> {
        match self.sqid.get() {
            u16::MAX => None,
            sqid => Some((sqid, self.cid.get())),
        }
    }
}

/// What a drive is in danger of (Base, "SMART / Health Information Log Page", Critical Warning).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CriticalWarning(pub u8);

impl CriticalWarning {
    /// Each bit that has a name, with it.
    pub const NAMES: &[(u8, &str)] = &[
        (Self::SPARE_LOW, "available spare is low"),
        (Self::TEMPERATURE, "temperature past a threshold"),
        (Self::RELIABILITY, "reliability is degraded"),
        (Self::READ_ONLY, "media is read only"),
        (Self::BACKUP_FAILED, "volatile memory backup has failed"),
        (Self::PMR_UNRELIABLE, "persistent memory region is read only or unreliable"),
    ];
    /// Bit 0: available spare is below its threshold.
    pub const SPARE_LOW: u8 = 1 << 0;
    /// Bit 1: a temperature is at or past a threshold, over or under.
    pub const TEMPERATURE: u8 = 1 << 1;
    /// Bit 2: reliability is degraded, by media or internal errors.
    pub const RELIABILITY: u8 = 1 << 2;
    /// Bit 3: all media is in read only mode.
    pub const READ_ONLY: u8 = 1 << 3;
    /// Bit 4: the volatile memory backup device has failed.
    pub const BACKUP_FAILED: u8 = 1 << 4;
    /// Bit 5: the persistent memory region is read only or unreliable.
    pub const PMR_UNRELIABLE: u8 = 1 << 5;

    /// There is any warning at all, known or not.
    #[must_use]
    pub const fn any(self) -> bool {
        self.0 != 0
    }

    /// This warning is there.
    #[must_use]
    pub const fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    /// The names of all that are there; a bit without a name has "unknown warning".
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        (0..8)
            .map(|bit| 1 << bit)
            .filter(move |bit| self.has(*bit))
            .map(|bit| name_in(Self::NAMES, bit).unwrap_or("unknown warning"))
    }
}

/// The health of a drive (Base, "SMART / Health Information Log Page").
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct SmartLog {
    /// Critical Warning: see [`SmartLog::warning`].
    pub critical_warning: u8,
    /// Composite Temperature, in kelvin: see [`SmartLog::celsius`].
    pub temperature: U16,
    /// Available Spare, in percent.
    pub available_spare: u8,
    /// Available Spare Threshold, in percent.
    pub spare_threshold: u8,
    /// Percentage Used: 100 is the end of its rated life, 255 is that and more.
    pub percentage_used: u8,
    /// Endurance Group Critical Warning Summary.
    pub endurance_group_warning: u8,
    /// Reserved.
    pub reserved7: [u8; 25],
    /// Data Units Read, in thousands of 512 bytes, rounded up: see [`SmartLog::bytes_read`].
    pub data_units_read: U128,
    /// Data Units Written, in the same: see [`SmartLog::bytes_written`].
    pub data_units_written: U128,
    /// Host Read Commands.
    pub host_reads: U128,
    /// Host Write Commands.
    pub host_writes: U128,
    /// Controller Busy Time, in minutes.
    pub busy_minutes: U128,
    /// Power Cycles.
    pub power_cycles: U128,
    /// Power On Hours.
    pub power_on_hours: U128,
    /// Unsafe Shutdowns.
    pub unsafe_shutdowns: U128,
    /// Media and Data Integrity Errors.
    pub media_errors: U128,
    /// Number of Error Information Log Entries.
    pub error_log_entries: U128,
    /// Warning Composite Temperature Time, in minutes.
    pub warning_temperature_minutes: U32,
    /// Critical Composite Temperature Time, in minutes.
    pub critical_temperature_minutes: U32,
    /// Temperature Sensors 1 to 8, in kelvin: see [`SmartLog::sensor_celsius`].
    pub sensors: [U16; 8],
    /// Thermal Management Temperature 1 Transition Count.
    pub throttle1_count: U32,
    /// Thermal Management Temperature 2 Transition Count.
    pub throttle2_count: U32,
    /// Total Time For Thermal Management Temperature 1, in seconds.
    pub throttle1_s: U32,
    /// Total Time For Thermal Management Temperature 2, in seconds.
    pub throttle2_s: U32,
    /// Reserved.
    pub reserved232: [u8; 280],
}
const _: () = assert!(size_of::<SmartLog>() == SMART_BYTES);
const _: () = assert!(offset_of!(SmartLog, temperature) == 1);
const _: () = assert!(offset_of!(SmartLog, percentage_used) == 5);
const _: () = assert!(offset_of!(SmartLog, data_units_read) == 32);
const _: () = assert!(offset_of!(SmartLog, power_on_hours) == 128);
const _: () = assert!(offset_of!(SmartLog, media_errors) == 160);
const _: () = assert!(offset_of!(SmartLog, warning_temperature_minutes) == 192);
const _: () = assert!(offset_of!(SmartLog, sensors) == 200);
const _: () = assert!(offset_of!(SmartLog, throttle1_count) == 216);
const _: () = assert!(offset_of!(SmartLog, reserved232) == 232);

/// What [`SmartLog::data_units_read`] counts (Base, "SMART / Health Information Log Page").
const DATA_UNIT_BYTES: u128 = 1000 * 512;

impl SmartLog {
    /// What the drive is in danger of.
    #[must_use]
    pub const fn warning(&self) -> CriticalWarning {
        CriticalWarning(self.critical_warning)
    }

    /// Its composite temperature in °C; `None` if it does not say.
    #[must_use]
    pub fn celsius(&self) -> Option<i32> {
        celsius(self.temperature.get())
    }

    /// Its sensors in °C, with their numbers from 1 on: those that are there.
    pub fn sensor_celsius(&self) -> impl Iterator<Item = (usize, i32)> + '_ {
        let number = |(at, kelvin): (usize, &U16)| Some((at + 1, celsius(kelvin.get())?));
        self.sensors.iter().enumerate().filter_map(number)
    }

    /// Bytes that hosts have read, to the next 512 000.
    #[must_use]
    pub fn bytes_read(&self) -> u128 {
        self.data_units_read.get().saturating_mul(DATA_UNIT_BYTES)
    }

    /// Bytes that hosts have written, to the next 512 000.
    #[must_use]
    pub fn bytes_written(&self) -> u128 {
        self.data_units_written.get().saturating_mul(DATA_UNIT_BYTES)
    }
}

/// The firmware that a drive has (Base, "Firmware Slot Information Log Page").
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct FirmwareSlotLog {
    /// Active Firmware Info: the slot that runs in bits 2:0, the one after the next reset in 6:4.
    pub afi: u8,
    /// Reserved.
    pub reserved1: [u8; 7],
    /// Firmware Revision of slots 1 to 7.
    pub frs: [[u8; 8]; 7],
    /// Reserved.
    pub reserved64: [u8; 448],
}
const _: () = assert!(size_of::<FirmwareSlotLog>() == FIRMWARE_SLOT_BYTES);
const _: () = assert!(offset_of!(FirmwareSlotLog, frs) == 8);
const _: () = assert!(offset_of!(FirmwareSlotLog, reserved64) == 64);

impl FirmwareSlotLog {
    /// The slot whose firmware runs; 0 is none that there could be.
    #[must_use]
    pub const fn active_slot(&self) -> u8 {
        self.afi & 7
    }

    /// The slot that the next reset starts, if the drive says.
    #[must_use]
    pub const fn next_slot(&self) -> Option<u8> {
        match self.afi >> 4 & 7 {
            0 => None,
            slot => Some(slot),
        }
    }

    /// The revision in `slot`, from 1 on; empty if there is none.
    #[must_use]
    pub fn revision(&self, slot: u8) -> &str {
        let field = usize::from(slot).checked_sub(1).and_then(|at| self.frs.get(at));
        field.map_or("", |field| ascii(field))
    }
}

/// Namespaces that have changed since the page was last read (Base, "Changed Namespace List Log Page").
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ChangedNamespaces {
    /// The identifiers, in ascending order; zero ends them.
    pub nsids: [U32; 1024],
}
const _: () = assert!(size_of::<ChangedNamespaces>() == CHANGED_NAMESPACES_BYTES);

impl ChangedNamespaces {
    /// More have changed than the page can hold: look at all of them.
    #[must_use]
    pub const fn overflowed(&self) -> bool {
        self.nsids[0].get() == u32::MAX
    }

    /// The namespaces that have changed; none of an overflowed page.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.nsids.iter().map(|nsid| nsid.get()).take_while(|nsid| !matches!(nsid, 0 | &u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::status::media;

    #[test]
    fn an_error_entry_is_its_golden_bytes() {
        let mut bytes = [0; ERROR_ENTRY_BYTES];
        bytes[0] = 9;
        bytes[8..14].copy_from_slice(&[3, 0, 0x34, 0x12, 0x02, 0x45]);
        bytes[16..20].copy_from_slice(&[0x78, 0x56, 0x34, 0x12]);
        bytes[24] = 1;
        let entry = ErrorLogEntry::read_from_bytes(&bytes).unwrap();
        assert!(entry.used() && entry.error_count.get() == 9);
        assert_eq!(entry.command(), Some((3, 0x1234)));
        assert_eq!(entry.status().full(), media::UNRECOVERED_READ_ERROR);
        assert_eq!((entry.lba.get(), entry.nsid.get()), (0x1234_5678, 1));
        bytes[8..10].fill(0xff);
        assert_eq!(ErrorLogEntry::read_from_bytes(&bytes).unwrap().command(), None);
    }

    #[test]
    fn health_is_its_golden_bytes() {
        let mut bytes = [0; SMART_BYTES];
        bytes[..6].copy_from_slice(&[0x89, 0x3a, 0x01, 97, 10, 3]);
        bytes[32] = 2;
        bytes[48..56].fill(0xff);
        bytes[112] = 7;
        bytes[128..130].copy_from_slice(&[0x10, 0x27]);
        bytes[144] = 5;
        bytes[160] = 1;
        bytes[192] = 4;
        bytes[202..204].copy_from_slice(&[0x11, 0x01]);
        let smart = SmartLog::read_from_bytes(&bytes).unwrap();
        let names: Vec<_> = smart.warning().names().collect();
        assert_eq!(names, ["available spare is low", "media is read only", "unknown warning"]);
        assert_eq!(smart.celsius(), Some(41));
        assert_eq!(
            (smart.available_spare, smart.spare_threshold, smart.percentage_used),
            (97, 10, 3)
        );
        assert_eq!(smart.bytes_read(), 1_024_000);
        assert_eq!(smart.bytes_written(), u128::from(u64::MAX) * 512_000);
        assert_eq!((smart.power_cycles.get(), smart.power_on_hours.get()), (7, 10_000));
        assert_eq!((smart.unsafe_shutdowns.get(), smart.media_errors.get()), (5, 1));
        assert_eq!(smart.warning_temperature_minutes.get(), 4);
        assert_eq!(smart.sensor_celsius().collect::<Vec<_>>(), [(2, 0)]);
    }

    #[test]
    fn firmware_slots_are_their_golden_bytes() {
        let mut bytes = [0; FIRMWARE_SLOT_BYTES];
        bytes[0] = 0x21;
        bytes[8..16].copy_from_slice(b"1.0.2   ");
        bytes[16..24].copy_from_slice(b"EDA7602Q");
        let log = FirmwareSlotLog::read_from_bytes(&bytes).unwrap();
        assert_eq!((log.active_slot(), log.next_slot()), (1, Some(2)));
        assert_eq!((log.revision(1), log.revision(2), log.revision(3)), ("1.0.2", "EDA7602Q", ""));
        assert_eq!((log.revision(0), log.revision(8), log.revision(255)), ("", "", ""));
    }

    #[test]
    fn changed_namespaces_end_at_zero_or_overflow() {
        let mut log = ChangedNamespaces { nsids: [U32::ZERO; 1024] };
        log.nsids[0] = U32::new(1);
        log.nsids[1] = U32::new(4);
        assert!(log.iter().eq([1, 4]) && !log.overflowed());
        log.nsids[0] = U32::new(u32::MAX);
        assert!(log.overflowed() && log.iter().count() == 0);
    }

    #[test]
    fn tables_ascend() {
        assert!(NAMES.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!((name(SMART), name(0x6f)), ("SMART / health information", "unknown log page"));
    }

    #[test]
    fn any_bytes_are_a_page() {
        let mut rng = fastrand::Rng::with_seed(5);
        let mut bytes = [0; CHANGED_NAMESPACES_BYTES];
        for _ in 0..2_000 {
            rng.fill(&mut bytes);
            let entry = ErrorLogEntry::ref_from_bytes(&bytes[..ERROR_ENTRY_BYTES]).unwrap();
            assert!(entry.used() && !entry.status().to_string().is_empty());
            let smart = SmartLog::ref_from_bytes(&bytes[..SMART_BYTES]).unwrap();
            assert!(smart.bytes_read() >= smart.data_units_read.get());
            assert!(smart.sensor_celsius().all(|(number, _)| number <= 8));
            assert_eq!(smart.warning().names().count() as u32, bytes[0].count_ones());
            let slots = FirmwareSlotLog::ref_from_bytes(&bytes[..FIRMWARE_SLOT_BYTES]).unwrap();
            assert!((0..=255).all(|slot| slots.revision(slot).len() <= 8));
            assert!(slots.active_slot() < 8 && slots.next_slot() != Some(0));
            assert!(ChangedNamespaces::ref_from_bytes(&bytes).unwrap().iter().count() <= 1024);
        }
    }
}

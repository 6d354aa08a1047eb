//! Features, and the values of those that the appliance sets or shows (Base, "Set Features command",
//! "Feature Identifiers"; NVM, "Set Features command").
//!
//! Guarantees: any 32 bits are a value. What to beware of: Get Features returns a value in a completion's
//! result, and the same 32 bits are dword 11 of Set Features, except for [`QueueCount`], which is what the
//! controller has given.

use core::mem::offset_of;

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::name_in;

named! { u8;
    ARBITRATION = 0x01, "arbitration";
    POWER_MANAGEMENT = 0x02, "power management";
    LBA_RANGE_TYPE = 0x03, "LBA range type";
    TEMPERATURE_THRESHOLD = 0x04, "temperature threshold";
    ERROR_RECOVERY = 0x05, "error recovery";
    VOLATILE_WRITE_CACHE = 0x06, "volatile write cache";
    NUMBER_OF_QUEUES = 0x07, "number of queues";
    INTERRUPT_COALESCING = 0x08, "interrupt coalescing";
    INTERRUPT_VECTOR = 0x09, "interrupt vector configuration";
    WRITE_ATOMICITY = 0x0a, "write atomicity normal";
    ASYNC_EVENTS = 0x0b, "asynchronous event configuration";
    AUTONOMOUS_POWER = 0x0c, "autonomous power state transition";
    HOST_MEMORY_BUFFER = 0x0d, "host memory buffer";
    TIMESTAMP = 0x0e, "timestamp";
    KEEP_ALIVE_TIMER = 0x0f, "keep alive timer";
    THERMAL_MANAGEMENT = 0x10, "host controlled thermal management";
    NON_OPERATIONAL_POWER = 0x11, "non-operational power state configuration";
    READ_RECOVERY_LEVEL = 0x12, "read recovery level configuration";
    PREDICTABLE_LATENCY = 0x13, "predictable latency mode configuration";
    PREDICTABLE_LATENCY_WINDOW = 0x14, "predictable latency mode window";
    LBA_STATUS_INTERVAL = 0x15, "LBA status information attributes";
    HOST_BEHAVIOR = 0x16, "host behavior support";
    SANITIZE = 0x17, "sanitize config";
    ENDURANCE_GROUP_EVENTS = 0x18, "endurance group event configuration";
    COMMAND_SET_PROFILE = 0x19, "I/O command set profile";
    SPINUP_CONTROL = 0x1a, "spinup control";
    FLEXIBLE_DATA_PLACEMENT = 0x1d, "flexible data placement";
    FLEXIBLE_DATA_PLACEMENT_EVENTS = 0x1e, "flexible data placement events";
    SOFTWARE_PROGRESS = 0x80, "software progress marker";
    HOST_IDENTIFIER = 0x81, "host identifier";
    RESERVATION_MASK = 0x82, "reservation notification mask";
    RESERVATION_PERSISTENCE = 0x83, "reservation persistence";
    WRITE_PROTECTION = 0x84, "namespace write protection configuration";
}

/// What a feature is called in a message.
#[must_use]
pub fn name(feature: u8) -> &'static str {
    name_in(NAMES, feature).unwrap_or("unknown feature")
}

/// Which events are reported (Base, "Asynchronous Event Configuration"). From bit 8 on, Identify
/// Controller's OAES has the same bits.
pub mod async_events {
    named! { u32;
        SPARE_LOW = 0x0000_0001, "SMART: available spare is low";
        TEMPERATURE = 0x0000_0002, "SMART: temperature past a threshold";
        RELIABILITY = 0x0000_0004, "SMART: reliability is degraded";
        READ_ONLY = 0x0000_0008, "SMART: media is read only";
        BACKUP_FAILED = 0x0000_0010, "SMART: volatile memory backup has failed";
        PMR_UNRELIABLE = 0x0000_0020, "SMART: persistent memory region is read only or unreliable";
        NAMESPACE_CHANGED = 0x0000_0100, "namespace attribute notices";
        FIRMWARE_ACTIVATION = 0x0000_0200, "firmware activation notices";
        TELEMETRY = 0x0000_0400, "telemetry log notices";
        ANA_CHANGED = 0x0000_0800, "asymmetric namespace access change notices";
        PREDICTABLE_LATENCY = 0x0000_1000, "predictable latency event aggregate log change notices";
        LBA_STATUS = 0x0000_2000, "LBA status information notices";
        ENDURANCE_GROUP = 0x0000_4000, "endurance group event aggregate log change notices";
        SHUTDOWN = 0x0000_8000, "normal NVM subsystem shutdown";
    }

    /// All of the SMART critical warnings.
    pub const ALL_SMART: u32 = 0xff;
}

/// Arbitration (Base, "Arbitration").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arbitration(pub u32);

impl Arbitration {
    /// The most commands that are taken from one queue at a time (AB, bits 2:0); `None` is no limit.
    #[must_use]
    pub const fn burst(self) -> Option<u32> {
        match self.0 & 7 {
            7 => None,
            shift => Some(1 << shift),
        }
    }

    /// Weights of low, medium and high priority queues (LPW, MPW, HPW), which are one less.
    #[must_use]
    pub const fn weights(self) -> [u16; 3] {
        let [_, low, medium, high] = self.0.to_le_bytes();
        [low as u16 + 1, medium as u16 + 1, high as u16 + 1]
    }
}

/// Power Management (Base, "Power Management").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PowerManagement(pub u32);

impl PowerManagement {
    /// The power state (PS, bits 4:0).
    #[must_use]
    pub const fn state(self) -> u8 {
        (self.0 & 31) as u8
    }

    /// What the host expects to do (WH, bits 7:5); 0 says nothing.
    #[must_use]
    pub const fn workload(self) -> u8 {
        (self.0 >> 5 & 7) as u8
    }
}

/// Temperature Threshold (Base, "Temperature Threshold").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TemperatureThreshold(pub u32);

impl TemperatureThreshold {
    /// For sensor `sensor` (0 is the composite), over or under `kelvin`.
    #[must_use]
    pub const fn new(kelvin: u16, sensor: u8, under: bool) -> Self {
        Self(kelvin as u32 | (sensor as u32 & 15) << 16 | (under as u32) << 20)
    }

    /// The threshold (TMPTH, bits 15:0).
    #[must_use]
    pub const fn kelvin(self) -> u16 {
        self.0 as u16
    }

    /// Which sensor (TMPSEL, bits 19:16): 0 is the composite temperature, 15 all that there are.
    #[must_use]
    pub const fn sensor(self) -> u8 {
        (self.0 >> 16 & 15) as u8
    }

    /// It is the threshold for being too cold (THSEL, bits 21:20).
    #[must_use]
    pub const fn under(self) -> bool {
        self.0 >> 20 & 3 == 1
    }
}

/// Volatile Write Cache (Base, "Volatile Write Cache").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolatileWriteCache(pub u32);

impl VolatileWriteCache {
    /// On or off.
    #[must_use]
    pub const fn new(enabled: bool) -> Self {
        Self(enabled as u32)
    }

    /// The cache is in use (WCE, bit 0).
    #[must_use]
    pub const fn enabled(self) -> bool {
        self.0 & 1 != 0
    }
}

/// Number of Queues, as the controller answers (Base, "Number of Queues"): both are one less, and may be more
/// or less than what was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCount(pub u32);

impl QueueCount {
    /// An answer.
    ///
    /// # Panics
    /// When a count is 0 or more than 65 536.
    #[must_use]
    pub const fn new(submission: u32, completion: u32) -> Self {
        assert!(
            submission != 0 && submission <= 1 << 16 && completion != 0 && completion <= 1 << 16
        );
        Self((submission - 1) | (completion - 1) << 16)
    }

    /// How many I/O submission queues there may be (NSQA, bits 15:0).
    #[must_use]
    pub const fn submission(self) -> u32 {
        (self.0 & 0xffff) + 1
    }

    /// How many I/O completion queues there may be (NCQA, bits 31:16).
    #[must_use]
    pub const fn completion(self) -> u32 {
        (self.0 >> 16) + 1
    }
}

/// Interrupt Coalescing (Base, "Interrupt Coalescing").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterruptCoalescing(pub u32);

impl InterruptCoalescing {
    /// How many completions may gather (THR, bits 7:0), which is one less.
    #[must_use]
    pub const fn threshold(self) -> u32 {
        (self.0 & 0xff) + 1
    }

    /// How long they may (TIME, bits 15:8), in units of 100 µs; 0 is no delay.
    #[must_use]
    pub const fn time_us(self) -> u32 {
        (self.0 >> 8 & 0xff) * 100
    }
}

/// Size of [`HostBehavior`] (Base, "Host Behavior Support – Data Structure").
pub const HOST_BEHAVIOR_BYTES: usize = 512;

/// What the host can deal with (Base, "Host Behavior Support – Data Structure").
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct HostBehavior {
    /// 1: the Command Retry Delay of a status is honoured (ACRE).
    pub advanced_retry: u8,
    /// 1: the extended telemetry data area is known (ETDAS).
    pub extended_telemetry: u8,
    /// 1: extended LBA formats are known (LBAFEE).
    pub extended_lba_formats: u8,
    /// Host Dispersed Namespace Support (HDISNS), of later revisions.
    pub dispersed_namespaces: u8,
    /// Copy Descriptor Formats Enable (CDFE), of later revisions.
    pub copy_formats: U16,
    /// Reserved.
    pub reserved6: [u8; 506],
}
const _: () = assert!(size_of::<HostBehavior>() == HOST_BEHAVIOR_BYTES);
const _: () = assert!(offset_of!(HostBehavior, extended_lba_formats) == 2);
const _: () = assert!(offset_of!(HostBehavior, copy_formats) == 4);

impl HostBehavior {
    /// A host that honours retry delays, and knows of nothing else.
    pub const ADVANCED_RETRY: Self = Self {
        advanced_retry: 1,
        extended_telemetry: 0,
        extended_lba_formats: 0,
        dispersed_namespaces: 0,
        copy_formats: U16::ZERO,
        reserved6: [0; 506],
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_at_their_bits() {
        assert_eq!(Arbitration(0x0302_0103).burst(), Some(8));
        assert_eq!(Arbitration(0x0302_0107).burst(), None);
        assert_eq!(Arbitration(0x0302_0107).weights(), [2, 3, 4]);
        assert_eq!((PowerManagement(0x43).state(), PowerManagement(0x43).workload()), (3, 2));
        let threshold = TemperatureThreshold::new(343, 2, true);
        assert_eq!(threshold.0, 0x0012_0157);
        assert_eq!((threshold.kelvin(), threshold.sensor(), threshold.under()), (343, 2, true));
        assert!(VolatileWriteCache::new(true).enabled() && !VolatileWriteCache(0).enabled());
        assert_eq!(InterruptCoalescing(0x0a03).threshold(), 4);
        assert_eq!(InterruptCoalescing(0x0a03).time_us(), 1000);
    }

    #[test]
    fn queue_counts_are_one_more_than_their_bits() {
        assert_eq!(QueueCount::new(4, 8).0, 0x0007_0003);
        assert_eq!((QueueCount(u32::MAX).submission(), QueueCount(0).completion()), (65536, 1));
    }

    #[test]
    fn host_behavior_is_its_golden_bytes() {
        let bytes = HostBehavior::ADVANCED_RETRY;
        assert_eq!(bytes.as_bytes()[0], 1);
        assert!(bytes.as_bytes()[1..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn tables_ascend_and_any_bits_are_a_value() {
        assert!(NAMES.is_sorted_by(|a, b| a.0 < b.0));
        assert!(async_events::NAMES.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(name(VOLATILE_WRITE_CACHE), "volatile write cache");
        assert_eq!(name(0xff), "unknown feature");
        let mut rng = fastrand::Rng::with_seed(4);
        for _ in 0..100_000 {
            let bits = rng.u32(..);
            assert!(Arbitration(bits).burst().is_none_or(|burst| burst <= 64));
            assert!(QueueCount(bits).submission() <= 65536 && QueueCount(bits).completion() >= 1);
            assert!(TemperatureThreshold(bits).sensor() < 16 && PowerManagement(bits).state() < 32);
            assert!(InterruptCoalescing(bits).time_us() <= 25_500);
        }
    }
}

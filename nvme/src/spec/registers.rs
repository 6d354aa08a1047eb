//! The controller's registers in BAR 0 (Base, "Controller Properties"; PCIe Transport 1.0 for the
//! doorbells).
//!
//! Guarantees: every value of a register has an answer for every question. What to beware of: a device
//! that is gone reads as all ones, in which every capability is there; look at
//! [`ControllerStatus::gone`] before anything else is believed.

use core::fmt;

/// Controller Capabilities, 64 bits (Base, "Offset 0h: CAP").
pub const CAP: usize = 0x00;
/// Version (Base, "Offset 8h: VS").
pub const VS: usize = 0x08;
/// Interrupt Mask Set (Base, "Offset Ch: INTMS").
pub const INTMS: usize = 0x0c;
/// Interrupt Mask Clear (Base, "Offset 10h: INTMC").
pub const INTMC: usize = 0x10;
/// Controller Configuration (Base, "Offset 14h: CC").
pub const CC: usize = 0x14;
/// Controller Status (Base, "Offset 1Ch: CSTS").
pub const CSTS: usize = 0x1c;
/// NVM Subsystem Reset (Base, "Offset 20h: NSSR"): [`SUBSYSTEM_RESET`] starts one.
pub const NSSR: usize = 0x20;
/// Admin Queue Attributes (Base, "Offset 24h: AQA").
pub const AQA: usize = 0x24;
/// Admin Submission Queue Base Address, 64 bits (Base, "Offset 28h: ASQ").
pub const ASQ: usize = 0x28;
/// Admin Completion Queue Base Address, 64 bits (Base, "Offset 30h: ACQ").
pub const ACQ: usize = 0x30;
/// Controller Ready Timeouts (Base, "Offset 68h: CRTO").
pub const CRTO: usize = 0x68;
/// The first doorbell (PCIe Transport, "Submission Queue y Tail Doorbell").
pub const DOORBELLS: usize = 0x1000;

/// What is written to [`NSSR`]: "NVMe" (Base, "Offset 20h: NSSR").
pub const SUBSYSTEM_RESET: u32 = 0x4e56_4d65;

/// CAP.TO, CRTO.CRWMT and CRTO.CRIMT count half seconds (Base, "Offset 0h: CAP", "Offset 68h: CRTO").
const TIMEOUT_UNIT_MS: u64 = 500;

/// The tail doorbell of submission queue `queue` (PCIe Transport, "Submission Queue y Tail Doorbell").
#[must_use]
pub const fn submission_doorbell(queue: u16, stride_bytes: usize) -> usize {
    DOORBELLS + 2 * queue as usize * stride_bytes
}

/// The head doorbell of completion queue `queue` (PCIe Transport, "Completion Queue y Head Doorbell").
#[must_use]
pub const fn completion_doorbell(queue: u16, stride_bytes: usize) -> usize {
    DOORBELLS + (2 * queue as usize + 1) * stride_bytes
}

/// Controller Capabilities (Base, "Offset 0h: CAP").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// The most entries that an I/O queue can have: MQES, bits 15:0, which is one less.
    #[must_use]
    pub const fn queue_entries_max(self) -> u32 {
        self.field(0, 16) as u32 + 1
    }

    /// Queues have to be physically contiguous: CQR, bit 16. Ours always are.
    #[must_use]
    pub const fn contiguous_queues(self) -> bool {
        self.field(16, 1) != 0
    }

    /// How long CSTS.RDY may take to follow CC.EN: TO, bits 31:24.
    #[must_use]
    pub const fn timeout_ms(self) -> u64 {
        self.field(24, 8) * TIMEOUT_UNIT_MS
    }

    /// From one doorbell to the next: DSTRD, bits 35:32.
    #[must_use]
    pub const fn doorbell_stride_bytes(self) -> usize {
        4 << self.field(32, 4)
    }

    /// [`NSSR`] is there: NSSRS, bit 36.
    #[must_use]
    pub const fn subsystem_reset(self) -> bool {
        self.field(36, 1) != 0
    }

    /// The NVM command set is there: CSS, bit 37.
    #[must_use]
    pub const fn nvm_command_set(self) -> bool {
        self.field(37, 1) != 0
    }

    /// The smallest memory page that the controller can be set to: MPSMIN, bits 51:48.
    #[must_use]
    pub const fn page_bytes_min(self) -> usize {
        4096 << self.field(48, 4)
    }

    /// The largest memory page that the controller can be set to: MPSMAX, bits 55:52.
    #[must_use]
    pub const fn page_bytes_max(self) -> usize {
        4096 << self.field(52, 4)
    }

    /// What "ready" may mean, and whether [`CRTO`] is there: CRMS, bits 60:59.
    #[must_use]
    pub const fn ready_modes(self) -> ReadyModes {
        ReadyModes(self.field(59, 2) as u8)
    }

    const fn field(self, first: u32, bits: u32) -> u64 {
        self.0 >> first & ((1 << bits) - 1)
    }
}

/// Controller Ready Modes Supported (Base, "Offset 0h: CAP", CRMS). Controllers before 2.0 have neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadyModes(u8);

impl ReadyModes {
    /// "Ready" means that media is ready too (CRWMS), and [`CRTO`] says how long that may take.
    #[must_use]
    pub const fn ready_with_media(self) -> bool {
        self.0 & 1 != 0
    }

    /// "Ready" can be asked for before media is ready (CRIMS).
    #[must_use]
    pub const fn ready_independent(self) -> bool {
        self.0 & 2 != 0
    }
}

/// The version of NVMe that a controller follows (Base, "Offset 8h: VS"; the VER field of Identify
/// Controller has the same form). Zero before 1.2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32);

impl Version {
    /// A version in its parts.
    #[must_use]
    pub const fn new(major: u16, minor: u8, tertiary: u8) -> Self {
        Self((major as u32) << 16 | (minor as u32) << 8 | tertiary as u32)
    }

    /// Major, bits 31:16.
    #[must_use]
    pub const fn major(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Minor, bits 15:8.
    #[must_use]
    pub const fn minor(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Tertiary, bits 7:0.
    #[must_use]
    pub const fn tertiary(self) -> u8 {
        self.0 as u8
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())?;
        match self.tertiary() {
            0 => Ok(()),
            tertiary => write!(f, ".{tertiary}"),
        }
    }
}

/// How a controller is told to prepare for power-off (Base, "Offset 14h: CC", SHN).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Shutdown {
    /// With all the time it needs: caches are written out.
    Normal = 1,
    /// Power is about to go.
    Abrupt = 2,
}

/// Controller Configuration (Base, "Offset 14h: CC"). Zero is a controller that is disabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Configuration(pub u32);

impl Configuration {
    /// EN, bit 0.
    pub const ENABLE: u32 = 1;
    /// SHN, bits 15:14.
    const SHUTDOWN_SHIFT: u32 = 14;

    /// Enabled, with memory pages of `page_bytes`, the NVM command set (CSS 0), round robin (AMS 0),
    /// and entries of 64 and 16 bytes (IOSQES 6, IOCQES 4: Base, "Submission Queue Entry",
    /// "Completion Queue Entry").
    ///
    /// # Panics
    /// When MPS cannot say `page_bytes`: a power of two from 4 KiB to 128 MiB.
    #[must_use]
    pub const fn enable(page_bytes: usize) -> Self {
        assert!(page_bytes.is_power_of_two() && page_bytes >= 4096 && page_bytes <= 4096 << 15);
        let page_shift = page_bytes.trailing_zeros() - 12;
        Self(Self::ENABLE | page_shift << 7 | 6 << 16 | 4 << 20)
    }

    /// The same, with notice of a shutdown.
    #[must_use]
    pub const fn with_shutdown(self, shutdown: Shutdown) -> Self {
        Self(self.0 & !(3 << Self::SHUTDOWN_SHIFT) | (shutdown as u32) << Self::SHUTDOWN_SHIFT)
    }

    /// The same, but disabled: clearing EN resets the controller.
    #[must_use]
    pub const fn disable(self) -> Self {
        Self(self.0 & !Self::ENABLE)
    }

    /// EN, bit 0.
    #[must_use]
    pub const fn enabled(self) -> bool {
        self.0 & Self::ENABLE != 0
    }

    /// CSS, bits 6:4: 0 is the NVM command set.
    #[must_use]
    pub const fn command_set(self) -> u8 {
        (self.0 >> 4 & 7) as u8
    }

    /// MPS, bits 10:7.
    #[must_use]
    pub const fn page_bytes(self) -> usize {
        4096 << (self.0 >> 7 & 15)
    }

    /// SHN, bits 15:14; the reserved value is none.
    #[must_use]
    pub const fn shutdown(self) -> Option<Shutdown> {
        match self.0 >> Self::SHUTDOWN_SHIFT & 3 {
            1 => Some(Shutdown::Normal),
            2 => Some(Shutdown::Abrupt),
            _ => None,
        }
    }

    /// IOSQES, bits 19:16.
    #[must_use]
    pub const fn sq_entry_bytes(self) -> usize {
        1 << (self.0 >> 16 & 15)
    }

    /// IOCQES, bits 23:20.
    #[must_use]
    pub const fn cq_entry_bytes(self) -> usize {
        1 << (self.0 >> 20 & 15)
    }
}

/// Controller Status (Base, "Offset 1Ch: CSTS"). Of a device that is gone everything but
/// [`ControllerStatus::gone`] is false.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControllerStatus(pub u32);

impl ControllerStatus {
    /// RDY, bit 0.
    pub const READY: u32 = 1;
    /// CFS, bit 1.
    pub const FATAL: u32 = 1 << 1;
    /// SHST, bits 3:2: shutdown is going on.
    pub const SHUTDOWN_OCCURRING: u32 = 1 << 2;
    /// SHST, bits 3:2: shutdown is complete.
    pub const SHUTDOWN_COMPLETE: u32 = 2 << 2;
    /// NSSRO, bit 4: an NVM subsystem reset has occurred. Writing the bit clears it.
    pub const SUBSYSTEM_RESET_OCCURRED: u32 = 1 << 4;
    /// PP, bit 5: processing is paused, as during a firmware activation.
    pub const PAUSED: u32 = 1 << 5;
    const SHUTDOWN_MASK: u32 = 3 << 2;
    const GONE: u32 = u32::MAX;

    /// Commands can be submitted.
    #[must_use]
    pub const fn ready(self) -> bool {
        self.has(Self::READY)
    }

    /// Controller Fatal Status: only a reset can help.
    #[must_use]
    pub const fn fatal(self) -> bool {
        self.has(Self::FATAL)
    }

    /// Shutdown is going on.
    #[must_use]
    pub const fn shutdown_occurring(self) -> bool {
        !self.gone() && self.0 & Self::SHUTDOWN_MASK == Self::SHUTDOWN_OCCURRING
    }

    /// Shutdown is complete: power can go.
    #[must_use]
    pub const fn shutdown_complete(self) -> bool {
        !self.gone() && self.0 & Self::SHUTDOWN_MASK == Self::SHUTDOWN_COMPLETE
    }

    /// Processing is paused.
    #[must_use]
    pub const fn paused(self) -> bool {
        self.has(Self::PAUSED)
    }

    /// All ones, which no controller returns: the bus answers for a device that is not there.
    #[must_use]
    pub const fn gone(self) -> bool {
        self.0 == Self::GONE
    }

    const fn has(self, bit: u32) -> bool {
        !self.gone() && self.0 & bit != 0
    }
}

/// Controller Ready Timeouts (Base, "Offset 68h: CRTO").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadyTimeouts(pub u32);

impl ReadyTimeouts {
    /// Until the controller and its media are ready: CRWMT, bits 15:0.
    #[must_use]
    pub const fn ready_with_media_ms(self) -> u64 {
        (self.0 & 0xffff) as u64 * TIMEOUT_UNIT_MS
    }

    /// Until the controller is ready, media or not: CRIMT, bits 31:16.
    #[must_use]
    pub const fn ready_independent_ms(self) -> u64 {
        (self.0 >> 16) as u64 * TIMEOUT_UNIT_MS
    }
}

/// Admin Queue Attributes (Base, "Offset 24h: AQA").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdminQueueSizes(pub u32);

impl AdminQueueSizes {
    /// The most entries that an admin queue can have.
    pub const ENTRIES_MAX: u32 = 4096;

    /// Queues of so many entries.
    ///
    /// # Panics
    /// When a queue has less than 2 or more than 4096 entries.
    #[must_use]
    pub const fn new(sq_entries: u32, cq_entries: u32) -> Self {
        assert!(sq_entries >= 2 && sq_entries <= Self::ENTRIES_MAX);
        assert!(cq_entries >= 2 && cq_entries <= Self::ENTRIES_MAX);
        Self((sq_entries - 1) | (cq_entries - 1) << 16)
    }

    /// ASQS, bits 11:0, which is one less.
    #[must_use]
    pub const fn sq_entries(self) -> u32 {
        (self.0 & 0xfff) + 1
    }

    /// ACQS, bits 27:16, which is one less.
    #[must_use]
    pub const fn cq_entries(self) -> u32 {
        (self.0 >> 16 & 0xfff) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_at_their_bits() {
        // MQES 2047, CQR, TO 7.5 s, DSTRD 2, NSSRS, NVM, MPSMAX 64 KiB, both ready modes.
        let cap = Capabilities(0x0040_0020_0f01_07ff | 1 << 36 | 2 << 32 | 3 << 59);
        assert_eq!(cap.queue_entries_max(), 2048);
        assert!(cap.contiguous_queues() && cap.subsystem_reset() && cap.nvm_command_set());
        assert_eq!(cap.timeout_ms(), 7500);
        assert_eq!(cap.doorbell_stride_bytes(), 16);
        assert_eq!((cap.page_bytes_min(), cap.page_bytes_max()), (4096, 65536));
        assert!(cap.ready_modes().ready_with_media() && cap.ready_modes().ready_independent());
        assert_eq!(Capabilities(0).ready_modes(), ReadyModes(0));
        assert_eq!(Capabilities(u64::MAX).queue_entries_max(), 65536);
        assert_eq!(Capabilities(u64::MAX).page_bytes_max(), 1 << 27);
    }

    #[test]
    fn enabling_writes_the_golden_configuration() {
        assert_eq!(Configuration::enable(4096).0, 0x0046_0001);
        assert_eq!(Configuration::enable(65536).0, 0x0046_0201);
        let cc = Configuration::enable(8192).with_shutdown(Shutdown::Normal);
        assert_eq!(cc.0, 0x0046_4081);
        assert_eq!(cc.page_bytes(), 8192);
        assert_eq!((cc.sq_entry_bytes(), cc.cq_entry_bytes(), cc.command_set()), (64, 16, 0));
        assert_eq!(cc.shutdown(), Some(Shutdown::Normal));
        assert_eq!(cc.with_shutdown(Shutdown::Abrupt).shutdown(), Some(Shutdown::Abrupt));
        assert!(cc.enabled() && !cc.disable().enabled());
        assert_eq!(Configuration(3 << 14).shutdown(), None);
    }

    #[test]
    #[should_panic(expected = "page_bytes")]
    fn a_page_that_has_no_encoding_is_our_mistake() {
        let _nothing = Configuration::enable(core::hint::black_box(2048));
    }

    #[test]
    fn a_device_that_is_gone_is_nothing_else() {
        let gone = ControllerStatus(u32::MAX);
        assert!(gone.gone() && !gone.ready() && !gone.fatal() && !gone.paused());
        assert!(!gone.shutdown_complete() && !gone.shutdown_occurring());
        let status = ControllerStatus(ControllerStatus::READY | ControllerStatus::FATAL);
        assert!(status.ready() && status.fatal() && !status.gone());
        assert!(
            ControllerStatus(0x8).shutdown_complete() && ControllerStatus(0x4).shutdown_occurring()
        );
    }

    #[test]
    fn doorbells_follow_the_stride() {
        assert_eq!(submission_doorbell(0, 4), 0x1000);
        assert_eq!(completion_doorbell(0, 4), 0x1004);
        assert_eq!(submission_doorbell(3, 16), 0x1060);
        assert_eq!(completion_doorbell(3, 16), 0x1070);
        assert_eq!(completion_doorbell(u16::MAX, 4 << 15), 0x1000 + 131_071 * 131_072);
    }

    #[test]
    fn the_other_registers_are_read_at_their_bits() {
        assert_eq!(AdminQueueSizes::new(32, 64).0, 0x003f_001f);
        assert_eq!(AdminQueueSizes(0x003f_001f).sq_entries(), 32);
        assert_eq!(AdminQueueSizes(0x003f_001f).cq_entries(), 64);
        assert_eq!(ReadyTimeouts(0x0002_0005).ready_with_media_ms(), 2500);
        assert_eq!(ReadyTimeouts(0x0002_0005).ready_independent_ms(), 1000);
        assert_eq!(Version(0x0001_0400).to_string(), "1.4");
        assert_eq!(Version(0x0001_0201).to_string(), "1.2.1");
        assert_eq!(Version::new(2, 0, 0), Version(0x0002_0000));
        assert!(Version::new(1, 4, 0) < Version::new(2, 0, 0));
    }

    #[test]
    fn any_bits_are_a_register() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..100_000 {
            let (cap, bits) = (Capabilities(rng.u64(..)), rng.u32(..));
            assert!(cap.page_bytes_min() >= 4096 && cap.doorbell_stride_bytes() >= 4);
            assert!(cap.timeout_ms() <= 127_500 && cap.queue_entries_max() <= 65536);
            assert!(Configuration(bits).page_bytes().is_power_of_two());
            assert!(Configuration(bits).sq_entry_bytes() <= 1 << 15);
            assert!(AdminQueueSizes(bits).sq_entries() <= AdminQueueSizes::ENTRIES_MAX);
            assert!(ReadyTimeouts(bits).ready_with_media_ms() <= 500 * 65_535);
            assert!(!Version(bits).to_string().is_empty());
        }
    }
}

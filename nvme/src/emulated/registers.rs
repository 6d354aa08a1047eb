//! The register file: one atomic word for each register.
//!
//! Guarantees: a doorbell write is one store and nothing else, so that what the driver costs can be counted
//! through it; a write that follows another to the same doorbell before the device looks replaces it, as on
//! real hardware. A device that is gone reads as ones and hears nothing.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use crate::hardware::Registers;
use crate::spec::registers::{
    ACQ, AQA, ASQ, CAP, CC, CRTO, CSTS, Configuration, ControllerStatus, DOORBELLS, INTMC, INTMS,
    NSSR, VS,
};

/// What lies in a doorbell that the device has looked at: no queue has so many entries.
const HEARD: u32 = u32::MAX;

/// An emulated controller's BAR 0.
#[derive(Debug)]
pub struct EmulatedRegisters {
    /// Everything below [`DOORBELLS`], by offset / 4.
    file: Box<[AtomicU32]>,
    /// Everything from there on.
    doorbells: Box<[AtomicU32]>,
    gone: AtomicBool,
    /// Writes that have no meaning in the state that the controller was in, and the offset of the last.
    misused: AtomicU64,
    misused_at: AtomicU32,
}

impl EmulatedRegisters {
    /// A file of `bytes` bytes, which is more than [`DOORBELLS`].
    pub(super) fn new(bytes: usize) -> Self {
        let words = |bytes: usize, value| {
            (0..bytes / 4).map(|_| AtomicU32::new(value)).collect::<Box<[_]>>()
        };
        Self {
            file: words(DOORBELLS, 0),
            doorbells: words(bytes - DOORBELLS, HEARD),
            gone: AtomicBool::new(false),
            misused: AtomicU64::new(0),
            misused_at: AtomicU32::new(0),
        }
    }

    /// As after a reset of the whole function.
    pub(super) fn power_on(&self, cap: u64, vs: u32, crto: u32) {
        self.file.iter().for_each(|word| word.store(0, Relaxed));
        self.set64(CAP, cap);
        self.set(VS, vs);
        self.set(CRTO, crto);
        self.silence();
    }

    /// Forgets every doorbell.
    pub(super) fn silence(&self) {
        self.doorbells.iter().for_each(|word| word.store(HEARD, Release));
    }

    pub(super) fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Release);
    }

    pub(super) fn get(&self, offset: usize) -> u32 {
        self.file[offset / 4].load(Acquire)
    }

    pub(super) fn get64(&self, offset: usize) -> u64 {
        u64::from(self.get(offset)) | u64::from(self.get(offset + 4)) << 32
    }

    pub(super) fn set(&self, offset: usize, value: u32) {
        self.file[offset / 4].store(value, Release);
    }

    fn set64(&self, offset: usize, value: u64) {
        self.set(offset, value as u32);
        self.set(offset + 4, (value >> 32) as u32);
    }

    pub(super) fn configuration(&self) -> Configuration {
        Configuration(self.get(CC))
    }

    pub(super) fn set_status(&self, set: u32, clear: u32) {
        self.set(CSTS, self.get(CSTS) & !clear | set);
    }

    /// What was last written to the doorbell at `offset`, if the device has not heard it yet.
    pub(super) fn hear(&self, offset: usize) -> Option<u32> {
        let doorbell = self.doorbells.get((offset - DOORBELLS) / 4)?;
        if doorbell.load(Acquire) == HEARD {
            return None;
        }
        Some(doorbell.swap(HEARD, AcqRel))
    }

    /// Is there a doorbell, at `offset`, that the device has not heard?
    pub(super) fn rings(&self, offset: usize) -> bool {
        let doorbell = self.doorbells.get((offset - DOORBELLS) / 4);
        doorbell.is_some_and(|word| word.load(Acquire) != HEARD)
    }

    /// How often a register was written that must not be, and the offset of the last one.
    pub(super) fn misused(&self) -> (u64, usize) {
        (self.misused.load(Relaxed), self.misused_at.load(Relaxed) as usize)
    }

    /// A write below the doorbells.
    #[cold]
    fn control(&self, offset: usize, value: u32) {
        if self.gone.load(Acquire) {
            return;
        }
        let cc = self.configuration();
        let allowed = match offset {
            CC => self.allows(cc, Configuration(value)),
            AQA | ASQ | ACQ => !cc.enabled(),
            offset if offset == ASQ + 4 || offset == ACQ + 4 => !cc.enabled(),
            INTMS | INTMC | NSSR | CSTS => true,
            _ => false,
        };
        if !allowed {
            self.misused.fetch_add(1, Relaxed);
            self.misused_at.store(offset as u32, Relaxed);
        }
        // CSTS has one bit that is cleared by writing it, which is not modelled; the rest is read-only.
        if matches!(offset, CC | AQA) || (ASQ..ACQ + 8).contains(&offset) {
            self.set(offset, value);
        }
    }

    /// While it is enabled only EN and SHN may change; it is not enabled before it is quiet (Base, "Offset
    /// 14h: CC").
    fn allows(&self, old: Configuration, new: Configuration) -> bool {
        const SHUTDOWN: u32 = 3 << 14;
        match (old.enabled(), new.enabled()) {
            (true, true) => (old.0 ^ new.0) & !SHUTDOWN == 0,
            (false, true) => self.get(CSTS) & ControllerStatus::READY == 0,
            (_, false) => true,
        }
    }
}

impl Registers for EmulatedRegisters {
    fn bytes(&self) -> usize {
        DOORBELLS + self.doorbells.len() * 4
    }

    fn read32(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < self.bytes(), "a read at {offset:#x}");
        if self.gone.load(Acquire) {
            return u32::MAX;
        }
        self.file.get(offset / 4).map_or(0, |word| word.load(Acquire))
    }

    fn read64(&self, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8), "a read at {offset:#x}");
        u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32
    }

    #[inline]
    fn write32(&self, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4), "a write at {offset:#x}");
        match offset.checked_sub(DOORBELLS) {
            Some(doorbell) => self.doorbells[doorbell / 4].store(value, Release),
            None => self.control(offset, value),
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8), "a write at {offset:#x}");
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doorbell_is_heard_once() {
        let registers = EmulatedRegisters::new(0x2000);
        assert_eq!(registers.hear(0x1008), None);
        registers.write32(0x1008, 3);
        registers.write32(0x1008, 4);
        assert!(registers.rings(0x1008));
        assert_eq!((registers.hear(0x1008), registers.hear(0x1008)), (Some(4), None));
        registers.write32(0x1008, 4);
        assert_eq!(registers.hear(0x1008), Some(4), "the same value is news again");
    }

    #[test]
    fn writes_in_a_wrong_state_are_counted() {
        let registers = EmulatedRegisters::new(0x2000);
        registers.power_on(7, 8, 9);
        registers.write64(ASQ, 0x1000);
        registers.write32(CC, Configuration::enable(4096).0);
        assert_eq!(registers.misused().0, 0);
        registers.write32(AQA, 1);
        registers.write32(CAP, 1);
        registers.write32(CC, Configuration::enable(8192).0);
        assert_eq!(registers.misused(), (3, CC));
        assert_eq!((registers.read64(CAP), registers.read32(VS)), (7, 8));
    }

    #[test]
    fn a_device_that_is_gone_reads_as_ones() {
        let registers = EmulatedRegisters::new(0x2000);
        registers.set_gone(true);
        registers.write32(CC, 1);
        assert_eq!((registers.read32(CSTS), registers.read64(CAP)), (u32::MAX, u64::MAX));
        registers.set_gone(false);
        assert_eq!(registers.read32(CC), 0);
    }
}

//! The device's configuration space: whether it may access memory, and that it raises no interrupts.
//!
//! Guarantees: memory space stays on, so that mapped registers never fault; bits that are none of ours stay as they
//! are; a change that the device did not take is an error. (PCI Express Base 5.0, section 7.5.1.1.3, command
//! register; 7.7.1 and 7.7.2, MSI and MSI-X.)

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::device::Handle;

/// The command register.
const COMMAND: usize = 0x04;
const MEMORY_SPACE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
const INTX_DISABLE: u16 = 1 << 10;

/// The status register, and its bit that says that there are capabilities.
const STATUS: usize = 0x06;
const CAPABILITIES: u16 = 1 << 4;
/// Where the first one is.
const FIRST_CAPABILITY: usize = 0x34;
/// Their identifiers; both have their control word at offset 2.
const MSI: u8 = 0x05;
const MSI_X: u8 = 0x11;
const MSI_ENABLE: u16 = 1 << 0;
const MSI_X_ENABLE: u16 = 1 << 15;

/// The part of configuration space that is the same for all functions, and holds their capabilities.
const BYTES: usize = 256;

/// Configuration space of one device.
#[derive(Debug)]
pub(super) struct Config {
    device: Arc<Handle>,
    /// Where it is in the device's file.
    offset: u64,
}

impl Config {
    pub(super) fn new(device: &Arc<Handle>, offset: u64) -> Self {
        Self { device: Arc::clone(device), offset }
    }

    /// Memory space on, bus master off, no interrupts.
    pub(super) fn prepare(&self) -> io::Result<()> {
        self.command(BUS_MASTER, MEMORY_SPACE | INTX_DISABLE)?;
        self.interrupts_off()
    }

    /// What a reset may have undone.
    pub(super) fn prepare_again(&self) -> io::Result<()> {
        self.command(0, MEMORY_SPACE | INTX_DISABLE)?;
        self.interrupts_off()
    }

    /// Lets the device access memory, or stops it.
    pub(super) fn set_bus_master(&self, on: bool) -> io::Result<()> {
        if on { self.command(0, BUS_MASTER) } else { self.command(BUS_MASTER, 0) }
    }

    /// Clears and sets bits of the command register.
    fn command(&self, clear: u16, set: u16) -> io::Result<()> {
        let before = self.read16(COMMAND)?;
        let wanted = before & !clear | set;
        if wanted == before {
            return Ok(());
        }
        self.write16(COMMAND, wanted)?;
        let after = self.read16(COMMAND)?;
        if after & (clear | set) == set {
            return Ok(());
        }
        let text = format!("the device's command register stays at {after:#06x}");
        Err(io::Error::other(text))
    }

    /// The kernel enables message signalled interrupts only when it is asked to, and nobody asks; a device where they
    /// are on all the same is told.
    fn interrupts_off(&self) -> io::Result<()> {
        let mut space = [0; BYTES];
        self.device.file().read_exact_at(&mut space, self.offset)?;
        for (id, enable) in [(MSI, MSI_ENABLE), (MSI_X, MSI_X_ENABLE)] {
            let Some(at) = find_capability(&space, id) else { continue };
            let control = self.read16(at + 2)?;
            if control & enable != 0 {
                self.write16(at + 2, control & !enable)?;
            }
        }
        Ok(())
    }

    /// A register. All ones: no device answers.
    fn read16(&self, at: usize) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.device.file().read_exact_at(&mut bytes, self.offset + at as u64)?;
        match u16::from_le_bytes(bytes) {
            u16::MAX => Err(io::Error::from_raw_os_error(libc::ENODEV)),
            value => Ok(value),
        }
    }

    fn write16(&self, at: usize, value: u16) -> io::Result<()> {
        self.device.file().write_all_at(&value.to_le_bytes(), self.offset + at as u64)
    }
}

/// Where the capability `id` is. A list that leaves the space or goes in circles ends.
fn find_capability(space: &[u8; BYTES], id: u8) -> Option<usize> {
    let status = u16::from_le_bytes([space[STATUS], space[STATUS + 1]]);
    if status & CAPABILITIES == 0 {
        return None;
    }
    let mut at = usize::from(space[FIRST_CAPABILITY] & !3);
    // They are at least 4 bytes each, and lie behind the header of 64.
    for _ in 0..(BYTES - 64) / 4 {
        if at < 64 {
            return None;
        }
        if space[at] == id {
            return Some(at);
        }
        at = usize::from(space[at + 1] & !3);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in the place of a device, with configuration space behind 4 KiB of something else.
    fn config(space: &[u8; BYTES]) -> Config {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(space, 4096).unwrap();
        Config::new(&Arc::new(Handle::of_file(file)), 4096)
    }

    /// MSI-X enabled at 0x40, MSI enabled at 0x80, and a command register with parity response on.
    fn space() -> [u8; BYTES] {
        let mut space = [0; BYTES];
        space[COMMAND] = 0x46;
        space[STATUS] = CAPABILITIES as u8;
        space[FIRST_CAPABILITY] = 0x40;
        space[0x40..0x44].copy_from_slice(&[MSI_X, 0x80, 0x1F, 0x80]);
        space[0x80..0x84].copy_from_slice(&[MSI, 0, 0x81, 0]);
        space
    }

    #[test]
    fn a_device_is_prepared_without_memory_access_and_without_interrupts() {
        let config = config(&space());
        config.prepare().unwrap();
        assert_eq!(config.read16(COMMAND).unwrap(), 0x40 | MEMORY_SPACE | INTX_DISABLE);
        assert_eq!(config.read16(0x42).unwrap(), 0x001F);
        assert_eq!(config.read16(0x82).unwrap(), 0x0080);
    }

    #[test]
    fn the_bus_master_bit_is_switched_alone() {
        let config = config(&space());
        config.prepare().unwrap();
        config.set_bus_master(true).unwrap();
        assert_eq!(config.read16(COMMAND).unwrap(), 0x446);
        config.prepare_again().unwrap();
        assert_eq!(config.read16(COMMAND).unwrap(), 0x446, "a reset gives the bit back as it was");
        config.set_bus_master(false).unwrap();
        assert_eq!(config.read16(COMMAND).unwrap(), 0x442);
    }

    #[test]
    fn a_device_that_is_gone_is_an_error() {
        let config = config(&[0xFF; BYTES]);
        for result in [config.prepare(), config.set_bus_master(false), config.set_bus_master(true)]
        {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENODEV));
        }
    }

    #[test]
    fn a_broken_list_of_capabilities_ends() {
        let mut circle = space();
        circle[0x81] = 0x40;
        assert_eq!(find_capability(&circle, 0x10), None);
        for next in 0..=u8::MAX {
            let mut broken = space();
            broken[0x41] = next;
            assert!(find_capability(&broken, 0x99).is_none_or(|at| at >= 64), "{next}");
        }
        assert_eq!(find_capability(&[0xFF; BYTES], 0x10), None);
        assert_eq!(find_capability(&space(), MSI), Some(0x80));
    }
}

//! The emulated function as the driver holds it.

use std::cell::RefCell;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;

use super::device::Device;
use super::dma::EmulatedDma;
use super::registers::EmulatedRegisters;
use crate::hardware::{Hardware, HardwareEvent};

/// What a driver is given of an emulated controller. Dropping the last one resets the function, as the kernel
/// does when a process lets go of it.
#[derive(Debug)]
pub struct EmulatedHardware {
    device: Rc<RefCell<Device>>,
    name: String,
    registers: Arc<EmulatedRegisters>,
    dma: Arc<EmulatedDma>,
}

impl EmulatedHardware {
    pub(super) fn new(device: &Rc<RefCell<Device>>) -> Self {
        let mut held = device.borrow_mut();
        held.holders += 1;
        Self {
            device: Rc::clone(device),
            name: held.config.name.clone(),
            registers: Arc::clone(&held.registers),
            dma: Arc::clone(&held.dma),
        }
    }
}

impl Hardware for EmulatedHardware {
    type Registers = EmulatedRegisters;
    type Dma = EmulatedDma;

    fn name(&self) -> &str {
        &self.name
    }

    fn registers(&self) -> Arc<EmulatedRegisters> {
        Arc::clone(&self.registers)
    }

    fn dma(&self) -> Arc<EmulatedDma> {
        Arc::clone(&self.dma)
    }

    fn set_bus_master(&mut self, on: bool) -> io::Result<()> {
        let mut device = self.device.borrow_mut();
        if !device.present {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        device.bus_master = on;
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.device.borrow_mut().reset_function()
    }

    fn next_event(&mut self) -> Option<HardwareEvent> {
        self.device.borrow_mut().signals.pop_front()
    }

    /// None: events are found by asking.
    fn wait_fds(&self, _visit: &mut dyn FnMut(BorrowedFd<'_>)) {}
}

impl Drop for EmulatedHardware {
    fn drop(&mut self) {
        let mut device = self.device.borrow_mut();
        device.holders -= 1;
        if device.holders == 0 && device.present {
            device.drop_in_flight();
            device.power_on();
        }
    }
}

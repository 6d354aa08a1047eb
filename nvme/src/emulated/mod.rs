//! An NVMe controller in memory, behind the hardware traits: every line of the driver runs against it, on good
//! days and on bad ones.
//!
//! Guarantees:
//!
//! * with a default [`EmulatedConfig`] it is an honest drive: it does what NVMe Base 2.0 and NVM Command Set 1.0
//!   ask for, and uses every freedom that they leave (completion in any order, the host's memory at any moment
//!   until then, cached writes lost or torn at a power cut, writes undecided that a reset dropped);
//! * it checks the driver as it goes: see [`Violation`] and [`IommuFault`];
//! * the same seed, the same steps and the same driver give the same run;
//! * it touches no memory that is not mapped for it at that moment, however hostile it is.
//!
//! What breaks it: stepping it from several threads (it is `Rc`; only its registers and its DMA travel).
//!
//! It lives in virtual time, which [`EmulatedController::step`] is given. Nothing happens between two steps, so
//! a host that waits has to go on stepping:
//!
//! ```
//! use forebay_nvme::emulated::{EmulatedConfig, EmulatedController};
//! use forebay_nvme::hardware::{Hardware, Registers};
//! use forebay_nvme::spec::registers::{CAP, Capabilities};
//!
//! let controller = EmulatedController::new(EmulatedConfig::default());
//! let hardware = controller.hardware();
//! controller.step(0);
//! let cap = Capabilities(hardware.registers().read64(CAP));
//! assert_eq!(cap.queue_entries_max(), 1024);
//! assert_eq!(controller.counters().violations, 0);
//! ```

mod admin;
mod config;
mod counters;
mod device;
mod dma;
mod events;
mod faults;
mod features;
mod hardware;
mod hostile;
mod identify;
mod io;
mod logs;
mod namespace;
mod power;
mod queues;
mod registers;
mod transfer;

use std::cell::RefCell;
use std::rc::Rc;

pub use config::{EmulatedConfig, Identity, NamespaceConfig, RegisterConfig, Times};
pub use counters::{Counters, Violation};
use device::Device;
pub use device::Traced;
pub use dma::{EmulatedDma, IommuFault};
pub use faults::{Chances, Fault, On, Rule, Scheduled, Stick};
pub use hardware::EmulatedHardware;
pub use registers::EmulatedRegisters;

use crate::sim::{self, Faults};
use crate::spec::event::AsyncEvent;
use crate::spec::log::SmartLog;
use crate::{BLOCK_BYTES, sim::media::check_atomic_bytes};

/// A handle on an emulated controller. Clones are the same one.
#[derive(Clone, Debug)]
pub struct EmulatedController {
    device: Rc<RefCell<Device>>,
}

impl EmulatedController {
    /// A controller with blank media, disabled.
    #[must_use]
    pub fn new(config: EmulatedConfig) -> Self {
        check_atomic_bytes(config.media_faults.atomic_bytes);
        Self { device: Rc::new(RefCell::new(Device::new(config))) }
    }

    /// The function, for a driver. May be taken again by the next one.
    #[must_use]
    pub fn hardware(&self) -> EmulatedHardware {
        EmulatedHardware::new(&self.device)
    }

    /// Lets it look at its registers and doorbells, fetch what was submitted, and do what is due by `now_us`.
    pub fn step(&self, now_us: u64) {
        self.device.borrow_mut().step(now_us);
    }

    /// When something happens next, so that a test can jump its clock there. `None`: nothing, if the host does
    /// nothing more.
    #[must_use]
    pub fn next_event_us(&self) -> Option<u64> {
        self.device.borrow().next_event_us()
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.device.borrow().counters()
    }

    /// The first things that the driver did wrong.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.device.borrow().violations()
    }

    /// The first accesses that the IOMMU blocked.
    #[must_use]
    pub fn iommu_faults(&self) -> Vec<IommuFault> {
        self.device.borrow().dma.faults().1
    }

    /// Whether the controller may still touch `bytes` bytes at `address`, because a command in flight begins there or a queue
    /// lies there: then it is too early to use them for something else.
    #[must_use]
    pub fn holds(&self, address: usize, bytes: usize) -> bool {
        self.device.borrow().holds(address, bytes)
    }

    /// The commands that completed, if the configuration asks for them to be kept.
    #[must_use]
    pub fn trace(&self) -> Vec<Traced> {
        self.device.borrow().trace.clone()
    }

    /// Makes it another drive: what Identify and the grants say from now on. Registers follow at the next reset
    /// of the function, namespaces stay: see [`EmulatedController::change_namespace`].
    pub fn reconfigure(&self, change: impl FnOnce(&mut EmulatedConfig)) {
        change(&mut self.device.borrow_mut().config);
    }

    /// Changes what a namespace says of itself, and tells of it where the host asked for that.
    ///
    /// # Panics
    /// When there is no such namespace.
    pub fn change_namespace(&self, nsid: u32, change: impl FnOnce(&mut NamespaceConfig)) {
        let mut device = self.device.borrow_mut();
        let namespace = device.namespaces.get_mut(&nsid).expect("a namespace that is there");
        change(namespace.config_mut());
        device.namespace_changed(nsid);
    }

    /// Adds a fault at a chosen command.
    pub fn add_rule(&self, rule: Rule) {
        self.device.borrow_mut().rules.add(rule);
    }

    /// Takes all rules away, of commands and of the media.
    pub fn clear_rules(&self) {
        let mut device = self.device.borrow_mut();
        device.rules.clear();
        device.namespaces.values_mut().for_each(|namespace| namespace.state.rules.clear());
    }

    /// Adds a fault at a chosen block of 4 KiB.
    ///
    /// # Panics
    /// When there is no such namespace.
    pub fn add_media_rule(&self, nsid: u32, rule: sim::Rule) {
        let mut device = self.device.borrow_mut();
        device.namespaces.get_mut(&nsid).expect("a namespace that is there").add_rule(rule);
    }

    /// Changes what goes wrong by chance with the media.
    pub fn set_media_faults(&self, faults: Faults) {
        check_atomic_bytes(faults.atomic_bytes);
        let mut device = self.device.borrow_mut();
        device.config.media_faults = faults;
        device.namespaces.values_mut().for_each(|namespace| namespace.state.faults = faults);
    }

    /// Takes all chances away: from now on it is honest, but for what has happened already.
    pub fn calm_down(&self) {
        let mut device = self.device.borrow_mut();
        device.config.io_chances = Chances::default();
        device.config.admin_chances = Chances::default();
        drop(device);
        self.clear_rules();
        let atomic_bytes = self.device.borrow().config.media_faults.atomic_bytes;
        self.set_media_faults(Faults { atomic_bytes, ..Faults::default() });
    }

    /// Something happens to it, now.
    pub fn happen(&self, what: Scheduled) {
        self.device.borrow_mut().happen(what);
    }

    /// CSTS.CFS appears.
    pub fn fail_fatally(&self) {
        self.happen(Scheduled::Fatal);
    }

    /// It leaves the bus, and its power goes: see [`EmulatedController::crash`] for what that means.
    pub fn unplug(&self) {
        self.happen(Scheduled::Unplug);
    }

    /// It is back on the bus.
    pub fn plug(&self) {
        self.device.borrow_mut().plug();
    }

    /// The system asks for the device.
    pub fn request_removal(&self) {
        self.happen(Scheduled::RequestRemoval);
    }

    /// The bus reports an error.
    pub fn bus_error(&self) {
        self.happen(Scheduled::BusError);
    }

    /// CSTS.RDY gets stuck, or comes free.
    pub fn set_stick(&self, stick: Option<Stick>) {
        self.device.borrow_mut().set_stick(stick);
    }

    /// The next so many function resets fail; `u32::MAX` is all of them.
    pub fn fail_resets(&self, count: u32) {
        self.happen(Scheduled::FailResets(count));
    }

    /// Sends an event, if the host waits for one and has read the log page of the last of its kind.
    pub fn raise(&self, event: AsyncEvent) {
        self.device.borrow_mut().raise(event);
    }

    /// SMART critical warnings; new ones are told where the host asked for that.
    pub fn set_critical_warning(&self, bits: u8) {
        self.happen(Scheduled::CriticalWarning(bits));
    }

    /// Changes what the SMART log says; its counters are kept by the controller.
    pub fn set_smart(&self, change: impl FnOnce(&mut SmartLog)) {
        change(&mut self.device.borrow_mut().health.smart);
    }

    /// The SMART log as it is now.
    #[must_use]
    pub fn smart(&self) -> SmartLog {
        self.device.borrow().smart()
    }

    /// Cuts the power, and gives it back at once: the controller is disabled, and knows no queue. Writes in
    /// flight or in the volatile cache are kept, dropped or torn as `seed` says.
    pub fn crash(&self, seed: u64) {
        self.device.borrow_mut().crash(seed);
    }

    /// A block of 4 KiB as a read would see it, without the read.
    ///
    /// # Panics
    /// When there is no such namespace.
    #[must_use]
    pub fn peek(&self, nsid: u32, block: u64) -> Vec<u8> {
        let device = self.device.borrow();
        let namespace = device.namespaces.get(&nsid).expect("a namespace that is there");
        namespace.content(block * BLOCK_BYTES as u64, BLOCK_BYTES)
    }

    /// Changes a block of 4 KiB behind everybody's back.
    ///
    /// # Panics
    /// When there is no such namespace.
    pub fn edit(&self, nsid: u32, block: u64, change: impl FnMut(&mut [u8; BLOCK_BYTES])) {
        let mut device = self.device.borrow_mut();
        device.namespaces.get_mut(&nsid).expect("a namespace that is there").edit(block, change);
    }

    /// Turns one bit of a block over, for good.
    ///
    /// # Panics
    /// When there is no such namespace, or the block has no such bit.
    pub fn flip_bit(&self, nsid: u32, block: u64, bit: usize) {
        self.edit(nsid, block, |data| data[bit / 8] ^= 1 << (bit % 8));
    }
}

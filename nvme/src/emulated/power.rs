//! Enabling, disabling, shutting down; resets, power cuts and removal.
//!
//! Guarantees: CSTS follows CC after the time that the configuration gives it, unless it is stuck; once the
//! controller is quiet, or its function was reset, nothing that was in flight happens any more.

use std::io;

use super::counters::Violation;
use super::device::{Device, Event, Flight};
use super::faults::{Scheduled, Stick};
use super::queues::{CompletionQueue, SubmissionQueue};
use crate::hardware::HardwareEvent;
use crate::spec::registers::{
    ACQ, AQA, ASQ, AdminQueueSizes, CSTS, Configuration, ControllerStatus,
};

/// Where a controller is on its way between CC.EN and CSTS.RDY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Power {
    /// Disabled, and quiet.
    Off,
    /// Enabled, and not ready yet.
    Rising,
    /// Ready.
    On,
    /// Disabled, and not quiet yet.
    Falling,
}

impl Device {
    pub(super) fn is_on(&self) -> bool {
        self.power == Power::On && !self.status().fatal()
    }

    /// It broke down by itself, and the host may not have seen that yet.
    pub(super) fn is_fatal(&self) -> bool {
        self.status().fatal() || self.upset
    }

    pub(super) fn is_shut_down(&self) -> bool {
        self.status().shutdown_complete()
    }

    fn status(&self) -> ControllerStatus {
        ControllerStatus(self.registers.get(CSTS))
    }

    /// As it comes from the factory's or the bus's reset.
    pub(super) fn power_on(&mut self) {
        let registers = &self.config.registers;
        let (vs, crto) = (registers.version.0, registers.ready_timeouts);
        self.registers.power_on(registers.capabilities(), vs, crto);
        self.power = Power::Off;
        self.seen = Configuration(0);
        self.bus_master = false;
        self.stalled_until_us = 0;
        if self.stick == Some(Stick::AtOneUntilReset) {
            self.stick = None;
        }
    }

    pub(super) fn look_at_configuration(&mut self) {
        let cc = self.registers.configuration();
        if cc.shutdown() != self.seen.shutdown() && cc.shutdown().is_some() {
            self.counters.shutdowns += 1;
            self.registers.set_status(ControllerStatus::SHUTDOWN_OCCURRING, 3 << 2);
            let us = self.rng.u64(self.config.times.shutdown_us.clone());
            self.after(us, Event::ShutDown);
        }
        self.seen = cc;
        match self.power {
            Power::Off if cc.enabled() => self.rise(),
            Power::Rising | Power::On if !cc.enabled() => self.fall(),
            Power::Off | Power::Rising | Power::On | Power::Falling => {}
        }
    }

    fn rise(&mut self) {
        self.power = Power::Rising;
        self.upset = false;
        self.registers.set_status(0, ControllerStatus::FATAL);
        self.counters.enables += 1;
        if self.stick != Some(Stick::AtZero) {
            let us = self.rng.u64(self.config.times.enable_us.clone());
            self.after(us, Event::Ready);
        }
    }

    /// Until it is quiet it goes on with what it has, and may touch the memory that belongs to it.
    fn fall(&mut self) {
        self.power = Power::Falling;
        self.counters.disables += 1;
        self.let_go_of_some();
        if !self.sticks_at_one() {
            let us = self.rng.u64(self.config.times.disable_us.clone());
            self.after(us, Event::Quiet);
        }
    }

    fn sticks_at_one(&self) -> bool {
        matches!(self.stick, Some(Stick::AtOne | Stick::AtOneUntilReset))
    }

    pub(super) fn become_ready(&mut self) {
        let cc = self.seen;
        let sizes = AdminQueueSizes(self.registers.get(AQA));
        let (asq, acq) = (self.registers.get64(ASQ), self.registers.get64(ACQ));
        self.page_bytes = cc.page_bytes();
        let page = 4096 << (self.config.registers.page_min & 15)
            ..=4096_usize << (self.config.registers.page_max & 15);
        let aligned = [asq, acq].iter().all(|base| base & 0xfff == 0);
        let bytes = [sizes.sq_entries() as usize * 64, sizes.cq_entries() as usize * 16];
        let sized = sizes.sq_entries() >= 2 && sizes.cq_entries() >= 2;
        let reached = self.dma.reaches(asq, bytes[0]) && self.dma.reaches(acq, bytes[1]);
        if !page.contains(&self.page_bytes) || cc.command_set() != 0 || !aligned || !sized {
            self.violation(Violation::BadConfiguration);
            return self.fail_fatally();
        }
        if !reached {
            self.violation(Violation::QueueMemory { queue: 0 });
        }
        self.submission.insert(0, SubmissionQueue::new(asq, sizes.sq_entries(), 0));
        self.completion.insert(0, CompletionQueue::new(acq, sizes.cq_entries()));
        self.power = Power::On;
        self.registers.set_status(ControllerStatus::READY, 0);
    }

    pub(super) fn become_quiet(&mut self) {
        self.drop_in_flight();
        self.power = Power::Off;
        self.registers.set(CSTS, 0);
    }

    pub(super) fn become_shut_down(&mut self) {
        for namespace in self.namespaces.values_mut() {
            namespace.settle();
        }
        self.health.shut_down = true;
        self.registers.set_status(ControllerStatus::SHUTDOWN_COMPLETE, 3 << 2);
    }

    /// Controller Fatal Status: nothing is fetched or completed until it is disabled.
    pub(super) fn fail_fatally(&mut self) {
        self.registers.set_status(ControllerStatus::FATAL, 0);
        let flights = self.take_flights();
        // They stay undecided until the reset, and none of them completes.
        flights.into_iter().for_each(|flight| self.at(u64::MAX, Event::Command(flight)));
        if self.power == Power::Falling && !self.sticks_at_one() {
            self.after(0, Event::Quiet);
        }
    }

    /// Function level reset.
    pub(super) fn reset_function(&mut self) -> io::Result<()> {
        if !self.present {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        if self.failing_resets > 0 {
            self.failing_resets -= u32::from(self.failing_resets != u32::MAX);
            return Err(io::Error::from_raw_os_error(libc::ENOTTY));
        }
        self.counters.function_resets += 1;
        self.drop_in_flight();
        self.power_on();
        Ok(())
    }

    /// The power goes and comes back. In-flight and cached writes meet the fates that `seed` gives them.
    pub(super) fn crash(&mut self, seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut writes = Vec::new();
        for flight in self.take_flights() {
            writes.extend(self.pending_write(&flight));
        }
        for namespace in self.namespaces.values_mut() {
            let nsid = namespace.nsid();
            let own = writes.iter().filter(|write| write.nsid == nsid);
            let blocks = own.map(|write| (write.block, &write.bytes[..]));
            namespace.crash(blocks, &mut rng);
        }
        self.health.lose_power();
        self.forget_queues();
        self.notices.forget();
        self.power_on();
        self.upset = true;
    }

    pub(super) fn unplug(&mut self) {
        let seed = self.rng.u64(..);
        self.crash(seed);
        self.present = false;
        self.registers.set_gone(true);
    }

    pub(super) fn plug(&mut self) {
        self.present = true;
        self.registers.set_gone(false);
        self.power_on();
        self.upset = false;
    }

    pub(super) fn set_stick(&mut self, stick: Option<Stick>) {
        let freed = self.stick.is_some() && stick.is_none();
        self.stick = stick;
        let waits = !self.events.values().any(|it| matches!(it, Event::Ready | Event::Quiet));
        match self.power {
            Power::Rising if freed && waits => self.after(0, Event::Ready),
            Power::Falling if freed && waits => self.after(0, Event::Quiet),
            _ => {}
        }
    }

    /// Something happens to the controller.
    pub(super) fn happen(&mut self, what: Scheduled) {
        match what {
            Scheduled::Fatal if self.present => self.fail_fatally(),
            Scheduled::Unplug if self.present => self.unplug(),
            Scheduled::RequestRemoval => self.signals.push_back(HardwareEvent::RemovalRequested),
            Scheduled::BusError => self.signals.push_back(HardwareEvent::Error),
            Scheduled::CriticalWarning(bits) => self.set_critical_warning(bits),
            Scheduled::NamespaceChanged(nsid) => self.namespace_changed(nsid),
            Scheduled::EventStorm(count) => self.storm(count),
            Scheduled::Stick(stick) => self.set_stick(Some(stick)),
            Scheduled::Unstick => self.set_stick(None),
            Scheduled::FailResets(count) => self.failing_resets = count,
            Scheduled::Stall { us } => self.stall(us),
            Scheduled::Fatal | Scheduled::Unplug => {}
        }
    }

    /// What a command that did not come to its end has written, to media or to memory: nothing, all, or some of
    /// its blocks.
    pub(super) fn leave_undecided(&mut self, flight: &Flight) {
        if self.rng.u32(..3) == 0 {
            return;
        }
        self.read_in_vain(flight);
        let Some(write) = self.pending_write(flight) else { return };
        let durable = !self.caches();
        let all = self.rng.bool();
        if let Some(namespace) = self.namespaces.get_mut(&write.nsid) {
            let rng = &mut self.rng;
            namespace.write_some(write.block, &write.bytes, durable, |_| all || rng.bool());
        }
    }
}

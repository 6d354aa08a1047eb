//! Making a controller quiet, and giving one up.
//!
//! Guarantees: no gate turns [`Gate::Stopped`] or [`Gate::Gone`] while the controller may touch memory.

use super::Story;
use crate::hardware::{Hardware, Registers};
use crate::pcie::State;
use crate::pcie::error::{AdminError, Trouble};
use crate::pcie::link::{Gate, Link, Message};
use crate::spec::registers::{self, Configuration, ControllerStatus, Shutdown};
use std::convert::Infallible;
use std::sync::Arc;

/// How long a controller may take to shut down, in milliseconds.
const SHUTDOWN_MS: u64 = 10_000;

impl<H: Hardware> Story<H> {
    /// Stops the controller: by CC.EN, else by a reset of the function. Then its queues may take back what
    /// they had given it.
    pub(super) async fn stop(&mut self, trouble: Trouble) -> Result<(), Trouble> {
        self.set_gates(Gate::Closed);
        match trouble {
            Trouble::Gone => return Err(trouble),
            Trouble::Closed => self.shut_down().await,
            Trouble::Bus => self.reset_function().await?,
            _ => {}
        }
        self.make_quiet().await?;
        self.set_gates(Gate::Stopped);
        self.queues.iter_mut().for_each(|known| known.live = false);
        self.aborts.clear();
        self.abort_sent = None;
        if let Some(admin) = &mut self.admin {
            admin.reset();
        }
        Ok(())
    }

    /// By CC.EN, else by a reset of the function.
    pub(super) async fn make_quiet(&mut self) -> Result<(), Trouble> {
        match self.disable().await {
            Ok(()) => Ok(()),
            Err(Trouble::Gone) => Err(Trouble::Gone),
            Err(_) => self.reset_function().await,
        }
    }

    /// Queues that want to leave a controller which does not know them need not wait until it serves again.
    pub(super) fn let_leave(&mut self) {
        while let Ok(message) = self.inbox.try_recv() {
            match message {
                Message::Detach(link) if !self.is_live(&link) => self.strike_out(&link),
                // They are about a life that is over.
                Message::Abort { .. } | Message::Reset { .. } => {}
                later => self.deferred.push_back(later),
            }
        }
    }

    fn is_live(&self, link: &Arc<Link>) -> bool {
        self.queues.iter().any(|known| known.live && Arc::ptr_eq(&known.link, link))
    }

    fn strike_out(&mut self, link: &Arc<Link>) {
        self.deferred.retain(
            |mail| !matches!(mail, Message::Attach(attach) if Arc::ptr_eq(&attach.link, link)),
        );
        self.forget(link);
        link.set(Gate::Gone);
    }

    /// Tells the controller that the power may go (NVMe Base 2.0, "Memory-based Controller Shutdown").
    async fn shut_down(&mut self) {
        let Some(registers) = self.registers.clone() else { return };
        let configuration = Configuration(registers.read32(registers::CC));
        registers.write32(registers::CC, configuration.with_shutdown(Shutdown::Normal).0);
        let notes = &self.notes;
        let done = self.clock.until(SHUTDOWN_MS, || {
            notes.busy.set(true);
            let status = ControllerStatus(registers.read32(registers::CSTS));
            (status.gone() || status.shutdown_complete()).then_some(())
        });
        if done.await.is_none() {
            log::warn!("{}: did not shut down within {SHUTDOWN_MS} ms", self.shared.name);
        }
    }

    /// Takes the bus from the controller, tells its queues, and lets go of the function.
    pub(super) fn give_up(&mut self) {
        self.shared.set_state(State::Gone);
        let Some(mut hardware) = self.hardware.take() else { return };
        self.set_gates(Gate::Closed);
        take_the_bus(&mut hardware, &self.shared.name);
        self.set_gates(Gate::Gone);
        self.queues.clear();
        self.admin = None;
        self.registers = None;
        match self.notes.trouble.get() {
            Some(Trouble::Closed) | None => log::debug!("{}: closed", self.shared.name),
            Some(trouble) => log::error!("{}: given up: {trouble}", self.shared.name),
        }
    }

    /// Nobody waits for a controller that is not there.
    pub(super) async fn answer_for_ever(&mut self) -> Infallible {
        loop {
            self.answer_mail();
            self.clock.tick().await;
        }
    }

    fn answer_mail(&mut self) {
        while let Some(message) = self.next_message() {
            match message {
                Message::Attach(attach) => attach.link.set(Gate::Gone),
                Message::Detach(link) => link.set(Gate::Gone),
                Message::Abort { .. } | Message::Reset { .. } => {}
                Message::Admin { reply, .. } => {
                    let trouble = self.notes.trouble.get().unwrap_or(Trouble::Gone);
                    if reply.send(Err(AdminError::Trouble(trouble))).is_err() {
                        log::debug!("{}: nobody waits for an answer", self.shared.name);
                    }
                }
            }
        }
    }
}

/// Bus mastering off. Where that cannot be done nor the function be reset, and it is there all the same, the
/// device may write to memory that is about to be used for something else: nothing is right after that, and the
/// end of the process takes the device away from it.
fn take_the_bus(hardware: &mut impl Hardware, name: &str) {
    let Err(error) = hardware.set_bus_master(false) else { return };
    if is_gone(&error) {
        return log::debug!("{name}: bus mastering off: {error}");
    }
    log::warn!("{name}: bus mastering off: {error}; resetting the PCI function");
    match hardware.reset() {
        Ok(()) => {}
        Err(error) if is_gone(&error) => log::debug!("{name}: reset: {error}"),
        Err(error) => {
            log::error!("{name}: cannot be kept from memory: {error}; ending");
            std::process::abort();
        }
    }
}

/// The function is not there any more.
pub(super) fn is_gone(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODEV)
}

impl<H: Hardware> Drop for Story<H> {
    /// Without the pleasantries: what is left is taken away.
    fn drop(&mut self) {
        if self.hardware.is_some() && !self.status().gone() {
            let registers = Arc::clone(self.registers.as_ref().expect("as long as the hardware"));
            let configuration = Configuration(registers.read32(registers::CC));
            registers.write32(registers::CC, configuration.disable().0);
        }
        self.give_up();
        self.answer_mail();
    }
}

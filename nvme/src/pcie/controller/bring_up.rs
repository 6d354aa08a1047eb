//! From any state to ready: NVMe Base 2.0, "Memory-based Controller Initialization (PCIe)".

use std::sync::Arc;

use super::Story;
use super::stop::is_gone;
use crate::DmaBuf;
use crate::hardware::{Hardware, HardwareEvent, Registers};
use crate::pcie::admin::{self, AdminQueue, Purpose};
use crate::pcie::doorbell::Shadows;
use crate::pcie::error::Trouble;
use crate::pcie::facts::Facts;
use crate::pcie::{FORMAT_TIMEOUT_MS, PAGE_BYTES};
use crate::spec::command::{Data, Submission};
use crate::spec::completion::Completion;
use crate::spec::identify::{ActiveNamespaces, IdentifyController, IdentifyNamespace};
use crate::spec::opcode;
use crate::spec::registers::{
    self, AdminQueueSizes, Capabilities, Configuration, ControllerStatus, ReadyTimeouts,
};
use zerocopy::FromBytes;

/// I/O queues that are asked for.
const QUEUES_WANTED: u16 = 256;
/// A controller that gives itself no time to get ready is given so much, in milliseconds.
const READY_MS_MIN: u64 = 500;
/// The most that CAP.TO can say, in milliseconds, and no controller is waited for longer: CRTO could say hours.
const READY_MS_MAX: u64 = 255 * 500;

impl<H: Hardware> Story<H> {
    pub(super) async fn bring_up(&mut self) -> Result<Facts, Trouble> {
        self.enable().await?;
        let facts = self.identify().await?;
        self.configure(facts).await
    }

    /// CC.EN from whatever it is to 1, with an admin queue.
    async fn enable(&mut self) -> Result<(), Trouble> {
        self.capabilities = self.read_capabilities()?;
        self.make_quiet().await?;
        self.give_the_bus()?;
        let iovas = self.admin_queue()?;
        let registers = self.registers();
        let sizes = AdminQueueSizes::new(admin::ENTRIES, admin::ENTRIES).0;
        registers.write32(registers::AQA, sizes);
        registers.write64(registers::ASQ, iovas[0]);
        registers.write64(registers::ACQ, iovas[1]);
        registers.write32(registers::CC, Configuration::enable(PAGE_BYTES).0);
        self.wait_ready(true).await
    }

    fn give_the_bus(&mut self) -> Result<(), Trouble> {
        let Err(error) = self.hardware().set_bus_master(true) else { return Ok(()) };
        log::warn!("{}: bus mastering on: {error}", self.shared.name);
        Err(if is_gone(&error) { Trouble::Gone } else { Trouble::Bus })
    }

    fn read_capabilities(&self) -> Result<Capabilities, Trouble> {
        let registers = self.registers();
        let unusable = |what| Err(Trouble::Unusable { what });
        if self.status().gone() {
            return Err(Trouble::Gone);
        }
        let capabilities = Capabilities(registers.read64(registers::CAP));
        if !capabilities.nvm_command_set() {
            return unusable("it has no NVM command set (CAP.CSS)");
        }
        if capabilities.page_bytes_min() > PAGE_BYTES {
            return unusable(
                "it works with memory pages of more than 4096 bytes only (CAP.MPSMIN)",
            );
        }
        if capabilities.queue_entries_max() < 2 {
            return unusable("its queues have no room (CAP.MQES)");
        }
        let stride_bytes = capabilities.doorbell_stride_bytes();
        if registers::completion_doorbell(1, stride_bytes) + 4 > registers.bytes() {
            return unusable("its doorbells are outside of its registers (CAP.DSTRD)");
        }
        Ok(capabilities)
    }

    /// The admin queue, empty: where its rings are.
    fn admin_queue(&mut self) -> Result<[u64; 2], Trouble> {
        if let Some(admin) = &mut self.admin {
            admin.reset();
        } else {
            let page = || self.pool.alloc(PAGE_BYTES).ok_or(Trouble::Memory);
            let registers = Arc::clone(self.registers.as_ref().ok_or(Trouble::Gone)?);
            let stride_bytes = self.capabilities.doorbell_stride_bytes();
            self.admin = Some(AdminQueue::new(registers, [page()?, page()?], stride_bytes));
        }
        let admin = self.admin.as_ref().ok_or(Trouble::Memory)?;
        admin.iovas(&self.mapping).ok_or(Trouble::Memory)
    }

    /// CC.EN to 0 and CSTS.RDY with it: then the controller touches no memory.
    pub(super) async fn disable(&mut self) -> Result<(), Trouble> {
        let configuration = Configuration(self.registers().read32(registers::CC));
        let status = self.status();
        if status.gone() {
            return Err(Trouble::Gone);
        }
        if !configuration.enabled() {
            // It may still be on its way down.
            return self.wait_ready(false).await;
        }
        if !status.ready() && !status.fatal() {
            // EN must not be cleared while it is on its way up (NVMe Base 2.0, "Controller Configuration").
            // If it does not arrive it is cleared all the same.
            let came_up = self.wait_ready(true).await;
            if came_up == Err(Trouble::Gone) {
                return came_up;
            }
        }
        self.registers().write32(registers::CC, configuration.disable().0);
        self.wait_ready(false).await
    }

    /// Waits for CSTS.RDY, as long as the controller says that it may take.
    async fn wait_ready(&mut self, ready: bool) -> Result<(), Trouble> {
        let ms = self.ready_ms(ready);
        let registers = Arc::clone(self.registers.as_ref().ok_or(Trouble::Gone)?);
        let notes = &self.notes;
        let waited = self.clock.until(ms, || {
            notes.busy.set(true);
            let status = ControllerStatus(registers.read32(registers::CSTS));
            if status.gone() {
                Some(Err(Trouble::Gone))
            } else if ready && status.fatal() {
                Some(Err(Trouble::Fatal))
            } else {
                (status.ready() == ready).then_some(Ok(()))
            }
        });
        let what = if ready { "ready" } else { "quiet" };
        waited.await.unwrap_or(Err(Trouble::Stuck { what, ms }))
    }

    /// CAP.TO, or CRTO where that is there.
    fn ready_ms(&self, ready: bool) -> u64 {
        let own = self.capabilities.timeout_ms();
        let crto = if ready && self.capabilities.ready_modes().ready_with_media() {
            ReadyTimeouts(self.registers().read32(registers::CRTO)).ready_with_media_ms()
        } else {
            0
        };
        own.max(crto).clamp(READY_MS_MIN, READY_MS_MAX)
    }

    /// Resets the function, and waits until it is quiet.
    pub(super) async fn reset_function(&mut self) -> Result<(), Trouble> {
        log::warn!("{}: does not stop; resetting the PCI function", self.shared.name);
        if let Err(error) = self.hardware().reset() {
            log::warn!("{}: the reset failed: {error}", self.shared.name);
            return Err(if is_gone(&error) { Trouble::Gone } else { Trouble::ResetFailed });
        }
        self.disable().await
    }

    pub(super) async fn identify(&mut self) -> Result<Facts, Trouble> {
        let page = self.read_page("Identify controller", Submission::identify_controller).await?;
        let controller = parse::<IdentifyController>(&page);
        let id = match self.options.namespace {
            Some(id) => id,
            None => self.first_namespace().await?,
        };
        let page =
            self.read_page("Identify namespace", |data| Submission::identify_namespace(id, data));
        let namespace = parse::<IdentifyNamespace>(&page.await?);
        if namespace.nsze.get() == 0 && self.options.namespace.is_some() {
            return Err(Trouble::Unusable { what: "the configured namespace is not active" });
        }
        Facts::new(&controller, &namespace, id, self.capabilities.queue_entries_max())
    }

    /// The first active namespace. Controllers before NVMe 1.1 have no list, and namespace 1.
    async fn first_namespace(&mut self) -> Result<u32, Trouble> {
        let list = self
            .read_page("Identify", |data| Submission::identify_active_namespaces(0, data))
            .await;
        match list {
            Ok(page) => match parse::<ActiveNamespaces>(&page).iter().next() {
                Some(id) => Ok(id),
                None => Err(Trouble::Unusable { what: "it has no active namespace" }),
            },
            Err(Trouble::Refused { .. }) => Ok(1),
            Err(trouble) => Err(trouble),
        }
    }

    /// Everything that a reset has undone: features, queue count, doorbell buffers.
    async fn configure(&mut self, mut facts: Facts) -> Result<Facts, Trouble> {
        facts.queues = self.negotiate_queues().await?;
        if facts.retry_delays_us.iter().any(|delay_us| *delay_us > 0) {
            self.enable_retry_delays().await?;
        }
        self.shadows = None;
        if self.options.shadow_doorbells && facts.doorbell_buffers {
            self.enable_shadow_doorbells().await?;
        }
        self.enable_events(&facts).await?;
        Ok(facts)
    }

    async fn negotiate_queues(&mut self) -> Result<u16, Trouble> {
        let command = Submission::set_queue_count(QUEUES_WANTED, QUEUES_WANTED);
        let result = self.must("Set Features (Number of Queues)", command).await?.result.get();
        // Both counts are from 0 (NVMe Base 2.0, "Number of Queues").
        let granted = (result & 0xffff).min(result >> 16) + 1;
        let stride_bytes = self.capabilities.doorbell_stride_bytes();
        let room = (self.registers().bytes() - registers::DOORBELLS) / (2 * stride_bytes) - 1;
        // Beyond the doorbells that there are, a grant is of no use; 65 535 is the last identifier.
        Ok(granted.min(room as u32).min(u32::from(QUEUES_WANTED)) as u16)
    }

    /// Host Behavior Support: without it a controller sends no Command Retry Delay.
    async fn enable_retry_delays(&mut self) -> Result<(), Trouble> {
        let mut page = self.page()?;
        page.zero_tail(0);
        page[0] = 1; // ACRE
        let data = self.describe(&page)?;
        let (entry, _) = self.execute(Submission::set_host_behavior(data), Some(page)).await?;
        if !entry.status().ok() {
            log::debug!("{}: no retry delays: {}", self.shared.name, entry.status());
        }
        Ok(())
    }

    async fn enable_shadow_doorbells(&mut self) -> Result<(), Trouble> {
        let shadows = Shadows::new(&*self.dma).map_err(|error| {
            log::error!("{}: {error}", self.shared.name);
            Trouble::Memory
        })?;
        let (values, events) = shadows.iovas();
        // Kept from now on: if no answer comes the controller has them until it is stopped.
        self.shadows = Some(Arc::new(shadows));
        let (entry, _) = self.execute(Submission::doorbell_buffers(values, events), None).await?;
        if !entry.status().ok() {
            self.shadows = None;
            log::debug!("{}: no shadow doorbells: {}", self.shared.name, entry.status());
        }
        Ok(())
    }

    async fn enable_events(&mut self, facts: &Facts) -> Result<(), Trouble> {
        let command = Submission::set_async_events(facts.events);
        let (entry, _) = self.execute(command, None).await?;
        if !entry.status().ok() {
            log::debug!("{}: asynchronous events: {}", self.shared.name, entry.status());
        }
        self.arm_events(facts);
        Ok(())
    }

    /// Carries out a command that fills a page.
    pub(super) async fn read_page(
        &mut self,
        name: &'static str,
        command: impl FnOnce(Data) -> Submission,
    ) -> Result<DmaBuf, Trouble> {
        let mut page = self.page()?;
        page.zero_tail(0);
        let data = self.describe(&page)?;
        let (entry, page) = self.execute(command(data), Some(page)).await?;
        match page {
            Some(page) if entry.status().ok() => Ok(page),
            _ => Err(Trouble::Refused { command: name, status: entry.status() }),
        }
    }

    /// Carries out a command that every controller has.
    pub(super) async fn must(
        &mut self,
        name: &'static str,
        command: Submission,
    ) -> Result<Completion, Trouble> {
        let (entry, _) = self.execute(command, None).await?;
        if !entry.status().ok() {
            return Err(Trouble::Refused { command: name, status: entry.status() });
        }
        Ok(entry)
    }

    /// Carries out one admin command, within its time.
    pub(super) async fn execute(
        &mut self,
        command: Submission,
        buffer: Option<DmaBuf>,
    ) -> Result<(Completion, Option<DmaBuf>), Trouble> {
        let opcode = command.opcode;
        let ms = match opcode {
            opcode::admin::FORMAT_NVM => FORMAT_TIMEOUT_MS.into(),
            _ => self.options.admin_timeout_us / 1000,
        };
        let deadline_us = self.clock.now_us() + ms * 1000;
        let timeout = Trouble::AdminTimeout { command: opcode::admin_name(opcode), ms };
        let sent = self.admin()?.submit(command, Purpose::Wait, buffer);
        // Slots run out only if the controller has left all others unanswered.
        let cid = sent.ok_or(timeout)?;
        loop {
            self.check()?;
            self.admin()?.poll()?;
            if let Some(done) = self.admin()?.take(cid) {
                return Ok(done);
            }
            if self.clock.now_us() >= deadline_us {
                return Err(timeout);
            }
            self.notes.busy.set(true);
            self.clock.tick().await;
        }
    }

    /// Looks for what no command tells.
    pub(super) fn check(&mut self) -> Result<(), Trouble> {
        let status = self.status();
        if status.gone() {
            return Err(Trouble::Gone);
        }
        if status.fatal() {
            return Err(Trouble::Fatal);
        }
        if self.notes.closing.get() {
            return Err(Trouble::Closed);
        }
        match self.hardware().next_event() {
            Some(HardwareEvent::RemovalRequested) => Err(Trouble::Removal),
            Some(HardwareEvent::Error) => Err(Trouble::Bus),
            None => Ok(()),
        }
    }

    pub(super) fn status(&self) -> ControllerStatus {
        ControllerStatus(self.registers().read32(registers::CSTS))
    }

    pub(super) fn admin(&mut self) -> Result<&mut AdminQueue<H::Registers>, Trouble> {
        self.admin.as_mut().ok_or(Trouble::Gone)
    }

    /// A page for the data of an admin command.
    pub(super) fn page(&self) -> Result<DmaBuf, Trouble> {
        self.pool.alloc(PAGE_BYTES).ok_or(Trouble::Memory)
    }

    pub(super) fn describe(&self, page: &DmaBuf) -> Result<Data, Trouble> {
        let iova = self.mapping.translate(page.as_shared_ptr().addr(), PAGE_BYTES);
        Ok(Data::Prp(iova.ok_or(Trouble::Memory)?, 0))
    }
}

/// Any bytes are such a structure, and a page has enough of them.
fn parse<T: FromBytes>(page: &DmaBuf) -> T {
    let (value, _) = T::read_from_prefix(page).expect("a page holds every Identify structure");
    value
}

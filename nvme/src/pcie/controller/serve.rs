//! A ready controller: queues come and go, late commands are aborted, events are heard.

use std::convert::Infallible;
use std::sync::Arc;

use super::{Known, Late, Story};
use crate::hardware::Hardware;
use crate::pcie::admin::Purpose;
use crate::pcie::doorbell::Doorbell;
use crate::pcie::error::{AdminError, Trouble};
use crate::pcie::facts::Facts;
use crate::pcie::link::{Attach, Attached, Data, Gate, Link, Message};
use crate::pcie::{AdminReply, PAGE_BYTES};
use crate::spec::command::Submission;
use crate::spec::completion::Completion;
use crate::spec::event::{AsyncEvent, EventKind};
use crate::spec::log::{self, SmartLog};
use crate::spec::{opcode, registers};
use zerocopy::FromBytes;

/// Asynchronous event requests under way at a time, where the controller takes so many.
const EVENTS: u32 = 4;

impl<H: Hardware> Story<H> {
    pub(super) async fn serve(&mut self, facts: &Facts) -> Result<Infallible, Trouble> {
        loop {
            self.check()?;
            self.admin()?.poll()?;
            // One at a time: a controller that never runs out of events does not keep the mail waiting.
            if let Some(event) = self.admin()?.next_event() {
                self.notes.busy.set(true);
                self.hear(event, facts).await?;
            }
            while let Some(message) = self.next_message() {
                self.obey(message, facts).await?;
            }
            self.send_aborts(facts)?;
            self.watch_aborts()?;
            self.clock.tick().await;
        }
    }

    pub(super) fn next_message(&mut self) -> Option<Message<H::Registers>> {
        self.deferred.pop_front().or_else(|| self.inbox.try_recv().ok())
    }

    async fn obey(&mut self, message: Message<H::Registers>, facts: &Facts) -> Result<(), Trouble> {
        match message {
            Message::Attach(attach) => self.attach(attach, facts).await,
            Message::Detach(link) => self.detach(&link).await,
            Message::Abort { link, epoch, cid } => {
                if let Some(queue) = self.known(&link, epoch) {
                    self.aborts.push_back(Late { queue, cid, since_us: self.clock.now_us() });
                }
                Ok(())
            }
            Message::Reset { link, epoch, trouble } => match self.known(&link, epoch) {
                Some(_) => Err(trouble),
                None => Ok(()),
            },
            Message::Admin { command, data, reply } => {
                let answer = self.carry_out(command, data).await;
                let trouble = match &answer {
                    Err(AdminError::Trouble(trouble)) => Err(*trouble),
                    _ => Ok(()),
                };
                if reply.send(answer).is_err() {
                    ::log::debug!("{}: nobody waits for an admin command", self.shared.name);
                }
                trouble
            }
        }
    }

    /// The queue's identifier, if the message is of the controller's present life.
    fn known(&self, link: &Arc<Link>, epoch: u64) -> Option<u16> {
        let known = self.queues.iter().find(|known| Arc::ptr_eq(&known.link, link))?;
        (known.live && link.load().epoch() == epoch).then_some(known.id)
    }

    /// Makes the controller's side of a queue.
    async fn attach(&mut self, attach: Attach<H::Registers>, facts: &Facts) -> Result<(), Trouble> {
        let Attach { link, epoch, .. } = &attach;
        if link.load().epoch() != *epoch || self.known(link, *epoch).is_some() {
            return Ok(());
        }
        let link = Arc::clone(link);
        let answer = match self.make_queue(&attach, facts).await {
            Ok(attached) => {
                self.forget(&link);
                let id = attached.id;
                self.queues.push(Known { link: Arc::clone(&link), id, live: true });
                Ok(attached)
            }
            // The queue's request stays valid: it is made after the reset.
            Err(AdminError::Trouble(trouble)) => {
                self.deferred.push_front(Message::Attach(attach));
                return Err(trouble);
            }
            Err(refused) => {
                self.forget(&link);
                Err(refused)
            }
        };
        let gate = if answer.is_ok() { Gate::Open } else { Gate::Gone };
        if attach.reply.send(answer).is_err() {
            ::log::debug!("{}: a queue has left while it was made", self.shared.name);
        }
        link.set(gate);
        Ok(())
    }

    async fn make_queue(
        &mut self,
        attach: &Attach<H::Registers>,
        facts: &Facts,
    ) -> Result<Attached<H::Registers>, AdminError> {
        let id = self.free_id(&attach.link, facts.queues);
        let id = id.ok_or(AdminError::NoQueue { granted: facts.queues })?;
        let [submission, completion] = self.doorbells(id);
        let ring = attach.completion;
        // No interrupt: the queue is polled.
        let command = Submission::create_completion_queue(id, ring.entries, ring.iova, None);
        self.ok(command).await?;
        let ring = attach.submission;
        let command = Submission::create_submission_queue(id, ring.entries, ring.iova, id);
        if let Err(error) = self.ok(command).await {
            self.delete(Submission::delete_completion_queue(id)).await?;
            return Err(error);
        }
        let registers = Arc::clone(self.registers.as_ref().ok_or(Trouble::Gone)?);
        Ok(Attached { registers, id, submission, completion })
    }

    /// An identifier for the queue: the one that it had, or one that no queue has or had.
    fn free_id(&self, link: &Arc<Link>, granted: u16) -> Option<u16> {
        let own = self.queues.iter().find(|known| Arc::ptr_eq(&known.link, link));
        let taken = |id: &u16| self.queues.iter().any(|known| known.id == *id);
        let own = own.map(|known| known.id).filter(|id| *id <= granted);
        own.or_else(|| (1..=granted).find(|id| !taken(id)))
    }

    /// The queue has left, or is made anew.
    pub(super) fn forget(&mut self, link: &Arc<Link>) {
        self.queues.retain(|known| !Arc::ptr_eq(&known.link, link));
    }

    /// The doorbells of queue `id`, which is about to be made.
    fn doorbells(&self, id: u16) -> [Doorbell; 2] {
        let stride_bytes = self.capabilities.doorbell_stride_bytes();
        let offsets = [
            registers::submission_doorbell(id, stride_bytes),
            registers::completion_doorbell(id, stride_bytes),
        ];
        // Shadows lie as far apart as the doorbells do.
        offsets.map(|offset| {
            let slot = (offset - registers::DOORBELLS) / size_of::<u32>();
            Doorbell::new(offset, slot, self.shadows.clone())
        })
    }

    /// Has the controller forget a queue.
    async fn detach(&mut self, link: &Arc<Link>) -> Result<(), Trouble> {
        if let Some(id) = self.known(link, link.load().epoch()) {
            self.delete(Submission::delete_submission_queue(id)).await?;
            self.delete(Submission::delete_completion_queue(id)).await?;
        }
        self.forget(link);
        link.set(Gate::Gone);
        Ok(())
    }

    /// Deletes one ring. What the controller refuses to forget, a reset makes it forget.
    async fn delete(&mut self, command: Submission) -> Result<(), Trouble> {
        self.must(opcode::admin_name(command.opcode), command).await.map(drop)
    }

    /// As many aborts as the controller takes at a time (Identify Controller, ACL).
    fn send_aborts(&mut self, facts: &Facts) -> Result<(), Trouble> {
        let (now_us, patience_us) = (self.clock.now_us(), self.options.abort_timeout_us);
        // One that has waited for so long may name another command by now; its queue asks for a reset.
        self.aborts.retain(|late| now_us - late.since_us < patience_us);
        while self.admin()?.under_way(Purpose::Abort) < facts.aborts_max as usize
            && let Some(late) = self.aborts.pop_front()
        {
            let Late { queue, cid, .. } = late;
            ::log::warn!("{}: a command on queue {queue} is late; aborting it", self.shared.name);
            if self.admin()?.submit(Submission::abort(queue, cid), Purpose::Abort, None).is_none() {
                self.aborts.push_front(late);
                break;
            }
        }
        Ok(())
    }

    /// An abort, too, ends within the time of an admin command.
    fn watch_aborts(&mut self) -> Result<(), Trouble> {
        let now_us = self.clock.now_us();
        self.abort_sent = match (self.admin()?.first(Purpose::Abort), self.abort_sent) {
            (Some(cid), Some((watched, since_us))) if cid == watched => Some((cid, since_us)),
            (first, _) => first.map(|cid| (cid, now_us)),
        };
        let Some((_, since_us)) = self.abort_sent else { return Ok(()) };
        self.notes.busy.set(true);
        let limit_us = self.options.admin_timeout_us;
        if now_us - since_us < limit_us {
            return Ok(());
        }
        let command = opcode::admin_name(opcode::admin::ABORT);
        Err(Trouble::AdminTimeout { command, ms: limit_us / 1000 })
    }

    /// Keeps asynchronous event requests under way.
    pub(super) fn arm_events(&mut self, facts: &Facts) {
        let wanted = facts.events_max.min(EVENTS) as usize;
        let Some(admin) = &mut self.admin else { return };
        while admin.under_way(Purpose::Event) < wanted
            && admin.submit(Submission::async_event_request(), Purpose::Event, None).is_some()
        {
        }
    }

    /// An event: tells of it, and reads the log page that it names, which makes room for the next one.
    async fn hear(&mut self, entry: Completion, facts: &Facts) -> Result<(), Trouble> {
        if !entry.status().ok() {
            // Not armed again: a controller that refuses would be asked for ever.
            ::log::debug!("{}: no events: {}", self.shared.name, entry.status());
            return Ok(());
        }
        let event = AsyncEvent::from_result(entry.result.get());
        ::log::warn!("{}: {event}", self.shared.name);
        let page = self.read_page("Get Log Page", |data| {
            Submission::get_log_page(event.log_page, u32::MAX, PAGE_BYTES as u32, data)
        });
        match page.await {
            Ok(page) if event.log_page == log::SMART => self.judge(&page),
            Ok(_) | Err(Trouble::Refused { .. }) => {}
            Err(trouble) => return Err(trouble),
        }
        if event.kind == EventKind::Notice {
            self.look_again(facts).await?;
        }
        self.arm_events(facts);
        Ok(())
    }

    fn judge(&self, page: &[u8]) {
        let Ok((smart, _)) = SmartLog::read_from_prefix(page) else { return };
        let warnings: Vec<&str> = smart.warning().names().collect();
        ::log::warn!(
            "{}: health: {}; {} °C, {} % of its rated life used, {} % spare",
            self.shared.name,
            if warnings.is_empty() { "no warning".to_owned() } else { warnings.join(", ") },
            smart.celsius().unwrap_or_default(),
            smart.percentage_used,
            smart.available_spare,
        );
    }

    /// The namespace may have changed.
    async fn look_again(&mut self, facts: &Facts) -> Result<(), Trouble> {
        if self.reformatted {
            return Ok(());
        }
        let now = self.identify().await?;
        if facts.still_hold(&now) { Ok(()) } else { Err(Trouble::Changed) }
    }

    /// An admin command of somebody else.
    async fn carry_out(
        &mut self,
        command: Submission,
        data: Data,
    ) -> Result<AdminReply, AdminError> {
        let formats = command.opcode == opcode::admin::FORMAT_NVM;
        if formats && self.queues.iter().any(|known| known.live) {
            return Err(AdminError::Serving);
        }
        let wanted = match &data {
            Data::None => 0,
            Data::In(bytes) => *bytes,
            Data::Out(bytes) => bytes.len(),
        };
        if wanted > PAGE_BYTES {
            return Err(AdminError::TooLarge { max: PAGE_BYTES });
        }
        let (mut command, mut page) = (command, None);
        if wanted > 0 {
            let mut buffer = self.page()?;
            buffer.zero_tail(0);
            if let Data::Out(bytes) = &data {
                buffer[..bytes.len()].copy_from_slice(bytes);
            }
            command = command.with_data(self.describe(&buffer)?);
            page = Some(buffer);
        }
        self.reformatted |= formats;
        let (entry, page) = self.ok_with(command, page).await?;
        let data = match (data, page) {
            (Data::In(bytes), Some(page)) => page[..bytes].to_vec(),
            _ => Vec::new(),
        };
        Ok(AdminReply { result: entry.result.get(), data })
    }

    async fn ok(&mut self, command: Submission) -> Result<(), AdminError> {
        self.ok_with(command, None).await.map(|_| ())
    }

    async fn ok_with(
        &mut self,
        command: Submission,
        page: Option<crate::DmaBuf>,
    ) -> Result<(Completion, Option<crate::DmaBuf>), AdminError> {
        let name = opcode::admin_name(command.opcode);
        let (entry, page) = self.execute(command, page).await?;
        match entry.status() {
            status if status.ok() => Ok((entry, page)),
            status => Err(AdminError::Status { command: name, status }),
        }
    }
}

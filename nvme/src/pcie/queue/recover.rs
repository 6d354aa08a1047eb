//! Off the steady path: retries, late commands, and a controller that stops, comes back or goes.
//!
//! Guarantees: a command is tried again only when the device does not have it any more: it completed, or the gate
//! says that the controller has stopped; a request ends only when that holds of all its commands, and of one that
//! has failed nothing is tried again. What is tried again is idempotent:
//! the same blocks are read or written with the same bytes. A flush is not tried again.

use std::sync::Arc;

use super::commands::{Command, Where};
use super::{Phase, Queue, SCANS, verdict};
use crate::hardware::Registers;
use crate::pcie::error::Trouble;
use crate::pcie::link::{Gate, Message};
use crate::spec::status::{Status, generic};
use crate::{BlockError, Completion};

impl<R: Registers> Queue<R> {
    /// A command ended with an error: it is tried again later, or its request fails.
    #[cold]
    pub(super) fn refused(&mut self, cid: u16, status: Status) -> Option<Completion> {
        let deadline_us = self.deadline_us();
        let command = self.commands.completed(cid)?;
        let (place, tries) = (command.request, command.tries);
        let pending = self.requests.get_mut(place);
        pending.deadline_us.get_or_insert(deadline_us);
        let failure = pending.plan.failure;
        let delay_us = match status.retry_delay() {
            0 => 0,
            index => self.retry_delays_us[usize::from(index) - 1],
        };
        let at_us = self.now_us.saturating_add(delay_us);
        log::debug!("{}: {status} on try {}", self.shared.name, tries + 1);
        if pending.result.is_ok()
            && pending.has_time(at_us)
            && verdict::may_try_again(status, failure, tries)
        {
            command.place = Where::Waiting(at_us);
            self.waiting += 1;
            return None;
        }
        let error = verdict::error(status, failure);
        log::warn!("{}: a request failed: {status} ({error})", self.shared.name);
        self.commands.remove(cid);
        self.fail(place, error)
    }

    /// One of the request's commands is over, and failed. The request's end, if nothing of it is under way.
    fn fail(&mut self, place: u16, error: BlockError) -> Option<Completion> {
        self.condemn(place, error);
        self.give_up_waiting(place);
        self.requests.one_over(place)
    }

    /// For a request that is met now for the first time.
    fn deadline_us(&self) -> u64 {
        self.now_us.saturating_add(self.options.request_timeout_us)
    }

    /// The request will end so, and no more commands are made of it.
    fn condemn(&mut self, place: u16, error: BlockError) {
        let pending = self.requests.get_mut(place);
        pending.result = pending.result.and(Err(error));
        if pending.issued < pending.plan.blocks {
            pending.issued = pending.plan.blocks;
            self.todo.retain(|other| *other != place);
        }
    }

    /// Submits commands whose time for another try has come.
    #[cold]
    pub(super) fn try_again(&mut self) {
        let now_us = self.now_us;
        let due =
            |command: &Command| matches!(command.place, Where::Waiting(at_us) if at_us <= now_us);
        // As long as there is one; each becomes another one's name.
        while let Some(cid) = self.commands.find(due) {
            let (cid, command) = self.commands.rename(cid);
            command.place = Where::Device;
            command.tries += 1;
            command.aborted = false;
            command.since_us = None;
            let plan = &self.requests.get_mut(command.request).plan;
            let piece = (command.offset, command.blocks);
            self.encoder.push(&mut self.submission, plan, cid, piece);
            self.waiting -= 1;
        }
    }

    /// Looks for late commands, and for requests whose time is over.
    #[cold]
    pub(super) fn scan(&mut self) {
        let options = &self.options;
        let shortest_us = options.command_timeout_us.min(options.abort_timeout_us);
        self.next_scan_us = self.now_us + (shortest_us / SCANS).max(1);
        if matches!(self.phase, Phase::Gone | Phase::Leaving) {
            return;
        }
        if self.phase == Phase::Open {
            self.abort_late();
        }
        self.expire();
    }

    fn abort_late(&mut self) {
        let (now_us, epoch) = (self.now_us, self.seen.epoch());
        let mut lost = false;
        for (cid, command) in self.commands.iter_mut() {
            if command.place != Where::Device {
                continue;
            }
            let age_us = now_us.saturating_sub(*command.since_us.get_or_insert(now_us));
            if command.aborted {
                lost |= age_us >= self.options.abort_timeout_us;
            } else if age_us >= self.options.command_timeout_us {
                (command.aborted, command.since_us) = (true, Some(now_us));
                let link = Arc::clone(&self.link);
                if !self.shared.send(Message::Abort { link, epoch, cid }) {
                    log::debug!("{}: the controller has left", self.shared.name);
                }
            }
        }
        if lost && !self.reset_asked {
            let queue = self.attached.as_ref().map_or(0, |attached| attached.id);
            self.ask(Trouble::CommandTimeout { queue });
        }
    }

    /// The controller does what none may.
    #[cold]
    pub(super) fn ask_for_reset(&mut self, what: &'static str) {
        let queue = self.attached.as_ref().map_or(0, |attached| attached.id);
        // Nothing more is taken from it, or it could keep us busy for ever.
        self.phase = Phase::Closed;
        if !self.reset_asked {
            self.ask(Trouble::Protocol { queue, what });
        }
    }

    fn ask(&mut self, trouble: Trouble) {
        self.reset_asked = true;
        let (link, epoch) = (Arc::clone(&self.link), self.seen.epoch());
        self.send_or_end(Message::Reset { link, epoch, trouble });
    }

    /// Ends requests whose time is over and of which the device has nothing.
    fn expire(&mut self) {
        let (now_us, deadline_us) = (self.now_us, self.deadline_us());
        for pending in self.requests.iter_mut() {
            pending.deadline_us.get_or_insert(deadline_us);
        }
        while let Some(place) = self.requests.find(|pending| {
            !pending.has_time(now_us) && (pending.result.is_ok() || pending.running == 0)
        }) {
            self.condemn(place, BlockError::Timeout);
            self.give_up_waiting(place);
            if self.requests.get_mut(place).is_over() {
                self.ended.push_back(self.requests.end(place));
            }
        }
    }

    /// Drops the request's commands that wait for another try.
    fn give_up_waiting(&mut self, place: u16) {
        let waits = |command: &Command| {
            command.request == place && matches!(command.place, Where::Waiting(_))
        };
        while let Some(cid) = self.commands.find(waits) {
            self.commands.remove(cid);
            self.waiting -= 1;
            self.requests.get_mut(place).running -= 1;
        }
    }

    /// Acts on what the gate says.
    #[cold]
    pub(super) fn heed(&mut self) {
        let word = self.link.load();
        if word == self.seen || self.phase == Phase::Gone {
            return;
        }
        self.seen = word;
        match word.gate() {
            Gate::Open => self.open(),
            Gate::Closed if self.phase == Phase::Open => self.phase = Phase::Closed,
            Gate::Closed => {}
            Gate::Stopped => self.take_back(),
            Gate::Gone => self.end_all(),
        }
    }

    fn open(&mut self) {
        while let Ok(answer) = self.answers.try_recv() {
            self.attached = answer.ok();
        }
        if self.phase != Phase::Leaving {
            self.phase = Phase::Open;
            self.reset_asked = false;
            self.issue_todo();
        }
    }

    /// The controller has stopped: what it had is ours again, and is given to it anew.
    fn take_back(&mut self) {
        if self.phase == Phase::Leaving {
            return self.end_all();
        }
        self.reap_rest();
        self.attached = None;
        // An answer that was never read: it would keep the registers, and with them the device.
        while self.answers.try_recv().is_ok() {}
        while let Some(cid) = self.commands.find(|command| command.place == Where::Device) {
            self.orphan(cid);
        }
        self.submission.reset();
        self.completion.reset();
        self.reset_asked = false;
        self.phase = Phase::Attaching;
        self.ask_to_attach();
    }

    /// Completions that the controller wrote before it stopped.
    fn reap_rest(&mut self) {
        if self.attached.is_none() {
            return;
        }
        let mut ended = std::mem::take(&mut self.ended);
        while let Some([_, last]) = self.completion.pop() {
            let (cid, status) = ((last >> 32) as u16, (last >> 49) as u16);
            if self.complete(cid, status, |completion| ended.push_back(completion)).is_err() {
                break;
            }
        }
        self.ended = ended;
    }

    /// The controller was stopped before it completed the command.
    fn orphan(&mut self, cid: u16) {
        let now_us = self.now_us;
        let aborted = Status::new(generic::ABORT_REQUESTED);
        let Some(command) = self.commands.completed(cid) else { return };
        let (place, tries) = (command.request, command.tries);
        let pending = self.requests.get_mut(place);
        let failure = pending.plan.failure;
        if pending.result.is_ok()
            && pending.has_time(now_us)
            && verdict::may_try_again(aborted, failure, tries)
        {
            command.place = Where::Waiting(now_us);
            self.waiting += 1;
            return;
        }
        self.commands.remove(cid);
        let ended = self.fail(place, verdict::error(aborted, failure));
        self.ended.extend(ended);
    }

    /// There is no controller any more: everything ends, and its registers are let go of.
    pub(super) fn end_all(&mut self) {
        self.reap_rest();
        self.attached = None;
        if let Ok(Err(error)) = self.answers.try_recv() {
            log::error!("{}: no queue: {error}", self.shared.name);
            self.refusal = Some(error);
        }
        self.phase = Phase::Gone;
        while let Some(cid) = self.commands.find(|_| true) {
            self.commands.remove(cid);
        }
        self.waiting = 0;
        self.todo.clear();
        while let Some(place) = self.requests.find(|_| true) {
            let pending = self.requests.get_mut(place);
            pending.result = pending.result.and(Err(BlockError::Gone));
            self.ended.push_back(self.requests.end(place));
        }
    }
}

/// How long a queue that is dropped waits for the controller, in milliseconds: longer than a controller that takes
/// all its time (twice 127.5 s to stop, as often to be reset, and again to come up) can leave it without an answer.
const LEAVE_MS: u32 = 1_800_000;

impl<R: Registers> Drop for Queue<R> {
    /// Waits until the device has forgotten the queue: its rings and buffers go back to the pool.
    fn drop(&mut self) {
        let never = crossbeam_channel::never::<()>();
        for _ in 0..LEAVE_MS {
            if self.close() {
                return;
            }
            let pause = std::time::Duration::from_millis(1);
            if never.recv_timeout(pause).is_ok() {
                return;
            }
        }
        // A device that may still write to memory which is about to be used for something else: nothing is
        // right after that, and the end of the process takes the device away from it.
        log::error!("{}: the device does not let go of a queue; ending", self.shared.name);
        std::process::abort();
    }
}

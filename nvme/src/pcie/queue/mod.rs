//! A reactor's queue pair on a drive: [`BlockQueue`] over NVMe.
//!
//! Guarantees: those of [`crate::queue`] and [`crate::pcie`]. A request is in one of three states: it waits for
//! room or for the controller (`todo`), its commands are with the device or wait for another try
//! (`commands`), or it has ended (`ended`). On the steady path a request is one command, and a poll is: ring
//! one doorbell, look at the next completion's phase bit.

mod commands;
mod encode;
mod recover;
mod requests;
mod verdict;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::drive::Drive;
use super::error::{AdminError, Trouble};
use super::link::{Attach, Attached, Link, Message, Ring, Shared, Word};
use super::ring::{CompletionRing, SubmissionRing};
use super::{Options, PAGE_BYTES, State};
use crate::arena::DmaWords;
use crate::hardware::{Mapping, Registers};
use crate::spec::status::Status;
use crate::{BlockError, BlockQueue, Completion, Geometry, Operation, Pool, Request};
use commands::{Commands, PLACES_MAX};
use encode::Encoder;
use requests::{Pending, Requests};

/// Bytes of a submission queue entry.
const SQE_BYTES: usize = 64;
/// Bytes of a completion queue entry.
const CQE_BYTES: usize = 16;
/// Entries of a completion queue for each of the submission queue: room to tell the controller rarely.
const CQ_FACTOR: u32 = 4;
/// Entries of a submission queue, where the controller has them: a short one would have a short completion
/// queue, whose head the controller would have to be told often.
const ENTRIES_MIN: u32 = 64;
/// Times are looked at so often within a command's timeout.
const SCANS: u64 = 8;

/// How the queue stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It has asked the controller for its side.
    Attaching,
    /// It works.
    Open,
    /// The controller is being stopped.
    Closed,
    /// It has asked the controller to forget it.
    Leaving,
    /// There is no controller.
    Gone,
}

/// The controller names a command that is not there.
struct Unknown;

/// One thread's queue pair. See the module.
pub struct Queue<R: Registers> {
    phase: Phase,
    link: Arc<Link>,
    /// What the link said last.
    seen: Word,
    attached: Option<Attached<R>>,
    submission: SubmissionRing,
    completion: CompletionRing,
    commands: Commands,
    requests: Requests,
    /// Requests for which commands are still to be made, in their order.
    todo: VecDeque<u16>,
    /// Commands that wait for another try.
    waiting: usize,
    ended: VecDeque<Completion>,
    encoder: Encoder,
    geometry: Geometry,
    options: Options,
    retry_delays_us: [u64; 3],
    now_us: u64,
    next_scan_us: u64,
    /// The controller has been told that this queue needs a reset.
    reset_asked: bool,
    shared: Arc<Shared<R>>,
    /// Why the controller does not make its side.
    refusal: Option<AdminError>,
    reply: Sender<Result<Attached<R>, AdminError>>,
    answers: Receiver<Result<Attached<R>, AdminError>>,
}

impl<R: Registers> fmt::Debug for Queue<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (flying, depth) = (self.in_flight(), self.geometry.depth);
        write!(f, "Queue({}, {:?}, {flying} of {depth} in flight)", self.shared.name, self.phase)
    }
}

impl<R: Registers> Queue<R> {
    pub(super) fn new(drive: &Drive<R>, pool: &Pool, depth: u32) -> Result<Self, AdminError> {
        let facts = drive.facts();
        let mapping = drive.dma.map(&pool.span())?;
        let page_table = mapping.page_table(&*drive.dma)?;
        // A ring has one entry less in flight than it has entries.
        let entries = facts.queue_entries_max.min(PLACES_MAX);
        let depth = depth.clamp(1, entries - 1);
        let entries = (depth + 1).next_power_of_two().max(ENTRIES_MIN).min(entries);
        let cq_entries = (entries * CQ_FACTOR).min(facts.queue_entries_max);
        let words = |bytes: usize| pool.alloc(bytes).map(DmaWords::new).ok_or(AdminError::NoMemory);
        let submission = SubmissionRing::new(words(entries as usize * SQE_BYTES)?, entries);
        let completion = words(cq_entries as usize * CQE_BYTES)?;
        let completion = CompletionRing::new(completion, cq_entries, entries - 1);
        let ranges = if facts.discard { Some(ranges(pool, &mapping)?) } else { None };
        let geometry = facts.geometry(depth);
        let (reply, answers) = crossbeam_channel::unbounded();
        let link = Arc::new(Link::default());
        let mut queue = Self {
            phase: Phase::Attaching,
            seen: link.load(),
            link,
            attached: None,
            commands: Commands::new(entries - 1),
            requests: Requests::new(depth),
            todo: VecDeque::with_capacity(depth as usize),
            waiting: 0,
            ended: VecDeque::with_capacity(depth as usize),
            encoder: Encoder::new(facts, mapping, page_table, ranges),
            submission,
            completion,
            geometry,
            options: drive.options,
            retry_delays_us: facts.retry_delays_us,
            now_us: 0,
            next_scan_us: 0,
            reset_asked: false,
            shared: Arc::clone(&drive.shared),
            refusal: None,
            reply,
            answers,
        };
        queue.ask_to_attach();
        Ok(queue)
    }

    /// Whether the controller has made its side; an error if it never will.
    ///
    /// # Errors
    /// Why it refuses.
    pub fn is_open(&mut self) -> Result<bool, AdminError> {
        self.heed();
        match self.phase {
            Phase::Gone => Err(self.refusal.take().unwrap_or(AdminError::Trouble(Trouble::Gone))),
            phase => Ok(phase == Phase::Open),
        }
    }

    /// Lets go of the controller's side: `true` when that is done. What was in flight ends as
    /// [`BlockError::Gone`], by the next poll. To be called again, with the controller polled in between;
    /// dropping the queue does the same and waits.
    pub fn close(&mut self) -> bool {
        self.heed();
        // Said again to one that has been given up: it may not have read its last mail.
        let again = self.phase == Phase::Leaving && self.shared.state() == State::Gone;
        if again || !matches!(self.phase, Phase::Leaving | Phase::Gone) {
            self.phase = Phase::Leaving;
            let link = Arc::clone(&self.link);
            self.send_or_end(Message::Detach(link));
        }
        self.phase == Phase::Gone
    }

    fn ask_to_attach(&mut self) {
        let ring = |address: usize, entries: u32| {
            let iova = self.encoder.mapping().translate(address, PAGE_BYTES);
            Ring { iova: iova.expect("the rings are in the arena"), entries }
        };
        let attach = Attach {
            link: Arc::clone(&self.link),
            epoch: self.seen.epoch(),
            submission: ring(self.submission.address(), self.submission.entries()),
            completion: ring(self.completion.address(), self.completion.entries()),
            reply: self.reply.clone(),
        };
        self.send_or_end(Message::Attach(attach));
    }

    /// Writes to the controller. One that has left was stopped before, and everything ends.
    fn send_or_end(&mut self, message: Message<R>) {
        if !self.shared.send(message) {
            self.end_all();
        }
    }

    #[cold]
    fn issue_todo(&mut self) {
        while let Some(place) = self.todo.front().copied() {
            let pending = self.requests.get_mut(place);
            if !issue(place, pending, &mut self.commands, &self.encoder, &mut self.submission) {
                return;
            }
            self.todo.pop_front();
        }
    }

    /// Tells the controller of new entries, with one register write at most.
    #[inline]
    fn ring_submission(&mut self) {
        if let Some(attached) = &self.attached
            && let Some((old, new)) = self.submission.commit()
        {
            attached.submission.ring(&*attached.registers, old, new);
        }
    }

    #[inline(always)]
    fn reap(&mut self, completions: &mut Vec<Completion>) {
        let mut news = false;
        while completions.len() < completions.capacity()
            && let Some([_, last]) = self.completion.pop()
        {
            news = true;
            // The last word: SQ head, SQ identifier, CID, phase, status.
            let (cid, status) = ((last >> 32) as u16, (last >> 49) as u16);
            let done = self.complete(cid, status, |completion| completions.push(completion));
            if let Err(Unknown) = done {
                return self.ask_for_reset("it completes an unknown command");
            }
        }
        if news
            && let Some(attached) = &self.attached
            && let Some((old, new)) = self.completion.commit()
        {
            attached.completion.ring(&*attached.registers, old, new);
        }
    }

    /// A command has completed; `hand_over` gets the request's end, if it was its last. (That is a call and no
    /// result, because a completion that is returned through here is copied each time.)
    #[inline(always)]
    fn complete(
        &mut self,
        cid: u16,
        status: u16,
        mut hand_over: impl FnMut(Completion),
    ) -> Result<(), Unknown> {
        let command = self.commands.completed(cid).ok_or(Unknown)?;
        if !Status(status).ok() {
            self.refused(cid, Status(status)).into_iter().for_each(hand_over);
            return Ok(());
        }
        let place = command.request;
        self.commands.remove(cid);
        match self.requests.one_over(place) {
            Some(completion) => hand_over(completion),
            None => self.flush_if_due(place),
        }
        Ok(())
    }

    /// Puts a request in line that has just become a flush: nothing of it was issued, nor waits to be.
    #[cold]
    fn flush_if_due(&mut self, place: u16) {
        if self.requests.get_mut(place).is_new_flush() {
            self.todo.push_back(place);
        }
    }

    /// Hands over what has ended without the device.
    #[cold]
    fn hand_over(&mut self, completions: &mut Vec<Completion>) {
        let room = completions.capacity() - completions.len();
        completions.extend(self.ended.drain(..room.min(self.ended.len())));
    }

    /// Submits what had no room before, and what is to be tried again.
    #[cold]
    fn catch_up(&mut self) {
        self.issue_todo();
        if self.waiting > 0 {
            self.try_again();
        }
        self.ring_submission();
    }
}

impl<R: Registers> BlockQueue for Queue<R> {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    #[inline]
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        // Those that have ended and were not handed over are in flight, too.
        if self.requests.free() == self.ended.len() {
            return Err(request);
        }
        let checked = self.geometry.check(&request.operation);
        if checked.is_err() || !self.is_plain(&request.operation) {
            self.submit_any(request, checked);
            return Ok(());
        }
        let Self { commands, encoder, submission, .. } = self;
        let (plan, buffer) = encoder.plan(request.operation);
        let (place, pending) = self.requests.insert(request.tag, plan, buffer);
        if !issue(place, pending, commands, encoder, submission) {
            self.todo.push_back(place);
        }
        Ok(())
    }

    #[inline]
    fn poll(&mut self, now_us: u64, completions: &mut Vec<Completion>) -> usize {
        let before = completions.len();
        self.now_us = now_us;
        if self.link.load() != self.seen {
            self.heed();
        }
        if !self.ended.is_empty() {
            self.hand_over(completions);
        }
        if self.phase == Phase::Open {
            self.ring_submission();
            self.reap(completions);
            if self.waiting + self.todo.len() > 0 {
                self.catch_up();
            }
        }
        // A budget that was used up says that there is more to reap: nothing is called late then.
        if now_us >= self.next_scan_us && completions.len() < completions.capacity() {
            self.scan();
        }
        completions.len() - before
    }

    fn in_flight(&self) -> usize {
        self.requests.used() + self.ended.len()
    }
}

impl<R: Registers> Queue<R> {
    /// A transfer, and nothing stands before it.
    #[inline(always)]
    fn is_plain(&self, operation: &Operation) -> bool {
        let reached = match operation {
            Operation::Read { buffer, .. }
            | Operation::Write { buffer, .. }
            | Operation::Compare { buffer, .. } => self.encoder.reaches(buffer),
            _ => false,
        };
        reached && self.phase == Phase::Open && self.todo.is_empty()
    }

    /// Takes a request of any kind, in any phase.
    #[cold]
    fn submit_any(&mut self, request: Request, checked: Result<(), BlockError>) {
        if let Some(result) = self.verdict_at_once(&request.operation, checked) {
            return self.ended.push_back(request.end(result));
        }
        let Self { commands, encoder, submission, .. } = self;
        let (plan, buffer) = encoder.plan(request.operation);
        let (place, pending) = self.requests.insert(request.tag, plan, buffer);
        if self.phase != Phase::Open
            || !self.todo.is_empty()
            || !issue(place, pending, commands, encoder, submission)
        {
            self.todo.push_back(place);
        }
    }

    /// How the request ends, if that needs no device.
    fn verdict_at_once(
        &self,
        operation: &Operation,
        checked: Result<(), BlockError>,
    ) -> Option<Result<(), BlockError>> {
        match operation {
            _ if checked.is_err() => Some(checked),
            Operation::Read { buffer, .. }
            | Operation::Write { buffer, .. }
            | Operation::Compare { buffer, .. }
                if !self.encoder.reaches(buffer) =>
            {
                Some(Err(BlockError::Invalid))
            }
            Operation::Flush if !self.geometry.volatile_write_cache => Some(Ok(())),
            _ if self.phase == Phase::Gone => Some(Err(BlockError::Gone)),
            _ => None,
        }
    }
}

/// Makes commands of what is left of the request at `place`. `false`: there is no room for all of them now.
#[inline(always)]
fn issue(
    place: u16,
    pending: &mut Pending,
    commands: &mut Commands,
    encoder: &Encoder,
    submission: &mut SubmissionRing,
) -> bool {
    let plan = &pending.plan;
    while pending.issued < plan.blocks {
        let offset = pending.issued;
        let blocks = encoder.piece(plan, offset, plan.blocks - offset);
        let Some(cid) = commands.insert(place, offset, blocks) else { return false };
        encoder.push(submission, plan, cid, (offset, blocks));
        pending.issued += u64::from(blocks);
        pending.running += 1;
    }
    true
}

/// One range for each command of a discard.
fn ranges(pool: &Pool, mapping: &Mapping) -> Result<(DmaWords, u64), AdminError> {
    let bytes = PLACES_MAX as usize * 16;
    let words = pool.alloc(bytes).map(DmaWords::new).ok_or(AdminError::NoMemory)?;
    let iova = mapping.translate(words.address(), bytes).ok_or(AdminError::NoMemory)?;
    Ok((words, iova))
}

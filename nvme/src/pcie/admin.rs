//! The admin queue: commands that are waited for, and answers that come by themselves.
//!
//! Guarantees: a buffer that the controller may write to stays in its slot until the command has completed or
//! the controller has been stopped; a completion that no slot waits for is trouble.

use std::collections::VecDeque;
use std::sync::Arc;

use super::doorbell::Doorbell;
use super::error::Trouble;
use super::ring::{CompletionRing, SubmissionRing};
use crate::DmaBuf;
use crate::arena::DmaWords;
use crate::hardware::{Mapping, Registers};
use crate::spec::command::Submission;
use crate::spec::completion::Completion;
use crate::spec::registers;

/// Entries of both rings. CAP.MQES does not limit the admin queue (NVMe Base 2.0, "Admin Queue Attributes").
pub(super) const ENTRIES: u32 = 32;

/// What becomes of a command's completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Somebody waits for it.
    Wait,
    /// An asynchronous event request: it completes when something happens.
    Event,
    /// An abort: what matters is what happens to the other command.
    Abort,
}

#[derive(Debug)]
enum Slot {
    Free,
    /// With its CID.
    Sent(u16, Purpose, Option<DmaBuf>),
    Done(Completion, Option<DmaBuf>),
}

/// The admin submission and completion queues.
#[derive(Debug)]
pub(super) struct AdminQueue<R> {
    registers: Arc<R>,
    submission: SubmissionRing,
    completion: CompletionRing,
    doorbells: [Doorbell; 2],
    slots: Vec<Slot>,
    /// Results of asynchronous event requests.
    events: VecDeque<Completion>,
    /// In the upper bits of every CID, so that a late completion of an earlier one is known.
    generation: u16,
}

impl<R: Registers> AdminQueue<R> {
    /// Rings in two pages of `memory`, for a controller with this doorbell stride.
    pub(super) fn new(registers: Arc<R>, memory: [DmaBuf; 2], stride_bytes: usize) -> Self {
        let [submission, completion] = memory.map(DmaWords::new);
        let offsets = [
            registers::submission_doorbell(0, stride_bytes),
            registers::completion_doorbell(0, stride_bytes),
        ];
        Self {
            registers,
            submission: SubmissionRing::new(submission, ENTRIES),
            completion: CompletionRing::new(completion, ENTRIES, ENTRIES - 1),
            // Doorbell buffers are for I/O queues.
            doorbells: offsets.map(|offset| Doorbell::new(offset, 0, None)),
            slots: (1..ENTRIES).map(|_| Slot::Free).collect(),
            events: VecDeque::new(),
            generation: 0,
        }
    }

    /// Where the two rings are for the controller.
    pub(super) fn iovas(&self, mapping: &Mapping) -> Option<[u64; 2]> {
        let iova = |address| mapping.translate(address, super::PAGE_BYTES);
        Some([iova(self.submission.address())?, iova(self.completion.address())?])
    }

    /// Submits a command. `None`: all slots are taken.
    pub(super) fn submit(
        &mut self,
        command: Submission,
        purpose: Purpose,
        buffer: Option<DmaBuf>,
    ) -> Option<u16> {
        let index = self.slots.iter().position(|slot| matches!(slot, Slot::Free))?;
        self.generation = self.generation.wrapping_add(1);
        let cid = self.generation << 8 | index as u16;
        self.slots[index] = Slot::Sent(cid, purpose, buffer);
        self.submission.push(command.with_cid(cid).words());
        if let Some((old, new)) = self.submission.commit() {
            self.doorbells[0].ring(&*self.registers, old, new);
        }
        Some(cid)
    }

    /// Takes what has completed.
    pub(super) fn poll(&mut self) -> Result<(), Trouble> {
        while let Some(words) = self.completion.pop() {
            let entry = Completion::from_words(words);
            self.complete(entry)?;
        }
        if let Some((old, new)) = self.completion.commit() {
            self.doorbells[1].ring(&*self.registers, old, new);
        }
        Ok(())
    }

    fn complete(&mut self, entry: Completion) -> Result<(), Trouble> {
        let cid = entry.cid.get();
        let trouble = Trouble::Protocol { queue: 0, what: "it completes an unknown command" };
        let slot = self.slots.get_mut(usize::from(cid & 0xff)).ok_or(trouble)?;
        if !matches!(slot, Slot::Sent(sent, ..) if *sent == cid) {
            return Err(trouble);
        }
        match std::mem::replace(slot, Slot::Free) {
            Slot::Sent(_, Purpose::Wait, buffer) => *slot = Slot::Done(entry, buffer),
            Slot::Sent(_, Purpose::Event, _) => self.events.push_back(entry),
            Slot::Sent(_, Purpose::Abort, _) | Slot::Free | Slot::Done(..) => {}
        }
        Ok(())
    }

    /// The completion of `cid`, if it has come.
    pub(super) fn take(&mut self, cid: u16) -> Option<(Completion, Option<DmaBuf>)> {
        let slot = &mut self.slots[usize::from(cid & 0xff)];
        if !matches!(slot, Slot::Done(..)) {
            return None;
        }
        match std::mem::replace(slot, Slot::Free) {
            Slot::Done(entry, buffer) => Some((entry, buffer)),
            Slot::Free | Slot::Sent(..) => None,
        }
    }

    /// The next answer of an asynchronous event request.
    pub(super) fn next_event(&mut self) -> Option<Completion> {
        self.events.pop_front()
    }

    /// Commands of this purpose that are under way.
    pub(super) fn under_way(&self, purpose: Purpose) -> usize {
        self.sent(purpose).count()
    }

    /// The CID of one of them: the same one until it has ended.
    pub(super) fn first(&self, purpose: Purpose) -> Option<u16> {
        self.sent(purpose).next()
    }

    fn sent(&self, purpose: Purpose) -> impl Iterator<Item = u16> {
        self.slots.iter().filter_map(move |slot| match slot {
            Slot::Sent(cid, other, _) if *other == purpose => Some(*cid),
            _ => None,
        })
    }

    /// Forgets everything: the controller has been stopped.
    pub(super) fn reset(&mut self) {
        self.slots.iter_mut().for_each(|slot| *slot = Slot::Free);
        self.events.clear();
        self.submission.reset();
        self.completion.reset();
    }
}

//! Admin commands (NVMe Base 2.0, "Admin Command Set").

use super::config::oacs;
use super::counters::Violation;
use super::device::{Device, Event, Outcome};
use super::faults::Fault;
use super::queues::{CompletionQueue, QueueId, SubmissionQueue};
use crate::spec::command::{ALL_NAMESPACES, Data, Submission};
use crate::spec::opcode::admin;
use crate::spec::status::{command, generic};

/// What a Create command asks for.
struct Wanted {
    id: QueueId,
    entries: u32,
    base: u64,
    contiguous: bool,
    /// Of a submission queue, its completion queue.
    upper: u16,
}

impl Wanted {
    fn new(request: &Submission) -> Self {
        let (cdw10, cdw11) = (request.cdw10.get(), request.cdw11.get());
        Self {
            id: cdw10 as u16,
            entries: (cdw10 >> 16) + 1,
            base: request.data[0].get(),
            contiguous: cdw11 & 1 != 0,
            upper: (cdw11 >> 16) as u16,
        }
    }
}

impl Device {
    pub(super) fn admin(&mut self, request: &Submission, fault: Option<Fault>) -> Outcome {
        if request.fused() {
            return self.refuse(0, request, generic::INVALID_FIELD);
        }
        match request.opcode {
            admin::IDENTIFY => self.identify(request, fault),
            admin::GET_LOG_PAGE => self.get_log_page(request, fault),
            admin::SET_FEATURES => self.set_feature(request),
            admin::GET_FEATURES => self.get_feature(request),
            admin::CREATE_CQ => self.create_completion_queue(request),
            admin::CREATE_SQ => self.create_submission_queue(request),
            admin::DELETE_SQ => self.delete_submission_queue(request),
            admin::DELETE_CQ => self.delete_completion_queue(request),
            admin::ABORT => self.abort(request),
            admin::KEEP_ALIVE => Outcome::OK,
            admin::DBBUF_CONFIG if self.supports(oacs::DOORBELL_BUFFERS) => {
                self.set_doorbell_buffers(request)
            }
            admin::FORMAT_NVM if self.supports(oacs::FORMAT) => self.format(request),
            _ => self.refuse(0, request, generic::INVALID_OPCODE),
        }
    }

    fn supports(&self, bit: u16) -> bool {
        self.config.identity.oacs & bit != 0
    }

    /// What both kinds of queues have to be.
    fn check_queue(&mut self, wanted: &Wanted, entry_bytes: usize) -> Result<(), u16> {
        let highest = self.config.queues.min(u32::from(u16::MAX) - 1);
        if wanted.id == 0 || u32::from(wanted.id) > highest {
            return Err(command::INVALID_QUEUE_ID);
        }
        if wanted.entries < 2 || wanted.entries > u32::from(self.config.registers.mqes) + 1 {
            return Err(command::INVALID_QUEUE_SIZE);
        }
        if !wanted.contiguous {
            return Err(generic::INVALID_FIELD);
        }
        let aligned = wanted.base.is_multiple_of(self.page_bytes as u64);
        if !aligned || !self.dma.reaches(wanted.base, wanted.entries as usize * entry_bytes) {
            self.violation(Violation::QueueMemory { queue: wanted.id });
        }
        if aligned { Ok(()) } else { Err(generic::INVALID_PRP_OFFSET) }
    }

    fn create_completion_queue(&mut self, request: &Submission) -> Outcome {
        let wanted = Wanted::new(request);
        let there = self.completion.contains_key(&wanted.id);
        let sized = self.seen.cq_entry_bytes() == 16;
        match self.check_queue(&wanted, 16) {
            Err(full) => self.refuse(0, request, full),
            Ok(()) if there => self.refuse(0, request, command::INVALID_QUEUE_ID),
            Ok(()) if !sized => self.refuse(0, request, command::INVALID_QUEUE_SIZE),
            Ok(()) => {
                let queue = CompletionQueue::new(wanted.base, wanted.entries);
                self.completion.insert(wanted.id, queue);
                Outcome::OK
            }
        }
    }

    fn create_submission_queue(&mut self, request: &Submission) -> Outcome {
        let wanted = Wanted::new(request);
        let there = self.submission.contains_key(&wanted.id);
        let completes = wanted.upper != 0 && self.completion.contains_key(&wanted.upper);
        let sized = self.seen.sq_entry_bytes() == 64;
        match self.check_queue(&wanted, 64) {
            Err(full) => self.refuse(0, request, full),
            Ok(()) if there => self.refuse(0, request, command::INVALID_QUEUE_ID),
            Ok(()) if !completes => self.refuse(0, request, command::INVALID_COMPLETION_QUEUE),
            Ok(()) if !sized => self.refuse(0, request, command::INVALID_QUEUE_SIZE),
            Ok(()) => {
                let queue = SubmissionQueue::new(wanted.base, wanted.entries, wanted.upper);
                self.submission.insert(wanted.id, queue);
                Outcome::OK
            }
        }
    }

    /// Everything in flight on the queue ends before (Base, "Delete I/O Submission Queue command").
    fn delete_submission_queue(&mut self, request: &Submission) -> Outcome {
        let id = request.cdw10.get() as u16;
        let Some(queue) = self.submission.get(&id).filter(|_| id != 0) else {
            return self.refuse(0, request, command::INVALID_QUEUE_ID);
        };
        for cid in queue.cids.clone() {
            self.take_back(id, cid, generic::ABORTED_SQ_DELETION);
        }
        // What nothing ends, and what comes twice, goes with the queue.
        let of_queue =
            |event: &Event| matches!(event, Event::Command(flight) if flight.queue == id);
        self.events.retain(|_, event| !of_queue(event));
        self.submission.remove(&id);
        Outcome::OK
    }

    fn delete_completion_queue(&mut self, request: &Submission) -> Outcome {
        let id = request.cdw10.get() as u16;
        let used = self.submission.values().any(|queue| queue.completion == id);
        if id == 0 || !self.completion.contains_key(&id) {
            return self.refuse(0, request, command::INVALID_QUEUE_ID);
        }
        if used {
            return self.refuse(0, request, command::INVALID_QUEUE_DELETION);
        }
        self.completion.remove(&id);
        Outcome::OK
    }

    fn abort(&mut self, request: &Submission) -> Outcome {
        let (queue, cid) = (request.cdw10.get() as u16, (request.cdw10.get() >> 16) as u16);
        let is_abort = |event: &Event| match event {
            Event::Command(it) => it.queue == 0 && it.command.opcode == admin::ABORT,
            _ => false,
        };
        let others = self.events.values().filter(|event| is_abort(event)).count();
        if others > usize::from(self.config.identity.acl) {
            return self.over_limit(request);
        }
        let done = self.take_back(queue, cid, generic::ABORT_REQUESTED)
            || queue == 0 && self.abort_request(cid);
        Outcome::result(u32::from(!done))
    }

    fn set_doorbell_buffers(&mut self, request: &Submission) -> Outcome {
        let Some(Data::Prp(shadow, events)) = request.data() else {
            return self.refuse(0, request, generic::INVALID_FIELD);
        };
        let page = self.page_bytes as u64;
        if shadow == 0 || events == 0 || shadow % page != 0 || events % page != 0 {
            return self.refuse(0, request, generic::INVALID_FIELD);
        }
        if ![shadow, events].iter().all(|at| self.dma.reaches(*at, self.page_bytes)) {
            self.violation(Violation::QueueMemory { queue: 0 });
        }
        self.shadow = Some((shadow, events));
        Outcome::OK
    }

    fn format(&mut self, request: &Submission) -> Outcome {
        let (cdw10, nsid) = (request.cdw10.get(), request.nsid.get());
        let format = (cdw10 & 15 | (cdw10 >> 12 & 3) << 4) as u8;
        let nsids: Vec<u32> = match nsid {
            ALL_NAMESPACES => self.namespaces.keys().copied().collect(),
            nsid if self.namespaces.contains_key(&nsid) => vec![nsid],
            _ => return self.refuse(0, request, generic::INVALID_NAMESPACE),
        };
        for nsid in &nsids {
            let namespace = self.namespaces.get_mut(nsid);
            if !namespace.is_some_and(|namespace| namespace.format(format)) {
                return self.refuse(0, request, command::INVALID_FORMAT);
            }
        }
        nsids.into_iter().for_each(|nsid| self.namespace_changed(nsid));
        Outcome::OK
    }
}

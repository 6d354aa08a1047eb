//! The controller itself: what it holds, and how a step of it goes.
//!
//! Guarantees: a command takes effect at the instant that it completes, in the order of virtual time, never
//! before it was fetched and never after the controller was quiet; two runs with the same seed, the same steps
//! and the same driver are the same run.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use fastrand::Rng;

use super::EmulatedConfig;
use super::counters::{Book, Counters, Violation};
use super::dma::EmulatedDma;
use super::events::Notices;
use super::faults::{Fault, Rules, Scheduled, Stick, spoil};
use super::features::Features;
use super::logs::Health;
use super::namespace::Namespace;
use super::power::Power;
use super::queues::{CompletionQueue, QueueId, SubmissionQueue};
use super::registers::EmulatedRegisters;
use crate::hardware::HardwareEvent;
use crate::spec::command::Submission;
use crate::spec::completion::Completion;
use crate::spec::opcode::{admin, io};
use crate::spec::registers::Configuration;
use crate::spec::status::{Status, command, generic};

#[derive(Debug)]
pub(super) struct Device {
    pub(super) config: EmulatedConfig,
    pub(super) bar_bytes: usize,
    pub(super) registers: Arc<EmulatedRegisters>,
    pub(super) dma: Arc<EmulatedDma>,
    pub(super) bus_master: bool,
    /// It is on the bus.
    pub(super) present: bool,
    pub(super) power: Power,
    /// The configuration that was last looked at.
    pub(super) seen: Configuration,
    pub(super) stick: Option<Stick>,
    pub(super) failing_resets: u32,
    /// It changed its state by itself: the host may not know yet.
    pub(super) upset: bool,
    /// Nothing is fetched before.
    pub(super) stalled_until_us: u64,
    pub(super) page_bytes: usize,
    pub(super) submission: BTreeMap<QueueId, SubmissionQueue>,
    pub(super) completion: BTreeMap<QueueId, CompletionQueue>,
    /// Shadow doorbells, and event indexes.
    pub(super) shadow: Option<(u64, u64)>,
    pub(super) features: Features,
    pub(super) notices: Notices,
    pub(super) health: Health,
    pub(super) namespaces: BTreeMap<u32, Namespace>,
    pub(super) rules: Rules,
    pub(super) signals: VecDeque<HardwareEvent>,
    pub(super) counters: Counters,
    pub(super) book: Book,
    pub(super) trace: Vec<Traced>,
    pub(super) rng: Rng,
    pub(super) now_us: u64,
    /// What is to come, by its time; the second number keeps ties in order. What never comes is at the end.
    pub(super) events: BTreeMap<(u64, u64), Event>,
    last_event: u64,
    /// Handles on the hardware.
    pub(super) holders: u32,
}

/// A command that has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traced {
    /// When.
    pub at_us: u64,
    /// The submission queue; 0 is the admin queue.
    pub queue: u16,
    /// Its opcode.
    pub opcode: u8,
    /// Its identifier.
    pub cid: u16,
    /// Its dwords 10 to 12.
    pub dwords: [u32; 3],
    /// When it was fetched.
    pub fetched_us: u64,
    /// How it ended.
    pub status: Status,
}

/// Something that is to come.
#[derive(Debug)]
pub(super) enum Event {
    Command(Flight),
    /// An entry that comes a second time.
    Echo(QueueId, Completion),
    Ready,
    Quiet,
    ShutDown,
    Scheduled(Scheduled),
}

/// A command in flight.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) queue: QueueId,
    pub(super) command: Submission,
    pub(super) fault: Option<Fault>,
    fetched_us: u64,
}

/// How a command ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub(super) status: Status,
    pub(super) result: u32,
}

impl Outcome {
    pub(super) const OK: Self = Self { status: Status::SUCCESS, result: 0 };

    pub(super) fn result(result: u32) -> Self {
        Self { status: Status::SUCCESS, result }
    }

    /// The host's fault, so that it is no use to try again.
    pub(super) fn invalid(full: u16) -> Self {
        Self { status: Status::new(full).with_do_not_retry(), result: 0 }
    }
}

impl From<Result<(), Status>> for Outcome {
    fn from(result: Result<(), Status>) -> Self {
        Self { status: result.err().unwrap_or(Status::SUCCESS), result: 0 }
    }
}

/// When what never comes would come.
const NEVER_US: u64 = u64::MAX;

impl Device {
    pub(super) fn new(config: EmulatedConfig) -> Self {
        let mut rng = Rng::with_seed(config.seed);
        let bar_bytes = config.bar_bytes();
        let namespaces = config.namespaces.iter().map(|namespace| {
            let seed = config.seed ^ u64::from(namespace.nsid) << 32;
            (namespace.nsid, Namespace::new(namespace.clone(), config.media_faults, seed))
        });
        let namespaces = namespaces.collect();
        let mut device = Self {
            bar_bytes,
            registers: Arc::new(EmulatedRegisters::new(bar_bytes)),
            dma: Arc::new(EmulatedDma::new(rng.u64(0x100..0x1_0000), config.iova_bits)),
            bus_master: false,
            present: true,
            power: Power::Off,
            seen: Configuration(0),
            stick: None,
            failing_resets: 0,
            upset: false,
            stalled_until_us: 0,
            page_bytes: 4096,
            submission: BTreeMap::new(),
            completion: BTreeMap::new(),
            shadow: None,
            features: Features::new(&config.identity),
            notices: Notices::default(),
            health: Health::default(),
            namespaces,
            rules: Rules::default(),
            signals: VecDeque::new(),
            counters: Counters::default(),
            book: Book::default(),
            trace: Vec::new(),
            rng,
            now_us: 0,
            events: BTreeMap::new(),
            last_event: 0,
            holders: 0,
            config,
        };
        for (at_us, what) in std::mem::take(&mut device.config.schedule) {
            device.at(at_us, Event::Scheduled(what));
        }
        device.power_on();
        device
    }

    /// Looks at its registers, fetches what was submitted, and does what is due.
    pub(super) fn step(&mut self, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        if self.present {
            self.hear();
            self.look_at_configuration();
            self.take_commands();
            self.drain_all();
        }
        self.run_due();
    }

    fn take_commands(&mut self) {
        if self.is_on() && self.now_us >= self.stalled_until_us && !self.is_shut_down() {
            self.fetch();
        }
    }

    fn run_due(&mut self) {
        while let Some(first) = self.events.first_entry()
            && first.key().0 <= self.now_us
        {
            let event = first.remove();
            match event {
                Event::Command(flight) => self.finish(flight),
                Event::Echo(queue, entry) => self.post(queue, entry, false),
                Event::Ready => self.become_ready(),
                Event::Quiet => self.become_quiet(),
                Event::ShutDown => self.become_shut_down(),
                Event::Scheduled(what) => self.happen(what),
            }
        }
    }

    /// When something happens next, if the host does nothing more.
    pub(super) fn next_event_us(&self) -> Option<u64> {
        let news = || self.registers.configuration() != self.seen || self.has_news();
        if self.present && news() {
            return Some(self.now_us);
        }
        let event = self.events.first_key_value().map(|((at_us, _), _)| *at_us);
        let event = event.filter(|at_us| *at_us != NEVER_US);
        let stalled = (self.stalled_until_us > self.now_us).then_some(self.stalled_until_us);
        event.into_iter().chain(stalled).min()
    }

    pub(super) fn at(&mut self, at_us: u64, event: Event) {
        self.last_event += 1;
        self.events.insert((at_us, self.last_event), event);
    }

    pub(super) fn after(&mut self, us: u64, event: Event) {
        self.at(self.now_us.saturating_add(us), event);
    }

    /// Everything in flight waits for so long.
    pub(super) fn stall(&mut self, us: u64) {
        self.stalled_until_us = self.now_us + us;
        for ((at_us, number), event) in std::mem::take(&mut self.events) {
            let waits = matches!(event, Event::Command(_)) && at_us != NEVER_US;
            self.events.insert((if waits { at_us + us } else { at_us }, number), event);
        }
    }

    /// A command was fetched.
    pub(super) fn accept(&mut self, queue: QueueId, command: Submission) {
        let (cid, opcode) = (command.cid.get(), command.opcode);
        let Some(it) = self.submission.get_mut(&queue) else { return };
        if !it.cids.insert(cid) {
            self.violation(Violation::CidInUse { queue, cid });
            self.complete(queue, &command, Outcome::invalid(generic::COMMAND_ID_CONFLICT), None);
            return;
        }
        let count = if queue == 0 { &mut self.counters.admin } else { &mut self.counters.io };
        *count.entry(opcode).or_default() += 1;
        let chances = if queue == 0 { &self.config.admin_chances } else { &self.config.io_chances };
        let fault = self.rules.fault_of(queue, opcode, chances, &mut self.rng);
        let us = self.duration_us(queue, &command);
        let flight = Flight { queue, command, fault, fetched_us: self.now_us };
        match fault {
            Some(Fault::Lost { .. }) => self.at(NEVER_US, Event::Command(flight)),
            Some(Fault::Late { us: late_us }) => self.after(us + late_us, Event::Command(flight)),
            _ => self.after(us, Event::Command(flight)),
        }
    }

    fn duration_us(&mut self, queue: QueueId, command: &Submission) -> u64 {
        let times = &self.config.times;
        let range = match (queue, command.opcode) {
            (0, _) => &times.admin_us,
            (_, io::WRITE | io::WRITE_ZEROES) => &times.io.write_us,
            (_, io::FLUSH) => &times.io.flush_us,
            (_, io::DATASET_MANAGEMENT) => &times.io.discard_us,
            _ => &times.io.read_us,
        };
        let us = self.rng.u64(range.clone());
        us + if queue == 0 { 0 } else { self.delay_us(command) }
    }

    /// A command is due.
    fn finish(&mut self, flight: Flight) {
        let Flight { queue, command, fault, .. } = &flight;
        let outcome = match fault {
            Some(Fault::Fatal) => return self.fail_fatally(),
            Some(Fault::Unplug) => return self.unplug(),
            Some(Fault::Status(status)) => {
                self.leave_undecided(&flight);
                Some(Outcome { status: self.delay_allowed(*status), result: 0 })
            }
            _ => self.carry_out(&flight),
        };
        match fault {
            Some(Fault::StrayDma) => self.stray(),
            Some(Fault::EventStorm(count)) => self.storm(*count),
            _ => {}
        }
        if let Some(outcome) = outcome {
            self.note(&flight, outcome);
            self.complete(*queue, command, outcome, *fault);
        }
    }

    /// `None`: it completes later, by itself.
    fn carry_out(&mut self, flight: &Flight) -> Option<Outcome> {
        let Flight { queue, command, fault, .. } = flight;
        if *queue != 0 {
            return Some(self.io(*queue, command, *fault));
        }
        match command.opcode {
            admin::ASYNC_EVENT_REQUEST => self.await_event(command),
            _ => Some(self.admin(command, *fault)),
        }
    }

    /// A status may only ask for a delay where the host has said that it honours it (Base, "Host Behavior
    /// Support").
    fn delay_allowed(&self, status: Status) -> Status {
        if self.features.retry_delays { status } else { status.with_retry_delay(0) }
    }

    fn note(&mut self, flight: &Flight, outcome: Outcome) {
        let Flight { queue, ref command, fetched_us, .. } = *flight;
        self.health.commands_ended += 1;
        if !outcome.status.ok() {
            self.log_error(queue, command, outcome.status);
        }
        if self.config.trace {
            let dwords = [command.cdw10, command.cdw11, command.cdw12].map(|dword| dword.get());
            let (opcode, cid, status) = (command.opcode, command.cid.get(), outcome.status);
            let at_us = self.now_us;
            self.trace.push(Traced { at_us, queue, opcode, cid, dwords, fetched_us, status });
        }
    }

    /// Posts the end of a command.
    pub(super) fn complete(
        &mut self,
        queue: QueueId,
        command: &Submission,
        outcome: Outcome,
        fault: Option<Fault>,
    ) {
        let sq_head = self.report_head(queue);
        let free_cid = self.free_cid(queue);
        let Some(it) = self.submission.get_mut(&queue) else { return };
        it.cids.remove(&command.cid.get());
        let to = it.completion;
        let mut entry = Completion {
            result: outcome.result.into(),
            sq_head: sq_head.into(),
            sq_id: queue.into(),
            cid: command.cid,
            ..Completion::default()
        };
        spoil(&mut entry, fault, free_cid);
        let entry = entry.with_status(outcome.status, false);
        self.post(to, entry, fault == Some(Fault::WrongPhase));
        if let Some(Fault::Duplicate { us }) = fault {
            self.after(us, Event::Echo(to, entry));
        }
    }

    /// An identifier that is not in flight on the queue.
    fn free_cid(&mut self, queue: QueueId) -> u16 {
        let Some(it) = self.submission.get(&queue) else { return 0 };
        loop {
            let cid = self.rng.u16(..);
            if !it.cids.contains(&cid) {
                return cid;
            }
        }
    }

    /// Ends a command that an Abort or the end of its queue takes back. `false`: it is not in flight, or
    /// nothing ends it.
    pub(super) fn take_back(&mut self, queue: QueueId, cid: u16, full: u16) -> bool {
        let found = self.events.iter().find_map(|(key, event)| match event {
            Event::Command(flight) if flight.queue == queue && flight.command.cid.get() == cid => {
                Some((*key, flight.fault))
            }
            _ => None,
        });
        match found {
            Some((_, Some(Fault::Lost { abortable: false }))) | None => false,
            Some((key, _)) => {
                let Some(Event::Command(flight)) = self.events.remove(&key) else { return false };
                self.leave_undecided(&flight);
                let outcome = Outcome { status: Status::new(full), result: 0 };
                self.note(&flight, outcome);
                self.complete(queue, &flight.command, outcome, None);
                true
            }
        }
    }

    /// It is being disabled: some of the commands in flight do not come to their end, and it does not get ready.
    pub(super) fn let_go_of_some(&mut self) {
        for ((at_us, number), event) in std::mem::take(&mut self.events) {
            let at_us = match event {
                Event::Ready => continue,
                Event::Command(_) if self.rng.bool() => NEVER_US,
                _ => at_us,
            };
            self.events.insert((at_us, number), event);
        }
    }

    /// Forgets everything that is under way, and every queue. What was being written is undecided.
    pub(super) fn drop_in_flight(&mut self) {
        for flight in self.take_flights() {
            self.leave_undecided(&flight);
        }
        self.forget_queues();
    }

    /// The commands in flight; and nothing is to come any more, but for what was scheduled.
    pub(super) fn take_flights(&mut self) -> Vec<Flight> {
        let mut flights = Vec::new();
        for (key, event) in std::mem::take(&mut self.events) {
            match event {
                Event::Command(flight) => flights.push(flight),
                Event::Scheduled(_) => {
                    self.events.insert(key, event);
                }
                Event::Echo(..) | Event::Ready | Event::Quiet | Event::ShutDown => {}
            }
        }
        flights
    }

    pub(super) fn forget_queues(&mut self) {
        self.submission.clear();
        self.completion.clear();
        self.shadow = None;
        self.notices.forget_requests();
        self.features = Features::new(&self.config.identity);
        self.registers.silence();
    }

    pub(super) fn in_flight(&self) -> usize {
        self.events.values().filter(|event| matches!(event, Event::Command(_))).count()
    }

    /// Whether the device may still touch this memory: a command in flight begins there, or a queue lies there.
    pub(super) fn holds(&self, address: usize, bytes: usize) -> bool {
        let inside = |iova: u64| {
            let at = self.dma.address_of(iova);
            at.is_some_and(|at| (address..address + bytes).contains(&at))
        };
        let by_command = |event: &Event| match event {
            Event::Command(flight) => inside(flight.command.data[0].get()),
            _ => false,
        };
        self.bus_master
            && (self.events.values().any(by_command)
                || self.submission.values().any(|queue| inside(queue.base))
                || self.completion.values().any(|queue| inside(queue.base)))
    }

    /// Refuses a command that the host had no reason to send so.
    pub(super) fn refuse(&mut self, queue: QueueId, command: &Submission, full: u16) -> Outcome {
        let outcome = Outcome::invalid(full);
        self.counters.refused += 1;
        let opcode = command.opcode;
        self.violation(Violation::Refused { queue, opcode, status: outcome.status });
        outcome
    }

    /// Too many of something that the controller has limited.
    pub(super) fn over_limit(&mut self, request: &Submission) -> Outcome {
        let full = match request.opcode {
            admin::ABORT => command::ABORT_LIMIT_EXCEEDED,
            _ => command::ASYNC_EVENT_LIMIT_EXCEEDED,
        };
        self.refuse(0, request, full)
    }
}

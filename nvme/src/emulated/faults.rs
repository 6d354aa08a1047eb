//! What can go wrong with an emulated controller, beside its media.
//!
//! The model, in prose. A command may fail with any status; it may never complete, or so late that the host has
//! given it up; its completion may come twice, name a command that nobody sent, carry a wrong queue, a wrong
//! head, or a phase that makes it invisible. What an admin command returns may be short, zero or garbage. The
//! controller may write where nobody told it to, stop with a fatal status, get stuck on its way to ready or to
//! quiet, refuse to be reset, ask to be removed, report a bus error, or be gone. It may send events without end.
//!
//! What a command that fails, is aborted or is dropped by a reset had written by then is undecided: nothing, all,
//! or some of its blocks. Once the controller is quiet it writes nothing any more, to media or memory.

use super::queues::QueueId;
use crate::spec::completion::Completion;
use crate::spec::status::{Status, generic, media};

/// One thing that goes wrong with one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails so. The delay bits are cleared unless the host has asked for them (ACRE).
    Status(Status),
    /// It never completes. Not even an Abort ends it, unless `abortable`.
    Lost {
        /// An Abort ends it.
        abortable: bool,
    },
    /// It takes so much longer.
    Late {
        /// How much longer.
        us: u64,
    },
    /// It completes twice, the second time so much later.
    Duplicate {
        /// How much later.
        us: u64,
    },
    /// It is carried out, and another identifier is completed, which is not in flight.
    UnknownCid,
    /// Its entry is written with the phase of the lap before.
    WrongPhase,
    /// Its entry names another queue.
    WrongSqId,
    /// Its entry tells a head that is no entry of the queue.
    WrongSqHead,
    /// CSTS.CFS appears instead of a completion.
    Fatal,
    /// The device leaves the bus instead.
    Unplug,
    /// The controller writes to an address that nobody gave it, and completes the command.
    StrayDma,
    /// A bit of the first block that is read turns over, for good.
    FlipBit,
    /// What is returned is random.
    Garbage,
    /// What is returned ends after so many bytes; the rest of the buffer stays as it was.
    Short(usize),
    /// What is returned is all zero.
    Zeroes,
    /// So many events are sent, asked for or not.
    EventStorm(u32),
}

/// Which commands a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Admin commands of this opcode.
    Admin(u8),
    /// I/O commands of this opcode.
    Io(u8),
    /// All admin commands.
    AnyAdmin,
    /// All I/O commands.
    AnyIo,
}

/// A fault at a chosen command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which commands count.
    pub on: On,
    /// The first of them that it happens to, counted from 0 when the rule is added.
    pub after: u64,
    /// How many it happens to.
    pub times: u64,
    /// What happens.
    pub fault: Fault,
}

impl Rule {
    /// It happens to the next such command, once.
    #[must_use]
    pub fn next(on: On, fault: Fault) -> Self {
        Self { on, after: 0, times: 1, fault }
    }

    /// It happens to every such command.
    #[must_use]
    pub fn always(on: On, fault: Fault) -> Self {
        Self { on, after: 0, times: u64::MAX, fault }
    }
}

/// Something that happens to the controller at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduled {
    /// CSTS.CFS appears.
    Fatal,
    /// The device leaves the bus.
    Unplug,
    /// The system asks for the device.
    RequestRemoval,
    /// The bus reports an error.
    BusError,
    /// SMART critical warnings appear.
    CriticalWarning(u8),
    /// The attributes of a namespace changed.
    NamespaceChanged(u32),
    /// Events, asked for or not.
    EventStorm(u32),
    /// CSTS.RDY gets stuck.
    Stick(Stick),
    /// It comes free.
    Unstick,
    /// The next so many function resets fail.
    FailResets(u32),
    /// Every queue stands still for so long: nothing is fetched, nothing is completed.
    Stall {
        /// How long.
        us: u64,
    },
}

/// How CSTS.RDY is stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stick {
    /// It does not become 1.
    AtZero,
    /// It does not become 0.
    AtOne,
    /// As [`Stick::AtOne`], and a function reset cures it.
    AtOneUntilReset,
}

/// How likely each fault is, for one command in 10 000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chances {
    /// A status that may be tried again.
    pub transient: u32,
    /// A status that may not (DNR), or that is about the media.
    pub permanent: u32,
    /// [`Fault::Lost`], in half of the cases abortable.
    pub lost: u32,
    /// [`Fault::Late`], by up to `late_us`.
    pub late: u32,
    /// How late.
    pub late_us: u64,
    /// [`Fault::Duplicate`].
    pub duplicate: u32,
    /// [`Fault::UnknownCid`].
    pub unknown_cid: u32,
    /// [`Fault::WrongPhase`].
    pub wrong_phase: u32,
    /// [`Fault::WrongSqId`].
    pub wrong_sq_id: u32,
    /// [`Fault::WrongSqHead`].
    pub wrong_sq_head: u32,
    /// [`Fault::Fatal`].
    pub fatal: u32,
    /// [`Fault::StrayDma`].
    pub stray_dma: u32,
    /// [`Fault::Garbage`], [`Fault::Short`] or [`Fault::Zeroes`]; of admin commands only.
    pub garbage: u32,
    /// [`Fault::EventStorm`].
    pub event_storm: u32,
}

/// Statuses that may be tried again.
const TRANSIENT: [u16; 6] = [
    generic::INTERNAL_ERROR,
    generic::INTERRUPTED,
    generic::TRANSIENT_TRANSPORT_ERROR,
    generic::NAMESPACE_NOT_READY,
    media::UNRECOVERED_READ_ERROR,
    0x7c1,
];

/// Statuses that come with DNR.
const PERMANENT: [u16; 6] = [
    generic::INTERNAL_ERROR,
    generic::WRITE_PROTECTED,
    media::WRITE_FAULT,
    media::UNRECOVERED_READ_ERROR,
    media::ACCESS_DENIED,
    0x5a5,
];

impl Chances {
    /// What goes wrong with the next command.
    fn draw(&self, rng: &mut fastrand::Rng) -> Option<Fault> {
        if *self == Self::default() {
            return None;
        }
        let mut left = rng.u32(..10_000);
        let mut hit = |chance: u32| {
            let hit = left < chance;
            left = if hit { u32::MAX } else { left - chance };
            hit
        };
        // In this order, which is the whole meaning of the numbers.
        if hit(self.transient) {
            let status = Status::new(TRANSIENT[rng.usize(..TRANSIENT.len())]);
            return Some(Fault::Status(status.with_retry_delay(rng.u8(..4))));
        }
        if hit(self.permanent) {
            let status = Status::new(PERMANENT[rng.usize(..PERMANENT.len())]);
            return Some(Fault::Status(status.with_do_not_retry()));
        }
        let faults = [
            (self.lost, Fault::Lost { abortable: rng.bool() }),
            (self.late, Fault::Late { us: rng.u64(..=self.late_us) }),
            (self.duplicate, Fault::Duplicate { us: rng.u64(..2000) }),
            (self.unknown_cid, Fault::UnknownCid),
            (self.wrong_phase, Fault::WrongPhase),
            (self.wrong_sq_id, Fault::WrongSqId),
            (self.wrong_sq_head, Fault::WrongSqHead),
            (self.fatal, Fault::Fatal),
            (self.stray_dma, Fault::StrayDma),
            (self.garbage, Self::garbage(rng)),
            (self.event_storm, Fault::EventStorm(rng.u32(1..64))),
        ];
        faults.into_iter().find(|(chance, _)| hit(*chance)).map(|(_, fault)| fault)
    }

    fn garbage(rng: &mut fastrand::Rng) -> Fault {
        match rng.u32(..3) {
            0 => Fault::Garbage,
            1 => Fault::Short(rng.usize(..4096) & !7),
            _ => Fault::Zeroes,
        }
    }
}

/// The rules in force.
#[derive(Debug, Default)]
pub(super) struct Rules(Vec<Rule>);

impl Rules {
    pub(super) fn add(&mut self, rule: Rule) {
        self.0.push(rule);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// What goes wrong with this command: the first rule that is due, else chance.
    pub(super) fn fault_of(
        &mut self,
        queue: QueueId,
        opcode: u8,
        chances: &Chances,
        rng: &mut fastrand::Rng,
    ) -> Option<Fault> {
        let mut fault = None;
        for rule in &mut self.0 {
            let matches = match rule.on {
                On::Admin(other) => queue == 0 && opcode == other,
                On::Io(other) => queue != 0 && opcode == other,
                On::AnyAdmin => queue == 0,
                On::AnyIo => queue != 0,
            };
            if !matches {
                continue;
            }
            if rule.after > 0 {
                rule.after -= 1;
            } else if fault.is_none() && rule.times > 0 {
                rule.times -= 1;
                fault = Some(rule.fault);
            }
        }
        self.0.retain(|rule| rule.times > 0);
        fault.or_else(|| chances.draw(rng))
    }
}

/// Spoils an entry as the fault says. `free_cid` is not in flight.
pub(super) fn spoil(entry: &mut Completion, fault: Option<Fault>, free_cid: u16) {
    match fault {
        Some(Fault::UnknownCid) => entry.cid.set(free_cid),
        Some(Fault::WrongSqId) => entry.sq_id.set(entry.sq_id.get() ^ 0x155),
        Some(Fault::WrongSqHead) => entry.sq_head.set(0xfff7),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_count_the_commands_that_they_are_about() {
        let (mut rules, mut rng) = (Rules::default(), fastrand::Rng::with_seed(1));
        rules.add(Rule { on: On::Io(2), after: 1, times: 2, fault: Fault::Fatal });
        let mut fault =
            |queue, opcode| rules.fault_of(queue, opcode, &Chances::default(), &mut rng);
        assert_eq!((fault(1, 1), fault(0, 2), fault(1, 2)), (None, None, None));
        assert_eq!((fault(3, 2), fault(1, 2)), (Some(Fault::Fatal), Some(Fault::Fatal)));
        assert_eq!(fault(1, 2), None);
    }

    #[test]
    fn every_chance_is_taken_as_often_as_it_says() {
        let mut rng = fastrand::Rng::with_seed(1);
        let chances = Chances { transient: 1000, fatal: 2000, ..Chances::default() };
        let drawn: Vec<_> = (0..10_000).map(|_| chances.draw(&mut rng)).collect();
        let count =
            |wanted: fn(&Fault) -> bool| drawn.iter().flatten().filter(|f| wanted(f)).count();
        assert!((800..1200).contains(&count(|fault| matches!(fault, Fault::Status(_)))));
        assert!((1800..2200).contains(&count(|fault| *fault == Fault::Fatal)));
        assert!((6700..7300).contains(&drawn.iter().filter(|fault| fault.is_none()).count()));
    }
}

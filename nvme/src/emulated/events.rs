//! Asynchronous events (NVMe Base 2.0, "Asynchronous Event Request command").
//!
//! Guarantees: an event that was asked for is reported once, and none of its kind follows before its log page
//! was read; an event that nobody asked for is not, except in a storm, which knows no rules.

use std::collections::VecDeque;

use super::device::{Device, Outcome};
use crate::spec::command::Submission;
use crate::spec::event::{AsyncEvent, EventKind, error, health, notice};
use crate::spec::feature::async_events;
use crate::spec::log;
use crate::spec::log::CriticalWarning;
use crate::spec::status::generic;

/// Namespaces of which it is remembered that they changed.
const CHANGED_MAX: usize = 1024;

/// Events, and those who wait for them.
#[derive(Debug, Default)]
pub(super) struct Notices {
    /// Asynchronous event requests.
    requests: VecDeque<Submission>,
    /// Events that nobody has been told of yet; `false`: of a storm.
    pending: VecDeque<(AsyncEvent, bool)>,
    /// Events that were told, and whose log page was not read since.
    told: Vec<AsyncEvent>,
    /// Namespaces that changed since the log page was read.
    pub(super) changed: Vec<u32>,
}

impl Notices {
    /// The requests die with their queue.
    pub(super) fn forget_requests(&mut self) {
        self.requests.clear();
        self.pending.clear();
        self.told.clear();
    }

    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    fn known(&self, event: AsyncEvent) -> bool {
        let same = |other: &AsyncEvent| other.kind == event.kind;
        self.told.iter().any(same) || self.pending.iter().any(|(other, _)| same(other))
    }

    /// The log page was read: events that belong to it may come again.
    pub(super) fn read(&mut self, page: u8) {
        self.told.retain(|event| event.log_page != page);
    }

    /// Takes a request back. `false`: it is not here.
    pub(super) fn take_request(&mut self, cid: u16) -> Option<Submission> {
        let at = self.requests.iter().position(|request| request.cid.get() == cid)?;
        self.requests.remove(at)
    }
}

impl Device {
    /// `None`: it completes when something happens.
    pub(super) fn await_event(&mut self, request: &Submission) -> Option<Outcome> {
        if self.notices.requests.len() > usize::from(self.config.identity.aerl) {
            return Some(self.over_limit(request));
        }
        self.notices.requests.push_back(*request);
        self.tell();
        None
    }

    /// Something has happened.
    pub(super) fn raise(&mut self, event: AsyncEvent) {
        if !self.notices.known(event) {
            self.notices.pending.push_back((event, true));
            self.tell();
        }
    }

    fn tell(&mut self) {
        while self.is_on()
            && !self.notices.pending.is_empty()
            && let Some(request) = self.notices.requests.pop_front()
            && let Some((event, known)) = self.notices.pending.pop_front()
        {
            if known {
                self.notices.told.push(event);
            }
            self.complete(0, &request, Outcome::result(event.result()), None);
        }
    }

    /// Events of every kind, asked for or not.
    pub(super) fn storm(&mut self, count: u32) {
        for _ in 0..count.min(1024) {
            let event = AsyncEvent::from_result(self.rng.u32(..));
            self.notices.pending.push_back((event, false));
        }
        self.tell();
    }

    /// The host wrote a doorbell value that cannot be.
    pub(super) fn invalid_doorbell(&mut self) {
        let info = error::INVALID_DOORBELL_VALUE;
        self.raise(AsyncEvent { kind: EventKind::Error, info, log_page: log::ERROR });
    }

    pub(super) fn set_critical_warning(&mut self, bits: u8) {
        let new = bits & !self.health.critical_warning;
        self.health.critical_warning = bits;
        if u32::from(new) & self.features.async_events & async_events::ALL_SMART == 0 {
            return;
        }
        let info = match new {
            new if new & CriticalWarning::TEMPERATURE != 0 => health::TEMPERATURE,
            new if new & CriticalWarning::SPARE_LOW != 0 => health::SPARE_LOW,
            _ => health::RELIABILITY,
        };
        self.raise(AsyncEvent { kind: EventKind::Health, info, log_page: log::SMART });
    }

    pub(super) fn namespace_changed(&mut self, nsid: u32) {
        let changed = &mut self.notices.changed;
        if let Err(at) = changed.binary_search(&nsid)
            && changed.len() < CHANGED_MAX
        {
            changed.insert(at, nsid);
        }
        if self.features.async_events & async_events::NAMESPACE_CHANGED != 0 {
            let info = notice::NAMESPACE_CHANGED;
            let log_page = log::CHANGED_NAMESPACES;
            self.raise(AsyncEvent { kind: EventKind::Notice, info, log_page });
        }
    }

    /// Ends a request for events. `false`: there is none of that name.
    pub(super) fn abort_request(&mut self, cid: u16) -> bool {
        let Some(request) = self.notices.take_request(cid) else { return false };
        let outcome = Outcome { result: 0, ..Outcome::invalid(generic::ABORT_REQUESTED) };
        self.complete(0, &request, outcome, None);
        true
    }
}

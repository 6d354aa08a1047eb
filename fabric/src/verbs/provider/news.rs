//! What the connection manager and the devices have to say.

use super::table::qp_of;
use super::{Connection, Verbs};
use crate::rdma::{Event, Note, ProviderError, Qp, Violation};
use crate::verbs::device::DeviceEvent;
use crate::verbs::manager::ManagerEvent;
use crate::verbs::memory::Steady;
use crate::verbs::shared::Shared;
use nix::sys::epoll::{EpollEvent, EpollTimeout};

/// How often the connection manager and the devices are asked for news, in microseconds: that takes a
/// system call.
const NEWS_US: u64 = 100;

impl<B: Steady> Verbs<B> {
    fn hear(&mut self, event: ManagerEvent) {
        match event {
            ManagerEvent::Requested { id, ask, reads } => {
                let free = self.requests.iter().position(Option::is_none);
                let index = free.unwrap_or(self.requests.len());
                if index == self.requests.len() {
                    self.requests.push(None);
                }
                self.requests[index] = Some((id, reads));
                self.news.push(Event::Requested { request: index as u32, ask, reads });
            }
            ManagerEvent::AddressResolved(number) => {
                self.go_on(qp_of(number), |connection| connection.id.resolve_route());
            }
            ManagerEvent::RouteResolved(number) => self.ask(qp_of(number)),
            ManagerEvent::Accepted { number, answer } => self.accepted(qp_of(number), answer),
            ManagerEvent::Established(number) => {
                self.tell(number, |qp| Event::Established { qp, answer: Note::new(&[]) });
            }
            ManagerEvent::Refused { number, answer } => {
                self.tell(number, |qp| Event::Refused { qp, answer });
            }
            ManagerEvent::Disconnected(number) => {
                self.tell(number, |qp| Event::Disconnected { qp });
            }
            ManagerEvent::Removed(number) => {
                self.tell(number, |qp| Event::Broken { qp, why: Violation::Silent });
            }
        }
    }

    /// Tells of a connection. One that was released is still known to the connection manager for a while,
    /// and to nobody else.
    fn tell(&mut self, number: usize, what: impl FnOnce(Qp) -> Event<B>) {
        let qp = qp_of(number);
        if self.connection(qp).is_some() {
            self.news.push(what(qp));
        }
    }

    /// The next step of a connection that is being made; where it fails, that is its end.
    fn go_on(
        &mut self,
        qp: Qp,
        step: impl FnOnce(&mut Connection<B>) -> Result<(), ProviderError>,
    ) {
        let Some(connection) = self.connection_mut(qp) else { return };
        if let Err(error) = step(connection) {
            self.refuse(qp, &error);
        }
    }

    fn refuse(&mut self, qp: Qp, error: &ProviderError) {
        log::warn!("an RDMA connection failed: {error}");
        self.news.push(Event::Refused { qp, answer: Note::new(&[]) });
    }

    /// The route is known, and with it the device: makes the queue pair and asks for the connection.
    fn ask(&mut self, qp: Qp) {
        let Some(Connection { id, shape, .. }) = self.connection(qp) else { return };
        let shape = *shape;
        let made = self.adapter_of(id).and_then(|adapter| {
            let pair = self.pair(qp, adapter, shape)?;
            Ok((adapter, pair))
        });
        let (adapter, mut pair) = match made {
            Ok(made) => made,
            Err(error) => return self.refuse(qp, &error),
        };
        let tuning = self.tuning(adapter, &shape, shape.reads);
        self.go_on(qp, |connection| {
            pair.prepare(&connection.id, &tuning)?;
            connection.id.connect(pair.number(), &connection.ask, tuning.reads)?;
            connection.adapter = adapter;
            connection.pair = Some(pair);
            Ok(())
        });
    }

    /// The other side has accepted: the queue pair becomes ready, and the other side hears of it.
    fn accepted(&mut self, qp: Qp, answer: Note) {
        let Some(Connection { adapter, shape, .. }) = self.connection(qp) else { return };
        let tuning = self.tuning(*adapter, shape, shape.reads);
        let mut ready = false;
        self.go_on(qp, |connection| {
            let pair = connection.pair.as_mut().ok_or(ProviderError::Gone)?;
            pair.connect(&connection.id, &tuning)?;
            connection.id.establish()?;
            ready = true;
            Ok(())
        });
        if ready {
            self.news.push(Event::Established { qp, answer });
        }
    }

    /// A device has something to say of itself.
    pub(super) fn hear_device(&mut self, adapter: usize, event: DeviceEvent) {
        let name = self.adapters[adapter].context.name();
        match event {
            DeviceEvent::QueuePair { number, forbidden } => {
                let why = if forbidden { Violation::Forbidden } else { Violation::Other(0) };
                self.break_all(|connection| is_pair(connection, adapter, number), why);
            }
            DeviceEvent::FewReceives => {
                log::debug!("RDMA device {name}: few receives are left");
                self.adapters[adapter].shared.iter_mut().for_each(Shared::is_low);
            }
            DeviceEvent::Receives => {
                log::error!("RDMA device {name}: the shared receives have failed");
                let uses = |found: &Connection<B>| found.adapter == adapter && found.shape.shared;
                self.break_all(uses, Violation::Other(0));
            }
            DeviceEvent::CompletionQueue => {
                log::error!("RDMA device {name}: a completion queue has overrun");
                self.break_all(|connection| connection.adapter == adapter, Violation::Other(0));
            }
            DeviceEvent::Device => {
                log::error!("RDMA device {name} has failed");
                self.break_all(|connection| connection.adapter == adapter, Violation::Silent);
            }
            // Connections survive a short break; what takes longer ends by their own retries.
            DeviceEvent::Port { up } => {
                log::warn!("RDMA device {name}: a port is {}", if up { "up" } else { "down" });
            }
            DeviceEvent::Other(number) => log::debug!("RDMA device {name}: event {number}"),
        }
    }

    fn break_all(&mut self, which: impl Fn(&Connection<B>) -> bool, why: Violation) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(connection) = slot.connection.as_mut().filter(|found| which(found)) else {
                continue;
            };
            if !std::mem::replace(&mut connection.quiet, true) {
                let qp = Qp { slot: index as u16, generation: slot.generation };
                self.news.push(Event::Broken { qp, why });
            }
        }
    }

    /// Whether the connection manager or a device has news: one system call.
    fn has_news(&self) -> bool {
        let mut found = [EpollEvent::empty()];
        self.news_epoll.wait(&mut found, EpollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    pub(super) fn take_news(&mut self, now_us: u64) {
        if now_us < self.next_news_us && !self.armed {
            return;
        }
        self.next_news_us = now_us + NEWS_US;
        if !self.has_news() {
            return;
        }
        while let Some(event) = self.manager.next_event() {
            self.hear(event);
        }
        for adapter in 0..self.adapters.len() {
            while let Some(event) = self.adapters[adapter].context.next_event() {
                self.hear_device(adapter, event);
            }
        }
    }
}

fn is_pair<B: Steady>(connection: &Connection<B>, adapter: usize, number: u32) -> bool {
    let pair = connection.pair.as_ref();
    connection.adapter == adapter && pair.is_some_and(|pair| pair.number() == number)
}

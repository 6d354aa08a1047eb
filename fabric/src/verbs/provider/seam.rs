//! The seam: what the transport asks for.

use super::table::number_of;
use super::{Adapter, Connection, Verbs};
use crate::rdma::{
    Chain, Event, Limits, Note, Provider, ProviderError, Qp, Room, Shape, Violation,
};
use crate::region;
use crate::verbs::manager::Id;
use crate::verbs::memory::{Registration, Steady, VerbsRegion};
use crate::verbs::pair::Pair;
use crate::verbs::shared::Shared;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

impl<B: Steady> Provider for Verbs<B> {
    type Buffer = B;
    type Region = VerbsRegion;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn shared_receives(&self) -> u32 {
        let each = |adapter: &Adapter| adapter.shared.as_ref().map_or(0, Shared::receives) as u32;
        self.adapters.iter().map(each).min().unwrap_or(0)
    }

    fn poll(&mut self, now_us: u64, events: &mut Vec<Event<B>>) -> bool {
        let before = events.len();
        self.reaper.bury();
        self.ring_shared();
        // News first, told last: what had arrived when a connection ended is seen before its end.
        self.take_news(now_us);
        // A completion of something long released has used up the arming, too.
        let any = self.take_completions(events);
        events.append(&mut self.news);
        let moved = any || events.len() > before;
        if self.armed && moved {
            self.armed = false;
            self.adapters.iter().for_each(|adapter| adapter.channel.drain());
        }
        moved
    }

    fn accept(&mut self, request: u32, answer: Note, shape: Shape) -> Result<Qp, ProviderError> {
        let place = self.requests.get_mut(request as usize);
        let (id, reads) = place.and_then(Option::take).ok_or(ProviderError::Gone)?;
        let adapter = self.adapter_of(&id)?;
        let qp = self.reserve()?;
        id.set_number(number_of(qp));
        let tuning = self.tuning(adapter, &shape, reads);
        let made = self.pair(qp, adapter, shape).and_then(|mut pair| {
            pair.prepare(&id, &tuning)?;
            pair.connect(&id, &tuning)?;
            id.accept(pair.number(), &answer, tuning.reads)?;
            Ok(pair)
        });
        match made {
            Ok(pair) => {
                let (pair, ask) = (Some(pair), Note::new(&[]));
                self.put(qp, Connection { pair, adapter, shape, ask, quiet: false, id });
                Ok(qp)
            }
            Err(error) => {
                id.reject(&Note::new(&[]));
                Err(error)
            }
        }
    }

    fn reject(&mut self, request: u32, answer: Note) {
        let place = self.requests.get_mut(request as usize);
        if let Some((id, _)) = place.and_then(Option::take) {
            id.reject(&answer);
        }
    }

    fn connect(
        &mut self,
        address: SocketAddr,
        ask: Note,
        shape: Shape,
    ) -> Result<Qp, ProviderError> {
        let qp = self.reserve()?;
        let id = Id::resolve(&self.manager, address, number_of(qp))?;
        self.put(qp, Connection { pair: None, adapter: 0, shape, ask, quiet: false, id });
        Ok(qp)
    }

    fn received(&self, qp: Qp, receive: u16, length: u32) -> &[u8] {
        let Some(Connection { pair, adapter, shape, .. }) = self.connection(qp) else { return &[] };
        if shape.shared {
            let shared = self.adapters[*adapter].shared.as_ref();
            return shared.map_or(&[], |shared| shared.message(receive, length));
        }
        pair.as_ref().map_or(&[], |pair| pair.message(receive, length))
    }

    fn repost(&mut self, qp: Qp, receive: u16) {
        if let Some(shared) = self.shared_of(qp) {
            return shared.repost(receive);
        }
        let pair = self.connection_mut(qp).and_then(|connection| connection.pair.as_mut());
        pair.into_iter().for_each(|pair| pair.repost(receive));
    }

    fn ring_receives(&mut self, qp: Qp) {
        if self.shared_of(qp).is_some() {
            return self.ring_shared();
        }
        let Some(connection) = self.connection_mut(qp) else { return };
        let Some(pair) = connection.pair.as_mut().filter(|_| !connection.quiet) else { return };
        if let Err(error) = pair.ring_receives() {
            log::debug!("queue pair {}: {error}", pair.number());
            connection.quiet = true;
            self.news.push(Event::Broken { qp, why: Violation::Other(0) });
        }
    }

    fn room(&self, qp: Qp) -> Room {
        let pair = self.connection(qp).and_then(|connection| connection.pair.as_ref());
        pair.map_or(Room::default(), Pair::room)
    }

    fn in_flight(&self, qp: Qp) -> usize {
        let pair = self.connection(qp).and_then(|connection| connection.pair.as_ref());
        pair.map_or(0, Pair::in_flight)
    }

    fn post(&mut self, qp: Qp, chain: &mut Chain<B>) {
        self.ring_receives(qp);
        let Some(slot) = self.slots.get_mut(usize::from(qp.slot)) else { return chain.clear() };
        let found = slot.connection.as_mut().filter(|_| slot.generation == qp.generation);
        let Some(connection) = found else { return chain.clear() };
        let Some(pair) = &mut connection.pair else { return chain.clear() };
        let registrations = &self.adapters[connection.adapter].registrations;
        let posted = pair.post(chain, |address, length| {
            let found = registrations.iter().find(|found| found.covers(address, length));
            found.map(Registration::local_key)
        });
        if let Err(error) = posted {
            log::debug!("queue pair {}: {error}", pair.number());
            if !std::mem::replace(&mut connection.quiet, true) {
                self.news.push(Event::Broken { qp, why: Violation::Other(0) });
            }
        }
    }

    fn disconnect(&mut self, qp: Qp) {
        if let Some(connection) = self.connection(qp) {
            connection.id.disconnect();
        }
    }

    fn break_off(&mut self, qp: Qp) {
        let Some(connection) = self.connection_mut(qp) else { return };
        connection.quiet = true;
        connection.pair.iter_mut().for_each(Pair::fail);
    }

    fn is_drained(&self, qp: Qp) -> bool {
        let pair = self.connection(qp).and_then(|connection| connection.pair.as_ref());
        pair.is_none_or(Pair::is_drained)
    }

    fn release(&mut self, qp: Qp, ended: &mut dyn FnMut(u32, B)) {
        let Some(slot) = self.slots.get_mut(usize::from(qp.slot)) else { return };
        if slot.generation != qp.generation {
            return;
        }
        let Some(Connection { pair, id, adapter, .. }) = slot.connection.take() else { return };
        id.disconnect();
        let pair = pair.and_then(|pair| {
            self.adapters[adapter].sharers.remove(&pair.number());
            self.still(qp, pair, ended)
        });
        self.reaper.take(pair, id);
    }

    fn keep(&mut self, region: VerbsRegion) {
        self.reaper.keep(region);
    }

    fn region(&mut self, qp: Qp, bytes: usize) -> Result<VerbsRegion, ProviderError> {
        let adapter = self.connection(qp).ok_or(ProviderError::Gone)?.adapter;
        VerbsRegion::new(&self.adapters[adapter].domain, bytes)
    }

    fn offer(&mut self, qp: Qp, region: &region::Region) -> Result<u32, ProviderError> {
        let adapter = self.connection(qp).ok_or(ProviderError::Gone)?.adapter;
        let Adapter { regions, domain, .. } = &self.adapters[adapter];
        let make = || Registration::of_region(domain, region);
        regions.with(region, make, Registration::remote_key)
    }

    fn arm(&mut self) -> bool {
        self.adapters.iter().for_each(|adapter| adapter.channel.drain());
        let mut found = std::mem::take(&mut self.completions);
        for queue in self.adapters.iter().flat_map(|adapter| &adapter.queues) {
            queue.arm();
            // What came before it was armed makes no event.
            queue.poll(&mut found);
        }
        let nothing = found.is_empty() && self.news.is_empty();
        self.completions = found;
        self.armed = nothing;
        nothing
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.0.as_fd())
    }
}

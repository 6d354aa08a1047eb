//! Making connections, and what becomes of commands whose connection is gone.

use super::super::address::Address;
use super::super::batch::Limits;
use super::super::error::{ClientError, LinkError};
use super::super::link::{Link, Settings};
use super::super::operation::{OpId, State};
use super::super::paths::{Known, Paths};
use super::Router;
use crate::Status;
use crate::pdu::Welcome;
use std::collections::VecDeque;

/// The first pause before connecting again, in microseconds; it doubles with every failure.
const BACKOFF_FIRST_US: u64 = 10_000;
/// How long a link that goes back to a better path tries that, in microseconds.
const HASTE_US: u64 = 200_000;
/// The longest pause, in microseconds.
const BACKOFF_LONGEST_US: u64 = 1_000_000;

/// The link to one reactor, and what waits for it.
#[derive(Debug)]
pub(in super::super) struct Peer {
    pub link: Link,
    /// Where it is.
    pub(super) paths: Paths,
    pub backlog: VecDeque<OpId>,
    /// Failures since the link was last up.
    pub(super) failures: u32,
    pub(super) retry_at_us: u64,
    /// The server was busy: nothing is sent before this.
    pub(super) resume_at_us: u64,
    /// Where the last connection was, and why it ended.
    error: Option<(Address, LinkError)>,
}

impl Peer {
    pub(super) fn new(paths: Vec<Address>, settings: &Settings) -> Self {
        Self {
            link: Link::new(settings.clone()),
            paths: Paths::new(paths),
            backlog: VecDeque::with_capacity(usize::from(settings.offer.queue_depth)),
            failures: 0,
            retry_at_us: 0,
            resume_at_us: 0,
            error: None,
        }
    }

    pub(in super::super) fn has_room(&self) -> bool {
        self.link.in_flight() + self.backlog.len() < self.link.depth()
    }
}

/// The links were made anew: the stream of link `from` now is that of link `to`; all others are gone.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Rewired {
    pub from: usize,
    pub to: usize,
    pub links: usize,
}

impl Router {
    /// The address that link `index` should be connected to now, if it should.
    pub(in super::super) fn wants_connection(&self, index: usize, now_us: u64) -> Option<Address> {
        let peer = &self.peers[index];
        if !peer.link.is_closed() || now_us < peer.retry_at_us || self.fatal.is_some() {
            return None;
        }
        Some(self.address(index))
    }

    /// Where link `index` is, or is tried next.
    fn address(&self, index: usize) -> Address {
        self.peers[index].paths.address(&self.config.addresses).clone()
    }

    pub(in super::super) fn opened(&mut self, index: usize, now_us: u64) {
        let address = self.address(index);
        let peer = &mut self.peers[index];
        let in_haste = peer.paths.opened(address);
        peer.link.open(now_us, if in_haste { HASTE_US } else { u64::MAX });
    }

    /// After a HELLO_ACK: is this the server, and the reactor, that was meant?
    pub(super) fn greet(&mut self, index: usize) -> Result<(), LinkError> {
        let Some(welcome) = self.peers[index].link.take_welcome() else { return Ok(()) };
        if let Some(known) = &self.welcome {
            if known.pool != welcome.pool {
                return Err(LinkError::OtherPool {
                    expected: hexadecimal(&known.pool),
                    found: hexadecimal(&welcome.pool),
                });
            }
            if is_same_house(known, &welcome) {
                let meant = usize::from(welcome.reactor) == index;
                return if meant { Ok(()) } else { Err(LinkError::OtherReactor) };
            }
            log::info!("the server's reactors or shard map have changed: connecting anew");
        }
        self.adopt(index, welcome);
        Ok(())
    }

    /// Makes the links that `welcome` asks for; the link it came on is kept, all others are lost.
    fn adopt(&mut self, from: usize, welcome: Box<Welcome>) {
        let reached = self.address(from);
        let to = usize::from(welcome.reactor);
        self.limits = Limits::of(&welcome);
        let settings = &self.settings;
        let (addresses, spread) = (&self.config.addresses, self.config.seed as usize);
        let known = Known { addresses, reached: &reached, spread };
        let paths = (0..welcome.reactors).map(|reactor| known.paths(&welcome, reactor));
        let peers = paths.map(|paths| Peer::new(paths, settings)).collect();
        let mut old = std::mem::replace(&mut self.peers, peers);
        self.welcome = Some(welcome);
        std::mem::swap(&mut self.peers[to].link, &mut old[from].link);
        self.peers[to].paths.opened(reached);
        self.rewired = Some(Rewired { from, to, links: self.peers.len() });
        let mut stray = Vec::new();
        for mut peer in old {
            peer.link.close(&mut self.buffers, |id| self.orphans.push(id));
            self.take_in_orphans(&mut stray);
            stray.extend(peer.backlog);
        }
        stray.into_iter().for_each(|id| self.reroute(id));
    }

    fn reroute(&mut self, id: OpId) {
        if !self.ops[id].items.is_empty() {
            return self.split_again(id);
        }
        let op = &self.ops[id];
        match self.link_for(op.target, op.namespace, &op.keys) {
            Some(link) => self.enqueue(id, link),
            None => {
                self.conclude_with(id, Status::Disconnected);
                self.ops.release(id);
            }
        }
    }

    /// What becomes of commands whose connection is gone: `queued` are to be sent again.
    fn take_in_orphans(&mut self, queued: &mut Vec<OpId>) {
        let mut orphans = std::mem::take(&mut self.orphans);
        for id in orphans.drain(..) {
            match self.ops[id].state {
                State::Ended(_) => self.ops.release(id),
                _ if self.ops[id].can_replay() => {
                    self.counters.replays += 1;
                    queued.push(id);
                }
                _ => {
                    self.conclude_with(id, Status::Disconnected);
                    self.ops.release(id);
                }
            }
        }
        self.orphans = orphans;
    }

    /// The connection of link `index` is gone, or could not be made. Always `true`: something
    /// happened.
    pub(in super::super) fn lost(&mut self, index: usize, now_us: u64, error: LinkError) -> bool {
        let address = self.address(index);
        log::debug!("connection to {address} (reactor {index}): {error}");
        self.counters.connection_errors += 1;
        let peer = &mut self.peers[index];
        let goes_back = peer.paths.lost(peer.link.is_up(), matches!(error, LinkError::Drained));
        peer.link.close(&mut self.buffers, |id| self.orphans.push(id));
        let longest_us = (BACKOFF_FIRST_US << peer.failures.min(16)).min(BACKOFF_LONGEST_US);
        let pause_us = if goes_back { 0 } else { self.rng.u64(longest_us / 2..=longest_us) };
        peer.retry_at_us = now_us + pause_us;
        peer.failures = peer.failures.saturating_add(1);
        if error.is_fatal() {
            self.fatal.get_or_insert((address, error));
        } else {
            peer.error = Some((address, error));
        }
        let mut queued = Vec::new();
        self.take_in_orphans(&mut queued);
        queued.into_iter().rev().for_each(|id| self.enqueue_first(id, index));
        if self.fatal.is_some() {
            self.give_up();
        }
        true
    }

    /// Nothing can be sent any more: everything ends.
    fn give_up(&mut self) {
        for index in 0..self.peers.len() {
            let peer = &mut self.peers[index];
            peer.link.close(&mut self.buffers, |id| self.orphans.push(id));
            let mut stray = Vec::new();
            stray.extend(peer.backlog.drain(..));
            self.take_in_orphans(&mut stray);
            for id in stray {
                self.conclude_with(id, Status::Disconnected);
                self.ops.release(id);
            }
        }
    }

    pub(in super::super) fn is_rewired(&self) -> bool {
        self.rewired.is_some()
    }

    pub(in super::super) fn take_rewired(&mut self) -> Option<Rewired> {
        self.rewired.take()
    }

    /// Nothing works any more, and [`Router::fatal`] says why.
    pub(in super::super) fn is_hopeless(&self) -> bool {
        self.fatal.is_some()
    }

    /// Why nothing works any more, if so.
    pub(in super::super) fn fatal(&self) -> Option<ClientError> {
        self.fatal.as_ref().map(|(address, error)| ClientError::Connect {
            address: address.clone(),
            source: error.again(),
        })
    }

    /// Every reactor is connected.
    pub(in super::super) fn is_connected(&self) -> bool {
        self.welcome.is_some() && self.peers.iter().all(|peer| peer.link.is_ready())
    }

    /// Why the first connecting has failed: all addresses were tried, or a reactor is out of reach.
    pub(in super::super) fn take_first_error(&mut self) -> Option<ClientError> {
        let patience = |peer: &Peer| peer.paths.count(&self.config.addresses);
        let index = self.peers.iter().position(|peer| peer.failures as usize >= patience(peer))?;
        let (address, source) = self.peers[index].error.take()?;
        Some(ClientError::Connect { address, source })
    }

    /// The first connecting took too long.
    pub(in super::super) fn too_slow(&self) -> ClientError {
        let index = self.peers.iter().position(|peer| !peer.link.is_ready()).unwrap_or(0);
        ClientError::Connect { address: self.address(index), source: LinkError::Handshake }
    }
}

/// The reactors are where they were, own what they owned, and take what they took.
fn is_same_house(old: &Welcome, new: &Welcome) -> bool {
    old.shard_map == new.shard_map
        && old.endpoints == new.endpoints
        && old.catalog_reactor == new.catalog_reactor
        && Limits::of(old) == Limits::of(new)
}

fn hexadecimal(bytes: &[u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

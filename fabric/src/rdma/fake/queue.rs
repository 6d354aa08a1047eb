//! One simulated queue pair: posted work is done step by step, each when its time has come.

use super::super::chain::{Chain, Piece, Step, Work};
use super::super::ledger::{InFlight, Ledger};
use super::super::provider::{Event, Limits, Qp, Room, Shape, Violation};
use super::FakeCounters;
use super::net::{Arrived, Net, RETRY_US, SideId};
use crate::Buffer;
use std::collections::VecDeque;

/// Work requests that one turn does, or flushes, at most.
const WORKS_A_TURN: usize = 24;

/// A posted work request.
#[derive(Debug)]
struct Posted {
    step: Step,
    /// What its pieces are, by place in the ledger.
    pieces: Vec<Piece>,
    /// What it sends.
    bytes: Vec<u8>,
    sequence: u32,
    signalled: bool,
}

impl Posted {
    /// It takes a receive of the other side.
    fn sends(&self) -> bool {
        matches!(self.step.work, Work::Send { .. })
    }
}

pub(super) struct FakeQueue<B> {
    side: SideId,
    shape: Shape,
    ledger: Ledger<B>,
    posted: VecDeque<Posted>,
    unheard: u32,
    /// The first of `posted` is done at this time.
    due_us: Option<u64>,
    tries: u32,
    failed: bool,
    /// The last message in each receive.
    messages: Vec<Vec<u8>>,
    reposted: Vec<u16>,
}

impl<B: Buffer> FakeQueue<B> {
    pub(super) fn new(side: SideId, shape: Shape, limits: Limits) -> Self {
        Self {
            side,
            shape,
            ledger: Ledger::new(limits.works, limits.buffers, limits.send_bytes),
            posted: VecDeque::new(),
            unheard: 0,
            due_us: None,
            tries: 0,
            failed: false,
            messages: vec![Vec::new(); if shape.shared { 0 } else { shape.receives.into() }],
            reposted: Vec::new(),
        }
    }

    pub(super) fn side(&self) -> SideId {
        self.side
    }

    pub(super) fn shares(&self) -> bool {
        self.shape.shared
    }

    pub(super) fn room(&self) -> Room {
        self.ledger.room()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.ledger.in_flight()
    }

    pub(super) fn is_drained(&self) -> bool {
        self.failed && self.ledger.in_flight() == 0
    }

    pub(super) fn message(&self, receive: u16) -> &[u8] {
        &self.messages[usize::from(receive)]
    }

    pub(super) fn repost(&mut self, receive: u16) {
        self.reposted.push(receive);
    }

    pub(super) fn ring_receives(&mut self, net: &mut Net) {
        if let Some(side) = net.sides.get_mut(&self.side) {
            side.receives.extend(self.reposted.drain(..));
        }
    }

    pub(super) fn break_off(&mut self, net: &mut Net) {
        self.failed = true;
        if let Some(side) = net.sides.get_mut(&self.side) {
            side.failed.get_or_insert(Violation::Other(0));
            side.said = true;
        }
    }

    pub(super) fn give_up(&mut self, ended: &mut dyn FnMut(u32, B)) {
        self.posted.clear();
        self.ledger.give_up(|end| ended(end.token, end.held));
    }

    pub(super) fn post(&mut self, chain: &mut Chain<B>) {
        let room = self.ledger.room();
        assert!(chain.steps().len() <= room.works, "the send queue overruns");
        let steps = chain.steps().to_vec();
        let pieces = chain.pieces().to_vec();
        let bytes = chain.bytes().to_vec();
        let ledger = &mut self.ledger;
        let places: Vec<_> = chain.take_buffers().map(|buffer| ledger.hold(buffer)).collect();
        let count = steps.len();
        for (index, step) in steps.into_iter().enumerate() {
            let signalled = step.is_signalled(index + 1 == count, &mut self.unheard);
            let (range, sent) = match &step.work {
                Work::Send { bytes: range, .. } => (0..0, bytes[range.clone()].to_vec()),
                Work::Write { pieces, .. } => (pieces.clone(), Vec::new()),
                Work::Read { piece, .. } => (*piece..piece + 1, Vec::new()),
            };
            let placed =
                |piece: &Piece| Piece { buffer: places[piece.buffer], range: piece.range.clone() };
            let ring =
                if sent.is_empty() { Some((0, 0)) } else { self.ledger.ring.take(sent.len()) };
            let (_, ring_bytes) = ring.expect("there was room for the PDUs");
            let (releases, token) = (step.releases, step.token());
            let sequence = self.ledger.post(InFlight { releases, ring_bytes, token });
            let pieces = pieces[range].iter().map(placed).collect();
            self.posted.push_back(Posted { step, pieces, bytes: sent, sequence, signalled });
        }
    }

    /// Does what is due, and reports what has arrived.
    pub(super) fn turn(
        &mut self,
        net: &mut Net,
        qp: Qp,
        counters: &mut FakeCounters,
        events: &mut Vec<Event<B>>,
        shared: &mut [Vec<u8>],
    ) {
        self.deliver(net, qp, events, shared);
        let mut progress = false;
        for _ in 0..WORKS_A_TURN {
            if !self.failed {
                self.failed = self.look_for_failure(net, qp, events);
            }
            let Some(outcome) = self.step(net) else { break };
            progress |= self.complete(outcome, qp, counters, events);
            if let Err(why) = outcome {
                // Said, once, by the next look.
                net.fail(self.side, why);
            }
        }
        if progress {
            events.push(Event::Progress { qp });
        }
    }

    fn look_for_failure(&self, net: &mut Net, qp: Qp, events: &mut Vec<Event<B>>) -> bool {
        let Some(side) = net.sides.get_mut(&self.side) else { return true };
        let Some(why) = side.failed else { return false };
        if !side.said {
            side.said = true;
            events.push(Event::Broken { qp, why });
        }
        true
    }

    /// What has arrived.
    fn deliver(
        &mut self,
        net: &mut Net,
        qp: Qp,
        events: &mut Vec<Event<B>>,
        shared: &mut [Vec<u8>],
    ) {
        let now_us = net.now_us;
        let Some(side) = net.sides.get_mut(&self.side) else { return };
        while side.arrived.front().is_some_and(|message| message.due_us <= now_us) {
            let Some(Arrived { receive, bytes, immediate, .. }) = side.arrived.pop_front() else {
                return;
            };
            let length = bytes.len() as u32;
            let messages = if self.shape.shared { &mut *shared } else { &mut self.messages };
            messages[usize::from(receive)] = bytes;
            events.push(Event::Received { qp, receive, length, immediate });
        }
    }

    /// Does the first work request, if it is due: how it went.
    fn step(&mut self, net: &mut Net) -> Option<Result<(), Violation>> {
        self.posted.front()?;
        if self.failed {
            return Some(Err(Violation::Other(0)));
        }
        let due_us = *self.due_us.get_or_insert_with(|| net.now_us + net.delay_us());
        if net.now_us < due_us {
            return None;
        }
        let profile = net.profile;
        if net.happens(profile.failure) {
            return Some(Err(Violation::Other(99)));
        }
        if net.happens(profile.cut) {
            let peer = net.sides.get(&self.side).and_then(|side| side.peer);
            peer.into_iter().for_each(|peer| net.fail(peer, Violation::Silent));
            return Some(Err(Violation::Silent));
        }
        if net.happens(profile.loss) {
            return self.retry(net, Violation::Silent);
        }
        let sends = self.posted.front().is_some_and(|first| first.sends());
        if sends && net.happens(profile.not_ready) {
            return self.retry(net, Violation::NotReady);
        }
        let outcome = self.carry_out(net);
        if let Err(why @ (Violation::Silent | Violation::NotReady)) = outcome {
            return self.retry(net, why);
        }
        if outcome.is_err() {
            // The responder has refused: its side is in error, too.
            let peer = net.sides.get(&self.side).and_then(|side| side.peer);
            peer.into_iter().for_each(|peer| net.fail(peer, Violation::Forbidden));
        }
        Some(outcome)
    }

    /// Tries again later, or gives up. Who lets others reach its memory waits for receives for ever.
    fn retry(&mut self, net: &Net, why: Violation) -> Option<Result<(), Violation>> {
        self.tries += 1;
        let patient = why == Violation::NotReady && self.shape.remote_access;
        if self.tries > net.profile.retries && !patient {
            return Some(Err(why));
        }
        self.due_us = Some(net.now_us + RETRY_US);
        None
    }

    fn carry_out(&mut self, net: &mut Net) -> Result<(), Violation> {
        let Some(posted) = self.posted.front_mut() else { return Ok(()) };
        let delay_us = net.delay_us();
        let now_us = net.now_us;
        let Some((peer_id, _)) = net.peer_of(self.side) else { return Err(Violation::Silent) };
        match posted.step.work {
            Work::Send { immediate, .. } => {
                let receive = net.take_receive(peer_id).ok_or(Violation::NotReady)?;
                let Some((_, peer)) = net.peer_of(self.side) else { return Err(Violation::Silent) };
                let too_long = posted.bytes.len() > peer.shape.receive_bytes as usize;
                let bytes = if too_long { Vec::new() } else { std::mem::take(&mut posted.bytes) };
                // Messages stay in order.
                let last_us = peer.arrived.back().map_or(0, |message| message.due_us);
                let due_us = (now_us + delay_us).max(last_us);
                peer.arrived.push_back(Arrived { due_us, receive, bytes, immediate });
                if too_long {
                    return Err(Violation::Forbidden);
                }
            }
            Work::Write { address, key, .. } => {
                let length = posted.pieces.iter().map(|piece| piece.range.len()).sum();
                let (memory, mut at) =
                    net.memory_of(peer_id, key, address, length).ok_or(Violation::RemoteAccess)?;
                for Piece { buffer, range } in &posted.pieces {
                    let held: &B = self.ledger.at(*buffer);
                    let bytes = &held.as_ref()[range.clone()];
                    if !memory.write(at, bytes) {
                        return Err(Violation::RemoteAccess);
                    }
                    at += bytes.len();
                }
            }
            Work::Read { address, key, .. } => {
                for Piece { buffer, range } in &posted.pieces {
                    let (memory, at) = net
                        .memory_of(peer_id, key, address, range.len())
                        .ok_or(Violation::RemoteAccess)?;
                    if !memory.read(at, &mut self.ledger.at(*buffer).as_mut()[range.clone()]) {
                        return Err(Violation::RemoteAccess);
                    }
                }
            }
        }
        Ok(())
    }

    /// The first work request is over. `true` if that is heard of.
    fn complete(
        &mut self,
        outcome: Result<(), Violation>,
        qp: Qp,
        counters: &mut FakeCounters,
        events: &mut Vec<Event<B>>,
    ) -> bool {
        let Some(posted) = self.posted.pop_front() else { return false };
        (self.due_us, self.tries) = (None, 0);
        if !posted.signalled && outcome.is_ok() {
            return false;
        }
        counters.completions += 1;
        let known = self.ledger.complete(posted.sequence, outcome.is_ok(), |end| {
            let (token, buffer, complete) = (end.token, end.held, end.complete);
            events.push(Event::Read { qp, token, buffer, complete });
        });
        debug_assert!(known, "a completion of nothing");
        true
    }
}

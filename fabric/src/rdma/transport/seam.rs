//! The seam: what the server asks for.

use super::{ATTEND_US, Held, IDLE_POLLS, Phase, RdmaTransport, fragments_max};
use crate::Buffer;
use crate::pdu::{CommonHeader, Outcome, PduType, Response, VALUE_BYTES_MAX};
use crate::rdma::channel::Channel;
use crate::rdma::provider::{Limits, Provider};
use crate::transport::{CloseReason, ConnId, KeptMemory, Payloads, RemoteMemory, Sink, Transport};
use std::os::fd::BorrowedFd;
use zerocopy::{FromBytes, IntoBytes};

/// The command that a PDU answers, as the token of its pull.
pub(super) fn answered(pdu: &[u8]) -> Option<u32> {
    let header = CommonHeader::ref_from_prefix(pdu).ok()?.0;
    (header.pdu_type == PduType::Response as u8).then(|| header.cid.get().into())
}

/// Queues a PDU and its data: to the peer's memory if it says so, or behind it; `false` if the peer does not read.
pub(super) fn deliver<B: Buffer>(
    channel: &mut Channel<B>,
    pdu: &[u8],
    remote: RemoteMemory<'_>,
    payloads: Payloads<'_, B>,
    limits: &Limits,
) -> bool {
    let header = CommonHeader::ref_from_prefix(pdu).map(|(header, _)| header);
    match header {
        Ok(header) if header.is_placed() => {
            channel.output.push_written(pdu, remote, payloads, limits);
            true
        }
        Ok(header) if header.length.get() as usize > pdu.len() => {
            channel.output.push_copied(pdu, payloads, channel.message_bytes())
        }
        _ => channel.output.push_pdu(pdu, channel.message_bytes()),
    }
}

impl<P: Provider> Transport for RdmaTransport<P> {
    type Buffer = P::Buffer;

    fn fragments_max(&self) -> u16 {
        fragments_max(&self.provider.limits()) as u16
    }

    fn poll(&mut self, now_us: u64, sink: &mut dyn Sink<P::Buffer>) -> bool {
        self.now_us = now_us;
        let reported = self.ended.report(sink);
        let mut events = std::mem::take(&mut self.events);
        let moved = self.provider.poll(now_us, &mut events);
        for event in events.drain(..) {
            self.take(event, sink);
        }
        self.events = events;
        self.sweep();
        self.attend(sink);
        if moved || reported {
            (self.idle_polls, self.armed) = (0, false);
        } else if !self.armed {
            self.idle_polls += 1;
            self.armed = self.idle_polls >= IDLE_POLLS && self.provider.arm();
        }
        moved || reported
    }

    fn send(&mut self, conn: ConnId, pdu: &[u8]) {
        self.queue_pdu(conn, answered(pdu), pdu, RemoteMemory::default(), Payloads::One(&mut None));
    }

    fn push(
        &mut self,
        conn: ConnId,
        outcome: &Outcome,
        remote: RemoteMemory<'_>,
        payloads: Payloads<'_, P::Buffer>,
    ) {
        let is_placed = remote.is_named() && outcome.fits(remote.length());
        let response = if is_placed { Response::placed } else { Response::new }(outcome);
        let token = Some(outcome.cid.into());
        self.queue_pdu(conn, token, response.as_bytes(), remote, payloads);
    }

    fn pull(&mut self, conn: ConnId, cid: u16, remote: RemoteMemory<'_>, buffer: P::Buffer) {
        let length = remote.length() as usize;
        assert!(length <= VALUE_BYTES_MAX, "a pull longer than any value");
        assert!(length <= buffer.as_ref().len(), "a pull longer than its buffer");
        let open = self.open(conn).map(|found| found.channel.can_read());
        let cannot = match open {
            Some(_) if length == 0 => None,
            Some(false) => Some("a peer that answers no READs"),
            Some(true) if !remote.is_named() => Some("data in no memory"),
            Some(true) => {
                return self.queue(conn, |connection| {
                    connection.channel.want(cid.into(), remote, buffer);
                    Ok(())
                });
            }
            None => None,
        };
        self.ended.add(conn, cid, buffer, length == 0 && open.is_some());
        if let Some(what) = cannot {
            self.queue(conn, |_| Err(what));
        }
    }

    fn close(&mut self, conn: ConnId, abort: bool) {
        if self.at(conn.slot).is_none_or(|found| found.id != conn) {
            return;
        }
        self.finish(conn.slot);
        if abort {
            self.drain(conn.slot, CloseReason::Local);
        }
    }

    fn flush(&mut self, now_us: u64) {
        self.now_us = now_us;
        for _ in 0..self.dirty.len() {
            let Some(number) = self.dirty.pop_front() else { break };
            let Some(connection) = self.connections.at(number) else {
                continue;
            };
            connection.in_dirty = false;
            if !matches!(connection.phase, Phase::Open | Phase::Finishing) {
                continue;
            }
            let (chain, all) = (&mut self.chain, &mut self.reading);
            connection.channel.pump(&mut self.provider, chain, all, self.config.read_bytes);
            if !connection.channel.waiting.is_empty() && !self.starved.contains(&number) {
                self.starved.push_back(number);
            }
        }
    }

    fn is_flushed(&self) -> bool {
        self.connections.all().all(|connection| {
            connection.held.is_empty()
                && connection.channel.is_empty()
                && self.provider.in_flight(connection.channel.qp) == 0
        })
    }

    fn next_deadline_us(&self) -> Option<u64> {
        let unarmed = !self.armed && self.provider.wait_fd().is_some();
        if unarmed || !self.ended.is_empty() || !self.dirty.is_empty() {
            return Some(0);
        }
        let attend_us = (!self.ending.is_empty()).then_some(self.now_us + ATTEND_US);
        let sweep_us = Some(self.next_sweep_us).filter(|at_us| *at_us != u64::MAX);
        [attend_us, sweep_us].into_iter().flatten().min()
    }

    fn bytes_copied(&self) -> u64 {
        self.bytes_copied
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.provider.wait_fd()
    }
}

impl<P: Provider> RdmaTransport<P> {
    /// Queues a PDU, with `token` if it answers the command of that number: then a READ for the command that has
    /// not begun is given up, and one that has begun is waited for.
    fn queue_pdu(
        &mut self,
        conn: ConnId,
        token: Option<u32>,
        pdu: &[u8],
        remote: RemoteMemory<'_>,
        payloads: Payloads<'_, P::Buffer>,
    ) {
        let limits = self.provider.limits();
        let (mut bytes_copied, mut given_up) = (0, None);
        self.queue(conn, |connection| {
            let channel = &mut connection.channel;
            let reads = token.filter(|_| channel.has_reads());
            given_up = reads.and_then(|token| channel.give_up(token));
            let Some(token) = reads.filter(|token| channel.is_reading(*token)) else {
                let queued = deliver(channel, pdu, remote, payloads, &limits);
                bytes_copied = channel.output.take_copied();
                return queued.then_some(()).ok_or("the peer does not read");
            };
            // No allocation: who sends data is answered without any.
            let pdu = pdu.try_into().map_err(|_| "a response of another length")?;
            let mut kept = Vec::new();
            payloads.for_each(|payload| kept.push(payload));
            let (payloads, remote) = (kept, KeptMemory::of(remote));
            connection.held.push(Held { token, pdu, remote, payloads });
            Ok(())
        });
        if let Some((token, buffer)) = given_up {
            self.ended.add(conn, token as u16, buffer, false);
        }
        self.bytes_copied += bytes_copied;
    }
}

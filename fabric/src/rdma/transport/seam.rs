//! The seam: what the server asks for.

use super::{ATTEND_US, Held, IDLE_POLLS, Phase, RdmaTransport, fragments_max};
use crate::Buffer;
use crate::pdu::{COMMON_HEADER_BYTES, CommonHeader, PduType, Response, VALUE_BYTES_MAX};
use crate::rdma::channel::Channel;
use crate::rdma::provider::{Limits, Provider};
use crate::transport::{CloseReason, ConnId, KeptMemory, Payload, RemoteMemory, Sink, Transport};
use std::os::fd::BorrowedFd;
use zerocopy::{FromBytes, IntoBytes};

/// The command that a PDU answers, as the token of its pull.
pub(super) fn answered(pdu: &[u8]) -> Option<u32> {
    let header = CommonHeader::ref_from_prefix(pdu).ok()?.0;
    (header.pdu_type == PduType::Response as u8).then(|| header.cid.get().into())
}

/// Queues a PDU and its data: to the peer's memory, or behind it; `false` if the peer does not read.
pub(super) fn deliver<B: Buffer>(
    channel: &mut Channel<B>,
    pdu: &[u8],
    remote: RemoteMemory<'_>,
    payloads: &mut dyn Iterator<Item = Payload<B>>,
    limits: &Limits,
) -> bool {
    if data_bytes(pdu) == 0 {
        return channel.output.push_pdu(pdu, channel.message_bytes());
    }
    if remote.is_named()
        && let Some(placed) = Response::placed(pdu, remote.length())
    {
        channel.output.push_written(placed.as_bytes(), remote, payloads, limits);
        return true;
    }
    channel.output.push_copied(pdu, payloads, channel.message_bytes())
}

/// Bytes of data that a response announces.
fn data_bytes(pdu: &[u8]) -> usize {
    let header = pdu.get(..COMMON_HEADER_BYTES).and_then(|b| CommonHeader::ref_from_bytes(b).ok());
    header.map_or(0, |header| (header.length.get() as usize).saturating_sub(pdu.len()))
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
        self.push(conn, pdu, RemoteMemory::default(), &mut std::iter::empty());
    }

    fn push(
        &mut self,
        conn: ConnId,
        pdu: &[u8],
        remote: RemoteMemory<'_>,
        payloads: &mut dyn Iterator<Item = Payload<P::Buffer>>,
    ) {
        let limits = self.provider.limits();
        self.give_up_pull_of(conn, pdu);
        let mut bytes_copied = 0;
        self.queue(conn, |connection| {
            let token = answered(pdu).filter(|token| connection.channel.is_reading(*token));
            let Some(token) = token else {
                let queued = deliver(&mut connection.channel, pdu, remote, payloads, &limits);
                bytes_copied = connection.channel.output.take_copied();
                return queued.then_some(()).ok_or("the peer does not read");
            };
            // No allocation: who sends data is answered without any.
            let pdu = pdu.try_into().map_err(|_| "a response of another length")?;
            let payloads = payloads.collect();
            let remote = KeptMemory::of(remote);
            connection.held.push(Held { token, pdu, remote, payloads });
            Ok(())
        });
        self.bytes_copied += bytes_copied;
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

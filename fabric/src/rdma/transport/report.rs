//! What the provider reports.

use super::seam::deliver;
use super::{Held, Phase, RdmaTransport};
use crate::pdu::{CommonHeader, GoAway, GoAwayReason, PduType};
use crate::rdma::provider::{Event, Provider, Qp, Violation};
use crate::transport::{CloseReason, Payloads, Sink};
use zerocopy::{FromBytes, IntoBytes};

impl<P: Provider> RdmaTransport<P> {
    pub(super) fn take(&mut self, event: Event<P::Buffer>, sink: &mut dyn Sink<P::Buffer>) {
        match event {
            Event::Requested { request, ask, reads } => self.requested(request, &ask, reads),
            Event::Established { qp, .. } => {
                if let Some(number) = self.number(qp) {
                    self.established(number, sink);
                }
            }
            Event::Received { qp, receive, length, immediate } => {
                if let Some(number) = self.number(qp) {
                    self.received(number, (receive, length), immediate, sink);
                }
            }
            Event::Read { qp, token, buffer, complete } => {
                if let Some(number) = self.number(qp) {
                    self.read(number, token, buffer, complete, sink);
                }
            }
            Event::Progress { qp } => {
                let now_us = self.now_us;
                let Some(number) = self.number(qp) else { return };
                self.at(number).into_iter().for_each(|found| found.progress_us = now_us);
                self.mark(number);
            }
            Event::Refused { qp, .. } | Event::Disconnected { qp } => {
                self.broken(qp, CloseReason::Peer);
            }
            Event::Broken { qp, why } => {
                log::debug!("queue pair {}.{}: {why}", qp.slot, qp.generation);
                self.broken(qp, close_reason(why));
            }
        }
    }

    fn broken(&mut self, qp: Qp, reason: CloseReason) {
        if let Some(number) = self.number(qp) {
            self.drain(number, reason);
        }
    }

    /// A message: a whole PDU, or nothing but credits.
    fn received(
        &mut self,
        number: u16,
        (receive, length): (u16, u32),
        immediate: u32,
        sink: &mut dyn Sink<P::Buffer>,
    ) {
        let Some(connection) = self.connections.at(number) else {
            return;
        };
        if connection.phase == Phase::Pending {
            self.established(number, sink);
            return self.received(number, (receive, length), immediate, sink);
        }
        let (id, qp) = (connection.id, connection.channel.qp);
        if !matches!(connection.phase, Phase::Open | Phase::Finishing) {
            // Others may have a part of it.
            return self.provider.repost(qp, receive);
        }
        let message = self.provider.received(qp, receive, length);
        // Whoever is being closed is heard no more, but for the credits by which the rest leaves.
        let is_heard = connection.phase == Phase::Open && !message.is_empty();
        let taken = connection.channel.hear(immediate, &mut self.pool).and_then(|()| {
            if !is_heard {
                return Ok(());
            }
            whole_pdu(message).and_then(|()| sink.pdu(id, message))
        });
        self.provider.repost(qp, receive);
        self.mark(number);
        match taken {
            Ok(()) => {}
            Err(what) if is_heard => self.refuse(number, what, sink),
            Err(what) => self.drain(number, CloseReason::Protocol(what)),
        }
    }

    fn read(
        &mut self,
        number: u16,
        token: u32,
        buffer: P::Buffer,
        complete: bool,
        sink: &mut dyn Sink<P::Buffer>,
    ) {
        let now_us = self.now_us;
        let Some(connection) = self.connections.at(number) else {
            return;
        };
        connection.channel.read_ended(token, &mut self.reading);
        connection.progress_us = now_us;
        let id = connection.id;
        sink.pulled(id, token as u16, buffer, complete);
        self.let_go(number, token);
        self.mark(number);
        self.wake_starved();
    }

    /// Room for READs has come back: whoever waits for it may try again.
    pub(super) fn wake_starved(&mut self) {
        while let Some(starved) = self.starved.pop_front() {
            self.mark(starved);
        }
    }

    /// Queues the response that waited for this READ.
    fn let_go(&mut self, number: u16, token: u32) {
        let limits = self.provider.limits();
        let Some(connection) = self.at(number) else { return };
        let Some(at) = connection.held.iter().position(|held| held.token == token) else { return };
        let Held { pdu, remote, payloads, .. } = connection.held.remove(at);
        if !matches!(connection.phase, Phase::Open | Phase::Finishing) {
            return;
        }
        let channel = &mut connection.channel;
        let delivered = deliver(
            channel,
            &pdu,
            remote.get(),
            Payloads::Many(&mut payloads.into_iter()),
            &limits,
        );
        let bytes_copied = channel.output.take_copied();
        self.bytes_copied += bytes_copied;
        if !delivered {
            self.drain(number, CloseReason::Protocol("the peer does not read"));
        }
    }

    /// The peer broke the protocol: tells it so, and takes nothing more of it.
    fn refuse(&mut self, number: u16, what: &'static str, sink: &mut dyn Sink<P::Buffer>) {
        self.finish(number);
        self.ended.report(sink);
        let Some(connection) = self.at(number) else { return };
        connection.reason = Some(CloseReason::Protocol(what));
        connection.refused = true;
        let goaway = GoAway::new(GoAwayReason::Protocol);
        let message_bytes = connection.channel.message_bytes();
        connection.channel.output.push_pdu(goaway.as_bytes(), message_bytes);
    }
}

/// A message of a client is one PDU, no less and no more. Which one, and whether it may have that length, its
/// reader finds out.
fn whole_pdu(message: &[u8]) -> Result<(), &'static str> {
    const DATA: u8 = PduType::Data as u8;
    const READY_TO_TRANSFER: u8 = PduType::ReadyToTransfer as u8;
    match CommonHeader::ref_from_prefix(message) {
        Ok((header, _)) if header.length.get() as usize == message.len() => match header.pdu_type {
            DATA | READY_TO_TRANSFER => Err("DATA or R2T over RDMA"),
            _ => Ok(()),
        },
        _ => Err("a message that is not one PDU"),
    }
}

fn close_reason(why: Violation) -> CloseReason {
    match why {
        Violation::RemoteAccess => CloseReason::Protocol("memory that the peer does not have"),
        Violation::Forbidden => CloseReason::Protocol("the peer tried to reach this side's memory"),
        Violation::Silent | Violation::NotReady | Violation::Other(_) => CloseReason::Lost,
    }
}

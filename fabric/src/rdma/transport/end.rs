//! How connections end.

use super::{Connection, Phase, RdmaTransport, SWEEP_US};
use crate::rdma::channel::Waiting;
use crate::rdma::provider::Provider;
use crate::transport::{CloseReason, Sink};

impl<P: Provider> RdmaTransport<P> {
    /// Ends it in order: what is queued still leaves. Pulls that have not begun never will.
    pub(super) fn finish(&mut self, number: u16) {
        let now_us = self.now_us;
        self.give_up_pulls(number);
        let Some(connection) = self.at(number).filter(|found| found.phase == Phase::Open) else {
            return;
        };
        connection.phase = Phase::Finishing;
        connection.progress_us = now_us;
        self.ending.push(number);
        self.mark(number);
    }

    /// Stops everything on it, now.
    pub(super) fn drain(&mut self, number: u16, reason: CloseReason) {
        let now_us = self.now_us;
        self.give_up_pulls(number);
        let Some(connection) = self.at(number).filter(|found| found.phase != Phase::Draining)
        else {
            return;
        };
        let was_open = connection.phase == Phase::Open;
        let reason = if was_open { reason } else { CloseReason::Local };
        connection.reason.get_or_insert(reason);
        connection.phase = Phase::Draining;
        connection.progress_us = now_us;
        connection.channel.output.clear();
        connection.held.clear();
        let qp = connection.channel.qp;
        if !self.ending.contains(&number) {
            self.ending.push(number);
        }
        self.provider.break_off(qp);
    }

    fn give_up_pulls(&mut self, number: u16) {
        let Some(connection) = self.connections.at(number) else {
            return;
        };
        let conn = connection.id;
        for Waiting { token, buffer, .. } in connection.channel.waiting.drain(..) {
            self.ended.add(conn, token as u16, buffer, false);
        }
    }

    /// Moves on the connections that are ending.
    pub(super) fn attend(&mut self, sink: &mut dyn Sink<P::Buffer>) {
        self.ended.report(sink);
        for index in (0..self.ending.len()).rev() {
            let number = self.ending[index];
            if self.attend_one(number, sink) {
                self.ending.swap_remove(index);
                self.forget(number, sink);
            }
        }
    }

    /// Returns `true` when nothing is left to wait for.
    fn attend_one(&mut self, number: u16, sink: &mut dyn Sink<P::Buffer>) -> bool {
        let (now_us, linger_us) = (self.now_us, self.config.linger_us);
        let Some(connection) = self.connections.at(number) else {
            return true;
        };
        let (qp, phase) = (connection.channel.qp, connection.phase);
        let late = now_us >= connection.progress_us.saturating_add(linger_us);
        let quiet = connection.channel.is_empty()
            && connection.held.is_empty()
            && self.provider.in_flight(qp) == 0;
        if connection.refused && !connection.reported && connection.channel.reading.works == 0 {
            connection.reported = true;
            sink.closed(connection.id, connection.reason.unwrap_or(CloseReason::Local));
        }
        match phase {
            Phase::Open => return false,
            Phase::Draining => return late || self.provider.is_drained(qp),
            Phase::Finishing if quiet => {
                connection.phase = Phase::Finished;
                connection.progress_us = now_us;
                self.provider.disconnect(qp);
            }
            Phase::Pending | Phase::Finishing | Phase::Finished if late => {
                self.drain(number, CloseReason::Lost);
            }
            Phase::Pending | Phase::Finishing | Phase::Finished => {}
        }
        false
    }

    fn forget(&mut self, number: u16, sink: &mut dyn Sink<P::Buffer>) {
        let Some(connection) = self.connections.take(number) else { return };
        let Connection { id, mut channel, reason, announced, reported, .. } = *connection;
        self.pool.came_back(channel.granted());
        let reading = &mut self.reading;
        self.provider.release(channel.qp, &mut |token, buffer| {
            channel.read_ended(token, reading);
            sink.pulled(id, token as u16, buffer, false);
        });
        if announced && !reported {
            sink.closed(id, reason.unwrap_or(CloseReason::Local));
        }
        self.dirty.retain(|other| *other != number);
        self.starved.retain(|other| *other != number);
        self.wake_starved();
        self.connections.give_back(number);
    }

    /// Ends the connections on which nothing moves.
    pub(super) fn sweep(&mut self) {
        if self.now_us < self.next_sweep_us {
            return;
        }
        self.next_sweep_us = u64::MAX;
        for number in self.connections.numbers() {
            let Some(connection) = self.connections.get(number) else {
                continue;
            };
            let channel = &connection.channel;
            if channel.is_empty() && self.provider.in_flight(channel.qp) == 0 {
                continue;
            }
            let stalled = self.now_us >= connection.progress_us + self.config.stall_us;
            if stalled && connection.phase == Phase::Open {
                self.drain(number, CloseReason::Lost);
            }
            self.next_sweep_us = self.now_us + SWEEP_US;
        }
    }
}

//! How connections begin.

use super::{Connection, Phase, RdmaTransport};
use crate::pdu::{GoAway, GoAwayReason};
use crate::rdma::channel::Channel;
use crate::rdma::greeting::Greeting;
use crate::rdma::provider::{Note, Provider};
use crate::transport::Sink;
use zerocopy::IntoBytes;

impl<P: Provider> RdmaTransport<P> {
    pub(super) fn requested(&mut self, request: u32, ask: &Note, reads: u8) {
        let Some(greeting) = Greeting::parse(ask) else {
            log::info!("refused a peer whose connection request is not of this protocol");
            return self.turn_away(request, GoAwayReason::Protocol);
        };
        let Some(number) = self.connections.reserve() else {
            log::debug!("no room for another connection");
            return self.turn_away(request, GoAwayReason::Full);
        };
        let Some(shape) = self.shape() else {
            log::debug!("no receives for another connection");
            self.connections.give_back(number);
            return self.turn_away(request, GoAwayReason::Full);
        };
        let answer = Greeting::of(&shape).note();
        match self.provider.accept(request, answer, shape) {
            Ok(qp) => {
                let channel = Channel::new(qp, &shape, greeting, reads);
                let most = self.config.receives.into();
                self.admit(number, if shape.shared { channel.sharing(most) } else { channel });
            }
            Err(error) => {
                log::warn!("cannot accept a connection: {error}");
                self.pool.came_back(if shape.shared { shape.receives.into() } else { 0 });
                self.connections.give_back(number);
            }
        }
    }

    fn turn_away(&mut self, request: u32, reason: GoAwayReason) {
        self.provider.reject(request, Note::new(GoAway::new(reason).as_bytes()));
    }

    fn admit(&mut self, number: u16, channel: Channel<P::Buffer>) {
        let place = usize::from(channel.qp.slot);
        if self.numbers.len() <= place {
            self.numbers.resize(place + 1, u16::MAX);
        }
        self.numbers[place] = number;
        let now_us = self.now_us;
        self.connections.put(number, |id| Connection {
            id,
            channel,
            held: Vec::new(),
            phase: Phase::Pending,
            reason: None,
            refused: false,
            announced: false,
            reported: false,
            in_dirty: false,
            progress_us: now_us,
        });
        self.ending.push(number);
    }

    /// The peer is there: by what the connection manager says, or by its first message.
    pub(super) fn established(&mut self, number: u16, sink: &mut dyn Sink<P::Buffer>) {
        let Some(connection) = self.at(number).filter(|found| found.phase == Phase::Pending) else {
            return;
        };
        connection.phase = Phase::Open;
        connection.announced = true;
        let id = connection.id;
        self.ending.retain(|other| *other != number);
        sink.connected(id);
    }
}

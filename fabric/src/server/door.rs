//! What a transport sees of a server: a [`Sink`] that knows the sessions and the service.

use super::Service;
use super::core::Core;
use crate::Buffer;
use crate::pdu::DecodeError;
use crate::transport::{CloseReason, ConnId, Sink};

pub(super) struct Door<'a, S> {
    pub(super) core: &'a mut Core,
    pub(super) service: &'a mut S,
}

impl<B: Buffer, S: Service<B>> Sink<B> for Door<'_, S> {
    fn connected(&mut self, conn: ConnId) {
        self.core.connected(conn);
    }

    fn pdu(&mut self, conn: ConnId, pdu: &[u8]) -> Result<(), &'static str> {
        self.core.pdu(conn, pdu, self.service).map_err(DecodeError::text)
    }

    fn pulled(&mut self, conn: ConnId, cid: u16, buffer: B, complete: bool) {
        let id = self.core.pulled(conn, cid, complete);
        self.service.pulled(id, buffer, complete);
    }

    fn closed(&mut self, conn: ConnId, reason: CloseReason) {
        self.core.closed(conn, reason, self.service);
    }
}

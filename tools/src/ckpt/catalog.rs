//! The checkpoint commands, one at a time, to the reactor that keeps the catalog.

use crate::context::{Context, with_hint};
use crate::exit::{Code, Failure};
use bytes::Bytes;
use forebay_fabric::Status;
use forebay_fabric::checkpoint::{
    BeginAnswer, BeginRequest, CheckpointEntry, Chunk, MANIFEST_BYTES_MAX, Manifest, SealRequest,
    SessionId, SessionRequest, TensorBox, chunk_states, encode_reserve, encode_seal, entries,
};
use forebay_fabric::client::{
    ClientError, Connector, Done, NamespaceId, Pipeline, Request, SystemConnector, Target,
};
use forebay_fabric::pdu::Opcode;
use zerocopy::IntoBytes;

/// How often a command is repeated whose answer was lost; each of them may be.
const TRIES: u32 = 5;
/// Boxes of one RESERVE: with the longest names, they still fit one payload.
const RESERVE_BOXES: usize = 500;
/// Bytes of a manifest in one SEAL.
const SEAL_BYTES: usize = 1 << 20;

/// Why a command was not carried out.
#[derive(Debug)]
pub(super) enum Refused {
    /// The server says so.
    Status { status: Status, result: u64, text: String },
    /// There is no server any more, or it answers what it must not.
    Client(ClientError),
}

impl Refused {
    fn new(done: &Done) -> Self {
        let text = match str::from_utf8(&done.data) {
            Ok(text) if !text.is_empty() => text.to_owned(),
            _ => done.status.to_string(),
        };
        Self::Status { status: done.status, result: done.result, text }
    }

    fn is(&self, expected: Status) -> bool {
        matches!(self, Self::Status { status, .. } if *status == expected)
    }
}

impl From<Refused> for anyhow::Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Client(error) => error.into(),
            Refused::Status { status, text, .. } => {
                Failure::new(Code::of(&Self::new(status)), text).into()
            }
        }
    }
}

impl From<ClientError> for Refused {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

fn impossible(what: &str) -> Refused {
    Refused::Client(ClientError::Answer(what.to_owned()))
}

/// One checkpoint in a listing.
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) entry: CheckpointEntry,
}

/// A connection to the checkpoint store.
pub(super) struct Catalog<C: Connector = SystemConnector> {
    pub(super) pipeline: Pipeline<C>,
}

impl Catalog {
    pub(super) fn connect(context: &Context) -> anyhow::Result<Self> {
        let pipeline = Pipeline::connect(context.client_config()?).map_err(with_hint)?;
        Ok(Self { pipeline })
    }
}

impl<C: Connector> Catalog<C> {
    fn call(&mut self, opcode: Opcode, key: &str, payload: &[u8]) -> Result<Done, Refused> {
        self.ask(opcode, key, payload, 0)
    }

    fn ask(
        &mut self,
        opcode: Opcode,
        key: &str,
        payload: &[u8],
        offset: u64,
    ) -> Result<Done, Refused> {
        let payload = Bytes::copy_from_slice(payload);
        let mut tries = 0;
        loop {
            let namespace = NamespaceId::CHECKPOINT;
            let key = key.as_bytes();
            let request =
                Request::command(opcode, Target::Catalog, namespace, key, payload.clone());
            let done = self.pipeline.call(request.range(offset, u32::MAX))?;
            tries += 1;
            match done.status {
                Status::Ok => return Ok(done),
                Status::Disconnected | Status::Timeout | Status::Busy if tries < TRIES => {}
                // The DELETE before the one that was repeated.
                Status::NoCheckpoint if tries > 1 && opcode == Opcode::CheckpointDelete => {
                    return Ok(done);
                }
                _ => return Err(Refused::new(&done)),
            }
        }
    }

    /// Opens a session of one rank, or takes up the one that is open. Without an epoch of the
    /// user's, whichever is in force is taken.
    pub(super) fn begin(&mut self, name: &str, epoch: Option<u64>) -> Result<BeginAnswer, Refused> {
        match self.begin_at(name, epoch.unwrap_or(0)) {
            Err(Refused::Status { status: Status::NoSession, result, .. }) if epoch.is_none() => {
                self.begin_at(name, result)
            }
            other => other,
        }
    }

    fn begin_at(&mut self, name: &str, epoch: u64) -> Result<BeginAnswer, Refused> {
        let request = BeginRequest::new(1, epoch, 0);
        let done = self.call(Opcode::CheckpointBegin, name, request.as_bytes())?;
        BeginAnswer::decode(&done.data).map_err(|_| impossible("BEGIN's answer"))
    }

    /// What the server has of each chunk of `boxes`, in order.
    pub(super) fn reserve(
        &mut self,
        session: SessionId,
        boxes: &[TensorBox],
    ) -> Result<Vec<Chunk>, Refused> {
        let mut states = Vec::new();
        for boxes in boxes.chunks(RESERVE_BOXES) {
            let (base, mut skip) = (states.len(), 0);
            loop {
                let payload = encode_reserve(session, 0, skip, boxes);
                let done = self.call(Opcode::CheckpointReserve, "", &payload)?;
                let more = chunk_states(&done.data).map_err(|_| impossible("RESERVE's answer"))?;
                states.extend_from_slice(more);
                if done.result == 0 {
                    break;
                }
                if more.is_empty() || done.result != (states.len() - base) as u64 {
                    return Err(impossible("where RESERVE goes on"));
                }
                skip = done.result as u32;
            }
        }
        let chunks: u64 = boxes.iter().map(TensorBox::chunk_count).sum();
        if states.len() as u64 == chunks { Ok(states) } else { Err(impossible("RESERVE's answer")) }
    }

    pub(super) fn seal(&mut self, session: SessionId, manifest: &[u8]) -> Result<(), Refused> {
        let total_bytes = manifest.len() as u32;
        let mut offset = 0;
        for slice in manifest.chunks(SEAL_BYTES) {
            let request = SealRequest { session, rank: 0, total_bytes, offset, slice };
            self.call(Opcode::CheckpointSeal, "", &encode_seal(&request))?;
            offset += slice.len() as u32;
        }
        Ok(())
    }

    pub(super) fn commit(&mut self, session: SessionId) -> Result<(), Refused> {
        let request = SessionRequest { session };
        self.call(Opcode::CheckpointCommit, "", request.as_bytes()).map(drop)
    }

    /// Gives the session up; if it has ended by itself, that is as good.
    pub(super) fn abort(&mut self, session: SessionId) -> Result<(), Refused> {
        let request = SessionRequest { session };
        match self.call(Opcode::CheckpointAbort, "", request.as_bytes()) {
            Err(refused) if !refused.is(Status::NoSession) => Err(refused),
            _ => Ok(()),
        }
    }

    /// The manifest of a committed checkpoint.
    pub(super) fn manifest(&mut self, name: &str) -> Result<Manifest, Refused> {
        let mut bytes = Vec::new();
        loop {
            let opcode = Opcode::CheckpointManifest;
            let done = self.ask(opcode, name, &[], bytes.len() as u64)?;
            bytes.extend_from_slice(&done.data);
            if bytes.len() as u64 == done.result {
                return Manifest::decode(&bytes).map_err(|_| impossible("the manifest"));
            }
            if done.data.is_empty() || done.result > MANIFEST_BYTES_MAX as u64 {
                return Err(impossible("the manifest's length"));
            }
        }
    }

    /// The checkpoints whose names begin with `prefix`, in the order of their commits.
    pub(super) fn list(&mut self, prefix: &str) -> Result<Vec<Listed>, Refused> {
        let (mut listed, mut cursor) = (Vec::new(), 0);
        loop {
            let done = self.ask(Opcode::CheckpointList, prefix, &[], cursor)?;
            for entry in entries(&done.data) {
                let (entry, name) = entry.map_err(|_| impossible("LIST's answer"))?;
                listed.push(Listed { name: name.to_owned(), entry: *entry });
            }
            if done.result == 0 {
                return Ok(listed);
            }
            if done.result <= cursor {
                return Err(impossible("where LIST goes on"));
            }
            cursor = done.result;
        }
    }

    /// `false`: there is none.
    pub(super) fn delete(&mut self, name: &str) -> Result<bool, Refused> {
        match self.call(Opcode::CheckpointDelete, name, &[]) {
            Ok(_) => Ok(true),
            Err(refused) if refused.is(Status::NoCheckpoint) => Ok(false),
            Err(refused) => Err(refused),
        }
    }
}

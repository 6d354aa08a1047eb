//! The blocking client: one call, one answer, errors in words.

use super::error::ClientError;
use super::pipeline::{Connector, Pipeline};
use super::request::{Done, ItemDone, NamespaceId, Request, RetrieveItem, StoreItem, Target};
use super::system::SystemConnector;
use super::{ClientConfig, Status};
use crate::pdu::{ListEntries, Opcode};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The most bytes of keys that one list command asks for.
const LIST_BYTES: u32 = 64 << 10;

/// A namespace, as the server describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceInfo {
    /// Its name.
    pub name: String,
    /// Its number on the wire.
    pub number: u32,
    /// `cache` or `durable`.
    #[serde(default)]
    pub class: String,
    /// The most bytes that it may hold, if there is a limit.
    #[serde(default)]
    pub quota_bytes: Option<u64>,
    /// Bytes that it holds.
    #[serde(default)]
    pub used_bytes: u64,
    /// How long values live unless they say otherwise, in seconds, if there is a limit.
    #[serde(default)]
    pub ttl_s: Option<u64>,
}

/// What a command answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// By opcode; see `PROTOCOL.md`.
    pub result: u64,
    /// The data.
    pub data: Vec<u8>,
}

/// A client whose every call waits for its answer; see the module.
pub struct Client<C: Connector = SystemConnector> {
    pipeline: Pipeline<C>,
}

impl Client {
    /// Connects over TCP to every reactor of the server.
    ///
    /// # Errors
    /// [`ClientError`] says which address and why.
    pub fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        Ok(Self::over(Pipeline::connect(config)?))
    }
}

impl<C: Connector> Client<C> {
    /// A blocking client over a pipeline.
    #[must_use]
    pub fn over(pipeline: Pipeline<C>) -> Self {
        Self { pipeline }
    }

    /// The pipeline, for whoever wants many requests in flight.
    pub fn pipeline(&mut self) -> &mut Pipeline<C> {
        &mut self.pipeline
    }

    pub(super) fn done(
        &mut self,
        operation: &'static str,
        key: &[u8],
        request: Request<'_>,
    ) -> Result<Done, ClientError> {
        let done = self.pipeline.call(request)?;
        match done.status {
            Status::Ok => Ok(done),
            status => Err(ClientError::operation(operation, key, status)),
        }
    }

    /// All namespaces.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn namespaces(&mut self) -> Result<Vec<NamespaceInfo>, ClientError> {
        let answer = self.call(
            Opcode::Namespaces,
            Target::Catalog,
            NamespaceId::CATALOG,
            b"",
            Bytes::new(),
        )?;
        serde_json::from_slice(&answer.data)
            .map_err(|error| ClientError::Answer(format!("the table of namespaces: {error}")))
    }

    /// The number of the namespace `name`.
    ///
    /// # Errors
    /// [`ClientError::NoNamespace`] lists those there are.
    pub fn namespace(&mut self, name: &str) -> Result<NamespaceId, ClientError> {
        let all = self.namespaces()?;
        if let Some(found) = all.iter().find(|namespace| namespace.name == name) {
            return Ok(NamespaceId(found.number));
        }
        let known: Vec<_> = all.into_iter().map(|namespace| namespace.name).collect();
        Err(ClientError::NoNamespace { name: name.to_owned(), known: known.join(", ") })
    }

    /// Stores `data` under `key`. Once it returns, the value is on media, if the namespace is
    /// durable.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn store(
        &mut self,
        namespace: NamespaceId,
        key: &[u8],
        data: impl Into<Bytes>,
    ) -> Result<(), ClientError> {
        self.done("store", key, Request::store(namespace, key, data.into())).map(|_| ())
    }

    /// The value of `key`, or `None` if there is no such key.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn retrieve(
        &mut self,
        namespace: NamespaceId,
        key: &[u8],
    ) -> Result<Option<Vec<u8>>, ClientError> {
        self.retrieve_range(namespace, key, 0, u32::MAX)
    }

    /// At most `length` bytes of the value of `key` from `offset` on, or `None` if there is no such
    /// key.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn retrieve_range(
        &mut self,
        namespace: NamespaceId,
        key: &[u8],
        offset: u64,
        length: u32,
    ) -> Result<Option<Vec<u8>>, ClientError> {
        let request = Request::retrieve(namespace, key, offset, length);
        Ok(unless_missing(self.done("retrieve", key, request))?.map(|done| done.data.into_vec()))
    }

    /// Deletes `key`; `false` if there was no such key.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn delete(&mut self, namespace: NamespaceId, key: &[u8]) -> Result<bool, ClientError> {
        let done = self.done("delete", key, Request::delete(namespace, key));
        Ok(unless_missing(done)?.is_some_and(|done| done.result != 0))
    }

    /// The length of the value of `key` in bytes, or `None` if there is no such key.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn exist(
        &mut self,
        namespace: NamespaceId,
        key: &[u8],
    ) -> Result<Option<u64>, ClientError> {
        let done = self.done("exist", key, Request::exist(namespace, key));
        Ok(unless_missing(done)?.map(|done| done.result))
    }

    /// All keys that begin with `prefix`, with the lengths of their values, reactor by reactor.
    pub fn list<'a>(&'a mut self, namespace: NamespaceId, prefix: &'a [u8]) -> Keys<'a, C> {
        let found = VecDeque::new();
        Keys { client: self, namespace, prefix, at: Some((0, 0)), found }
    }

    /// Stores many values; how each ended, in the same order.
    ///
    /// # Errors
    /// [`ClientError`], if the batch as a whole could not be asked.
    pub fn store_batch(
        &mut self,
        namespace: NamespaceId,
        items: &[StoreItem<'_>],
    ) -> Result<Vec<Status>, ClientError> {
        let done = self.pipeline.call(Request::store_batch(namespace, items))?;
        let statuses = whole(&done, items.len())?.iter().map(|item| item.status).collect();
        self.pipeline.recycle(done);
        Ok(statuses)
    }

    /// Retrieves many values or ranges; each one's data or how it ended, in the same order.
    ///
    /// # Errors
    /// [`ClientError`], if the batch as a whole could not be asked.
    pub fn retrieve_batch(
        &mut self,
        namespace: NamespaceId,
        items: &[RetrieveItem<'_>],
    ) -> Result<Vec<Result<Vec<u8>, Status>>, ClientError> {
        let done = self.pipeline.call(Request::retrieve_batch(namespace, items))?;
        let found = whole(&done, items.len())?.iter().enumerate();
        let found = found
            .map(|(index, item)| match item.status {
                Status::Ok => Ok(done.item_data(index).to_vec()),
                status => Err(status),
            })
            .collect();
        self.pipeline.recycle(done);
        Ok(found)
    }

    /// Deletes many keys; whether each was there, in the same order.
    ///
    /// # Errors
    /// [`ClientError`], if the batch as a whole could not be asked.
    pub fn delete_batch(
        &mut self,
        namespace: NamespaceId,
        keys: &[&[u8]],
    ) -> Result<Vec<Result<bool, Status>>, ClientError> {
        let done = self.pipeline.call(Request::delete_batch(namespace, keys))?;
        self.items(done, keys.len(), |result| result.map(|item| item != 0))
    }

    /// The lengths of the values of many keys, in the same order.
    ///
    /// # Errors
    /// [`ClientError`], if the batch as a whole could not be asked.
    pub fn exist_batch(
        &mut self,
        namespace: NamespaceId,
        keys: &[&[u8]],
    ) -> Result<Vec<Result<u64, Status>>, ClientError> {
        let done = self.pipeline.call(Request::exist_batch(namespace, keys))?;
        self.items(done, keys.len(), |result| result)
    }

    fn items<T>(
        &mut self,
        done: Done,
        count: usize,
        say: impl Fn(Result<u64, Status>) -> T,
    ) -> Result<Vec<T>, ClientError> {
        let results = whole(&done, count)?.iter().map(|item| {
            say(if item.status == Status::Ok { Ok(item.result) } else { Err(item.status) })
        });
        let results = results.collect();
        self.pipeline.recycle(done);
        Ok(results)
    }

    /// Any command that answers with the data it has: those of checkpoints, above all.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn call(
        &mut self,
        opcode: Opcode,
        target: Target,
        namespace: NamespaceId,
        key: &[u8],
        payload: impl Into<Bytes>,
    ) -> Result<Answer, ClientError> {
        self.request(Request::command(opcode, target, namespace, key, payload.into()))
    }

    /// Any single request, with a range or a deadline of its own if need be.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn request(&mut self, request: Request<'_>) -> Result<Answer, ClientError> {
        let (operation, key) = (name(request.opcode), request.key());
        let done = self.done(operation, key, request)?;
        Ok(Answer { result: done.result, data: done.data.into_vec() })
    }

    /// The counters of one reactor, as JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stats(&mut self, reactor: u16) -> Result<String, ClientError> {
        let target = Target::Reactor(reactor);
        let answer = self.call(Opcode::Stats, target, NamespaceId::CATALOG, b"", Bytes::new())?;
        String::from_utf8(answer.data)
            .map_err(|_| ClientError::Answer("counters that are no text".to_owned()))
    }
}

/// Walks the keys of a namespace; see [`Client::list`].
pub struct Keys<'a, C: Connector = SystemConnector> {
    client: &'a mut Client<C>,
    namespace: NamespaceId,
    prefix: &'a [u8],
    /// The reactor and the cursor to ask next.
    at: Option<(u16, u64)>,
    found: VecDeque<(Vec<u8>, u32)>,
}

impl<C: Connector> Keys<'_, C> {
    /// Asks for the next keys; `false` if there are no more. An error ends the walk.
    fn fetch(&mut self) -> Result<bool, ClientError> {
        let Some((reactor, cursor)) = self.at.take() else { return Ok(false) };
        let request = Request::list(self.namespace, reactor, cursor, self.prefix, LIST_BYTES);
        let done = self.client.done("list", self.prefix, request)?;
        for entry in ListEntries::new(&done.data) {
            let entry = entry.map_err(|error| ClientError::Answer(format!("a list: {error}")))?;
            self.found.push_back((entry.key.to_vec(), entry.value_length));
        }
        let next = if done.result == 0 { (reactor + 1, 0) } else { (reactor, done.result) };
        self.at = (next.0 < self.client.pipeline.reactors()).then_some(next);
        self.client.pipeline.recycle(done);
        Ok(true)
    }
}

impl<C: Connector> Iterator for Keys<'_, C> {
    type Item = Result<(Vec<u8>, u32), ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.found.is_empty() {
            match self.fetch() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        self.found.pop_front().map(Ok)
    }
}

pub(super) fn unless_missing(done: Result<Done, ClientError>) -> Result<Option<Done>, ClientError> {
    match done {
        Err(error) if error.status() == Some(Status::NotFound) => Ok(None),
        other => other.map(Some),
    }
}

/// The items of a batch that was carried out as one.
pub(super) fn whole(done: &Done, count: usize) -> Result<&[ItemDone], ClientError> {
    if done.items.len() == count {
        Ok(&done.items)
    } else {
        Err(ClientError::operation("batch", b"", done.status))
    }
}

/// What an opcode is called in a message.
fn name(opcode: Opcode) -> &'static str {
    match opcode {
        Opcode::Store => "store",
        Opcode::Retrieve => "retrieve",
        Opcode::List => "list",
        Opcode::Delete => "delete",
        Opcode::Exist => "exist",
        Opcode::Namespaces => "namespaces",
        Opcode::CheckpointBegin => "checkpoint begin",
        Opcode::CheckpointReserve => "checkpoint reserve",
        Opcode::CheckpointPut => "checkpoint put",
        Opcode::CheckpointSeal => "checkpoint seal",
        Opcode::CheckpointCommit => "checkpoint commit",
        Opcode::CheckpointAbort => "checkpoint abort",
        Opcode::CheckpointList => "checkpoint list",
        Opcode::CheckpointManifest => "checkpoint manifest",
        Opcode::CheckpointRead => "checkpoint read",
        Opcode::CheckpointDelete => "checkpoint delete",
        Opcode::Stats => "stats",
    }
}

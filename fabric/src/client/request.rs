//! What a caller asks for, and what it gets back.

use super::Status;
use super::data::Data;
use crate::pdu::Opcode;
use crate::region::Fragment;
use bytes::Bytes;
use std::ops::Range;

/// A namespace's number; [`super::Client::namespace`] finds it by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId(pub u32);

impl NamespaceId {
    /// The system's own catalog.
    pub const CATALOG: Self = Self(0);
    /// The chunks of checkpoints.
    pub const CHECKPOINT: Self = Self(1);
}

/// Names one submitted request among all of its pipeline; later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(super) u64);

/// Which reactor a command goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one that owns the key.
    Key,
    /// This one.
    Reactor(u16),
    /// The one that keeps the checkpoint catalog.
    Catalog,
}

/// One value of a batch of stores.
#[derive(Clone, Debug)]
pub struct StoreItem<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub data: Bytes,
}

/// One value, or a range of it, of a batch of retrieves.
#[derive(Clone, Copy, Debug)]
pub struct RetrieveItem<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The first byte wanted.
    pub offset: u64,
    /// The most bytes wanted. Small, true lengths let many items travel in one command.
    pub length: u32,
}

/// One value of a batch of stores, out of a region.
#[derive(Clone, Debug)]
pub struct StoreFromItem<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub fragment: Fragment,
}

/// One value, or a range of it, of a batch of retrieves, and where it is to land.
#[derive(Clone, Debug)]
pub struct RetrieveIntoItem<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The first byte wanted.
    pub offset: u64,
    /// Where they land, and the most bytes wanted. Small, true lengths let many items travel in one
    /// command.
    pub fragment: Fragment,
}

/// One request. It borrows its keys, which [`super::Pipeline::submit`] copies, and owns its data
/// by reference count, so that data is neither copied nor lost while it may have to be sent again.
///
/// Fragments of regions belong to the operation from `submit` until it has ended on both sides
/// ([`crate::region::Region::is_idle`]): after a timeout that is later than its [`Done`].
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub(super) opcode: Opcode,
    pub(super) target: Target,
    pub(super) namespace: NamespaceId,
    pub(super) tag: u64,
    pub(super) timeout_us: u32,
    pub(super) data_crc: Option<u32>,
    pub(super) body: Body<'a>,
}

#[derive(Clone, Debug)]
pub(super) enum Body<'a> {
    One {
        key: &'a [u8],
        offset: u64,
        length: u32,
        data: Bytes,
    },
    /// One value, sent from them or landing in them.
    Fragments {
        key: &'a [u8],
        offset: u64,
        fragments: &'a [Fragment],
    },
    Store(&'a [StoreItem<'a>]),
    StoreFrom(&'a [StoreFromItem<'a>]),
    Retrieve(&'a [RetrieveItem<'a>]),
    RetrieveInto(&'a [RetrieveIntoItem<'a>]),
    Keys(&'a [&'a [u8]]),
}

impl<'a> Request<'a> {
    /// Stores `data` under `key`.
    #[must_use]
    pub fn store(namespace: NamespaceId, key: &'a [u8], data: Bytes) -> Self {
        Self::command(Opcode::Store, Target::Key, namespace, key, data)
    }

    /// Retrieves at most `length` bytes of a value from `offset` on.
    #[must_use]
    pub fn retrieve(namespace: NamespaceId, key: &'a [u8], offset: u64, length: u32) -> Self {
        Self::command(Opcode::Retrieve, Target::Key, namespace, key, Bytes::new())
            .range(offset, length)
    }

    /// Stores what is in `fragments`, one right behind the other, under `key`: sent from where it is. At
    /// most 256 fragments.
    #[must_use]
    pub fn store_from(namespace: NamespaceId, key: &'a [u8], fragments: &'a [Fragment]) -> Self {
        Self::batch(Opcode::Store, namespace, Body::Fragments { key, offset: 0, fragments })
    }

    /// Retrieves as many bytes of a value, from `offset` on, as fit into `fragments`, which are filled in
    /// their order; at most 256. Of an operation that ended well, [`Done::length`] says how many came, and
    /// what is behind them is as it was (unless an earlier attempt of the same operation, whose connection
    /// broke, got further).
    ///
    /// The bytes are compared with their checksum before the operation ends: where they differ it ends
    /// with [`Status::DataChecksum`], and the fragments hold garbage. They may after every status but
    /// [`Status::Ok`].
    #[must_use]
    pub fn retrieve_into(
        namespace: NamespaceId,
        key: &'a [u8],
        offset: u64,
        fragments: &'a [Fragment],
    ) -> Self {
        Self::batch(Opcode::Retrieve, namespace, Body::Fragments { key, offset, fragments })
    }

    /// Deletes a key; `result` is 1 if it was there.
    #[must_use]
    pub fn delete(namespace: NamespaceId, key: &'a [u8]) -> Self {
        Self::command(Opcode::Delete, Target::Key, namespace, key, Bytes::new())
    }

    /// Asks whether a key exists; `result` is its value's length.
    #[must_use]
    pub fn exist(namespace: NamespaceId, key: &'a [u8]) -> Self {
        Self::command(Opcode::Exist, Target::Key, namespace, key, Bytes::new())
    }

    /// Lists keys of one reactor that begin with `prefix`, from `cursor` on (0: the beginning).
    /// The data is read with [`crate::pdu::ListEntries`]; `result` is the next cursor, 0 at the end.
    #[must_use]
    pub fn list(
        namespace: NamespaceId,
        reactor: u16,
        cursor: u64,
        prefix: &'a [u8],
        limit_bytes: u32,
    ) -> Self {
        Self::command(Opcode::List, Target::Reactor(reactor), namespace, prefix, Bytes::new())
            .range(cursor, limit_bytes)
    }

    /// Stores many values; each has its own status.
    #[must_use]
    pub fn store_batch(namespace: NamespaceId, items: &'a [StoreItem<'a>]) -> Self {
        Self::batch(Opcode::Store, namespace, Body::Store(items))
    }

    /// Retrieves many values or ranges; each has its own status.
    #[must_use]
    pub fn retrieve_batch(namespace: NamespaceId, items: &'a [RetrieveItem<'a>]) -> Self {
        Self::batch(Opcode::Retrieve, namespace, Body::Retrieve(items))
    }

    /// [`Request::store_from`] for many values, each from a fragment of its own.
    #[must_use]
    pub fn store_batch_from(namespace: NamespaceId, items: &'a [StoreFromItem<'a>]) -> Self {
        Self::batch(Opcode::Store, namespace, Body::StoreFrom(items))
    }

    /// [`Request::retrieve_into`] for many values or ranges, each into a fragment of its own.
    #[must_use]
    pub fn retrieve_batch_into(namespace: NamespaceId, items: &'a [RetrieveIntoItem<'a>]) -> Self {
        Self::batch(Opcode::Retrieve, namespace, Body::RetrieveInto(items))
    }

    /// Deletes many keys; each has its own status.
    #[must_use]
    pub fn delete_batch(namespace: NamespaceId, keys: &'a [&'a [u8]]) -> Self {
        Self::batch(Opcode::Delete, namespace, Body::Keys(keys))
    }

    /// Asks which of many keys exist; each has its own status.
    #[must_use]
    pub fn exist_batch(namespace: NamespaceId, keys: &'a [&'a [u8]]) -> Self {
        Self::batch(Opcode::Exist, namespace, Body::Keys(keys))
    }

    /// Any command: for checkpoints, namespaces and counters.
    #[must_use]
    pub fn command(
        opcode: Opcode,
        target: Target,
        namespace: NamespaceId,
        key: &'a [u8],
        payload: Bytes,
    ) -> Self {
        let body = Body::One { key, offset: 0, length: u32::MAX, data: payload };
        Self { target, ..Self::batch(opcode, namespace, body) }
    }

    fn batch(opcode: Opcode, namespace: NamespaceId, body: Body<'a>) -> Self {
        let (target, data_crc) = (Target::Key, None);
        Self { opcode, target, namespace, tag: 0, timeout_us: 0, data_crc, body }
    }

    /// The key of a single request.
    pub(super) fn key(&self) -> &'a [u8] {
        match self.body {
            Body::One { key, .. } | Body::Fragments { key, .. } => key,
            _ => b"",
        }
    }

    /// The CRC32C of a single store's data, where the caller has it already: it is not computed anew.
    #[must_use]
    pub fn with_data_crc(mut self, data_crc: u32) -> Self {
        self.data_crc = Some(data_crc);
        self
    }

    /// Which bytes a single command that reads wants; a batch's items have their own.
    #[must_use]
    pub fn range(mut self, first: u64, most: u32) -> Self {
        if let Body::One { offset, length, .. } = &mut self.body {
            *offset = first;
            *length = most;
        }
        self
    }

    /// A number of the caller's that comes back in [`Done::tag`].
    #[must_use]
    pub fn with_tag(mut self, tag: u64) -> Self {
        self.tag = tag;
        self
    }

    /// A deadline of its own, in microseconds from now; 0: the client's default.
    #[must_use]
    pub fn with_timeout_us(mut self, timeout_us: u32) -> Self {
        self.timeout_us = timeout_us;
        self
    }
}

/// The end of one request. Hand it to [`super::Pipeline::recycle`] once its data is used up, and
/// the next answer needs no new memory.
#[derive(Debug)]
pub struct Done {
    /// Which request.
    pub ticket: Ticket,
    /// The caller's number for it.
    pub tag: u64,
    /// How it ended; for a batch, the status of the first item that did not end well.
    pub status: Status,
    /// By opcode: a value's whole length, a cursor, a count (see `PROTOCOL.md`).
    pub result: u64,
    /// The data of a single request, unless it landed in fragments.
    pub data: Data,
    /// Bytes of the data of a single request, wherever they are.
    pub length: u32,
    /// Nobody has checked the data of a single request, since it landed where no processor sees it: the
    /// CRC32C that it should have.
    pub unchecked_crc: Option<u32>,
    /// The items of a batch, in the order in which they were given.
    pub items: Vec<ItemDone>,
    pub(super) parts: Vec<Data>,
}

impl Done {
    pub(super) fn single(ticket: Ticket, tag: u64, status: Status) -> Self {
        let (data, items, parts) = (Data::default(), Vec::new(), Vec::new());
        let (result, length, unchecked_crc) = (0, 0, None);
        Self { ticket, tag, status, result, data, length, unchecked_crc, items, parts }
    }

    /// The data of item `index` of a batch, unless it landed in a fragment.
    ///
    /// # Panics
    /// If the batch has no such item.
    #[must_use]
    pub fn item_data(&self, index: usize) -> &[u8] {
        let item = &self.items[index];
        self.parts.get(item.part as usize).map_or(&[], |part| &part[item.range()])
    }
}

/// The end of one item of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemDone {
    /// How it ended.
    pub status: Status,
    /// As [`Done::result`], for this item.
    pub result: u64,
    /// Bytes of its data, wherever they are.
    pub length: u32,
    /// As [`Done::unchecked_crc`], for this item.
    pub unchecked_crc: Option<u32>,
    /// Which answer holds its data, and where. A part that there is not: it landed in a fragment.
    pub(super) part: u32,
    pub(super) start: u32,
}

impl ItemDone {
    pub(super) const PENDING: Self = Self {
        status: Status::Internal,
        result: 0,
        length: 0,
        unchecked_crc: None,
        part: u32::MAX,
        start: 0,
    };

    fn range(&self) -> Range<usize> {
        self.start as usize..self.start as usize + self.length as usize
    }
}

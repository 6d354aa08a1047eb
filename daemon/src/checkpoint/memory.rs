//! A store in memory for the tests: a map, and one fault at a chosen step.
//!
//! Every operation is one step. At the chosen one the machine "crashes" (the future never ends, and
//! neither does any later one) before or after the step took effect; or the step answers an error,
//! again before or after. What the map holds is what a restart finds.

use super::storage::{KEYS_MAX, ListCursor, Records, Storage};
use forebay_fabric::Status;
use forebay_fabric::checkpoint::{Chunk, ChunkKey};
use forebay_fabric::pdu::crc32c;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use zerocopy::IntoBytes;

/// What happens at one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    CrashBefore,
    CrashAfter,
    ErrorBefore,
    ErrorAfter,
}

#[derive(Debug, Default)]
pub(super) struct Media {
    pub(super) catalog: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
    pub(super) chunks: RefCell<BTreeMap<ChunkKey, Rc<[u8]>>>,
    pub(super) steps: Cell<u64>,
    pub(super) fault: Cell<Option<(u64, Fault)>>,
    /// From the faulty step on, every step fails like it.
    pub(super) lasting: Cell<bool>,
    crashed: Cell<bool>,
    /// Keys of one page of a listing.
    pub(super) page: Cell<usize>,
}

/// The store that a service runs over; the media outlives it.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(pub(super) Rc<Media>);

impl Media {
    /// After a crash: the machine runs again, without the fault.
    pub(super) fn restart(&self) {
        self.crashed.set(false);
        self.fault.set(None);
        self.steps.set(0);
    }

    pub(super) fn put(&self, key: ChunkKey, bytes: &[u8]) {
        self.chunks.borrow_mut().insert(key, bytes.into());
    }

    async fn step<T>(&self, effect: impl FnOnce() -> T) -> Result<T, Status> {
        let step = self.steps.replace(self.steps.get() + 1);
        let hit = |(at, _): &(u64, Fault)| step == *at || (self.lasting.get() && step > *at);
        let fault = self.fault.get().filter(hit).map(|(_, fault)| fault);
        if fault == Some(Fault::CrashBefore) {
            self.crashed.set(true);
        }
        self.wait_if_crashed().await;
        if fault == Some(Fault::ErrorBefore) {
            return Err(Status::Device);
        }
        let result = effect();
        if fault == Some(Fault::CrashAfter) {
            self.crashed.set(true);
        }
        self.wait_if_crashed().await;
        if fault == Some(Fault::ErrorAfter) { Err(Status::Device) } else { Ok(result) }
    }

    fn wait_if_crashed(&self) -> impl Future<Output = ()> {
        std::future::poll_fn(|_| if self.crashed.get() { Poll::Pending } else { Poll::Ready(()) })
    }
}

/// Runs a future over [`Memory`]; `None`: the machine crashed on the way.
pub(super) fn run<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

impl Storage for Memory {
    async fn catalog_store(&self, key: &[u8], value: &[u8]) -> Result<(), Status> {
        assert!(value.len() < 2048, "catalog values are small");
        let store = || self.0.catalog.borrow_mut().insert(key.to_vec(), value.to_vec());
        self.0.step(store).await.map(drop)
    }

    async fn catalog_delete(&self, key: &[u8]) -> Result<(), Status> {
        self.0.step(|| self.0.catalog.borrow_mut().remove(key)).await.map(drop)
    }

    async fn catalog_load(&self, prefix: &[u8]) -> Result<Records, Status> {
        let catalog = self.0.catalog.borrow().clone();
        let found = catalog.into_iter().filter(|(key, _)| key.starts_with(prefix));
        self.0.step(|| found.collect()).await
    }

    async fn chunk_store(&self, key: ChunkKey, value: &[u8]) -> Result<(), Status> {
        self.0.step(|| self.0.put(key, value)).await
    }

    async fn chunk_retrieve(&self, key: ChunkKey) -> Result<Vec<u8>, Status> {
        let found = self.0.step(|| self.0.chunks.borrow().get(&key).cloned()).await?;
        found.map(|bytes| bytes.to_vec()).ok_or(Status::NotFound)
    }

    async fn chunk_lengths(&self, keys: &[ChunkKey]) -> Result<Vec<Option<u32>>, Status> {
        assert!(keys.len() <= KEYS_MAX);
        let chunks = self.0.chunks.borrow().clone();
        let length = |key| chunks.get(key).map(|bytes| bytes.len() as u32);
        self.0.step(|| keys.iter().map(length).collect()).await
    }

    async fn chunk_states(&self, keys: &[ChunkKey]) -> Result<Vec<Option<Chunk>>, Status> {
        assert!(keys.len() <= KEYS_MAX);
        let chunks = self.0.chunks.borrow().clone();
        let state = |bytes: &Rc<[u8]>| Chunk::new(bytes.len() as u32, crc32c(bytes));
        self.0.step(|| keys.iter().map(|key| chunks.get(key).map(state)).collect()).await
    }

    async fn chunk_delete(&self, keys: &[ChunkKey]) -> Result<(), Status> {
        assert!(keys.len() <= KEYS_MAX);
        let delete = |key| self.0.chunks.borrow_mut().remove(key);
        self.0.step(|| keys.iter().for_each(|key| drop(delete(key)))).await
    }

    /// The cursor is a hash, as in a store: deleting what was listed moves nothing else.
    async fn chunk_list(
        &self,
        prefix: &[u8],
        from: ListCursor,
    ) -> Result<(Vec<ChunkKey>, Option<ListCursor>), Status> {
        // Three pretended reactors, each with every third key; pages within them.
        let page = self.0.page.get().max(1);
        let chunks = self.0.chunks.borrow().clone();
        let mine = chunks.keys().filter(|key| {
            key.as_bytes().starts_with(prefix) && key.index.get() % 3 == u32::from(from.reactor)
        });
        let hash = |key: &ChunkKey| u64::from(crc32c(key.as_bytes()));
        let mut keys: Vec<ChunkKey> =
            mine.filter(|key| hash(key) >= from.cursor).copied().collect();
        keys.sort_by_key(hash);
        let next = keys.get(page).map(hash);
        keys.truncate(page);
        let next = match next {
            Some(cursor) => Some(ListCursor { cursor, ..from }),
            None if from.reactor < 2 => Some(ListCursor { reactor: from.reactor + 1, cursor: 0 }),
            None => None,
        };
        self.0.step(|| (keys, next)).await
    }
}

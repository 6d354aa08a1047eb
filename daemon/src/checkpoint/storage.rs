//! What the checkpoint service stands on: the store, as far as it needs it.
//!
//! The catalog is namespace 0, local to this reactor. Chunks are namespace 1 and may live on any
//! reactor. `Ok` means durable; an error means that it may or may not have happened.

use forebay_fabric::Status;
use forebay_fabric::checkpoint::{Chunk, ChunkKey};

/// Keys that one call of the batched methods names at most.
pub const KEYS_MAX: usize = 64;

/// Where a listing of chunks goes on; the default is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListCursor {
    /// The reactor that is being listed.
    pub reactor: u16,
    /// Its own cursor.
    pub cursor: u64,
}

/// The store under the service. Futures are awaited one behind the other, on the catalog's reactor.
pub trait Storage {
    /// Stores a small value in the catalog.
    fn catalog_store(&self, key: &[u8], value: &[u8]) -> impl Future<Output = Result<(), Status>>;

    /// Deletes a key of the catalog; one that is not there is no error.
    fn catalog_delete(&self, key: &[u8]) -> impl Future<Output = Result<(), Status>>;

    /// Every key that begins with `prefix`, with its value.
    fn catalog_load(&self, prefix: &[u8]) -> impl Future<Output = Result<Records, Status>>;

    /// Stores a part of a manifest.
    fn chunk_store(&self, key: ChunkKey, value: &[u8]) -> impl Future<Output = Result<(), Status>>;

    /// Retrieves a part of a manifest, whole.
    fn chunk_retrieve(&self, key: ChunkKey) -> impl Future<Output = Result<Vec<u8>, Status>>;

    /// The length of each chunk that is there.
    fn chunk_lengths(
        &self,
        keys: &[ChunkKey],
    ) -> impl Future<Output = Result<Vec<Option<u32>>, Status>>;

    /// The length and checksum of each chunk that is there and can be read: it is read.
    fn chunk_states(
        &self,
        keys: &[ChunkKey],
    ) -> impl Future<Output = Result<Vec<Option<Chunk>>, Status>>;

    /// Deletes chunks; one that is not there is no error.
    fn chunk_delete(&self, keys: &[ChunkKey]) -> impl Future<Output = Result<(), Status>>;

    /// Some keys that begin with `prefix`, and where to go on; `None`: that was all. Deleting what
    /// was listed does not hide what was not.
    fn chunk_list(
        &self,
        prefix: &[u8],
        from: ListCursor,
    ) -> impl Future<Output = Result<(Vec<ChunkKey>, Option<ListCursor>), Status>>;
}

/// Keys and values.
pub type Records = Vec<(Vec<u8>, Vec<u8>)>;

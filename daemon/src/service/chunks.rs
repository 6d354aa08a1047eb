//! The checkpoint service's storage: the catalog here, chunks wherever their shards are.
//!
//! Guarantees what [`Storage`] asks for. One question is out to one reactor at a time, so the control
//! path cannot crowd the data path out.

use super::local;
use crate::checkpoint::storage::{ListCursor, Records, Storage};
use crate::reactor::mail::{Answer, Letters, Question, Told};
use crate::store::Store;
use crate::store::namespace::{CATALOG, CHUNKS};
use forebay_fabric::Status;
use forebay_fabric::checkpoint::{Chunk, ChunkKey};
use forebay_fabric::pdu::ListEntries;
use std::rc::Rc;
use zerocopy::IntoBytes;

/// Reaches the catalog and every chunk from the catalog's reactor.
#[derive(Clone, Debug)]
pub struct Chunks {
    store: Store,
    mailbox: Rc<Letters>,
}

impl Chunks {
    /// `store` holds the catalog; the other reactors are reached by `mailbox`.
    #[must_use]
    pub fn new(store: Store, mailbox: Rc<Letters>) -> Self {
        Self { store, mailbox }
    }

    async fn ask(&self, reactor: u16, question: Question) -> Answer {
        if reactor == self.mailbox.me() {
            local::answer(&self.store, question).await
        } else {
            self.mailbox.call(reactor, question).await
        }
    }

    fn owner(&self, key: &ChunkKey) -> u16 {
        self.store.owns(CHUNKS, key.as_bytes()).err().unwrap_or(self.mailbox.me())
    }

    /// Asks each owner for its part of `keys`, and puts the answers in the order of the keys.
    async fn gather<T: Clone>(
        &self,
        keys: &[ChunkKey],
        question: impl Fn(Vec<Vec<u8>>) -> Question,
        told: impl Fn(Told) -> Option<Vec<Option<T>>>,
    ) -> Result<Vec<Option<T>>, Status> {
        let mut gathered = vec![None; keys.len()];
        for reactor in 0..self.mailbox.reactors() {
            let owned = |key: &&ChunkKey| self.owner(key) == reactor;
            let part: Vec<_> = keys.iter().filter(owned).map(|k| k.as_bytes().to_vec()).collect();
            if part.is_empty() {
                continue;
            }
            let answer = self.ask(reactor, question(part)).await?;
            let mut answers = told(answer).ok_or(Status::Internal)?.into_iter();
            for (place, _) in gathered.iter_mut().zip(keys).filter(|(_, key)| owned(key)) {
                *place = answers.next().ok_or(Status::Internal)?;
            }
        }
        Ok(gathered)
    }
}

fn done(told: Told) -> Result<(), Status> {
    if told == Told::Done { Ok(()) } else { Err(Status::Internal) }
}

fn value(told: Told) -> Result<Vec<u8>, Status> {
    if let Told::Value(value) = told { Ok(value) } else { Err(Status::Internal) }
}

fn page(told: Told) -> Result<(Vec<u8>, u64), Status> {
    if let Told::Page(page, next) = told { Ok((page, next)) } else { Err(Status::Internal) }
}

/// The keys in a page of list entries.
fn keys(page: &[u8]) -> impl Iterator<Item = Result<&[u8], Status>> {
    ListEntries::new(page).map(|entry| entry.map(|e| e.key).map_err(|_| Status::Internal))
}

impl Storage for Chunks {
    async fn catalog_store(&self, key: &[u8], value: &[u8]) -> Result<(), Status> {
        let (key, value) = (key.to_vec(), value.to_vec());
        let question = Question::Store { namespace: CATALOG, key, value };
        done(local::answer(&self.store, question).await?)
    }

    async fn catalog_delete(&self, key: &[u8]) -> Result<(), Status> {
        let question = Question::Delete { namespace: CATALOG, keys: vec![key.to_vec()] };
        done(local::answer(&self.store, question).await?)
    }

    async fn catalog_load(&self, prefix: &[u8]) -> Result<Records, Status> {
        let (mut records, mut cursor) = (Vec::new(), 0);
        loop {
            let prefix = prefix.to_vec();
            let question = Question::List { namespace: CATALOG, cursor, prefix };
            let (listed, next) = page(local::answer(&self.store, question).await?)?;
            for key in keys(&listed) {
                let key = key?.to_vec();
                let question = Question::Retrieve { namespace: CATALOG, key: key.clone() };
                records.push((key, value(local::answer(&self.store, question).await?)?));
            }
            cursor = next;
            if cursor == 0 {
                return Ok(records);
            }
        }
    }

    async fn chunk_store(&self, key: ChunkKey, value: &[u8]) -> Result<(), Status> {
        let (owner, value) = (self.owner(&key), value.to_vec());
        let key = key.as_bytes().to_vec();
        done(self.ask(owner, Question::Store { namespace: CHUNKS, key, value }).await?)
    }

    async fn chunk_retrieve(&self, key: ChunkKey) -> Result<Vec<u8>, Status> {
        let (owner, key) = (self.owner(&key), key.as_bytes().to_vec());
        value(self.ask(owner, Question::Retrieve { namespace: CHUNKS, key }).await?)
    }

    async fn chunk_lengths(&self, keys: &[ChunkKey]) -> Result<Vec<Option<u32>>, Status> {
        let question = |keys| Question::Lengths { namespace: CHUNKS, keys };
        let lengths = |told| if let Told::Lengths(lengths) = told { Some(lengths) } else { None };
        self.gather(keys, question, lengths).await
    }

    async fn chunk_states(&self, keys: &[ChunkKey]) -> Result<Vec<Option<Chunk>>, Status> {
        let question = |keys| Question::Checksums { namespace: CHUNKS, keys };
        let checksums = |told| if let Told::Checksums(sums) = told { Some(sums) } else { None };
        let states = self.gather(keys, question, checksums).await?;
        let chunk = |state: Option<(u32, u32)>| state.map(|(length, crc)| Chunk::new(length, crc));
        Ok(states.into_iter().map(chunk).collect())
    }

    async fn chunk_delete(&self, keys: &[ChunkKey]) -> Result<(), Status> {
        for reactor in 0..self.mailbox.reactors() {
            let owned = keys.iter().filter(|key| self.owner(key) == reactor);
            let keys: Vec<_> = owned.map(|key| key.as_bytes().to_vec()).collect();
            if !keys.is_empty() {
                done(self.ask(reactor, Question::Delete { namespace: CHUNKS, keys }).await?)?;
            }
        }
        Ok(())
    }

    async fn chunk_list(
        &self,
        prefix: &[u8],
        from: ListCursor,
    ) -> Result<(Vec<ChunkKey>, Option<ListCursor>), Status> {
        let ListCursor { reactor, cursor } = from;
        let question = Question::List { namespace: CHUNKS, cursor, prefix: prefix.to_vec() };
        let (listed, next) = page(self.ask(reactor, question).await?)?;
        let mut chunks = Vec::new();
        for key in keys(&listed) {
            chunks.extend(ChunkKey::parse(key?));
        }
        let next = match next {
            0 => Some(ListCursor { reactor: reactor + 1, cursor: 0 })
                .filter(|next| next.reactor < self.mailbox.reactors()),
            cursor => Some(ListCursor { reactor, cursor }),
        };
        Ok((chunks, next))
    }
}

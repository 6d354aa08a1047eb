//! What one reactor does for another: questions about keys of this reactor's shards, with owned bytes.
//!
//! The control path, for checkpoints: a chunk's own data never comes this way.

use crate::reactor::mail::{Answer, Question, Told};
use crate::store::{Store, StoreRequest};
use forebay_fabric::Status;
use forebay_fabric::pdu::{VALUE_BYTES_MAX, crc32c};

/// Bytes of one page of a list.
const PAGE_BYTES: usize = 64 << 10;

/// Answers `question` from the shards of `store`.
///
/// # Errors
/// The status of the first thing that went wrong.
pub async fn answer(store: &Store, question: Question) -> Answer {
    match question {
        Question::Store { namespace, key, value } => put(store, namespace, &key, &value).await,
        Question::Retrieve { namespace, key } => {
            let length = VALUE_BYTES_MAX as u32;
            let fragment = store.start_retrieve(namespace, &key, 0, length)?.finish().await?;
            Ok(Told::Value(fragment.buffer.as_ref()[fragment.range].to_vec()))
        }
        Question::Lengths { namespace, keys } => {
            let length = |key: &Vec<u8>| found(store.exist(namespace, key));
            Ok(Told::Lengths(keys.iter().map(length).collect::<Result<_, _>>()?))
        }
        Question::Checksums { namespace, keys } => checksums(store, namespace, &keys).await,
        Question::Delete { namespace, keys } => delete(store, namespace, &keys).await,
        Question::List { namespace, cursor, prefix } => {
            let listed = store.list(namespace, cursor, &prefix, PAGE_BYTES).await?;
            Ok(Told::Page(listed.buffer.as_ref()[..listed.bytes].to_vec(), listed.cursor))
        }
    }
}

async fn put(store: &Store, namespace: u32, key: &[u8], bytes: &[u8]) -> Answer {
    let mut value = store.context().buffer(bytes.len()).await;
    value.as_mut()[..bytes.len()].copy_from_slice(bytes);
    let (length, crc) = (bytes.len() as u32, crc32c(bytes));
    let request = StoreRequest { namespace, key, value, length, crc, token: 0 };
    store.start_store(request)?.finish().await?;
    Ok(Told::Done)
}

async fn checksums(store: &Store, namespace: u32, keys: &[Vec<u8>]) -> Answer {
    let mut told = Vec::with_capacity(keys.len());
    for key in keys {
        told.push(checksum(store, namespace, key).await);
    }
    Ok(Told::Checksums(told))
}

/// Length and CRC32C of a value, if it is there and can be read.
pub(super) async fn checksum(store: &Store, namespace: u32, key: &[u8]) -> Option<(u32, u32)> {
    let pending = store.start_retrieve(namespace, key, 0, VALUE_BYTES_MAX as u32).ok()?;
    let fragment = pending.finish().await.ok()?;
    Some((fragment.value_length, fragment.crc))
}

async fn delete(store: &Store, namespace: u32, keys: &[Vec<u8>]) -> Answer {
    let mut pending = Vec::with_capacity(keys.len());
    for key in keys {
        pending.push(store.start_delete(namespace, key, 0)?);
    }
    let mut outcome = Ok(Told::Done);
    for delete in pending {
        outcome = delete.finish().await.and(outcome);
    }
    outcome
}

fn found(length: Result<u32, Status>) -> Result<Option<u32>, Status> {
    match length {
        Ok(length) => Ok(Some(length)),
        Err(Status::NotFound) => Ok(None),
        Err(status) => Err(status),
    }
}

//! Key-value operations on a store, as tests need them: plain bytes in, plain bytes out.

use forebay_fabric::Status;
use forebay_fabric::pdu::{ListEntries, crc32c};
use forebay_nvme::BLOCK_BYTES;
use forebayd::store::{Store, StoreRequest};
use std::collections::BTreeSet;

/// Stores `value`.
///
/// # Errors
/// The operation's status.
pub async fn store(
    store: &Store,
    namespace: u32,
    key: &[u8],
    value: &[u8],
    token: u64,
) -> Result<(), Status> {
    let bytes = value.len().max(1).next_multiple_of(BLOCK_BYTES);
    let mut buffer = store.context().buffer(bytes).await;
    buffer[..value.len()].copy_from_slice(value);
    let (length, crc) = (value.len() as u32, crc32c(value));
    let request = StoreRequest { namespace, key, value: buffer, length, crc, token };
    store.start_store(request)?.finish().await
}

/// Retrieves a whole value.
///
/// # Errors
/// The operation's status.
pub async fn retrieve(store: &Store, namespace: u32, key: &[u8]) -> Result<Vec<u8>, Status> {
    retrieve_range(store, namespace, key, 0, u32::MAX).await
}

/// Retrieves a range of a value.
///
/// # Errors
/// The operation's status.
///
/// # Panics
/// If the store's checksum of what it returns is wrong.
pub async fn retrieve_range(
    store: &Store,
    namespace: u32,
    key: &[u8],
    offset: u64,
    length: u32,
) -> Result<Vec<u8>, Status> {
    let fragment = store.start_retrieve(namespace, key, offset, length)?.finish().await?;
    let bytes = fragment.buffer[fragment.range].to_vec();
    assert_eq!(crc32c(&bytes), fragment.crc, "the checksum of the fragment");
    Ok(bytes)
}

/// Deletes a key; was it there?
///
/// # Errors
/// The operation's status.
pub async fn delete(store: &Store, namespace: u32, key: &[u8], token: u64) -> Result<bool, Status> {
    store.start_delete(namespace, key, token)?.finish().await
}

/// All keys of a namespace that begin with `prefix`, in pages of `page_bytes`.
///
/// # Errors
/// The operation's status.
///
/// # Panics
/// If a key is listed twice.
pub async fn list(
    store: &Store,
    namespace: u32,
    prefix: &[u8],
    page_bytes: usize,
) -> Result<BTreeSet<Vec<u8>>, Status> {
    let mut keys = BTreeSet::new();
    let mut cursor = 0;
    loop {
        let page = store.list(namespace, cursor, prefix, page_bytes).await?;
        for entry in ListEntries::new(&page.buffer[..page.bytes]) {
            let entry = entry.expect("a well-formed listing");
            assert!(keys.insert(entry.key.to_vec()), "a key was listed twice");
        }
        cursor = page.cursor;
        if cursor == 0 {
            return Ok(keys);
        }
    }
}

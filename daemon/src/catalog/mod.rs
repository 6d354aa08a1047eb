//! The catalog of namespaces: what their names mean, for good.
//!
//! Each namespace has a record in the system's namespace 0 under `ns/<name>`: a JSON object with its
//! `number` and `class`. A number is given once and never to another name; keys carry it. Quota and
//! time to live are the configuration's alone. What would break it: a second writer; only reactor 0
//! writes here, before anything is served.

use crate::store::namespace::{CATALOG, FIRST_USER, NAMESPACES_MAX};
use crate::store::{Class, Namespace, Namespaces, Store, StoreRequest};
use forebay_fabric::Status;
use forebay_fabric::pdu::{ListEntries, VALUE_BYTES_MAX, crc32c};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

const PREFIX: &[u8] = b"ns/";
/// Bytes of one page of the catalog's list.
const PAGE_BYTES: usize = 64 << 10;

/// One namespace of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number, on the wire and on media.
    pub number: u32,
    /// What it is.
    pub namespace: Namespace,
    /// The configuration names it. Where it does not, its keys are still there.
    pub configured: bool,
}

/// All namespaces of users, by name.
#[derive(Clone, Debug, Default)]
pub struct Table(Arc<[Entry]>);

impl Table {
    /// The entries, ordered by name.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// Tells a reactor's store.
    pub fn install(&self, namespaces: &Namespaces) {
        self.0.iter().for_each(|entry| namespaces.set(entry.number, entry.namespace.clone()));
    }
}

/// Why the catalog is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// The store failed.
    #[error("the catalog of namespaces cannot be read or written: {0}")]
    Store(#[from] Status),
    /// A record is not what this release writes.
    #[error("the catalog's record of namespace {name:?} is damaged: {what}")]
    Record {
        /// Whose record.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The configuration asks for another class than the namespace has.
    #[error(
        "namespace {name:?} is {has}, and the configuration says {wants}: write class = \"{has}\", or \
         give the new one another name"
    )]
    Class {
        /// The namespace.
        name: String,
        /// Its class on media.
        has: &'static str,
        /// What the configuration says.
        wants: &'static str,
    },
    /// All numbers are taken.
    #[error("the pool has {NAMESPACES_MAX} namespaces already: take some out of the configuration")]
    Full,
}

/// A record on media.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    number: u32,
    class: String,
}

/// Reads the catalog and enters what `wanted` has that is new. Runs on the reactor that owns shard 0.
///
/// # Errors
/// [`CatalogError`].
pub async fn load(store: Store, wanted: Vec<Namespace>) -> Result<Table, CatalogError> {
    let mut entries = read_all(&store).await?;
    for namespace in wanted {
        match entries.get_mut(&namespace.name) {
            Some(entry) => {
                check_class(entry, &namespace)?;
                (entry.namespace, entry.configured) = (namespace, true);
            }
            None => {
                let number = free_number(&entries).ok_or(CatalogError::Full)?;
                write(&store, number, &namespace).await?;
                let name = namespace.name.clone();
                entries.insert(name, Entry { number, namespace, configured: true });
            }
        }
    }
    Ok(Table(entries.into_values().collect()))
}

fn check_class(entry: &Entry, wanted: &Namespace) -> Result<(), CatalogError> {
    if entry.namespace.class == wanted.class {
        return Ok(());
    }
    let (has, wants) = (class_name(entry.namespace.class), class_name(wanted.class));
    Err(CatalogError::Class { name: wanted.name.clone(), has, wants })
}

/// The class's word in the configuration and in the catalog.
#[must_use]
pub fn class_name(class: Class) -> &'static str {
    match class {
        Class::Cache => "cache",
        Class::Durable => "durable",
    }
}

fn free_number(entries: &BTreeMap<String, Entry>) -> Option<u32> {
    let last = entries.values().map(|entry| entry.number).max().unwrap_or(FIRST_USER - 1);
    Some(last + 1).filter(|number| *number < NAMESPACES_MAX as u32)
}

async fn read_all(store: &Store) -> Result<BTreeMap<String, Entry>, CatalogError> {
    let mut entries = BTreeMap::new();
    let mut cursor = 0;
    loop {
        let page = store.list(CATALOG, cursor, PREFIX, PAGE_BYTES).await?;
        for listed in ListEntries::new(&page.buffer.as_ref()[..page.bytes]) {
            let listed = listed.map_err(|_| Status::Internal)?;
            let entry = read(store, listed.key).await?;
            entries.insert(entry.namespace.name.clone(), entry);
        }
        cursor = page.cursor;
        if cursor == 0 {
            return Ok(entries);
        }
    }
}

async fn read(store: &Store, key: &[u8]) -> Result<Entry, CatalogError> {
    let name = String::from_utf8_lossy(&key[PREFIX.len()..]).into_owned();
    let pending = store.start_retrieve(CATALOG, key, 0, VALUE_BYTES_MAX as u32)?;
    let fragment = pending.finish().await?;
    parse(name, &fragment.buffer.as_ref()[fragment.range])
}

fn parse(name: String, bytes: &[u8]) -> Result<Entry, CatalogError> {
    let damaged = |name: &str, what: String| CatalogError::Record { name: name.to_owned(), what };
    let record: Record =
        serde_json::from_slice(bytes).map_err(|error| damaged(&name, error.to_string()))?;
    let class = match record.class.as_str() {
        "cache" => Class::Cache,
        "durable" => Class::Durable,
        other => return Err(damaged(&name, format!("unknown class {other:?}"))),
    };
    if !(FIRST_USER..NAMESPACES_MAX as u32).contains(&record.number) {
        return Err(damaged(&name, format!("impossible number {}", record.number)));
    }
    let namespace = Namespace { name, class, quota_bytes: None, ttl_s: None };
    Ok(Entry { number: record.number, namespace, configured: false })
}

async fn write(store: &Store, number: u32, namespace: &Namespace) -> Result<(), CatalogError> {
    let record = Record { number, class: class_name(namespace.class).to_owned() };
    let bytes = serde_json::to_vec(&record).map_err(|_| Status::Internal)?;
    let key = [PREFIX, namespace.name.as_bytes()].concat();
    let mut value = store.context().buffer(bytes.len()).await;
    value.as_mut()[..bytes.len()].copy_from_slice(&bytes);
    let (length, crc) = (bytes.len() as u32, crc32c(&bytes));
    let request = StoreRequest { namespace: CATALOG, key: &key, value, length, crc, token: 0 };
    store.start_store(request)?.finish().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(bytes: &str) -> Result<Entry, CatalogError> {
        parse("one".to_owned(), bytes.as_bytes())
    }

    #[test]
    fn a_record_on_media_reads_as_it_always_did() {
        let entry = entry(r#"{"number":16,"class":"durable"}"#).unwrap();
        assert_eq!((entry.number, entry.namespace.class), (16, Class::Durable));
        assert!(!entry.configured);
    }

    #[test]
    fn a_damaged_record_is_an_error_that_names_it() {
        for bytes in [
            "",
            "{}",
            r#"{"number":1,"class":"durable"}"#,
            r#"{"number":1024,"class":"cache"}"#,
            r#"{"number":16,"class":"lasting"}"#,
        ] {
            let error = entry(bytes).unwrap_err();
            assert!(matches!(error, CatalogError::Record { ref name, .. } if name == "one"));
        }
    }

    #[test]
    fn a_class_cannot_change_behind_the_keys() {
        let entry = entry(r#"{"number":16,"class":"durable"}"#).unwrap();
        let mut wanted = entry.namespace.clone();
        assert_eq!(check_class(&entry, &wanted), Ok(()));
        wanted.class = Class::Cache;
        let text = check_class(&entry, &wanted).unwrap_err().to_string();
        assert!(text.contains("write class = \"durable\""), "{text}");
    }

    #[test]
    fn numbers_are_given_in_turn_and_run_out() {
        let mut entries = BTreeMap::new();
        assert_eq!(free_number(&entries), Some(FIRST_USER));
        let mut last = entry(r#"{"number":1023,"class":"cache"}"#).unwrap();
        entries.insert("last".to_owned(), last.clone());
        assert_eq!(free_number(&entries), None);
        last.number = 20;
        entries.insert("last".to_owned(), last);
        assert_eq!(free_number(&entries), Some(21));
    }
}

//! Keys and values through the whole house.

use crate::daemon::{Place, namespace, value};
use forebay_fabric::Status;
use forebay_fabric::client::{ClientError, NamespaceId, RetrieveItem, StoreItem};
use std::collections::BTreeSet;

/// Around every limit there is on a value's way: empty, packed, a block, in a capsule or not, with a
/// checksum page or not, the largest.
const LENGTHS: [usize; 16] = [
    0,
    1,
    63,
    64,
    4095,
    4096,
    4097,
    16_384,
    65_535,
    65_536,
    65_537,
    81_920,
    100_000,
    1 << 20,
    (4 << 20) - 1,
    4 << 20,
];

fn status<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Status {
    result.unwrap_err().status().expect("the server's own status")
}

#[test]
fn values_of_every_size_come_back_whole_and_in_part() {
    let place = Place::new(2);
    let daemon = place.start();
    let mut client = daemon.client();
    let namespace = namespace(&mut client);
    for (seed, length) in (1..).zip(LENGTHS) {
        let (key, stored) = (format!("value of {length}"), value(seed, length));
        client.store(namespace, key.as_bytes(), stored.clone()).unwrap();
        assert_eq!(client.exist(namespace, key.as_bytes()).unwrap(), Some(length as u64));
        assert_eq!(client.retrieve(namespace, key.as_bytes()).unwrap(), Some(stored.clone()));
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..if length == 0 { 0 } else { 8 } {
            let from = rng.usize(..length);
            let most = rng.usize(1..=length);
            let range = from..length.min(from + most);
            let (offset, most) = (from as u64, most as u32);
            let got = client.retrieve_range(namespace, key.as_bytes(), offset, most).unwrap();
            assert!(got.as_deref() == Some(&stored[range.clone()]), "{key}: {range:?}");
        }
    }
}

#[test]
fn what_the_dram_tier_serves_is_what_was_stored_last() {
    let mut place = Place::new(2);
    place.more = "dram_tier = \"8MiB\"";
    let daemon = place.start();
    let mut client = daemon.client();
    let namespace = namespace(&mut client);
    for (seed, length) in (1..).zip(LENGTHS) {
        let key = format!("value of {length}");
        let key = key.as_bytes();
        for stored in [value(seed, length), value(seed + 100, length)] {
            client.store(namespace, key, stored.clone()).unwrap();
            for _ in 0..3 {
                assert_eq!(client.retrieve(namespace, key).unwrap(), Some(stored.clone()));
            }
            let range = length / 3..length / 2;
            let (offset, most) = (range.start as u64, range.len() as u32);
            if length > 0 {
                let got = client.retrieve_range(namespace, key, offset, most).unwrap();
                assert_eq!(got.as_deref(), Some(&stored[range]));
            }
        }
        client.delete(namespace, key).unwrap();
        assert_eq!(client.retrieve(namespace, key).unwrap(), None);
    }
    let status = place.admin("\"status\"");
    let tier = |what: &str| -> u64 {
        let reactors = status["reactors"].as_array().unwrap().iter();
        reactors.map(|reactor| reactor["dram_tier"][what].as_u64().unwrap()).sum()
    };
    let reactors = status["reactors"].as_array().unwrap().len() as u64;
    assert_eq!(tier("bytes"), (8 << 20_u64).max(reactors * (4 << 20)), "{status}");
    assert_eq!((tier("used_bytes"), tier("values")), (0, 0), "{status}");
    // Of values that one part of the memory in eight holds: three more times each.
    assert!(tier("hits") >= 2 * 3 * (LENGTHS.len() as u64 - 5), "{status}");
}

#[test]
fn overwrites_deletes_and_lists_show_the_last_word() {
    let place = Place::new(2);
    let daemon = place.start();
    let mut client = daemon.client();
    let namespace = namespace(&mut client);
    for round in 0..3 {
        for key in 0..500u64 {
            let name = format!("list/{key}");
            client.store(namespace, name.as_bytes(), value(key + round, 100)).unwrap();
        }
    }
    for key in (0..500u64).step_by(2) {
        let name = format!("list/{key}");
        assert!(client.delete(namespace, name.as_bytes()).unwrap());
        assert!(!client.delete(namespace, name.as_bytes()).unwrap());
        assert_eq!(client.retrieve(namespace, name.as_bytes()).unwrap(), None);
    }
    let listed: Result<Vec<_>, _> = client.list(namespace, b"list/").collect();
    let listed: BTreeSet<_> = listed.unwrap().into_iter().collect();
    let left = (1..500u64).step_by(2).map(|key| (format!("list/{key}").into_bytes(), 100));
    assert_eq!(listed, left.collect());
    assert_eq!(client.list(namespace, b"nothing/").count(), 0);
}

#[test]
fn each_item_of_a_batch_has_its_own_end() {
    let place = Place::new(2);
    let daemon = place.start();
    let mut client = daemon.client();
    let namespace = namespace(&mut client);
    let keys: Vec<_> = (0..200).map(|n| format!("batch/{n}").into_bytes()).collect();
    let values: Vec<_> = (0..200).map(|n| value(n, 37 * n as usize)).collect();
    let items = keys.iter().zip(&values);
    let items: Vec<_> =
        items.map(|(key, value)| StoreItem { key, data: value.clone().into() }).collect();
    let stored = client.store_batch(namespace, &items).unwrap();
    assert!(stored.iter().all(|status| *status == Status::Ok), "{stored:?}");

    let mut names: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    names.insert(7, b"not there");
    let asked: Vec<_> =
        names.iter().map(|key| RetrieveItem { key, offset: 0, length: 37 * 200 }).collect();
    let mut got = client.retrieve_batch(namespace, &asked).unwrap();
    assert_eq!(got.remove(7), Err(Status::NotFound));
    assert!(got.into_iter().map(Result::unwrap).eq(values));

    let deleted = client.delete_batch(namespace, &names[..8]).unwrap();
    let there: Vec<_> = deleted.into_iter().map(Result::unwrap).collect();
    assert_eq!(there, [true, true, true, true, true, true, true, false]);
}

#[test]
fn what_cannot_be_is_refused_with_its_own_status() {
    let place = Place::new(1);
    let daemon = place.start();
    let mut client = daemon.client();
    let namespace = namespace(&mut client);
    client.store(namespace, b"ten", value(1, 10)).unwrap();
    let big = vec![0; (4 << 20) + 1];
    for (what, got, expected) in [
        ("no key", status(client.store(namespace, b"", b"".to_vec())), Status::KeyLength),
        ("long key", status(client.store(namespace, &[7; 1025], vec![])), Status::KeyLength),
        ("long value", status(client.store(namespace, b"big", big)), Status::ValueLength),
        ("past the end", status(client.retrieve_range(namespace, b"ten", 11, 1)), Status::Range),
        (
            "catalog",
            status(client.retrieve(NamespaceId::CATALOG, b"ns/default")),
            Status::NoNamespace,
        ),
        ("chunks", status(client.delete(NamespaceId::CHECKPOINT, b"chunk")), Status::NoNamespace),
        ("no namespace", status(client.exist(NamespaceId(99), b"ten")), Status::NoNamespace),
        ("far namespace", status(client.exist(NamespaceId(u32::MAX), b"ten")), Status::NoNamespace),
    ] {
        assert_eq!(got, expected, "{what}");
    }
    assert_eq!(client.retrieve(namespace, b"ten").unwrap(), Some(value(1, 10)));
    assert_eq!(client.store(namespace, &[7; 1024], vec![1]).ok(), Some(()));
}

#[test]
fn a_full_quota_refuses_stores_and_lets_deletes_make_room() {
    let place = Place::new(2);
    let daemon = place.start();
    let mut client = daemon.client();
    let small = client.namespace("small").unwrap();
    client.store(small, b"most", value(1, 1_000_000)).unwrap();
    assert_eq!(status(client.store(small, b"more", value(2, 100_000))), Status::Quota);
    assert!(client.delete(small, b"most").unwrap());
    client.store(small, b"more", value(2, 100_000)).unwrap();
    let namespaces = client.namespaces().unwrap();
    let used = namespaces.iter().find(|one| one.name == "small").map(|one| one.used_bytes);
    assert_eq!(used, Some(100_000));
}

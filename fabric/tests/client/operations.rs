//! The client against a healthy server: every operation, over a kind and a choppy network.

use crate::support::{
    House, NS, SharedHouse, address, bytes, client_config, connect, connect_with, finish, submit,
};
use bytes::Bytes;
use forebay_fabric::Status;
use forebay_fabric::client::{
    Client, ClientError, NamespaceId, Request, RetrieveItem, StoreItem, Target,
};
use forebay_fabric::pdu::Opcode;
use forebay_fabric::stream::sim::SimProfile;
use std::collections::BTreeMap;

fn house(reactors: u16) -> SharedHouse {
    House::new(1, SimProfile::kind(), reactors)
}

#[test]
fn every_operation_answers_what_the_store_holds() {
    for (seed, profile) in [(1, SimProfile::kind()), (2, SimProfile::choppy())] {
        let house = House::new(seed, profile, 2);
        let mut client = Client::over(connect(&house, seed));
        assert_eq!(client.retrieve(NS, b"a").unwrap(), None);
        assert_eq!(client.exist(NS, b"a").unwrap(), None);
        assert!(!client.delete(NS, b"a").unwrap());
        let mut rng = fastrand::Rng::with_seed(seed);
        for length in [0, 1, 4096, 15_000, 16 << 10, 300_000, 4 << 20] {
            let value = bytes(&mut rng, length);
            client.store(NS, b"a", value.clone()).unwrap();
            assert_eq!(client.exist(NS, b"a").unwrap(), Some(length as u64));
            assert!(client.retrieve(NS, b"a").unwrap().unwrap() == value, "{length} bytes");
            let range = client.retrieve_range(NS, b"a", length as u64 / 2, 10).unwrap().unwrap();
            assert_eq!(range, value[length / 2..length.min(length / 2 + 10)]);
        }
        let past = client.retrieve_range(NS, b"a", 5 << 20, 1).unwrap_err();
        assert_eq!(past.status(), Some(Status::Range));
        assert_eq!(past.to_string(), "retrieve a: the range is past the end of the value");
        assert!(client.delete(NS, b"a").unwrap());
        assert_eq!(client.retrieve(NS, b"a").unwrap(), None);
        assert_eq!(house.borrow().protocol_errors(), 0);
    }
}

#[test]
fn commands_go_to_the_reactor_that_owns_the_key() {
    let house = house(4);
    let mut client = Client::over(connect(&house, 3));
    for number in 0..200u32 {
        client.store(NS, &number.to_be_bytes(), &b"value"[..]).unwrap();
        assert!(client.exist(NS, &number.to_be_bytes()).unwrap().is_some());
    }
    let house = house.borrow();
    assert_eq!(house.memory.borrow().misrouted, 0);
    assert_eq!(house.memory.borrow().values.len(), 200);
    let reactors = (0..200u32).map(|n| client.pipeline().reactor_of(NS, &n.to_be_bytes()));
    let mut counts = [0; 4];
    reactors.for_each(|reactor| counts[usize::from(reactor)] += 1);
    assert!(counts.iter().all(|&count| count > 20), "{counts:?}");
}

#[test]
fn a_misled_command_follows_the_redirection_and_gives_up_in_time() {
    let house = house(2);
    let mut pipeline = connect(&house, 4);
    house.borrow().memory.borrow_mut().mislead = 2;
    let done = pipeline.call(Request::store(NS, b"key", Bytes::from_static(b"v"))).unwrap();
    assert_eq!(done.status, Status::Ok);
    assert_eq!(pipeline.counters().retries, 2);
    house.borrow().memory.borrow_mut().mislead = u32::MAX;
    let done = pipeline.call(Request::exist(NS, b"key")).unwrap();
    assert_eq!(done.status, Status::WrongReactor);
}

#[test]
fn large_values_wait_for_an_r2t_and_small_ones_do_not() {
    let house = house(1);
    let mut client = Client::over(connect(&house, 5));
    client.store(NS, b"small", vec![1; 15 << 10]).unwrap();
    assert_eq!(house.borrow().memory.borrow().pulls, 0);
    client.store(NS, b"large", vec![2; 16 << 10]).unwrap();
    assert_eq!(house.borrow().memory.borrow().pulls, 1);
    let items: Vec<StoreItem<'_>> = [&b"a"[..], b"b", b"c"]
        .map(|key| StoreItem { key, data: vec![key[0]; 10_000].into() })
        .into();
    assert_eq!(client.store_batch(NS, &items).unwrap(), [Status::Ok; 3]);
    assert_eq!(house.borrow().memory.borrow().pulls, 2);
    assert_eq!(client.retrieve(NS, b"b").unwrap().unwrap(), vec![b'b'; 10_000]);
}

#[test]
fn the_credit_limit_is_never_exceeded_and_the_window_says_when_it_is_full() {
    let house = house(1);
    house.borrow().memory.borrow_mut().slow_us = 5_000;
    let mut pipeline = connect(&house, 6);
    assert_eq!(pipeline.window(), 32);
    let key = |number: u32| number.to_be_bytes();
    for number in 0..32 {
        pipeline.submit(Request::exist(NS, &key(number)).with_tag(number.into())).unwrap();
    }
    let refused = pipeline.submit(Request::exist(NS, b"one too many"));
    assert!(refused.is_err());
    let mut done = Vec::new();
    for number in 32..500 {
        submit(&mut pipeline, Request::exist(NS, &key(number)).with_tag(number.into()), &mut done);
    }
    finish(&mut pipeline, &mut done);
    let mut tags: Vec<_> = done.iter().map(|done| done.tag).collect();
    tags.sort_unstable();
    assert!(tags.into_iter().eq(0..500));
    assert_eq!(house.borrow().memory.borrow().most_unanswered, 32);
    assert_eq!(house.borrow().protocol_errors(), 0);
}

#[test]
fn batches_are_split_by_reactor_and_joined_in_order() {
    for (seed, profile) in [(1, SimProfile::kind()), (2, SimProfile::choppy())] {
        let house = House::new(seed, profile, 3);
        let mut client = Client::over(connect(&house, seed));
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut model = BTreeMap::new();
        for _ in 0..30 {
            let count = rng.usize(1..300);
            let keys: Vec<Vec<u8>> =
                (0..count).map(|_| rng.u16(..500).to_string().into_bytes()).collect();
            let lengths: Vec<usize> = (0..count).map(|_| rng.usize(0..3_000)).collect();
            let values: Vec<Bytes> =
                lengths.iter().map(|&length| bytes(&mut rng, length).into()).collect();
            // A key that is twice in one batch of stores would end with either value.
            let unique: BTreeMap<_, _> = keys.iter().zip(&values).collect();
            let items: Vec<_> = unique
                .iter()
                .map(|(key, data)| StoreItem { key, data: Bytes::clone(data) })
                .collect();
            let stored = client.store_batch(NS, &items).unwrap();
            assert_eq!(stored, vec![Status::Ok; items.len()]);
            items.iter().for_each(|item| drop(model.insert(item.key.to_vec(), item.data.clone())));

            let asked: Vec<_> = keys
                .iter()
                .map(|key| RetrieveItem { key, offset: rng.u64(0..2), length: rng.u32(0..4_000) })
                .collect();
            let found = client.retrieve_batch(NS, &asked).unwrap();
            for (item, found) in asked.iter().zip(found) {
                let value = &model[item.key];
                let from = item.offset as usize;
                if from > value.len() {
                    assert_eq!(found, Err(Status::Range));
                } else {
                    let to = value.len().min(from + item.length as usize);
                    assert!(found.unwrap() == value[from..to], "seed {seed}");
                }
            }
            let few: Vec<&[u8]> = unique.keys().take(20).map(|key| key.as_slice()).collect();
            let gone = client.delete_batch(NS, &few).unwrap();
            assert_eq!(gone, vec![Ok(true); few.len()], "seed {seed}");
            few.iter().for_each(|key| drop(model.remove(*key)));
            let left = client.exist_batch(NS, &few).unwrap();
            assert_eq!(left, vec![Err(Status::NotFound); few.len()]);
        }
        let house = house.borrow();
        assert_eq!(house.memory.borrow().misrouted, 0);
        assert_eq!(house.memory.borrow().values.len(), model.len());
    }
}

#[test]
fn items_that_cannot_be_asked_have_a_status_of_their_own() {
    let house = house(2);
    let mut client = Client::over(connect(&house, 8));
    let long = vec![b'x'; 1025];
    let items = [
        StoreItem { key: b"", data: Bytes::new() },
        StoreItem { key: b"fine", data: Bytes::from_static(b"data") },
        StoreItem { key: &long, data: Bytes::new() },
        StoreItem { key: b"big", data: vec![0; (4 << 20) + 1].into() },
    ];
    let expected = [Status::KeyLength, Status::Ok, Status::KeyLength, Status::ValueLength];
    assert_eq!(client.store_batch(NS, &items).unwrap(), expected);
    assert_eq!(client.store_batch(NS, &[]).unwrap(), []);
    assert_eq!(client.retrieve(NS, b"fine").unwrap().unwrap(), b"data");
    let error = client.store(NS, &long, Bytes::new()).unwrap_err();
    assert_eq!(error.status(), Some(Status::KeyLength));
}

#[test]
fn batches_larger_than_a_command_travel_in_several() {
    let house = house(1);
    let mut client = Client::over(connect(&house, 9));
    let keys: Vec<Vec<u8>> = (0..6u8).map(|n| vec![n; 1000]).collect();
    let data = Bytes::from(vec![9; 3 << 20]);
    let items: Vec<_> = keys.iter().map(|key| StoreItem { key, data: data.clone() }).collect();
    assert_eq!(client.store_batch(NS, &items).unwrap(), [Status::Ok; 6]);
    let asked: Vec<_> =
        keys.iter().map(|key| RetrieveItem { key, offset: 0, length: u32::MAX }).collect();
    let found = client.retrieve_batch(NS, &asked).unwrap();
    assert!(found.iter().all(|value| value.as_ref() == Ok(&data.to_vec())));
    assert_eq!(house.borrow().memory.borrow().commands[&(Opcode::Store as u8)], 6);
}

#[test]
fn a_list_walks_all_keys_of_all_reactors() {
    let house = house(3);
    let mut client = Client::over(connect(&house, 10));
    for number in 0..150 {
        let value = vec![0; number];
        client.store(NS, format!("list/{number:03}").as_bytes(), value).unwrap();
        client.store(NS, format!("other/{number:03}").as_bytes(), &b""[..]).unwrap();
    }
    let mut found: Vec<_> = client.list(NS, b"list/").collect::<Result<_, _>>().unwrap();
    found.sort();
    let expected = (0..150u32).map(|number| (format!("list/{number:03}").into_bytes(), number));
    assert!(found.into_iter().eq(expected));
    assert_eq!(client.list(NS, b"none").count(), 0);
    assert_eq!(client.list(NS, b"").count(), 300);
}

#[test]
fn namespaces_counters_and_checkpoint_commands_find_their_reactor() {
    let house = house(3);
    let mut client = Client::over(connect(&house, 11));
    assert_eq!(client.namespace("kv").unwrap(), NS);
    assert_eq!(client.namespaces().unwrap()[0].used_bytes, 7);
    let error = client.namespace("nope").unwrap_err();
    assert_eq!(error.to_string(), "no namespace named \"nope\"; there are: kv, cache");
    assert_eq!(client.stats(1).unwrap(), "{\"reactor\":1}");
    assert_eq!(client.stats(9).unwrap_err().status(), Some(Status::Malformed));
    for payload in [0, 100, 100_000] {
        let payload = vec![5; payload];
        let (opcode, ns) = (Opcode::CheckpointBegin, NamespaceId::CATALOG);
        let answer = client.call(opcode, Target::Catalog, ns, b"run/1", payload.clone()).unwrap();
        assert_eq!(answer.result, 2, "the catalog's reactor");
        assert_eq!(answer.data, [&b"run/1"[..], &payload].concat());
    }
    client.store(NS, b"key", &b"0123456789"[..]).unwrap();
    let answer = client.request(Request::retrieve(NS, b"key", 2, 3)).unwrap();
    assert_eq!((answer.result, answer.data.as_slice()), (10, &b"234"[..]));
}

#[test]
fn corrupt_data_is_never_handed_out_as_good() {
    let house = house(1);
    let mut client = Client::over(connect(&house, 12));
    client.store(NS, b"key", &b"value"[..]).unwrap();
    house.borrow().memory.borrow_mut().corrupt = true;
    let error = client.retrieve(NS, b"key").unwrap_err();
    assert_eq!(error.status(), Some(Status::DataChecksum));
    assert_eq!(client.retrieve(NS, b"key").unwrap().unwrap(), b"value");
}

#[test]
fn a_busy_server_is_asked_again() {
    let house = house(1);
    let mut client = Client::over(connect(&house, 13));
    house.borrow().memory.borrow_mut().busy = 5;
    let start_us = client.pipeline().now_us();
    client.store(NS, b"key", &b"value"[..]).unwrap();
    assert_eq!(client.pipeline().counters().retries, 5);
    assert!(client.pipeline().now_us() >= start_us + 5_000, "and not at once");
}

#[test]
fn any_reactor_of_any_configured_address_will_do() {
    let house = house(3);
    for reactor in 0..3 {
        let mut config = client_config(14);
        config.addresses = vec![address(90).into(), address(reactor).into()];
        let mut client = Client::over(connect_with(&house, config).unwrap());
        assert_eq!(client.pipeline().reactors(), 3);
        client.store(NS, &[reactor as u8], &b"x"[..]).unwrap();
    }
    let config = client_config(14);
    let none = connect_with(
        &house,
        forebay_fabric::client::ClientConfig { addresses: vec![], ..config.clone() },
    );
    assert!(matches!(none.err(), Some(ClientError::NoAddress)));
    let mut elsewhere = config;
    elsewhere.addresses = vec![address(90).into()];
    let refused = connect_with(&house, elsewhere).err().unwrap().to_string();
    assert_eq!(refused, "cannot connect to 10.0.0.1:7090: connection refused");
}

#[test]
fn many_mixed_requests_agree_with_a_model() {
    for seed in 0..20 {
        let profile = if seed % 2 == 0 { SimProfile::kind() } else { SimProfile::choppy() };
        let house = House::new(seed, profile, 2);
        let mut pipeline = connect(&house, seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut expected = BTreeMap::new();
        let mut done = Vec::new();
        for tag in 0..400u64 {
            // One request per key at a time: their order is not defined otherwise.
            let key = (tag % 100).to_be_bytes();
            if tag % 100 == 0 {
                finish(&mut pipeline, &mut done);
            }
            let request = match rng.u8(0..3) {
                0 => {
                    let most = if rng.u8(0..10) == 0 { 200_000 } else { 6_000 };
                    let length = rng.usize(0..most);
                    let value = bytes(&mut rng, length);
                    model.insert(key.to_vec(), value.clone());
                    expected.insert(tag, (Status::Ok, Vec::new()));
                    Request::store(NS, &key, value.into())
                }
                1 => {
                    let value = model.get(&key[..]).cloned();
                    let status = if value.is_some() { Status::Ok } else { Status::NotFound };
                    expected.insert(tag, (status, value.unwrap_or_default()));
                    Request::retrieve(NS, &key, 0, u32::MAX)
                }
                _ => {
                    model.remove(&key[..]);
                    expected.insert(tag, (Status::Ok, Vec::new()));
                    Request::delete(NS, &key)
                }
            };
            submit(&mut pipeline, request.with_tag(tag), &mut done);
        }
        finish(&mut pipeline, &mut done);
        assert_eq!(done.len(), 400);
        for done in done {
            let (status, data) = &expected[&done.tag];
            assert!(done.status == *status && done.data == *data, "seed {seed} tag {}", done.tag);
            pipeline.recycle(done);
        }
        assert_eq!(house.borrow().protocol_errors(), 0, "seed {seed}");
    }
}

#[test]
fn recycled_answers_need_no_new_memory() {
    let house = house(2);
    let mut pipeline = connect(&house, 15);
    let keys: Vec<[u8; 1]> = (0..100).map(|n| [n]).collect();
    for key in &keys {
        pipeline.call(Request::store(NS, key, Bytes::from(vec![key[0]; 4096]))).unwrap();
    }
    let mut round = |recycle: bool| {
        let mut done = Vec::new();
        for key in &keys {
            submit(&mut pipeline, Request::retrieve(NS, key, 0, 4096), &mut done);
        }
        finish(&mut pipeline, &mut done);
        done.into_iter().filter(|_| recycle).for_each(|done| pipeline.recycle(done));
        pipeline.counters().fresh_buffers
    };
    assert_eq!(round(true), 100);
    assert!((0..10).all(|_| round(true) == 100));
    assert_eq!((round(false), round(true)), (100, 200));
}

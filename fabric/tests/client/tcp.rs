//! The client over real sockets: TCP on the loopback interface, and shared memory.

use crate::support::{NS, SHARDS, ThreadHouse, bytes};
use forebay_fabric::Status;
use forebay_fabric::client::{
    Address, Client, ClientConfig, Done, Pipeline, Request, RetrieveItem, StoreItem,
};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

#[test]
fn values_go_there_and_back_over_few_links_and_over_many() {
    let tcp = [1, 2, SHARDS + 4].map(ThreadHouse::tcp);
    let shm = [1, 2, SHARDS + 4].map(ThreadHouse::shm);
    for house in tcp.into_iter().chain(shm) {
        let config = ClientConfig::new(vec![house.addresses[0].clone()]);
        let mut client = Client::connect(config).unwrap();
        let mut rng = fastrand::Rng::with_seed(7);
        for length in [0, 1, 5_000, 100_000, 4 << 20] {
            let value = bytes(&mut rng, length);
            client.store(NS, b"key", value.clone()).unwrap();
            assert!(client.retrieve(NS, b"key").unwrap().unwrap() == value, "{length} bytes");
        }
        let keys: Vec<[u8; 1]> = (0..100).map(|n| [n]).collect();
        let data = bytes::Bytes::from(vec![3; 20_000]);
        let items: Vec<_> = keys.iter().map(|key| StoreItem { key, data: data.clone() }).collect();
        let stored = client.store_batch(NS, &items).unwrap();
        assert!(stored.iter().all(|status| *status == Status::Ok));
        let asked: Vec<_> =
            keys.iter().map(|key| RetrieveItem { key, offset: 19_000, length: 5_000 }).collect();
        let found = client.retrieve_batch(NS, &asked).unwrap();
        assert!(found.into_iter().all(|found| found.unwrap() == data[19_000..]));
        assert_eq!(client.list(NS, b"").count(), 101);
    }
}

#[test]
fn a_server_that_restarts_is_found_again() {
    for house in [ThreadHouse::tcp(2), ThreadHouse::shm(2)] {
        let address = house.addresses.last().unwrap().clone();
        let mut client = Client::connect(ClientConfig::new(vec![address])).unwrap();
        for round in 0..3u8 {
            client.store(NS, b"key", vec![round; 9]).unwrap();
            assert_eq!(client.retrieve(NS, b"key").unwrap().unwrap(), vec![round; 9]);
            house.restart();
            assert_eq!(client.retrieve(NS, b"key").unwrap(), None, "its memory is gone");
        }
        assert!(client.pipeline().counters().connections >= 4);
    }
}

/// Keeps as many in flight as there is room for, until all have ended.
fn run<'a>(client: &mut Pipeline, requests: impl Iterator<Item = Request<'a>>) -> Vec<Done> {
    let (mut done, mut count) = (Vec::new(), 0);
    for request in requests {
        count += 1;
        let mut next = Some(request);
        while let Some(request) = next.take() {
            if let Err(refused) = client.submit(request) {
                next = Some(refused);
                client.poll(&mut done, 1_000_000).unwrap();
            }
        }
    }
    while done.len() < count {
        client.poll(&mut done, 1_000_000).unwrap();
    }
    done
}

/// More in flight than the area holds: what does not fit travels on the rings, between the others.
#[test]
fn an_area_that_is_full_stops_nothing() {
    let house = ThreadHouse::shm(2);
    let config = ClientConfig { queue_depth: 64, ..ClientConfig::new(house.addresses.clone()) };
    let mut client = Pipeline::connect(config).unwrap();
    let value = |n: u64| bytes(&mut fastrand::Rng::with_seed(n), 2 << 20);
    let keys: Vec<_> = (0..60u64).map(|n| n.to_le_bytes()).collect();
    let stores =
        (0..).zip(&keys).map(|(n, key)| Request::store(NS, key, value(n).into()).with_tag(n));
    assert!(run(&mut client, stores).iter().all(|done| done.status == Status::Ok));
    let retrieves =
        (0..).zip(&keys).map(|(n, key)| Request::retrieve(NS, key, 0, 4 << 20).with_tag(n));
    let done = run(&mut client, retrieves);
    assert!(done.iter().all(|done| done.data == value(done.tag)));
    assert_eq!(client.counters().connection_errors, 0);
}

#[test]
fn nobody_at_the_socket_is_told_at_once_and_in_words() {
    let address = Address::shm(std::path::Path::new("/nowhere/shm"));
    let text = Client::connect(ClientConfig::new(vec![address])).err().unwrap().to_string();
    let expected = "cannot connect to shm:/nowhere/shm.0: No such file or directory (os error 2)";
    assert_eq!(text, expected);
}

#[test]
fn nobody_at_the_address_is_told_at_once_and_in_words() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let text = Client::connect(ClientConfig::new(vec![free])).err().unwrap().to_string();
    assert_eq!(text, format!("cannot connect to {free}: Connection refused (os error 111)"));
    let v6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, free.port()));
    let text = Client::connect(ClientConfig::new(vec![v6])).err().unwrap().to_string();
    assert!(text.starts_with(&format!("cannot connect to {v6}: ")), "{text}");
}

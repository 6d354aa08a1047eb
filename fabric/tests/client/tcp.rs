//! The client over real sockets on the loopback interface.

use crate::support::{NS, SHARDS, TcpHouse, bytes};
use forebay_fabric::client::{Client, ClientConfig, RetrieveItem, StoreItem};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

#[test]
fn values_go_there_and_back_over_few_links_and_over_many() {
    for reactors in [1, 2, SHARDS + 4] {
        let house = TcpHouse::start(reactors, None);
        let config = ClientConfig::new(vec![house.addresses[0]]);
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
        assert!(stored.iter().all(|status| *status == forebay_fabric::Status::Ok));
        let asked: Vec<_> =
            keys.iter().map(|key| RetrieveItem { key, offset: 19_000, length: 5_000 }).collect();
        let found = client.retrieve_batch(NS, &asked).unwrap();
        assert!(found.into_iter().all(|found| found.unwrap() == data[19_000..]));
        assert_eq!(client.list(NS, b"").count(), 101);
    }
}

#[test]
fn a_server_that_restarts_is_found_again() {
    let house = TcpHouse::start(2, None);
    let mut client = Client::connect(ClientConfig::new(vec![house.addresses[1]])).unwrap();
    for round in 0..3u8 {
        client.store(NS, b"key", vec![round; 9]).unwrap();
        assert_eq!(client.retrieve(NS, b"key").unwrap().unwrap(), vec![round; 9]);
        house.restart();
        assert_eq!(client.retrieve(NS, b"key").unwrap(), None, "its memory is gone");
    }
    assert!(client.pipeline().counters().connections >= 4);
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

//! The client when the server or the network fails: deadlines, reconnection, replay, drain.

use crate::support::{
    House, NS, SharedHouse, SimConnector, address, bytes, client_config, connect, connect_with,
    finish, submit,
};
use bytes::Bytes;
use forebay_fabric::Status;
use forebay_fabric::client::{
    Client, ClientError, NamespaceId, Pipeline, Request, StoreItem, Target,
};
use forebay_fabric::pdu::{Endpoint, Opcode};
use forebay_fabric::stream::sim::{Direction, SimProfile};
use std::collections::BTreeMap;

fn house(reactors: u16) -> SharedHouse {
    House::new(1, SimProfile::kind(), reactors)
}

fn idle(pipeline: &mut Pipeline<SimConnector>, for_us: u64) {
    let until_us = pipeline.now_us() + for_us;
    while pipeline.now_us() < until_us {
        assert_eq!(pipeline.poll(&mut Vec::new(), 50_000).unwrap(), 0);
    }
}

#[test]
fn a_deadline_is_kept_whether_the_server_or_the_network_is_dead() {
    for network in [false, true] {
        let house = house(1);
        let mut pipeline = connect(&house, 1);
        let link = house.borrow().net.newest().unwrap();
        let die = |dead| {
            house.borrow().memory.borrow_mut().mute = dead;
            house.borrow().net.silence(link, network && dead);
        };
        die(true);
        let start_us = pipeline.now_us();
        for number in 0..10u32 {
            let request = Request::store(NS, b"key", Bytes::from(vec![1; 100_000]));
            pipeline.submit(request.with_timeout_us(50_000 * (number + 1))).unwrap();
        }
        let mut done = Vec::new();
        while pipeline.in_flight() > 0 {
            pipeline.poll(&mut done, u64::MAX).unwrap();
            let due_us = start_us + 50_000 * done.len() as u64;
            assert!((due_us..due_us + 1_000).contains(&pipeline.now_us()));
        }
        assert!(done.iter().all(|done| done.status == Status::Timeout));
        assert_eq!(pipeline.counters().timeouts, if network { 10 } else { 0 });
        // The server was told: its answers to the CANCELs free the window.
        die(false);
        let done = pipeline.call(Request::exist(NS, b"key")).unwrap();
        assert_eq!(done.status, Status::NotFound);
        for number in 0..32u8 {
            let key = [number];
            pipeline.submit(Request::exist(NS, &key)).unwrap();
        }
        finish(&mut pipeline, &mut Vec::new());
        assert_eq!(pipeline.counters().connections, 1);
    }
}

/// A house of two reactors that listen on two networks each; the second one is not preferred.
fn two_networks() -> (SharedHouse, [u16; 2]) {
    let house = house(2);
    let second = |reactor| address(reactor + 10);
    let mut open = house.borrow_mut();
    open.kill_all();
    open.config
        .endpoints
        .extend((0..2).map(|reactor| Endpoint::tcp(reactor, second(reactor)).with_preference(1)));
    open.start_all();
    let doors = [0, 1].map(|reactor| open.start_at(reactor, second(reactor)));
    drop(open);
    (house, doors)
}

#[test]
fn a_path_that_fails_is_followed_by_the_next_and_tried_again_when_that_fails() {
    let (house, second) = two_networks();
    let mut pipeline = connect(&house, 2);
    let exist = |pipeline: &mut Pipeline<SimConnector>| {
        for number in 0..20u32 {
            let done = pipeline.call(Request::exist(NS, &number.to_be_bytes())).unwrap();
            assert_eq!(done.status, Status::NotFound);
        }
    };
    exist(&mut pipeline);
    assert_eq!(pipeline.counters().connections, 2);
    (0..2).for_each(|first| house.borrow_mut().kill(first));
    exist(&mut pipeline);
    assert_eq!(pipeline.counters().connections, 4, "over the second network now");
    (0..2).for_each(|first| house.borrow_mut().start(first));
    second.into_iter().for_each(|second| house.borrow_mut().kill(second));
    exist(&mut pipeline);
    assert_eq!(pipeline.counters().connections, 6, "and back");
}

#[test]
fn a_link_on_a_lesser_path_goes_back_when_the_better_one_works_again() {
    let (house, second) = two_networks();
    let mut pipeline = connect(&house, 2);
    (0..2).for_each(|first| house.borrow_mut().kill(first));
    idle(&mut pipeline, 5_000_000);
    assert_eq!(pipeline.counters().connections, 4, "over the second network");
    // The better path still fails: a try costs a moment, and no operation.
    let next = |pipeline: &mut Pipeline<SimConnector>, until_us: u64| {
        while pipeline.now_us() < until_us {
            let done = pipeline.call(Request::exist(NS, b"key").with_timeout_us(300_000)).unwrap();
            assert_eq!(done.status, Status::NotFound);
            idle(pipeline, 100_000);
        }
    };
    next(&mut pipeline, 40_000_000);
    assert_eq!(pipeline.counters().connections, 6, "each link has tried once");
    (0..2).for_each(|first| house.borrow_mut().start(first));
    next(&mut pipeline, 110_000_000);
    assert_eq!(pipeline.counters().connections, 8);
    second.into_iter().for_each(|second| house.borrow_mut().kill(second));
    next(&mut pipeline, 112_000_000);
    assert_eq!(pipeline.counters().connections, 8, "the second network is not used any more");
}

#[test]
fn a_first_connection_finds_the_reactors_whose_preferred_path_is_dead() {
    let (house, _) = two_networks();
    house.borrow_mut().kill(1);
    let pipeline = connect(&house, 2);
    assert_eq!(pipeline.counters().connections, 2);
}

#[test]
fn a_dead_server_ends_everything_by_its_deadline_and_comes_back() {
    let house = house(2);
    let mut pipeline = connect(&house, 2);
    house.borrow_mut().kill(0);
    house.borrow_mut().kill(1);
    for number in 0..20u32 {
        let key = number.to_be_bytes();
        let request = Request::exist(NS, &key).with_timeout_us(300_000);
        pipeline.submit(request).unwrap();
    }
    let start_us = pipeline.now_us();
    let mut done = Vec::new();
    finish(&mut pipeline, &mut done);
    assert!(pipeline.now_us() - start_us < 301_000);
    let ended = |done: &forebay_fabric::client::Done| {
        matches!(done.status, Status::Timeout | Status::Disconnected)
    };
    assert!(done.len() == 20 && done.iter().all(ended));
    house.borrow_mut().start(0);
    house.borrow_mut().start(1);
    let done = pipeline.call(Request::store(NS, b"key", Bytes::from_static(b"v"))).unwrap();
    assert_eq!(done.status, Status::Ok);
}

#[test]
fn reconnection_backs_off() {
    let house = house(1);
    let mut pipeline = connect(&house, 3);
    house.borrow_mut().kill(0);
    idle(&mut pipeline, 10_000_000);
    let errors = pipeline.counters().connection_errors;
    // 10 ms doubling to 1 s, each between the half and the whole: 6 or 7 steps, then 8 to 18 s⁻¹.
    assert!((14..=28).contains(&errors), "{errors} attempts in 10 s");
}

#[test]
fn a_silent_server_is_noticed_and_left() {
    let house = house(1);
    let mut pipeline = connect(&house, 4);
    let link = house.borrow().net.newest().unwrap();
    house.borrow().net.silence(link, true);
    let start_us = pipeline.now_us();
    let done = pipeline.call(Request::store(NS, b"key", Bytes::from_static(b"v"))).unwrap();
    assert_eq!(done.status, Status::Ok);
    let took_us = pipeline.now_us() - start_us;
    assert!((900_000..1_200_000).contains(&took_us), "keep-alive of 1 s, took {took_us} us");
    assert_eq!(pipeline.counters().replays, 1);
}

#[test]
fn an_idle_connection_stays_up_while_it_is_polled() {
    let house = house(2);
    let mut pipeline = connect(&house, 5);
    idle(&mut pipeline, 20_000_000);
    let counters = pipeline.counters();
    assert_eq!((counters.connections, counters.connection_errors), (2, 0));
}

#[test]
fn a_client_that_slept_reconnects_without_its_caller_noticing() {
    let house = house(2);
    let mut client = Client::over(connect(&house, 6));
    client.store(NS, b"key", &b"value"[..]).unwrap();
    for _ in 0..1_000 {
        house.borrow().net.advance(30_000);
        house.borrow_mut().step();
    }
    assert_eq!(client.retrieve(NS, b"key").unwrap().unwrap(), b"value");
}

#[test]
fn reads_and_writes_survive_a_network_that_cuts_connections() {
    let (mut replays, mut seen_twice) = (0, 0);
    for seed in 0..40 {
        let house = House::new(seed, SimProfile::choppy(), 2);
        let mut pipeline = connect(&house, seed);
        let profile = SimProfile { cut_per_million: 10_000, ..SimProfile::choppy() };
        house.borrow().net.set_profile(profile);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut model: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for _round in 0..10 {
            let mut done = Vec::new();
            for key in 0..30u64 {
                let name = key.to_be_bytes();
                let request = if rng.bool() {
                    let most = if rng.u8(0..8) == 0 { 60_000 } else { 3_000 };
                    let length = rng.usize(1..most);
                    let value = bytes(&mut rng, length);
                    model.insert(key, value.clone());
                    Request::store(NS, &name, value.into())
                } else {
                    Request::retrieve(NS, &name, 0, u32::MAX)
                };
                let request = request.with_tag(key).with_timeout_us(60_000_000);
                submit(&mut pipeline, request, &mut done);
            }
            finish(&mut pipeline, &mut done);
            assert_eq!(done.len(), 30, "seed {seed}");
            for done in done {
                let value = model.get(&done.tag);
                let found = done.status == Status::NotFound && value.is_none();
                assert!(done.status == Status::Ok || found, "seed {seed}: {:?}", done.status);
                let is_its = value.is_some_and(|value| done.data == *value);
                assert!(done.data.is_empty() || is_its, "seed {seed}");
            }
        }
        let house = house.borrow();
        let memory = house.memory.borrow();
        for (key, value) in &model {
            assert!(memory.values[&(NS.0, key.to_be_bytes().to_vec())] == *value, "seed {seed}");
        }
        assert_eq!(house.protocol_errors(), 0, "seed {seed}");
        seen_twice += memory.tokens.values().filter(|&&seen| seen > 1).count();
        replays += pipeline.counters().replays;
    }
    assert!(replays > 100 && seen_twice > 10, "{replays} replays, {seen_twice} recognisable");
}

#[test]
fn a_cut_after_any_byte_of_either_direction_loses_nothing() {
    for direction in [Direction::ToServer, Direction::ToClient] {
        for byte in 0.. {
            let house = house(1);
            let mut pipeline = connect(&house, 7);
            let link = house.borrow().net.newest().unwrap();
            let written = house.borrow().net.written(link, direction);
            house.borrow().net.cut_at(link, direction, written + byte);
            let store = Request::store(NS, b"key", Bytes::from(vec![7; 17_000]));
            assert_eq!(pipeline.call(store).unwrap().status, Status::Ok, "byte {byte}");
            let done = pipeline.call(Request::retrieve(NS, b"key", 3, 500)).unwrap();
            assert!(done.status == Status::Ok && done.data == [7; 500], "byte {byte}");
            let replayed = pipeline.counters().connections == 2;
            if !replayed {
                assert!(byte > 500, "both requests were over before byte {byte}");
                break;
            }
        }
    }
}

#[test]
fn a_cut_during_the_first_handshake_is_told_with_its_address() {
    for direction in [Direction::ToServer, Direction::ToClient] {
        let mut failed = 0;
        for byte in 0..300 {
            let house = house(1);
            let first = house.borrow().net.newest().map_or(0, |id| id + 1);
            let connector = CutConnector { inner: SimConnector::new(&house), direction, byte };
            match Pipeline::connect_with(client_config(8), connector) {
                Ok(_) => break,
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.starts_with("cannot connect to 10.0.0.1:7000: "), "{text}");
                    failed += 1;
                }
            }
            assert_eq!(house.borrow().net.newest(), Some(first), "one attempt, no more");
        }
        assert!((60..300).contains(&failed), "{failed} bytes of handshake");
    }
}

/// Cuts the first connection after some bytes.
struct CutConnector {
    inner: SimConnector,
    direction: Direction,
    byte: u64,
}

impl forebay_fabric::client::Connector for CutConnector {
    type Stream = forebay_fabric::stream::sim::SimStream;

    fn connect(
        &mut self,
        address: &forebay_fabric::client::Address,
    ) -> std::io::Result<Self::Stream> {
        let stream = self.inner.connect(address)?;
        self.inner.house.borrow().net.cut_at(stream.id(), self.direction, self.byte);
        Ok(stream)
    }

    fn wait(
        &mut self,
        slots: &[forebay_fabric::client::Slot<Self::Stream>],
        timeout_us: u64,
    ) -> std::io::Result<()> {
        self.inner.wait(slots, timeout_us)
    }

    fn now_us(&mut self) -> u64 {
        self.inner.now_us()
    }
}

#[test]
fn what_cannot_be_sent_twice_ends_as_disconnected() {
    let house = house(1);
    house.borrow().memory.borrow_mut().slow_us = 10_000;
    let mut pipeline = connect(&house, 9);
    let remove = |tag| {
        let (opcode, ns) = (Opcode::CheckpointDelete, NamespaceId::CATALOG);
        Request::command(opcode, Target::Catalog, ns, b"run/1", Bytes::new()).with_tag(tag)
    };
    pipeline.submit(remove(1)).unwrap();
    pipeline.submit(Request::exist(NS, b"key").with_tag(2)).unwrap();
    let mut done = Vec::new();
    pipeline.poll(&mut done, 1_000).unwrap();
    house.borrow_mut().kill(0);
    pipeline.poll(&mut done, 1_000).unwrap();
    assert_eq!((done[0].tag, done[0].status), (1, Status::Disconnected));
    // Not sent yet: it waits for the next connection.
    pipeline.submit(remove(3)).unwrap();
    house.borrow_mut().start(0);
    finish(&mut pipeline, &mut done);
    let ends: Vec<_> = done.iter().map(|done| (done.tag, done.status)).collect();
    assert_eq!(ends.len(), 3);
    assert!(ends.contains(&(2, Status::NotFound)) && ends.contains(&(3, Status::NoCheckpoint)));
    let commands = house.borrow().memory.borrow().commands.clone();
    assert_eq!(commands[&(Opcode::CheckpointDelete as u8)], 2);
}

#[test]
fn a_write_keeps_its_token_when_it_is_sent_again() {
    let house = house(1);
    house.borrow().memory.borrow_mut().mute = true;
    let mut pipeline = connect(&house, 10);
    let keys: Vec<[u8; 1]> = (0..20).map(|n| [n]).collect();
    let items: Vec<_> =
        keys.iter().map(|key| StoreItem { key, data: Bytes::from_static(b"value") }).collect();
    pipeline.submit(Request::store_batch(NS, &items)).unwrap();
    pipeline.submit(Request::store(NS, b"single", Bytes::from_static(b"v"))).unwrap();
    for _ in 0..3 {
        pipeline.poll(&mut Vec::new(), 100_000).unwrap();
        let link = house.borrow().net.newest().unwrap();
        house.borrow().net.reset(link);
    }
    house.borrow().memory.borrow_mut().mute = false;
    let mut done = Vec::new();
    finish(&mut pipeline, &mut done);
    assert!(done.iter().all(|done| done.status == Status::Ok));
    assert_eq!(pipeline.counters().replays, 6);
    let memory = house.borrow().memory.borrow().tokens.clone();
    assert_eq!(memory.len(), 21, "one token for each write, however often it is sent");
}

#[test]
fn two_clients_never_share_a_token() {
    let house = house(1);
    for seed in 0..20 {
        let mut pipeline = connect(&house, seed);
        for number in 0..10u8 {
            pipeline.call(Request::store(NS, &[number], Bytes::new())).unwrap();
        }
    }
    let tokens = house.borrow().memory.borrow().tokens.clone();
    assert_eq!(tokens.len(), 200);
    assert!(!tokens.contains_key(&0));
}

#[test]
fn a_draining_server_answers_what_it_has_and_gets_nothing_new() {
    let house = house(1);
    house.borrow().memory.borrow_mut().slow_us = 20_000;
    let mut pipeline = connect(&house, 11);
    let mut done = Vec::new();
    for number in 0..10u8 {
        let key = [number];
        let request = Request::store(NS, &key, Bytes::from_static(b"v"));
        pipeline.submit(request.with_tag(number.into())).unwrap();
    }
    pipeline.poll(&mut done, 2_000).unwrap();
    house.borrow_mut().drain(0);
    pipeline.poll(&mut done, 2_000).unwrap();
    for number in 10..20u8 {
        let key = [number];
        let request = Request::store(NS, &key, Bytes::from_static(b"v"));
        pipeline.submit(request.with_tag(number.into())).unwrap();
    }
    while done.len() < 10 {
        pipeline.poll(&mut done, 100_000).unwrap();
    }
    assert!(done.iter().all(|done| done.tag < 10 && done.status == Status::Ok));
    let stores = house.borrow().memory.borrow().commands[&(Opcode::Store as u8)];
    assert_eq!(stores, 10, "nothing is sent to a server that drains");
    house.borrow_mut().kill(0);
    house.borrow_mut().config.incarnation = [2; 16];
    house.borrow_mut().start(0);
    finish(&mut pipeline, &mut done);
    assert_eq!(done.len(), 20);
    assert!(done.iter().all(|done| done.status == Status::Ok));
    assert_eq!(pipeline.counters().replays, 0);
}

#[test]
fn another_pool_at_the_same_address_is_an_error_and_not_a_store() {
    let house = house(2);
    let mut pipeline = connect(&house, 12);
    house.borrow_mut().kill_all();
    house.borrow_mut().config.pool = [8; 16];
    house.borrow_mut().start_all();
    let request = Request::store(NS, b"key", Bytes::from_static(b"v"));
    pipeline.submit(request.with_tag(1)).unwrap();
    let mut done = Vec::new();
    let error = loop {
        match pipeline.poll(&mut done, 1_000_000) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    let text = error.to_string();
    assert!(text.contains(&"08".repeat(16)) && text.contains(&"07".repeat(16)), "{text}");
    assert_eq!((done.len(), done[0].status), (1, Status::Disconnected));
    // It stays that way, and nothing reached the other pool.
    pipeline.submit(Request::exist(NS, b"key")).unwrap();
    assert!(matches!(pipeline.poll(&mut done, 0), Err(ClientError::Connect { .. })));
    assert_eq!((done.len(), done[1].status), (2, Status::Disconnected));
    assert!(house.borrow().memory.borrow().values.is_empty());
}

#[test]
fn a_server_that_returns_with_other_reactors_gets_everything_at_the_right_one() {
    for (before, after) in [(1, 3), (3, 1), (2, 4), (4, 2)] {
        let house = house(before);
        let mut pipeline = connect(&house, 13);
        house.borrow_mut().kill_all();
        let keys: Vec<[u8; 2]> = (0..60u16).map(u16::to_be_bytes).collect();
        let items: Vec<_> =
            keys.iter().map(|key| StoreItem { key, data: Bytes::copy_from_slice(key) }).collect();
        let mut done = Vec::new();
        pipeline.submit(Request::store_batch(NS, &items).with_tag(99)).unwrap();
        for number in 0..10u64 {
            let key = [number as u8];
            let request = Request::store(NS, &key, Bytes::from_static(b"v"));
            pipeline.submit(request.with_tag(number)).unwrap();
        }
        pipeline.poll(&mut done, 100_000).unwrap();
        house.borrow_mut().config = House::config(after, 2);
        house.borrow_mut().start_all();
        finish(&mut pipeline, &mut done);
        assert_eq!(done.len(), 11, "{before} to {after}");
        for done in &done {
            assert_eq!(done.status, Status::Ok, "{before} to {after}, tag {}", done.tag);
            assert!(done.items.iter().all(|item| item.status == Status::Ok));
        }
        assert_eq!(pipeline.reactors(), after);
        let house = house.borrow();
        let memory = house.memory.borrow();
        assert_eq!((memory.misrouted, memory.values.len()), (0, 70));
        assert!(keys.iter().all(|key| memory.values[&(NS.0, key.to_vec())] == key));
    }
}

#[test]
fn a_reactor_out_of_reach_is_named_when_connecting() {
    let house = house(3);
    house.borrow_mut().kill(2);
    let error = connect_with(&house, client_config(14)).err().unwrap();
    assert_eq!(error.to_string(), "cannot connect to 10.0.0.1:7002: connection refused");
}

//! Deadlines and keep-alives, on a virtual clock.

use crate::world::*;
use forebay_fabric::Status;
use forebay_fabric::conformance::Peer;
use forebay_fabric::pdu::{Data, GoAwayReason, Opcode, PduType, Ping, Transfer};
use forebay_fabric::stream::sim::{SimNet, SimProfile};
use std::io::Write;
use zerocopy::IntoBytes;

#[test]
fn every_command_ends_by_its_deadline() {
    let max_us = u64::from(TIMEOUT_MAX_US);
    for (asked_us, granted_us) in [(0, max_us), (20_000, 20_000), (u32::MAX, max_us), (1, 1)] {
        let mut world = World::new();
        let mut client = world.client();
        client.send(&transfer(Opcode::Retrieve, 6, 100, asked_us));
        client.turn();
        world.turn();
        let arrived_us = world.net.now_us();
        let told = world.told();
        let [Told::Request { id, deadline_us, .. }] = told[..] else { panic!("{told:?}") };
        assert_eq!(deadline_us, arrived_us + granted_us);
        world.server.poll(arrived_us, &mut world.desk);
        // A reactor that sleeps until the server says so is neither early nor late.
        while world.desk.told.is_empty() {
            let next_us = world.server.next_deadline_us().unwrap();
            assert!(next_us > world.net.now_us(), "nothing is to be done now");
            world.net.advance(next_us - world.net.now_us());
            world.server.poll(next_us, &mut world.desk);
            world.server.flush(next_us);
        }
        assert_eq!(world.net.now_us(), deadline_us);
        assert_eq!(world.told(), [Told::Abandoned(id, Status::Timeout)]);
        world.reply_with(id, b"too late");
        world.settle(&mut [&mut client]);
        assert_eq!(outcomes(&mut client), [(6, Status::Timeout)]);
        assert_eq!(world.buffers.live(), 0);
        world.assert_served(&mut client);
        assert_eq!(world.server.counters().timeouts, 1);
    }
}

#[test]
fn deadlines_pass_in_their_order() {
    let mut world = World::new();
    let mut client = world.client();
    for (cid, timeout_us) in [(0, 40_000), (1, 10_000), (2, 30_000), (3, 20_000)] {
        client.send(&transfer(Opcode::Retrieve, cid, 100, timeout_us));
    }
    world.run(&mut [&mut client], 60_000);
    let cids: Vec<_> = outcomes(&mut client).into_iter().map(|(cid, _)| cid).collect();
    assert_eq!(cids, [1, 3, 2, 0]);
}

#[test]
fn late_data_still_frees_its_buffer_and_its_identifier() {
    let mut world = World::new();
    let mut client = world.client();
    client.send(&transfer(Opcode::Store, 0, 1000, 10_000));
    world.settle(&mut [&mut client]);
    let id = world.request();
    world.pull(id, 1000);
    world.run(&mut [&mut client], 20_000);
    assert_eq!(outcomes(&mut client), [(0, Status::Timeout)]);
    assert_eq!(world.told(), [Told::Abandoned(id, Status::Timeout)]);
    world.reply(id, Status::Ok);
    assert_eq!(world.buffers.live(), 1, "the client may still be sending");
    client.send(Data::new(Transfer { cid: 0, offset: 0, length: 1000 }).as_bytes());
    client.send(&[1; 1000]);
    client.send(&store(0, b"key", b"the next command of this identifier"));
    world.settle(&mut [&mut client]);
    let told = world.told();
    assert_eq!(told[0], Told::Pulled(id, vec![1; 1000], true));
    assert!(matches!(&told[1], Told::Request { id, .. } if id.cid == 0));
    assert_eq!(world.buffers.live(), 0);
}

#[test]
fn a_client_that_never_sends_its_data_is_closed() {
    let mut world = World::new();
    let (mut client, mut other) = (world.client(), world.client());
    client.send(&transfer(Opcode::Store, 0, 1000, 10_000));
    world.settle(&mut [&mut client]);
    let id = world.request();
    world.pull(id, 1000);
    for _ in 0..12 {
        // It is there, and has nothing to say but this.
        client.send(Ping::new(PduType::Ping, 0).as_bytes());
        world.run(&mut [&mut client, &mut other], KEEP_ALIVE_US / 10);
    }
    world.assert_dismissed(&mut client, GoAwayReason::Protocol);
    world.settle(&mut [&mut other]);
    assert!(world.told().contains(&Told::Pulled(id, vec![0xEE; 1000], false)));
    assert_eq!(world.buffers.live(), 0);
    world.assert_served(&mut other);
}

#[test]
fn a_ping_is_answered_with_its_nonce() {
    let mut world = World::new();
    let mut client = world.mute_client();
    client.send(Ping::new(PduType::Ping, 0xABCD).as_bytes());
    world.settle(&mut [&mut client]);
    assert_eq!(client.received(), [Ping::new(PduType::Pong, 0xABCD).as_bytes()]);
}

#[test]
fn a_silent_client_is_asked_and_then_closed() {
    let mut world = World::new();
    let mut client = world.mute_client();
    world.run(&mut [&mut client], 3 * KEEP_ALIVE_US + 20 * TURN_US);
    let received = client.received();
    let kinds: Vec<_> = received.iter().map(|pdu| PduType::from_wire(pdu[0])).collect();
    assert_eq!(kinds, [Some(PduType::Ping), Some(PduType::Ping), Some(PduType::GoAway)]);
    assert!(client.is_closed());
    drop(client);
    world.settle(&mut []);
    assert_eq!(world.server.counters().silent, 1);
    assert_eq!(world.server.counters().connections_open, 0);
}

#[test]
fn a_client_that_answers_is_never_closed() {
    let mut world = World::new();
    let mut client = world.mute_client();
    for _ in 0..100 {
        world.run(&mut [&mut client], KEEP_ALIVE_US / 10);
        for ping in client.received() {
            let nonce = Ping::parse(&ping, PduType::Ping).unwrap();
            client.send(Ping::new(PduType::Pong, nonce).as_bytes());
        }
    }
    world.assert_served(&mut client);
}

#[test]
fn a_cable_pulled_far_away_is_noticed() {
    let mut world = World::new();
    let mut client = world.client();
    let id = client.stream().id();
    client.send(&store(0, b"key", b"value"));
    world.settle(&mut [&mut client]);
    let request = world.request();
    world.net.silence(id, true);
    world.run(&mut [&mut client], 5 * KEEP_ALIVE_US);
    assert_eq!(world.server.counters().connections_open, 0);
    assert_eq!(world.told(), [Told::Abandoned(request, Status::Timeout)]);
    world.reply(request, Status::Ok);
    assert!(world.server.is_idle());
}

#[test]
fn a_peer_that_does_not_read_keeps_no_buffers() {
    let profile = SimProfile { window_bytes: 10_000, ..SimProfile::kind() };
    let mut world = World::with(SimNet::new(1, profile));
    let mut client = world.client();
    for cid in 0..DEPTH {
        client.send(&transfer(Opcode::Retrieve, cid, 100_000, 0));
    }
    world.settle(&mut [&mut client]);
    for id in world.requests() {
        world.reply_with(id, &[1; 100_000]);
    }
    // It goes on sending, so that only its not reading can be held against it.
    let ping = Ping::new(PduType::Ping, 0);
    for _ in 0..30 {
        drop(client.stream().write(ping.as_bytes()));
        world.run(&mut [], KEEP_ALIVE_US / 10);
    }
    assert_eq!(world.buffers.live(), 0);
    assert_eq!(world.server.counters().connections_open, 0);
}

#[test]
fn a_flood_of_pings_without_reading_ends_the_connection() {
    let profile = SimProfile { window_bytes: 1 << 20, ..SimProfile::kind() };
    let mut world = World::with(SimNet::new(1, profile));
    let (mut client, mut other) = (world.client(), world.client());
    let pings = Ping::new(PduType::Ping, 0).as_bytes().repeat(40_000);
    for _ in 0..10 {
        drop(client.stream().write(&pings));
        world.settle(&mut [&mut other]);
    }
    assert_eq!(world.server.counters().connections_open, 1);
    world.assert_served(&mut other);
}

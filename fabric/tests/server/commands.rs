//! Commands, their data, their end.

use crate::world::*;
use forebay_fabric::Status;
use forebay_fabric::conformance::Peer;
use forebay_fabric::pdu::{
    Cancel, GoAway, GoAwayReason, ItemResult, Opcode, PduType, Ping, crc32c, response_flags,
};
use forebay_fabric::server::{Reply, RequestId};
use forebay_fabric::transport::{ConnId, Payload};
use zerocopy::IntoBytes;

#[test]
fn a_value_in_the_capsule_reaches_the_service() {
    let mut world = World::new();
    let mut client = world.client();
    client.send(&store(2, b"key", b"value"));
    world.settle(&mut [&mut client]);
    let told = world.told();
    let [Told::Request { id, opcode: Opcode::Store, key, data, .. }] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!((&key[..], &data[..], id.cid), (&b"key"[..], &b"value"[..], 2));
    world.reply(*id, Status::Quota);
    world.settle(&mut [&mut client]);
    let responses = responses(&mut client);
    assert_eq!(responses.len(), 1);
    let (outcome, data) = &responses[0];
    assert_eq!((outcome.cid, outcome.status), (2, Status::Quota));
    assert_eq!((outcome.credit_limit, outcome.data_length), (DEPTH, 0));
    assert!(data.is_empty() && world.server.is_idle());
}

#[test]
fn a_value_that_is_pulled_reaches_the_service() {
    let mut world = World::new();
    let mut client = world.client();
    let value: Vec<u8> = (0..1_000_000).map(|i| i as u8).collect();
    client.lend(4, value.clone());
    client.send(&transfer(Opcode::Store, 4, value.len(), 0));
    world.settle(&mut [&mut client]);
    let id = world.request();
    world.pull(id, value.len());
    world.settle(&mut [&mut client]);
    assert_eq!(world.told(), [Told::Pulled(id, value, true)]);
    world.reply(id, Status::Ok);
    world.settle(&mut [&mut client]);
    assert_eq!(outcomes(&mut client), [(4, Status::Ok)]);
    assert!(world.server.is_idle() && world.buffers.live() == 0);
    assert!(world.server.counters().bytes_in > 1_000_000);
}

#[test]
fn data_follows_its_response() {
    let mut world = World::new();
    let mut client = world.client();
    client.send(&transfer(Opcode::Retrieve, 0, 4096, 0));
    client.send(&transfer(Opcode::Retrieve, 1, 4096, 0));
    world.settle(&mut [&mut client]);
    let ids = world.requests();
    // In the order of the answers, not of the questions.
    world.reply_with(ids[1], b"second");
    world.reply_with(ids[0], b"first");
    world.settle(&mut [&mut client]);
    let found: Vec<_> = responses(&mut client).into_iter().map(|(o, d)| (o.cid, d)).collect();
    assert_eq!(found, [(1, b"second".to_vec()), (0, b"first".to_vec())]);
    assert_eq!(world.buffers.live(), 0);
}

#[test]
fn a_batch_is_answered_from_several_buffers() {
    let mut world = World::new();
    let mut client = world.client();
    client.send(&transfer(Opcode::Retrieve, 0, 4096, 0));
    world.settle(&mut [&mut client]);
    let id = world.request();
    let results = [
        ItemResult::new(Status::Ok, 3, 3, crc32c(b"one")),
        ItemResult::new(Status::NotFound, 0, 0, 0),
        ItemResult::new(Status::Ok, 5, 5, crc32c(b"three")),
    ];
    let mut parts: Vec<_> = [results.as_bytes(), b"one", b"three"]
        .map(|part| Payload { buffer: world.buffers.holding(part.to_vec()), range: 0..part.len() })
        .into();
    let crc = crc32c(results.as_bytes());
    let reply =
        Reply { flags: response_flags::ITEMS, data_crc: crc, ..Reply::status(Status::Ok, 0) };
    world.server.reply_parts(id, &reply, &mut parts);
    assert!(parts.is_empty());
    world.settle(&mut [&mut client]);
    let (outcome, data) = responses(&mut client).remove(0);
    assert_eq!(outcome.flags, response_flags::ITEMS);
    let (found, rest) = ItemResult::parse_all(&data, 3, outcome.data_crc).unwrap();
    assert_eq!((found, rest), (&results[..], &b"onethree"[..]));
}

#[test]
fn a_full_queue_of_commands_is_served_over_and_over() {
    let mut world = World::new();
    let mut client = world.client();
    for round in 0..50 {
        for cid in 0..DEPTH {
            client.send(&store(cid, b"key", &[round; 100]));
        }
        world.settle(&mut [&mut client]);
        for id in world.requests().into_iter().rev() {
            world.reply(id, Status::Ok);
        }
        world.settle(&mut [&mut client]);
        assert_eq!(outcomes(&mut client).len(), usize::from(DEPTH), "round {round}");
    }
    let counters = world.server.counters();
    assert_eq!((counters.requests, counters.responses), (50 * 8, 50 * 8));
    assert!(world.server.is_idle());
}

#[test]
fn a_cancelled_command_is_answered_once_and_its_late_reply_swallowed() {
    let mut world = World::new();
    let mut client = world.client();
    client.send(&store(1, b"key", b"value"));
    client.send(Cancel::new(1).as_bytes());
    // Not in flight: nothing to give up.
    client.send(Cancel::new(2).as_bytes());
    world.settle(&mut [&mut client]);
    let id = world.request();
    assert_eq!(world.told(), [Told::Abandoned(id, Status::Cancelled)]);
    assert_eq!(outcomes(&mut client), [(1, Status::Cancelled)]);
    assert!(!world.server.is_idle(), "the service has not ended it");
    // The identifier is free at once; the late reply does not answer the new command.
    client.send(&store(1, b"key", b"again"));
    world.settle(&mut [&mut client]);
    let again = world.request();
    world.reply(id, Status::Corrupt);
    world.settle(&mut [&mut client]);
    assert_eq!(outcomes(&mut client), []);
    world.reply(again, Status::Ok);
    world.settle(&mut [&mut client]);
    assert_eq!(outcomes(&mut client), [(1, Status::Ok)]);
    assert!(world.server.is_idle());
    assert_eq!(world.server.counters().cancelled, 1);
}

#[test]
fn abandoned_commands_that_pile_up_make_the_connection_busy() {
    let mut world = World::new();
    let mut client = world.client();
    for _ in 0..DEPTH {
        client.send(&store(0, b"key", b"value"));
        client.send(Cancel::new(0).as_bytes());
    }
    client.send(&store(0, b"key", b"value"));
    world.settle(&mut [&mut client]);
    let abandoned = world.requests();
    assert_eq!(abandoned.len(), usize::from(DEPTH));
    assert_eq!(outcomes(&mut client).last(), Some(&(0, Status::Busy)));
    let mut other = world.client();
    world.assert_served(&mut other);
    world.reply(abandoned[0], Status::Ok);
    world.assert_served(&mut client);
    abandoned[1..].iter().for_each(|id| world.reply(*id, Status::Ok));
    assert!(world.server.is_idle());
}

#[test]
fn a_lost_connection_abandons_its_commands_and_harms_no_later_one() {
    let mut world = World::new();
    let mut client = world.client();
    client.send(&store(0, b"key", b"value"));
    client.send(&transfer(Opcode::Store, 1, 1000, 0));
    world.settle(&mut [&mut client]);
    let ids = world.requests();
    world.pull(ids[1], 1000);
    drop(client);
    world.settle(&mut []);
    let told = world.told();
    assert_eq!(told[0], Told::Pulled(ids[1], vec![0xEE; 1000], false));
    for id in &ids {
        assert!(told.contains(&Told::Abandoned(*id, Status::Disconnected)), "{told:?}");
    }
    // Another client in the same place, with the same identifiers in flight.
    let mut client = world.client();
    client.send(&store(0, b"key", b"value"));
    world.settle(&mut [&mut client]);
    let id = world.request();
    assert_eq!(id.conn.slot, ids[0].conn.slot);
    ids.iter().for_each(|stale| world.reply_with(*stale, b"stale"));
    world.settle(&mut [&mut client]);
    assert_eq!(outcomes(&mut client), []);
    world.reply(id, Status::Ok);
    world.settle(&mut [&mut client]);
    assert_eq!(outcomes(&mut client), [(0, Status::Ok)]);
    assert!(world.server.is_idle() && world.buffers.live() == 0);
    assert_eq!(world.server.counters().disconnected, 2);
}

#[test]
fn a_pull_for_a_command_that_is_gone_comes_back() {
    let mut world = World::new();
    let never = RequestId { conn: ConnId { slot: 3, generation: 9 }, cid: 1, generation: 1 };
    world.pull(never, 10);
    assert_eq!(world.server.next_deadline_us(), Some(0));
    world.turn();
    assert_eq!(world.told(), [Told::Pulled(never, vec![0xEE; 10], false)]);
}

#[test]
fn a_reply_may_come_before_its_pull_has_ended() {
    let mut world = World::new();
    let mut client = world.client();
    client.send(&transfer(Opcode::Store, 0, 1000, 0));
    world.settle(&mut [&mut client]);
    let id = world.request();
    world.pull(id, 1000);
    world.reply(id, Status::NoSpace);
    client.lend(0, vec![5; 1000]);
    world.settle(&mut [&mut client]);
    assert_eq!(outcomes(&mut client), [(0, Status::NoSpace)]);
    assert_eq!(world.told(), [Told::Pulled(id, vec![5; 1000], true)]);
    world.assert_served(&mut client);
    assert!(world.server.is_idle());
}

#[test]
fn a_draining_server_answers_what_is_in_flight_and_takes_nothing_new() {
    let mut world = World::new();
    let (mut client, mut greeting) = (world.client(), world.dial());
    client.send(&store(0, b"key", b"value"));
    world.settle(&mut [&mut client, &mut greeting]);
    let id = world.request();
    let now_us = world.net.now_us();
    world.server.drain(now_us);
    client.send(&store(1, b"key", b"value"));
    client.send(Ping::new(PduType::Ping, 3).as_bytes());
    world.settle(&mut [&mut client, &mut greeting]);
    assert_eq!(world.requests(), []);
    let drain = GoAway::new(GoAwayReason::Drain).as_bytes().to_vec();
    let mut received = client.received();
    assert_eq!(received.remove(0), drain);
    let refused = forebay_fabric::pdu::Response::parse(&received.remove(0)).unwrap();
    assert_eq!((refused.cid, refused.status), (1, Status::ShuttingDown));
    assert_eq!(received, [Ping::new(PduType::Pong, 3).as_bytes()]);
    assert!(!world.server.is_idle());
    world.reply(id, Status::Ok);
    world.settle(&mut [&mut client]);
    assert_eq!(outcomes(&mut client), [(0, Status::Ok)]);
    assert!(world.server.is_idle());
    world.assert_dismissed(&mut greeting, GoAwayReason::Drain);
    let mut late = world.dial();
    world.assert_dismissed(&mut late, GoAwayReason::Drain);
}

#[test]
fn a_leaving_client_gets_its_last_answer_before_the_end() {
    let mut world = World::new();
    let mut client = world.client();
    client.send(&transfer(Opcode::Retrieve, 0, 4096, 0));
    client.send(GoAway::new(GoAwayReason::Drain).as_bytes());
    world.settle(&mut [&mut client]);
    assert!(!client.is_closed());
    let id = world.request();
    world.reply_with(id, &[3; 4096]);
    world.settle(&mut [&mut client]);
    let (outcome, data) = responses(&mut client).remove(0);
    assert_eq!((outcome.status, data), (Status::Ok, vec![3; 4096]));
    assert!(client.is_closed());
    let mut idle = world.client();
    idle.send(GoAway::new(GoAwayReason::Drain).as_bytes());
    world.settle(&mut [&mut idle]);
    assert!(idle.is_closed(), "nothing in flight: closed at once");
}

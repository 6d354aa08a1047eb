//! HELLO, AUTH, and what is granted.

use crate::world::*;
use forebay_fabric::Status;
use forebay_fabric::conformance::Peer;
use forebay_fabric::pdu::{
    Auth, Command, GoAwayReason, Hello, Item, Offer, Opcode, PduType, Response, Welcome, features,
};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

fn greet(world: &mut World, offer: &Offer) -> (Client, Welcome) {
    let mut client = world.dial();
    client.send(Hello::new(offer).as_bytes());
    world.settle(&mut [&mut client]);
    let welcome = Welcome::parse(&client.received().remove(0)).expect("HELLO_ACK");
    (client, welcome)
}

#[test]
fn the_server_says_where_everything_is() {
    let mut world = World::new();
    let (_client, welcome) = greet(&mut world, &offer());
    let config = config(world.address);
    assert_eq!(welcome.shard_map, config.shard_map);
    assert_eq!(welcome.endpoints, config.endpoints);
    assert_eq!((welcome.pool, welcome.incarnation), (config.pool, config.incarnation));
    assert_eq!((welcome.reactor, welcome.catalog_reactor), (1, 0));
    assert_eq!(welcome.timeout_max_us, TIMEOUT_MAX_US);
}

#[test]
fn nobody_is_granted_more_than_both_sides_want() {
    let mut world = World::new();
    let wishes = |queue_depth, capsule_bytes, keep_alive_ms| Offer {
        queue_depth,
        capsule_bytes,
        keep_alive_ms,
        ..offer()
    };
    for (wish, granted) in [
        (wishes(u16::MAX, u32::MAX, u32::MAX), (DEPTH, 8192, 1000)),
        (wishes(2, 4096, 500), (2, 4096, 500)),
        // Nothing can be done with less than this.
        (wishes(0, 0, 1), (1, 2048, 100)),
        (wishes(1, 1, 0), (1, 2048, 1000)),
    ] {
        let (_client, welcome) = greet(&mut world, &wish);
        let found = (welcome.queue_depth, welcome.capsule_bytes, welcome.keep_alive_ms);
        assert_eq!(found, granted, "{wish:?}");
    }
}

#[test]
fn the_highest_common_version_is_spoken_or_none() {
    let mut world = World::new();
    let (_client, welcome) = greet(&mut world, &Offer { versions: 0..=9, ..offer() });
    assert_eq!(welcome.version, 1);
    for versions in [2..=9, 0..=0] {
        let mut client = world.dial();
        client.send(Hello::new(&Offer { versions, ..offer() }).as_bytes());
        world.assert_dismissed(&mut client, GoAwayReason::Version);
    }
    assert_eq!(world.server.counters().refused, 2);
}

#[test]
fn unknown_authentication_is_refused() {
    let mut world = World::new();
    let (mut client, _) = greet(&mut world, &offer());
    let mut auth = Auth::none(PduType::Auth);
    auth.method = U16::new(1);
    auth.header_crc = U32::new(forebay_fabric::pdu::crc32c(&auth.as_bytes()[..12]));
    client.send(auth.as_bytes());
    world.assert_dismissed(&mut client, GoAwayReason::Auth);
    assert_eq!(world.server.counters().refused, 1);
}

#[test]
fn a_handshake_that_does_not_end_is_closed() {
    for hello in [false, true] {
        let mut world = World::new();
        let mut client = world.dial();
        if hello {
            client.send(Hello::new(&offer()).as_bytes());
        }
        world.run(&mut [&mut client], KEEP_ALIVE_US - 10 * TURN_US);
        assert!(!client.is_closed(), "too early");
        world.assert_dismissed(&mut client, GoAwayReason::KeepAlive);
        assert_eq!(world.server.counters().silent, 1);
    }
}

/// Each row: the features a client asks for, and how an exist, a batch and a checkpoint command of
/// its end.
#[test]
fn only_negotiated_features_are_served() {
    let (no, yes) = (Status::Unsupported, Status::Ok);
    for (asked, granted, ends) in [
        (0, 0, [yes, no, no]),
        (features::BATCH, features::BATCH, [yes, yes, no]),
        (features::CHECKPOINT, features::CHECKPOINT, [yes, no, yes]),
        (u64::MAX, features::ALL, [yes, yes, yes]),
    ] {
        let mut world = World::new();
        let (mut client, welcome) = greet(&mut world, &Offer { features: asked, ..offer() });
        assert_eq!(welcome.features, granted);
        client.send(Auth::none(PduType::Auth).as_bytes());
        let items = [Item::new(1, 0, 0, 0, 0)];
        let mut commands = [Opcode::Exist, Opcode::Exist, Opcode::CheckpointList]
            .map(|opcode| Command::new(opcode, 0));
        for (cid, command) in commands.iter_mut().enumerate() {
            command.header.cid = U16::new(cid as u16);
            command.seal(if cid == 1 { &items } else { &[] }, b"k", &[]);
            client.send(command.as_bytes());
            client.send(if cid == 1 { items.as_bytes() } else { &[] });
            client.send(b"k");
        }
        world.settle(&mut [&mut client]);
        for id in world.requests() {
            world.reply(id, Status::Ok);
        }
        world.settle(&mut [&mut client]);
        let mut found: Vec<_> = client.received().split_off(1);
        found.sort_unstable_by_key(|pdu| pdu[2]);
        let found: Vec<_> = found.iter().map(|pdu| Response::parse(pdu).unwrap().status).collect();
        assert_eq!(found, ends, "features {asked:#x}");
    }
}

#[test]
fn an_opcode_that_is_not_known_has_a_status_and_the_connection_stays() {
    let mut world = World::new();
    let mut client = world.client();
    let mut command = Command::new(Opcode::Store, 3);
    command.opcode = 0x7E;
    command.seal(&[], b"k", &[]);
    client.send(command.as_bytes());
    client.send(b"k");
    world.settle(&mut [&mut client]);
    assert_eq!(outcomes(&mut client), [(3, Status::Unsupported)]);
    world.assert_served(&mut client);
}

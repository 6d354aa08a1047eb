//! Peers that break the protocol: each loses its own connection, and nothing else.

use crate::world::*;
use forebay_fabric::Status;
use forebay_fabric::conformance::Peer;
use forebay_fabric::pdu::{
    Auth, Cancel, Command, Data, Fragment, GoAway, GoAwayReason, Hello, Opcode, Outcome, PduType,
    Ping, ReadyToTransfer, Response, Transfer, Welcome,
};
use zerocopy::IntoBytes;

/// A valid PDU of each type.
fn sample(pdu_type: PduType) -> Vec<u8> {
    let transfer = Transfer { cid: 0, offset: 0, length: 4 };
    let outcome = Outcome::bare(0, Status::Ok, 1);
    match pdu_type {
        PduType::Hello => Hello::new(&offer()).as_bytes().to_vec(),
        PduType::HelloAck => {
            let mut bytes = Vec::new();
            Welcome::default().encode(&mut bytes);
            bytes
        }
        PduType::Auth | PduType::AuthAck => Auth::none(pdu_type).as_bytes().to_vec(),
        PduType::Command => store(0, b"key", b"value"),
        PduType::Response => Response::new(&outcome).as_bytes().to_vec(),
        PduType::Data => [Data::new(transfer).as_bytes(), b"data"].concat(),
        PduType::ReadyToTransfer => ReadyToTransfer::new(transfer).as_bytes().to_vec(),
        PduType::Cancel => Cancel::new(0).as_bytes().to_vec(),
        PduType::Ping | PduType::Pong => Ping::new(pdu_type, 1).as_bytes().to_vec(),
        PduType::GoAway => GoAway::new(GoAwayReason::Drain).as_bytes().to_vec(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Fresh,
    Greeted,
    Ready,
    Draining,
    Leaving,
}

/// A client at `stage`, on a server of its own with a well-behaved bystander.
fn at(stage: Stage) -> (World, Client, Client) {
    let mut world = World::new();
    let mut bystander = world.client();
    let mut client = world.dial();
    if stage != Stage::Fresh {
        client.send(&sample(PduType::Hello));
    }
    if !matches!(stage, Stage::Fresh | Stage::Greeted) {
        client.send(&sample(PduType::Auth));
        // In flight, so that a leaving client is not closed.
        client.send(&store(5, b"key", b"value"));
    }
    if stage == Stage::Leaving {
        client.send(&sample(PduType::GoAway));
    }
    world.settle(&mut [&mut client, &mut bystander]);
    if stage == Stage::Draining {
        let now_us = world.net.now_us();
        world.server.drain(now_us);
    }
    world.settle(&mut [&mut client, &mut bystander]);
    (world, client, bystander)
}

/// The whole table of PROTOCOL.md over the wire: which PDU at which stage keeps the connection.
#[test]
fn a_pdu_out_of_place_ends_its_connection_and_no_other() {
    use PduType as P;
    for stage in [Stage::Fresh, Stage::Greeted, Stage::Ready, Stage::Draining, Stage::Leaving] {
        for pdu_type in PduType::ALL {
            let kept = match stage {
                Stage::Fresh => matches!(pdu_type, P::Hello),
                Stage::Greeted => matches!(pdu_type, P::Auth),
                Stage::Ready | Stage::Draining => {
                    matches!(pdu_type, P::Command | P::Cancel | P::Ping | P::Pong | P::GoAway)
                }
                Stage::Leaving => matches!(pdu_type, P::Cancel | P::Ping | P::Pong | P::GoAway),
            };
            let (mut world, mut client, mut bystander) = at(stage);
            client.send(&sample(pdu_type));
            world.settle(&mut [&mut client, &mut bystander]);
            let left = stage == Stage::Greeted && pdu_type == P::GoAway;
            assert_eq!(!client.is_closed(), kept, "{pdu_type:?} at {stage:?}");
            assert_eq!(
                world.server.counters().protocol_errors,
                u64::from(!kept && !left),
                "{pdu_type:?} at {stage:?}"
            );
            assert!(!bystander.is_closed());
            if stage != Stage::Draining {
                world.assert_served(&mut bystander);
            }
        }
    }
}

/// Sends `bytes` on a fresh and on a ready connection of `world`; both end.
#[track_caller]
fn assert_ended_by(world: &mut World, bystander: &mut Client, bytes: &[u8], what: &str) {
    for mut client in [world.dial(), world.client()] {
        client.send(bytes);
        world.settle(&mut [&mut client, bystander]);
        assert!(client.is_closed(), "{what}");
        let told = GoAway::new(GoAwayReason::Protocol);
        assert_eq!(client.received().last().map(|pdu| &pdu[..]), Some(told.as_bytes()), "{what}");
    }
}

#[test]
fn bytes_that_are_no_pdus_end_their_connection() {
    let mut world = World::new();
    let mut bystander = world.client();
    let mut rng = fastrand::Rng::with_seed(11);
    assert_ended_by(&mut world, &mut bystander, b"GET / HTTP/1.1\r\n\r\n", "HTTP");
    assert_ended_by(&mut world, &mut bystander, &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3], "TLS");
    assert_ended_by(&mut world, &mut bystander, &[0; 64], "zeros");
    for round in 0..300 {
        let mut bytes = vec![0; rng.usize(200..3000)];
        rng.fill(&mut bytes);
        // Lengths and types that might be: these get further.
        if round % 2 == 0 {
            bytes[0] = PduType::ALL[rng.usize(..12)] as u8;
            bytes[4..8].copy_from_slice(&rng.u32(8..150).to_le_bytes());
        }
        assert_ended_by(&mut world, &mut bystander, &bytes, &format!("round {round}"));
    }
    world.assert_served(&mut bystander);
    assert_eq!(world.requests(), []);
    assert_eq!(world.server.counters().connections_open, 1);
}

#[test]
fn a_length_that_cannot_be_ends_the_connection_before_its_bytes_come() {
    let mut world = World::new();
    let mut bystander = world.client();
    for pdu_type in PduType::ALL {
        for length in [0_u32, 7, *pdu_type.length_bytes().end() as u32 + 1, u32::MAX] {
            let mut header = [pdu_type as u8, 0, 0, 0, 0, 0, 0, 0];
            header[4..].copy_from_slice(&length.to_le_bytes());
            let what = format!("{pdu_type:?} of {length} bytes");
            assert_ended_by(&mut world, &mut bystander, &header, &what);
        }
    }
    // A response of 4 MiB may exist, but nobody sends it to a server.
    let mut header = [PduType::Response as u8, 0, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&(4_u32 << 20).to_le_bytes());
    assert_ended_by(&mut world, &mut bystander, &header, "a long response");
    world.assert_served(&mut bystander);
}

#[test]
fn a_flipped_bit_ends_the_connection_and_reaches_nobody() {
    let mut world = World::new();
    let mut bystander = world.client();
    let command = store(0, b"a key that must not change", b"v");
    for bit in 0..8 * (command.len() - 1) {
        let mut flipped = command.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let mut client = world.client();
        client.send(&flipped);
        // So that a length that grew is filled up.
        client.send(&[0; 200]);
        world.settle(&mut [&mut client, &mut bystander]);
        drop(client);
        assert_eq!(world.requests(), [], "bit {bit}");
    }
    world.assert_served(&mut bystander);
}

#[test]
fn a_truncated_pdu_reaches_nobody() {
    let mut world = World::new();
    let mut bystander = world.client();
    let command = store(0, b"key", b"value");
    for end in 0..command.len() {
        let mut client = world.client();
        client.send(&command[..end]);
        world.settle(&mut [&mut client]);
        drop(client);
        world.settle(&mut [&mut bystander]);
        assert_eq!(world.requests(), [], "{end} bytes");
    }
    world.assert_served(&mut bystander);
    assert_eq!(world.server.counters().connections_open, 1);
}

/// Each of these in turn, on a ready connection with command 5 in flight.
#[test]
fn what_was_not_negotiated_ends_the_connection() {
    let mut large = vec![0; 8192];
    large.truncate(8192 - 64 - 3 + 1);
    let mut command = Command::new(Opcode::Retrieve, 0);
    command.seal_fragments(&[], &[Fragment::new(64, 1, 10)], b"key");
    let fragments = Fragment::new(64, 1, 10);
    let fragments = [command.as_bytes(), fragments.as_bytes(), b"key"].concat();
    for (what, bytes) in [
        ("an identifier in flight", store(5, b"key", b"value")),
        ("an identifier past the queue depth", store(DEPTH, b"key", b"value")),
        ("the highest identifier", store(u16::MAX, b"key", b"value")),
        ("a capsule one byte too large", store(0, b"key", &large)),
        ("a cancel past the queue depth", Cancel::new(DEPTH).as_bytes().to_vec()),
        ("DATA for a command that is not pulled", sample(PduType::Data)),
        ("HELLO again", sample(PduType::Hello)),
        ("AUTH again", sample(PduType::Auth)),
        ("fragments on a byte stream", fragments),
    ] {
        let (mut world, mut client, mut bystander) = at(Stage::Ready);
        let id = world.request();
        client.send(&bytes);
        world.settle(&mut [&mut client, &mut bystander]);
        assert!(client.is_closed(), "{what}");
        assert_eq!(world.told(), [Told::Abandoned(id, Status::Disconnected)], "{what}");
        world.assert_served(&mut bystander);
    }
    let (mut world, mut client, _) = at(Stage::Ready);
    large.pop();
    client.send(&store(0, b"key", &large));
    world.settle(&mut [&mut client]);
    assert_eq!(world.requests().len(), 2, "a capsule of just the granted size is taken");
}

#[test]
fn data_other_than_asked_for_ends_the_connection() {
    let ask = |cid, offset, length| Data::new(Transfer { cid, offset, length });
    for (what, data) in [
        ("another identifier", ask(1, 0, 1000)),
        ("less", ask(0, 0, 999)),
        ("more", ask(0, 0, 1001)),
        ("an offset", ask(0, 1, 1000)),
    ] {
        let mut world = World::new();
        let (mut client, mut bystander) = (world.client(), world.client());
        client.send(&transfer(Opcode::Store, 0, 1000, 0));
        world.settle(&mut [&mut client]);
        let id = world.request();
        world.pull(id, 1000);
        client.send(data.as_bytes());
        client.send(&[1; 1001]);
        world.settle(&mut [&mut client]);
        assert!(client.is_closed(), "{what}");
        let told = world.told();
        assert_eq!(told[0], Told::Pulled(id, vec![0xEE; 1000], false), "{what}");
        assert_eq!(world.buffers.live(), 0, "{what}");
        world.assert_served(&mut bystander);
    }
}

#[test]
fn data_sent_twice_ends_the_connection() {
    let mut world = World::new();
    let mut client = world.client();
    client.send(&transfer(Opcode::Store, 0, 4, 0));
    world.settle(&mut [&mut client]);
    let id = world.request();
    world.pull(id, 4);
    client.send(&sample(PduType::Data));
    client.send(&sample(PduType::Data));
    world.settle(&mut [&mut client]);
    assert!(client.is_closed());
    let told = world.told();
    assert_eq!(told[0], Told::Pulled(id, b"data".to_vec(), true));
    assert_eq!(told[1], Told::Abandoned(id, Status::Disconnected));
}

#[test]
fn an_identifier_whose_data_is_owed_cannot_be_used_again() {
    let mut world = World::new();
    let mut client = world.client();
    client.send(&transfer(Opcode::Store, 0, 1000, 0));
    world.settle(&mut [&mut client]);
    let id = world.request();
    world.pull(id, 1000);
    world.reply(id, Status::Busy);
    client.send(&store(0, b"key", b"value"));
    world.settle(&mut [&mut client]);
    assert!(client.is_closed());
    assert_eq!(world.told(), [Told::Pulled(id, vec![0xEE; 1000], false)]);
}

#[test]
fn connections_come_and_go_without_end() {
    let mut world = World::new();
    let mut bystander = world.client();
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..500 {
        let mut client = world.dial();
        let mut script = [
            sample(PduType::Hello),
            sample(PduType::Auth),
            store(0, b"key", b"value"),
            transfer(Opcode::Store, 1, 1000, 0),
        ]
        .concat();
        script.truncate(rng.usize(..=script.len()));
        client.send(&script);
        client.turn();
        world.run(&mut [&mut bystander], TURN_US * rng.u64(..4));
        answer(&mut world, &mut rng);
    }
    world.settle(&mut [&mut bystander]);
    answer(&mut world, &mut rng);
    world.settle(&mut [&mut bystander]);
    assert_eq!(world.server.counters().connections_open, 1);
    assert!(world.server.is_idle() && world.buffers.live() == 0);
    world.assert_served(&mut bystander);
}

/// Answers everything, and pulls some of it though nobody waits for it.
fn answer(world: &mut World, rng: &mut fastrand::Rng) {
    for told in world.told() {
        if let Told::Request { id, data, length, .. } = told {
            if data.is_empty() && rng.bool() {
                world.pull(id, length);
            }
            world.reply(id, Status::Ok);
        }
    }
}

//! PDUs, pushes and pulls between peers that keep to the rules.

use super::rig::{Event, Rig, command, response};
use super::{Peer, Wire};
use crate::pdu::{COMMON_HEADER_BYTES, PduType, Ping, Response};
use crate::transport::{Payload, Payloads, RemoteMemory, Transport};
use zerocopy::IntoBytes;

pub(super) fn pdus_arrive_whole_once_and_in_order<W: Wire>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    let mut expected = Vec::new();
    for number in 0..1000_u64 {
        let pdu = if rig.rng.bool() {
            Ping::new(PduType::Ping, number).as_bytes().to_vec()
        } else {
            let length = rig.rng.usize(0..if number % 50 == 0 { 100_000 } else { 2_000 });
            let data = rig.bytes(length);
            command(number as u16, b"key", &data)
        };
        peer.send(&pdu);
        expected.push(Event::Pdu(conn, pdu));
    }
    rig.until("all PDUs", &mut [&mut peer], |rig, _| rig.recorder.events.len() >= expected.len());
    rig.settle(&mut [&mut peer]);
    assert!(rig.recorder.events == expected, "seed {}: other PDUs, or in another order", rig.seed);
}

pub(super) fn what_is_sent_arrives_in_order_with_its_data<W: Wire>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    let mut expected = Vec::new();
    for cid in 0..200 {
        if rig.rng.u8(..4) == 0 {
            let ping = Ping::new(PduType::Ping, rig.rng.u64(..));
            rig.wire.transport().send(conn, ping.as_bytes());
            expected.push(ping.as_bytes().to_vec());
            continue;
        }
        let most = if cid % 40 == 0 { 4 << 20 } else { 20_000 };
        let (parts, length) = (rig.rng.usize(1..=4), rig.rng.usize(0..most));
        let data = rig.bytes(length);
        let response = response(cid, &data);
        let mut payloads: Vec<_> = data
            .chunks(data.len().div_ceil(parts).max(1))
            .map(|part| {
                let buffer = rig.buffers.holding([b"xx", part, b"yyy"].concat());
                Payload { buffer, range: 2..2 + part.len() }
            })
            .collect();
        let remote = peer.expect(cid, data.len());
        rig.wire.transport().push(
            conn,
            &response,
            remote.get(),
            Payloads::Many(&mut payloads.drain(..)),
        );
        expected.push([Response::new(&response).as_bytes(), &data].concat());
        if rig.rng.u8(..8) == 0 {
            rig.turn();
            peer.turn();
        }
    }
    let mut received = Vec::new();
    rig.until("all responses", &mut [&mut peer], |_, peers| {
        received.append(&mut peers[0].received());
        received.len() >= expected.len()
    });
    assert!(received == expected, "seed {}: other bytes, or in another order", rig.seed);
    rig.until("a flushed transport", &mut [&mut peer], |rig, _| rig.wire.transport().is_flushed());
}

pub(super) fn pulls_bring_each_clients_bytes_into_its_own_buffer<W: Wire>(rig: &mut Rig<W>) {
    let (mut first, conn) = rig.peer();
    let (mut second, other) = rig.peer();
    let mut expected = Vec::new();
    for cid in 0..60 {
        let most = if cid % 20 == 0 { 4 << 20 } else { 60_000 };
        for (peer, conn) in [(&mut first, conn), (&mut second, other)] {
            let length = rig.rng.usize(1..most);
            let data = rig.bytes(length);
            let remote = peer.lend(cid, data.clone());
            rig.pull(conn, cid, remote.get());
            // Other PDUs stand between the data.
            peer.send(Ping::new(PduType::Ping, 0).as_bytes());
            expected.push(Event::Pulled(conn, cid, [&data[..], &[0xEE; 3]].concat(), true));
        }
    }
    rig.until("all pulls", &mut [&mut first, &mut second], |rig, _| {
        rig.pulled().len() >= expected.len()
    });
    for event in &expected {
        let found = rig.recorder.events.iter().filter(|found| *found == event).count();
        assert_eq!(found, 1, "seed {}: a pull has other bytes, or ends {found} times", rig.seed);
    }
}

pub(super) fn a_pull_of_nothing_is_complete<W: Wire>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    rig.pull(conn, 3, RemoteMemory::none(0));
    rig.until("an empty pull", &mut [&mut peer], |rig, _| !rig.pulled().is_empty());
    assert_eq!(rig.pulled(), [&Event::Pulled(conn, 3, vec![0xEE; 3], true)]);
}

pub(super) fn a_payload_is_dropped_when_it_has_left<W: Wire>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    let data = vec![1; 4 << 20];
    let response = response(0, &data);
    let buffer = rig.buffers.holding(data);
    let payload = Payload { buffer, range: 0..4 << 20 };
    let remote = peer.expect(0, 4 << 20);
    rig.wire.transport().push(conn, &response, remote.get(), Payloads::One(&mut Some(payload)));
    assert!(!rig.wire.transport().is_flushed());
    rig.until("a flushed transport", &mut [&mut peer], |rig, _| rig.wire.transport().is_flushed());
    assert_eq!(rig.buffers.live(), 0, "the payload left, its buffer stayed");
}

pub(super) fn a_flood_on_one_connection_does_not_stop_the_others<W: Wire>(rig: &mut Rig<W>) {
    let (mut flood, _) = rig.peer();
    let (mut calm, conn) = rig.peer();
    let big = command(0, b"key", &vec![0; 100_000]);
    assert!(big.len() > COMMON_HEADER_BYTES);
    for _ in 0..400 {
        flood.send(&big);
    }
    let ping = Ping::new(PduType::Ping, 1);
    rig.settle(&mut [&mut flood]);
    calm.send(ping.as_bytes());
    let before = rig.recorder.events.len();
    rig.until("the calm peer's PDU", &mut [&mut flood, &mut calm], |rig, _| {
        rig.recorder.events.contains(&Event::Pdu(conn, ping.as_bytes().to_vec()))
    });
    let between = rig.recorder.events.len() - before;
    assert!(between < 300, "seed {}: {between} PDUs of the flood came first", rig.seed);
}

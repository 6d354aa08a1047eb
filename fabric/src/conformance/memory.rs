//! Data that is moved in the peer's memory.

use super::rig::{Event, Rig, response};
use super::{MemoryPeer, Peer, Wire};
use crate::pdu::{Response, response_flags};
use crate::transport::{CloseReason, ConnId, Payload, Payloads, RemoteMemory, Transport};
use zerocopy::IntoBytes;

/// Response `cid` with `data` in two pieces.
pub(super) fn push<W: Wire>(
    rig: &mut Rig<W>,
    conn: ConnId,
    cid: u16,
    data: &[u8],
    into: RemoteMemory<'_>,
) {
    let (first, second) = data.split_at(data.len() / 2);
    let payloads = [first, second].map(|part| {
        let buffer = rig.buffers.holding([b"xx", part, b"yyy"].concat());
        Payload { buffer, range: 2..2 + part.len() }
    });
    let response = response(cid, data);
    rig.wire.transport().push(conn, &response, into, Payloads::Many(&mut payloads.into_iter()));
}

pub(super) fn a_push_lands_in_the_peers_memory<W: Wire<Peer: MemoryPeer>>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    let mut expected = Vec::new();
    for cid in 0..40 {
        let length = rig.rng.usize(1..if cid % 10 == 0 { 4 << 20 } else { 20_000 });
        let spare = rig.rng.usize(..100);
        let into = peer.share(&vec![0xEE; length + spare]);
        let data = rig.bytes(length);
        push(rig, conn, cid, &data, RemoteMemory::new(&[into]));
        expected.push((cid, into, [data, vec![0xEE; spare]].concat()));
    }
    let mut received = Vec::new();
    rig.until("all responses", &mut [&mut peer], |_, peers| {
        received.append(&mut peers[0].received());
        received.len() >= expected.len()
    });
    for (pdu, (cid, into, memory)) in received.iter().zip(expected) {
        let outcome = Response::parse(pdu).expect("a response, and nothing behind it");
        assert_eq!(
            (outcome.cid, outcome.flags),
            (cid, response_flags::PLACED),
            "seed {}",
            rig.seed
        );
        assert!(peer.look(into) == memory, "seed {}: other bytes in the memory", rig.seed);
    }
    assert_eq!(rig.buffers.live(), 0, "the payloads have left");
}

pub(super) fn a_pull_takes_what_is_in_the_peers_memory<W: Wire<Peer: MemoryPeer>>(
    rig: &mut Rig<W>,
) {
    let (mut peer, conn) = rig.peer();
    let mut expected = Vec::new();
    for cid in 0..40 {
        let length = rig.rng.usize(1..if cid % 10 == 0 { 4 << 20 } else { 20_000 });
        let data = rig.bytes(length);
        let from = peer.share(&data);
        let buffer = rig.buffers.holding(vec![0xEE; length + 3]);
        rig.wire.transport().pull(conn, cid, RemoteMemory::new(&[from]), buffer);
        expected.push(Event::Pulled(conn, cid, [&data[..], &[0xEE; 3]].concat(), true));
    }
    rig.until("all pulls", &mut [&mut peer], |rig, _| rig.pulled().len() >= expected.len());
    rig.settle(&mut [&mut peer]);
    assert!(rig.recorder.events == expected, "seed {}: other bytes, or ends", rig.seed);
    assert!(peer.received().is_empty(), "nothing was asked of the peer");
}

pub(super) fn data_that_the_memory_does_not_hold_stands_behind_its_response<
    W: Wire<Peer: MemoryPeer>,
>(
    rig: &mut Rig<W>,
) {
    let (mut peer, conn) = rig.peer();
    let into = peer.share(&[0xEE; 99]);
    let data = rig.bytes(100);
    push(rig, conn, 1, &data, RemoteMemory::new(&[into]));
    push(rig, conn, 2, &[], RemoteMemory::new(&[into]));
    let mut received = Vec::new();
    rig.until("both responses", &mut [&mut peer], |_, peers| {
        received.append(&mut peers[0].received());
        received.len() == 2
    });
    assert_eq!(received[0], [Response::new(&response(1, &data)).as_bytes(), &data].concat());
    assert_eq!(received[1], Response::new(&response(2, &[])).as_bytes());
    assert_eq!(peer.look(into), [0xEE; 99]);
}

pub(super) fn memory_that_is_not_the_peers_ends_its_connection_and_no_other<
    W: Wire<Peer: MemoryPeer>,
>(
    rig: &mut Rig<W>,
) {
    let (mut good, other) = rig.peer();
    let count = good.elsewhere(5000).len() * 2;
    for number in 0..count {
        rig.recorder.events.clear();
        let (mut peer, conn) = rig.peer();
        let wrong = peer.elsewhere(5000)[number / 2];
        if number % 2 == 0 {
            push(rig, conn, 1, &[7; 5000], RemoteMemory::new(&[wrong]));
        } else {
            let buffer = rig.buffers.holding(vec![0xEE; 5000]);
            rig.wire.transport().pull(conn, 1, RemoteMemory::new(&[wrong]), buffer);
        }
        let reason = rig.closed(conn, &mut [&mut peer, &mut good]);
        assert!(matches!(reason, CloseReason::Protocol(_)), "{wrong:?}: {reason:?}");
        let pulls = rig.pulled();
        let given_back = [&Event::Pulled(conn, 1, vec![0xEE; 5000], false)];
        assert_eq!(pulls, if number % 2 == 0 { &[][..] } else { &given_back[..] }, "{wrong:?}");
        rig.until("the peer to see it", &mut [&mut peer], |_, peers| peers[0].is_closed());
        assert_eq!(rig.buffers.live(), 0, "{wrong:?}");
    }
    let data = rig.bytes(3000);
    let into = good.share(&[0; 3000]);
    push(rig, other, 9, &data, RemoteMemory::new(&[into]));
    rig.until("the good peer's response", &mut [&mut good], |_, peers| {
        !peers[0].received().is_empty()
    });
    assert_eq!(good.look(into), data);
}

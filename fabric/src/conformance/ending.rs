//! How connections end, and what comes back.

use super::rig::{Event, Rig, response};
use super::{CONNECTIONS_MAX, Peer, Wire};
use crate::pdu::{GoAway, GoAwayReason, PduType, Ping, Response};
use crate::transport::{CloseReason, Payload, Payloads, RemoteMemory, Transport};
use zerocopy::IntoBytes;

pub(super) fn every_pull_ends_once_when_the_peer_vanishes<W: Wire>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    let lent = peer.lend(0, vec![9; 100_000]);
    rig.pull(conn, 0, lent.get());
    for cid in 1..8 {
        let remote = peer.expect(cid, 100_000);
        rig.pull(conn, cid, remote.get());
    }
    rig.until("the first pull", &mut [&mut peer], |rig, _| !rig.pulled().is_empty());
    drop(peer);
    let reason = rig.closed(conn, &mut []);
    assert!(matches!(reason, CloseReason::Peer | CloseReason::Lost), "{reason:?}");
    rig.settle(&mut []);
    let mut ends: Vec<_> = rig
        .pulled()
        .iter()
        .map(|event| match event {
            Event::Pulled(_, cid, _, complete) if *cid == 0 => (*cid, *complete),
            Event::Pulled(_, cid, _, complete) => (*cid, *complete && !W::Peer::IS_PASSIVE),
            other => panic!("{other:?}"),
        })
        .collect();
    ends.sort_unstable();
    let expected: Vec<_> = (0..8).map(|cid| (cid, cid == 0)).collect();
    assert_eq!(ends, expected, "seed {}", rig.seed);
    assert!(matches!(rig.recorder.events.last(), Some(Event::Closed(..))), "closed comes last");
    assert_eq!(rig.buffers.live(), 0);
}

pub(super) fn payloads_are_dropped_when_the_peer_vanishes<W: Wire>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    for cid in 0..16 {
        let data = vec![1; 1 << 20];
        let (outcome, remote) = (response(cid, &data), peer.expect(cid, 1 << 20));
        let payload = Payload { buffer: rig.buffers.holding(data), range: 0..1 << 20 };
        rig.wire.transport().push(conn, &outcome, remote.get(), Payloads::One(&mut Some(payload)));
    }
    if W::Peer::IS_PASSIVE {
        rig.turn();
    } else {
        rig.settle(&mut []);
    }
    assert!(rig.buffers.live() > 0, "the peer reads nothing: something waits");
    drop(peer);
    rig.closed(conn, &mut []);
    assert_eq!(rig.buffers.live(), 0);
    let ends = rig.recorder.events.iter().filter(|event| matches!(event, Event::Closed(..)));
    assert_eq!(ends.count(), 1, "closed is said once");
}

pub(super) fn a_stale_connection_is_ignored<W: Wire>(rig: &mut Rig<W>) {
    let (peer, stale) = rig.peer();
    drop(peer);
    rig.closed(stale, &mut []);
    let (mut peer, conn) = rig.peer();
    rig.recorder.events.clear();
    rig.pull(stale, 1, RemoteMemory::none(10));
    rig.wire.transport().send(stale, Ping::new(PduType::Ping, 1).as_bytes());
    let payload = Payload { buffer: rig.buffers.holding(vec![0; 9]), range: 0..9 };
    let (outcome, remote) = (response(2, &[0; 9]), RemoteMemory::none(9));
    rig.wire.transport().push(stale, &outcome, remote, Payloads::One(&mut Some(payload)));
    rig.wire.transport().close(stale, true);
    rig.settle(&mut [&mut peer]);
    let only = [Event::Pulled(stale, 1, vec![0xEE; 13], false)];
    assert_eq!(rig.recorder.events, only, "the pull comes back, and nothing else");
    assert!(!peer.is_closed() && peer.received().is_empty(), "{conn:?} was taken for {stale:?}");
}

pub(super) fn closing_in_order_delivers_what_was_queued<W: Wire>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    let remote = peer.expect(7, 50);
    rig.pull(conn, 7, remote.get());
    let data = rig.bytes(3 << 20);
    let payload = Payload { buffer: rig.buffers.holding(data.clone()), range: 0..data.len() };
    let (outcome, remote) = (response(1, &data), peer.expect(1, data.len()));
    rig.wire.transport().push(conn, &outcome, remote.get(), Payloads::One(&mut Some(payload)));
    let goaway = GoAway::new(GoAwayReason::Drain);
    rig.wire.transport().send(conn, goaway.as_bytes());
    rig.wire.transport().close(conn, false);
    // What the peer still says is not looked at any more.
    peer.send(Ping::new(PduType::Ping, 5).as_bytes());
    rig.until("the end", &mut [&mut peer], |_, peers| peers[0].is_closed());
    let expected =
        [[Response::new(&outcome).as_bytes(), &data].concat(), goaway.as_bytes().to_vec()];
    assert!(peer.received() == expected, "seed {}: what was queued did not arrive", rig.seed);
    drop(peer);
    assert_eq!(rig.closed(conn, &mut []), CloseReason::Local);
    assert_eq!(rig.pulled(), [&Event::Pulled(conn, 7, vec![0xEE; 53], false)]);
    assert!(!rig.recorder.events.iter().any(|event| matches!(event, Event::Pdu(..))));
}

pub(super) fn aborting_gives_every_buffer_back<W: Wire>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    let remote = peer.expect(0, 1000);
    rig.pull(conn, 0, remote.get());
    for cid in 1..9 {
        let data = vec![0; 1 << 20];
        let (outcome, remote) = (response(cid, &data), RemoteMemory::none(1 << 20));
        let payload = Payload { buffer: rig.buffers.holding(data), range: 0..1 << 20 };
        rig.wire.transport().push(conn, &outcome, remote, Payloads::One(&mut Some(payload)));
    }
    rig.wire.transport().close(conn, true);
    rig.turn();
    assert_eq!(rig.buffers.live(), 0, "an abort takes effect within a turn");
    assert_eq!(rig.closed(conn, &mut [&mut peer]), CloseReason::Local);
    rig.until("the peer to see it", &mut [&mut peer], |_, peers| peers[0].is_closed());
}

pub(super) fn a_refused_pdu_closes_its_connection_and_no_other<W: Wire>(rig: &mut Rig<W>) {
    let (mut bad, conn) = rig.peer();
    let (mut good, other) = rig.peer();
    let remote = bad.expect(1, 10);
    rig.pull(conn, 1, remote.get());
    bad.send(Ping::new(PduType::Pong, 1).as_bytes());
    bad.send(Ping::new(PduType::Ping, 2).as_bytes());
    let reason = rig.closed(conn, &mut [&mut bad, &mut good]);
    assert_eq!(reason, CloseReason::Protocol("a pong"));
    let pong = Ping::new(PduType::Ping, 3);
    good.send(pong.as_bytes());
    rig.until("the good peer's PDU", &mut [&mut bad, &mut good], |rig, _| {
        rig.recorder.events.contains(&Event::Pdu(other, pong.as_bytes().to_vec()))
    });
    rig.until("the bad peer's end", &mut [&mut bad, &mut good], |_, peers| peers[0].is_closed());
    let told = GoAway::new(GoAwayReason::Protocol).as_bytes().to_vec();
    assert_eq!(bad.received().last(), Some(&told), "the peer is told why");
    let later = |event: &&Event| matches!(event, Event::Pdu(found, _) if *found == conn);
    assert_eq!(rig.recorder.events.iter().find(later), None, "nothing after the refused PDU");
}

pub(super) fn a_peer_beyond_the_limit_is_told<W: Wire>(rig: &mut Rig<W>) {
    let mut peers: Vec<_> = (0..CONNECTIONS_MAX).map(|_| rig.peer()).collect();
    let mut late = rig.wire.connect();
    rig.until("the end of the late peer", &mut [&mut late], |_, peers| peers[0].is_closed());
    assert_eq!(late.received(), [GoAway::new(GoAwayReason::Full).as_bytes()]);
    let (gone, conn) = peers.swap_remove(0);
    drop(gone);
    rig.closed(conn, &mut []);
    let (_again, conn) = rig.peer();
    assert!(peers.iter().all(|(peer, other)| *other != conn && !peer.is_closed()));
}

pub(super) fn a_slot_is_used_again_under_a_new_generation<W: Wire>(rig: &mut Rig<W>) {
    let mut seen = Vec::new();
    for _ in 0..3 * CONNECTIONS_MAX {
        let (peer, conn) = rig.peer();
        assert!(conn.slot < CONNECTIONS_MAX && !seen.contains(&conn), "{conn:?} {seen:?}");
        seen.push(conn);
        drop(peer);
        rig.closed(conn, &mut []);
    }
}

//! Data that is moved in several pieces of the peer's memory, and in nothing else of it.

use super::memory::push;
use super::rig::{Event, Rig, response};
use super::{MemoryPeer, Peer, Wire};
use crate::pdu::{Fragment, Response, response_flags};
use crate::transport::{CloseReason, ConnId, Payload, Payloads, RemoteMemory, Transport};

/// What is in memory before anything lands there.
const UNTOUCHED: u8 = 0xEE;
/// The longest fragment, where not every one is short.
const FRAGMENT_BYTES_MAX: usize = 20_000;

/// Memory of a peer's, and fragments of it that do not overlap, in any order.
struct Scattered {
    whole: Fragment,
    fragments: Vec<Fragment>,
    /// Where in it their bytes are.
    places: Vec<usize>,
}

impl Scattered {
    /// `count` fragments, of 1 byte each or of any length; some are empty, some stand side by side.
    fn new<W: Wire<Peer: MemoryPeer>>(
        rig: &mut Rig<W>,
        peer: &mut W::Peer,
        count: usize,
        most: usize,
    ) -> Self {
        let (mut pieces, mut end) = (Vec::new(), rig.rng.usize(..3));
        for number in 0..count {
            let length = if most == 1 || number == 0 { 1 } else { rig.rng.usize(..most) };
            let length = if number % 7 == 3 { length.min(2) } else { length };
            pieces.push(end..end + length);
            end += length + rig.rng.usize(..3);
        }
        rig.rng.shuffle(&mut pieces);
        let whole = peer.share(&vec![UNTOUCHED; end.max(1)]);
        let (address, key) = (whole.address.get(), whole.key.get());
        let fragment = |piece: &std::ops::Range<usize>| {
            Fragment::new(address + piece.start as u64, key, piece.len() as u32)
        };
        let fragments = pieces.iter().map(fragment).collect();
        Self { whole, fragments, places: pieces.into_iter().flatten().collect() }
    }

    fn memory(&self) -> RemoteMemory<'_> {
        RemoteMemory::new(&self.fragments)
    }

    /// What is in the memory once `data` has landed in the fragments.
    fn with(&self, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![UNTOUCHED; self.whole.length.get() as usize];
        self.places.iter().zip(data).for_each(|(place, byte)| bytes[*place] = *byte);
        bytes
    }
}

/// One fragment, few, and as many as there may be, short and long.
fn shapes<W: Wire>(rig: &mut Rig<W>) -> Vec<(usize, usize)> {
    let most = usize::from(rig.wire.transport().fragments_max());
    assert!(most > 1, "a transport that reaches memory takes fragments");
    let any = rig.rng.usize(1..=most);
    let counts = [1, 2, most, any, most / 2];
    let lengths = [1, 60, FRAGMENT_BYTES_MAX.min((4 << 20) / most)];
    counts.iter().flat_map(|count| lengths.map(|length| (*count, length))).collect()
}

/// Response `cid` with `data` in up to six pieces.
fn push_pieces<W: Wire>(
    rig: &mut Rig<W>,
    conn: ConnId,
    cid: u16,
    data: &[u8],
    into: RemoteMemory<'_>,
) {
    let count = rig.rng.usize(1..=6);
    let pieces = data.chunks(data.len().div_ceil(count));
    let mut payloads: Vec<_> = pieces
        .map(|piece| {
            let buffer = rig.buffers.holding([b"x", piece, b"yy"].concat());
            Payload { buffer, range: 1..1 + piece.len() }
        })
        .collect();
    let response = response(cid, data);
    rig.wire.transport().push(conn, &response, into, Payloads::Many(&mut payloads.drain(..)));
}

pub(super) fn a_push_fills_its_fragments_and_nothing_else<W: Wire<Peer: MemoryPeer>>(
    rig: &mut Rig<W>,
) {
    let (mut peer, conn) = rig.peer();
    let mut expected = Vec::new();
    for (cid, (count, most)) in (0..).zip(shapes(rig)) {
        let into = Scattered::new(rig, &mut peer, count, most);
        // Every other answer is shorter than its memory.
        let room = into.places.len();
        let length = if cid % 2 == 0 { room } else { rig.rng.usize(1..=room) };
        let data = rig.bytes(length);
        push_pieces(rig, conn, cid, &data, into.memory());
        expected.push((cid, into.whole, into.with(&data)));
    }
    let mut received = Vec::new();
    rig.until("all responses", &mut [&mut peer], |_, peers| {
        received.append(&mut peers[0].received());
        received.len() >= expected.len()
    });
    for (pdu, (cid, whole, bytes)) in received.iter().zip(expected) {
        let outcome = Response::parse(pdu).expect("a response, and nothing behind it");
        assert_eq!(
            (outcome.cid, outcome.flags),
            (cid, response_flags::PLACED),
            "seed {}",
            rig.seed
        );
        assert!(peer.look(whole) == bytes, "seed {}: other bytes for {cid}", rig.seed);
    }
    assert_eq!(rig.buffers.live(), 0, "the payloads have left");
}

pub(super) fn a_pull_gathers_its_fragments_in_order<W: Wire<Peer: MemoryPeer>>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    let mut expected = Vec::new();
    for (cid, (count, most)) in (0..).zip(shapes(rig)) {
        let from = Scattered::new(rig, &mut peer, count, most);
        let data = rig.bytes(from.places.len());
        peer.fill(from.whole, &from.with(&data));
        rig.pull(conn, cid, from.memory());
        expected.push(Event::Pulled(conn, cid, [&data[..], &[UNTOUCHED; 3]].concat(), true));
    }
    rig.until("all pulls", &mut [&mut peer], |rig, _| rig.pulled().len() >= expected.len());
    rig.settle(&mut [&mut peer]);
    assert!(rig.recorder.events == expected, "seed {}: other bytes, or ends", rig.seed);
}

pub(super) fn a_bad_fragment_among_good_ones_ends_its_connection_and_no_other<
    W: Wire<Peer: MemoryPeer>,
>(
    rig: &mut Rig<W>,
) {
    let (mut good, other) = rig.peer();
    let count = good.elsewhere(100).len() * 2;
    for number in 0..count {
        rig.recorder.events.clear();
        let (mut peer, conn) = rig.peer();
        let wrong = peer.elsewhere(100)[number / 2];
        let mut scattered = Scattered::new(rig, &mut peer, 6, 500);
        scattered.fragments.insert(rig.rng.usize(..=6), wrong);
        let bytes = scattered.memory().length() as usize;
        if number % 2 == 0 {
            push_pieces(rig, conn, 1, &vec![7; bytes], scattered.memory());
        } else {
            rig.pull(conn, 1, scattered.memory());
        }
        let reason = rig.closed(conn, &mut [&mut peer, &mut good]);
        assert!(matches!(reason, CloseReason::Protocol(_)), "{wrong:?}: {reason:?}");
        let given_back = |event: &&Event| matches!(event, Event::Pulled(.., false));
        assert_eq!(rig.pulled().iter().filter(|event| given_back(event)).count(), number % 2);
        let (seen, full) = (peer.look(scattered.whole), scattered.with(&vec![7; bytes]));
        let spared = |at: &usize| full[*at] == UNTOUCHED;
        let mut outside = (0..full.len()).filter(spared);
        assert!(outside.all(|at| seen[at] == UNTOUCHED), "{wrong:?}: something was hit");
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

//! Clients that say what they like, PDU by PDU.

use crate::house::{SharedHouse, address};
use forebay_fabric::conformance::Peer;
use forebay_fabric::pdu::{Auth, Hello, Offer, PduType, VERSION, features};
use forebay_fabric::rdma::client::Hub;
use forebay_fabric::rdma::fake::FakeVerbs;
use forebay_fabric::rdma::{LinePeer, Shape};
use zerocopy::IntoBytes;

pub(crate) type RawPeer = LinePeer<FakeVerbs<Vec<u8>>, Box<dyn FnMut() -> u64>>;

/// A client of bytes, through the handshake.
pub(crate) fn raw_peer(house: &SharedHouse, shape: Shape) -> RawPeer {
    let net = house.borrow().net.clone();
    let hub = Hub::new(net.process(), shape);
    let line = hub.connect(address()).expect("a connection starts");
    let clock = net.clone();
    let mut peer: RawPeer = LinePeer::new(hub, line, Box::new(move || clock.now_us()));
    let offer = Offer {
        versions: VERSION..=VERSION,
        features: features::ALL,
        client_id: [3; 16],
        queue_depth: 8,
        capsule_bytes: 8 << 10,
        keep_alive_ms: 500,
    };
    peer.send(Hello::new(&offer).as_bytes());
    peer.send(Auth::none(PduType::Auth).as_bytes());
    let mut count = 0;
    until(house, &mut peer, |peer| {
        count += peer.received().len();
        count >= 2 || peer.is_closed()
    });
    peer
}

pub(crate) fn until(
    house: &SharedHouse,
    peer: &mut RawPeer,
    mut done: impl FnMut(&mut RawPeer) -> bool,
) {
    for _ in 0..20_000 {
        if done(peer) {
            return;
        }
        peer.turn();
        house.borrow_mut().step();
        house.borrow().net.advance(50);
    }
    panic!("it did not happen");
}

//! The suite of the seam, over a kind fabric and over one that delays and loses.

use forebay_fabric::conformance::{CONNECTIONS_MAX, Counted, Wire, run};
use forebay_fabric::rdma::client::{Hub, client_shape};
use forebay_fabric::rdma::fake::{FakeNet, FakeProfile, FakeVerbs};
use forebay_fabric::rdma::{LinePeer, RdmaConfig, RdmaTransport, Shape};
use std::net::SocketAddr;

struct FakeWire {
    net: FakeNet,
    address: SocketAddr,
    transport: RdmaTransport<FakeVerbs<Counted>>,
}

impl FakeWire {
    fn new(seed: u64, profile: FakeProfile, shared: bool) -> Self {
        let (net, address) = (FakeNet::new(seed, profile), SocketAddr::from(([10, 0, 0, 1], 7000)));
        let config = RdmaConfig {
            connections_max: CONNECTIONS_MAX,
            receives: 32,
            receive_bytes: 128 << 10,
            ..RdmaConfig::default()
        };
        let verbs = net.listen(address);
        let verbs = if shared { verbs.sharing(8 * CONNECTIONS_MAX) } else { verbs };
        let transport = RdmaTransport::new(verbs, config);
        Self { net, address, transport }
    }
}

impl Wire for FakeWire {
    type Transport = RdmaTransport<FakeVerbs<Counted>>;
    type Peer = LinePeer<FakeVerbs<Vec<u8>>, Box<dyn FnMut() -> u64>>;

    fn transport(&mut self) -> &mut Self::Transport {
        &mut self.transport
    }

    fn connect(&mut self) -> Self::Peer {
        let shape = Shape { receives: 24, ..client_shape(8) };
        let hub = Hub::new(self.net.process(), shape);
        let line = hub.connect(self.address).expect("a fake connection starts");
        let net = self.net.clone();
        LinePeer::new(hub, line, Box::new(move || net.now_us()))
    }

    fn tick(&mut self) -> u64 {
        self.net.advance(20);
        self.net.now_us()
    }
}

#[test]
fn simulated_verbs_conform() {
    run(&mut || FakeWire::new(1, FakeProfile::kind(), false), 1);
}

#[test]
fn simulated_verbs_conform_with_shared_receives() {
    run(&mut || FakeWire::new(1, FakeProfile::kind(), true), 1);
}

#[test]
fn simulated_verbs_conform_when_packets_are_lost() {
    for seed in 2..5 {
        // More retries than it takes: loss is delay here.
        let profile =
            FakeProfile { failure: 0, cut: 0, mail_loss: 0, retries: 60, ..FakeProfile::rough() };
        run(&mut || FakeWire::new(seed, profile, seed == 4), seed);
    }
}

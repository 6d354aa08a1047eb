//! The suite of the seam, over a kind fabric and over one that delays and loses.

use forebay_fabric::conformance::{CONNECTIONS_MAX, Counted, Wire, run, run_memory};
use forebay_fabric::rdma::client::{Hub, client_shape};
use forebay_fabric::rdma::fake::{FakeNet, FakeProfile, FakeVerbs};
use forebay_fabric::rdma::{Limits, LinePeer, RdmaConfig, RdmaTransport, Shape};
use forebay_fabric::transport::Transport;
use std::net::SocketAddr;

const LARGE: Limits = Limits {
    works: 2 * (256 + 4 + 1),
    buffers: 512,
    pieces: 16,
    message_bytes: 1 << 20,
    send_bytes: 512 << 10,
};

struct FakeWire {
    net: FakeNet,
    address: SocketAddr,
    transport: RdmaTransport<FakeVerbs<Counted>>,
}

impl FakeWire {
    fn new(seed: u64, profile: FakeProfile, shared: bool) -> Self {
        Self::over(FakeNet::new(seed, profile), shared)
    }

    /// Network cards on which a command has as many fragments as there ever are.
    fn large(seed: u64, profile: FakeProfile) -> Self {
        let net = FakeNet::new(seed, profile);
        net.set_limits(LARGE);
        let wire = Self::over(net, false);
        assert_eq!(wire.transport.fragments_max(), 256);
        wire
    }

    fn over(net: FakeNet, shared: bool) -> Self {
        let address = SocketAddr::from(([10, 0, 0, 1], 7000));
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
    run_memory(&mut || FakeWire::new(1, FakeProfile::kind(), false), 1);
    run_memory(&mut || FakeWire::large(1, FakeProfile::kind()), 1);
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
        run_memory(&mut || FakeWire::new(seed, profile, seed == 4), seed);
        run_memory(&mut || FakeWire::large(seed, profile), seed);
    }
}

//! Every transport passes the suite of the seam.

use forebay_fabric::conformance::{CONNECTIONS_MAX, Counted, StreamPeer, Wire, run, run_memory};
use forebay_fabric::shm::{Shm, ShmStream};
use forebay_fabric::stream::sim::{SimListener, SimNet, SimProfile, SimStream};
use forebay_fabric::stream::tcp::{Tcp, tune};
use forebay_fabric::stream::{StreamConfig, StreamTransport};
use std::net::{SocketAddr, TcpStream};

fn config() -> StreamConfig {
    StreamConfig { connections_max: CONNECTIONS_MAX, ..StreamConfig::default() }
}

struct SimWire {
    net: SimNet,
    address: SocketAddr,
    transport: StreamTransport<SimListener, Counted>,
}

impl SimWire {
    fn new(seed: u64, profile: SimProfile) -> Self {
        let (net, address) = (SimNet::new(seed, profile), SocketAddr::from(([10, 0, 0, 1], 7000)));
        let listener = net.listen(address).expect("the address is free");
        let transport = StreamTransport::new(listener, config());
        Self { net, address, transport }
    }
}

impl Wire for SimWire {
    type Transport = StreamTransport<SimListener, Counted>;
    type Peer = StreamPeer<SimStream>;

    fn transport(&mut self) -> &mut Self::Transport {
        &mut self.transport
    }

    fn connect(&mut self) -> Self::Peer {
        StreamPeer::new(self.net.connect(self.address).expect("somebody listens"))
    }

    fn tick(&mut self) -> u64 {
        self.net.advance(100);
        self.net.now_us()
    }
}

struct TcpWire {
    address: SocketAddr,
    transport: StreamTransport<Tcp, Counted>,
    now_us: u64,
}

impl Wire for TcpWire {
    type Transport = StreamTransport<Tcp, Counted>;
    type Peer = StreamPeer<TcpStream>;

    fn transport(&mut self) -> &mut Self::Transport {
        &mut self.transport
    }

    fn connect(&mut self) -> Self::Peer {
        let stream = TcpStream::connect(self.address).expect("somebody listens");
        tune(&stream).expect("a connected socket");
        StreamPeer::new(stream)
    }

    fn tick(&mut self) -> u64 {
        self.now_us += 10;
        self.now_us
    }
}

#[test]
fn the_simulated_network_conforms() {
    run(&mut || SimWire::new(1, SimProfile::kind()), 1);
}

#[test]
fn the_simulated_network_conforms_when_it_is_unkind() {
    for seed in 2..5 {
        run(&mut || SimWire::new(seed, SimProfile::choppy()), seed);
    }
}

#[test]
fn tcp_conforms() {
    let mut make = || {
        let tcp = Tcp::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = tcp.local_addr().unwrap();
        TcpWire { address, transport: StreamTransport::new(tcp, config()), now_us: 0 }
    };
    run(&mut make, 5);
}

struct ShmWire {
    folder: tempfile::TempDir,
    transport: StreamTransport<Shm, Counted>,
    now_us: u64,
}

impl ShmWire {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let shm = Shm::bind(&folder.path().join("shm"), 0, 0o600).expect("the path is free");
        Self { folder, transport: StreamTransport::new(shm, config()), now_us: 0 }
    }
}

impl Wire for ShmWire {
    type Transport = StreamTransport<Shm, Counted>;
    type Peer = StreamPeer<ShmStream>;

    fn transport(&mut self) -> &mut Self::Transport {
        &mut self.transport
    }

    fn connect(&mut self) -> Self::Peer {
        let path = self.folder.path().join("shm.0");
        StreamPeer::new(ShmStream::connect(&path).expect("somebody listens"))
    }

    fn tick(&mut self) -> u64 {
        self.now_us += 10;
        self.now_us
    }
}

#[test]
fn shared_memory_conforms() {
    run(&mut ShmWire::new, 6);
    run_memory(&mut ShmWire::new, 7);
}

//! A daemon's reactor behind simulated verbs, and real clients of it, all in one thread and on the fabric's
//! clock.
//!
//! Guarantees: the reactor, its service and its store are those of production, and so is the client; what is
//! simulated is the network card ([`forebay_fabric::rdma::fake`]) and, as the test likes, the device. A
//! [`Watch`] sees what the reactor asks of the card, and stands around each of its ticks.

use crate::serving;
use forebay_fabric::client::{Address, ClientConfig, Connector, Pipeline, Slot};
use forebay_fabric::pdu::Endpoint;
use forebay_fabric::rdma::client::{Hub, Line, client_shape};
use forebay_fabric::rdma::fake::{FakeNet, FakeProfile, FakeRegion, FakeVerbs};
use forebay_fabric::rdma::{
    Chain, Event, Limits, Note, Provider, ProviderError, Qp, RdmaConfig, RdmaTransport, Room, Shape,
};
use forebay_fabric::region::Region;
use forebay_nvme::{BlockQueue, Buffer, Pool};
use forebayd::reactor::{Now, Reactor};
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

/// Time between two ticks, in microseconds.
const STEP_US: u64 = 20;
/// When everything begins: an emulated drive has lived for a while already.
const BEGIN_US: u64 = 1_000_000_000;

/// Looks at what a reactor does with its network card.
pub trait Watch: Clone {
    /// Stands around a tick of the reactor.
    fn tick(&self, tick: &mut dyn FnMut()) {
        tick();
    }

    /// Stands around what the network card does for it.
    fn card<T>(&self, work: impl FnOnce() -> T) -> T {
        work()
    }

    /// A chain is about to be posted.
    fn post(&self, _chain: &Chain<Buffer>) {}
}

/// Looks at nothing.
#[derive(Clone, Copy, Debug)]
pub struct Blind;

impl Watch for Blind {}

/// Simulated verbs under somebody's eyes.
#[derive(Debug)]
pub struct Watched<W> {
    verbs: FakeVerbs<Buffer>,
    watch: W,
}

/// One reactor, and its fabric.
#[derive(Debug)]
pub struct House<W: Watch> {
    net: FakeNet,
    reactor: Reactor<RdmaTransport<Watched<W>>>,
    watch: W,
}

/// Connects to the house; while its client waits, the house works.
#[derive(Debug)]
pub struct HouseConnector<W: Watch> {
    house: Rc<RefCell<House<W>>>,
    hub: Hub<FakeVerbs<Vec<u8>>>,
}

/// Where the reactor listens on the simulated fabric.
fn address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 7400))
}

fn now_of(net: &FakeNet) -> Now {
    let us = net.now_us();
    Now { us, unix_s: 1_700_000_000 + us / 1_000_000 }
}

impl<W: Watch + 'static> House<W> {
    /// Formats the device behind `queue`, and serves it.
    #[must_use]
    pub fn new(
        queue: Box<dyn BlockQueue>,
        memory: &Pool,
        tier: Option<Pool>,
        watch: &W,
    ) -> Rc<RefCell<Self>> {
        let net = FakeNet::new(1, FakeProfile { delay_us: 0, ..FakeProfile::kind() });
        net.advance(BEGIN_US);
        let verbs = Watched { verbs: net.listen(address()), watch: watch.clone() };
        let transport = RdmaTransport::new(verbs, RdmaConfig::default());
        let clock = &mut || {
            net.advance(STEP_US);
            now_of(&net)
        };
        let endpoint = Endpoint::tcp(0, address());
        let reactor = serving::reactor(queue, memory, tier, clock, |_| transport, endpoint);
        Rc::new(RefCell::new(Self { net, reactor, watch: watch.clone() }))
    }

    /// A client with as many commands in flight as the server grants.
    ///
    /// # Panics
    /// When it cannot connect.
    #[must_use]
    pub fn client(house: &Rc<RefCell<Self>>) -> Pipeline<HouseConnector<W>> {
        let config = ClientConfig {
            queue_depth: serving::QUEUE_DEPTH,
            ..ClientConfig::new(vec![address()])
        };
        let hub = Hub::new(house.borrow().net.process(), client_shape(serving::QUEUE_DEPTH));
        let connector = HouseConnector { house: Rc::clone(house), hub };
        Pipeline::connect_with(config, connector).expect("a kind fabric connects")
    }

    /// The reactor.
    #[must_use]
    pub fn reactor(&self) -> &Reactor<RdmaTransport<Watched<W>>> {
        &self.reactor
    }

    /// Time passes in which the reactor is not called: it sleeps.
    pub fn sleep(&mut self, seconds: u64) {
        self.net.advance(seconds * 1_000_000);
    }

    fn tick(&mut self) {
        self.net.advance(STEP_US);
        let now = now_of(&self.net);
        let reactor = &mut self.reactor;
        self.watch.tick(&mut || {
            reactor.tick(now);
        });
    }
}

impl<W: Watch + 'static> Connector for HouseConnector<W> {
    type Stream = Line<FakeVerbs<Vec<u8>>>;

    fn connect(&mut self, address: &Address) -> io::Result<Self::Stream> {
        self.hub.connect(address.tcp()?)
    }

    fn wait(&mut self, slots: &[Slot<Self::Stream>], _timeout_us: u64) -> io::Result<()> {
        self.hub.turn(self.house.borrow().net.now_us());
        self.house.borrow_mut().tick();
        self.house.borrow_mut().tick();
        self.hub.turn(self.house.borrow().net.now_us());
        slots.iter().for_each(|slot| slot.ready.set(true));
        Ok(())
    }

    fn now_us(&mut self) -> u64 {
        self.house.borrow().net.now_us()
    }
}

impl<W: Watch> Provider for Watched<W> {
    type Buffer = Buffer;
    type Region = FakeRegion;

    fn limits(&self) -> Limits {
        self.verbs.limits()
    }

    fn poll(&mut self, now_us: u64, events: &mut Vec<Event<Buffer>>) -> bool {
        let Self { verbs, watch } = self;
        watch.card(|| verbs.poll(now_us, events))
    }

    fn accept(&mut self, request: u32, answer: Note, shape: Shape) -> Result<Qp, ProviderError> {
        self.verbs.accept(request, answer, shape)
    }

    fn reject(&mut self, request: u32, answer: Note) {
        self.verbs.reject(request, answer);
    }

    fn connect(&mut self, to: SocketAddr, ask: Note, shape: Shape) -> Result<Qp, ProviderError> {
        self.verbs.connect(to, ask, shape)
    }

    fn received(&self, qp: Qp, receive: u16, length: u32) -> &[u8] {
        self.verbs.received(qp, receive, length)
    }

    fn repost(&mut self, qp: Qp, receive: u16) {
        let Self { verbs, watch } = self;
        watch.card(|| verbs.repost(qp, receive));
    }

    fn ring_receives(&mut self, qp: Qp) {
        let Self { verbs, watch } = self;
        watch.card(|| verbs.ring_receives(qp));
    }

    fn room(&self, qp: Qp) -> Room {
        self.verbs.room(qp)
    }

    fn in_flight(&self, qp: Qp) -> usize {
        self.verbs.in_flight(qp)
    }

    fn post(&mut self, qp: Qp, chain: &mut Chain<Buffer>) {
        let Self { verbs, watch } = self;
        watch.card(|| {
            watch.post(chain);
            verbs.post(qp, chain);
        });
    }

    fn disconnect(&mut self, qp: Qp) {
        self.verbs.disconnect(qp);
    }

    fn break_off(&mut self, qp: Qp) {
        self.verbs.break_off(qp);
    }

    fn is_drained(&self, qp: Qp) -> bool {
        self.verbs.is_drained(qp)
    }

    fn release(&mut self, qp: Qp, ended: &mut dyn FnMut(u32, Buffer)) {
        self.verbs.release(qp, ended);
    }

    fn region(&mut self, qp: Qp, bytes: usize) -> Result<FakeRegion, ProviderError> {
        self.verbs.region(qp, bytes)
    }

    fn offer(&mut self, qp: Qp, region: &Region) -> Result<u32, ProviderError> {
        self.verbs.offer(qp, region)
    }
}

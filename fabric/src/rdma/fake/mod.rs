//! Simulated verbs: the transport's logic under every fault, from a seed, without any hardware.
//!
//! A [`FakeNet`] is the fabric and the clock; each [`FakeVerbs`] on it is a process with a network card.
//! Work is done when its owner polls, from the very buffers that were posted: a buffer that is changed
//! or dropped too early shows as wrong bytes.

mod net;
mod queue;

pub use net::FakeProfile;

use super::chain::Chain;
use super::provider::{Event, LentRegion, Limits, Note, Provider, ProviderError, Qp, Room, Shape};
use crate::Buffer;
use crate::region::{self, Registry, WeakRegion};
use net::{Mail, Net, ProcessId, SideId};
use queue::FakeQueue;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::{Debug, Formatter};
use std::net::SocketAddr;
use std::rc::Rc;

/// What simulated queue pairs can do, if nothing else is said: little, so that splitting is exercised.
const LIMITS: Limits =
    Limits { works: 160, buffers: 256, pieces: 4, message_bytes: 64 << 10, send_bytes: 512 << 10 };

/// A simulated fabric, and the time in it.
#[derive(Clone)]
pub struct FakeNet(Rc<RefCell<Net>>);

impl Debug for FakeNet {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeNet").field("now_us", &self.now_us()).finish_non_exhaustive()
    }
}

impl FakeNet {
    /// A fabric that goes wrong as `profile` and `seed` say.
    #[must_use]
    pub fn new(seed: u64, profile: FakeProfile) -> Self {
        Self(Rc::new(RefCell::new(Net::new(seed, profile))))
    }

    /// Lets time pass.
    pub fn advance(&self, us: u64) {
        self.0.borrow_mut().now_us += us;
    }

    /// The time, in microseconds.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.0.borrow().now_us
    }

    /// From now on the fabric is as kind as this.
    pub fn set_profile(&self, profile: FakeProfile) {
        self.0.borrow_mut().profile = profile;
    }

    /// From now on new processes have network cards that can do so much.
    pub fn set_limits(&self, limits: Limits) {
        self.0.borrow_mut().limits = limits;
    }

    /// A process that takes connections at `address`.
    #[must_use]
    pub fn listen<B>(&self, address: SocketAddr) -> FakeVerbs<B> {
        let verbs = self.process();
        self.0.borrow_mut().listeners.insert(address, verbs.process);
        verbs
    }

    /// A process.
    #[must_use]
    pub fn process<B>(&self) -> FakeVerbs<B> {
        let process = self.0.borrow_mut().join();
        let limits = self.0.borrow().limits;
        FakeVerbs {
            net: Rc::clone(&self.0),
            process,
            limits,
            queues: Vec::new(),
            requests: Vec::new(),
            shared: Vec::new(),
            reposted: Vec::new(),
            counters: FakeCounters::default(),
            registry: Rc::default(),
        }
    }

    /// How often a message found no receive at its destination.
    #[must_use]
    pub fn not_ready(&self) -> u64 {
        self.0.borrow().not_ready
    }

    /// Memory that is registered by any process: none may be left at the end of a test.
    #[must_use]
    pub fn regions(&self) -> usize {
        self.0.borrow().memory.len()
    }

    /// Queue pairs of any process.
    #[must_use]
    pub fn queue_pairs(&self) -> usize {
        self.0.borrow().sides.len()
    }
}

/// What a process has asked of its network card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FakeCounters {
    /// Doorbells of send queues.
    pub doorbells: u64,
    /// Work requests.
    pub works: u64,
    /// Completions that were heard of.
    pub completions: u64,
}

/// One process and its simulated network card. Dropping it kills the process.
pub struct FakeVerbs<B> {
    net: Rc<RefCell<Net>>,
    process: ProcessId,
    limits: Limits,
    queues: Vec<(u16, Option<FakeQueue<B>>)>,
    /// Who has asked for a connection.
    requests: Vec<SideId>,
    /// The last message in each receive that is shared, and which of these wait to be posted again.
    shared: Vec<Vec<u8>>,
    reposted: Vec<u16>,
    counters: FakeCounters,
    registry: Rc<Registry<Offered>>,
}

/// A caller's region that is registered.
struct Offered {
    net: Rc<RefCell<Net>>,
    key: u32,
}

impl Drop for Offered {
    fn drop(&mut self) {
        self.net.borrow_mut().memory.remove(&self.key);
    }
}

impl<B> Debug for FakeVerbs<B> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeVerbs").field("process", &self.process).finish_non_exhaustive()
    }
}

impl<B> Drop for FakeVerbs<B> {
    fn drop(&mut self) {
        self.net.borrow_mut().leave(self.process, true);
    }
}

impl<B: Buffer> FakeVerbs<B> {
    /// What it has asked of its network card.
    #[must_use]
    pub fn counters(&self) -> FakeCounters {
        self.counters
    }

    /// Its queue pairs that are made to do so share so many receives from now on.
    #[must_use]
    pub fn sharing(mut self, receives: u16) -> Self {
        self.shared = vec![Vec::new(); receives.into()];
        self.net.borrow_mut().shared.insert(self.process, (0..receives).collect());
        self
    }

    /// Receives that are posted and shared: all of them, when nothing is going on.
    #[must_use]
    pub fn shared_posted(&self) -> usize {
        self.net.borrow().shared.get(&self.process).map_or(0, VecDeque::len) + self.reposted.len()
    }

    fn ring_shared(&mut self) {
        if let Some(shared) = self.net.borrow_mut().shared.get_mut(&self.process) {
            shared.extend(self.reposted.drain(..));
        }
    }

    /// The machine loses power: nobody hears of it.
    pub fn lose_power(self) {
        self.net.borrow_mut().leave(self.process, false);
    }

    fn open(&mut self, shape: Shape) -> Result<(Qp, SideId), ProviderError> {
        let free = self.queues.iter().position(|(_, queue)| queue.is_none());
        let slot = free.unwrap_or(self.queues.len());
        if slot == self.queues.len() {
            self.queues.push((0, None));
        }
        let place = self.queues.get_mut(slot).ok_or(ProviderError::Full)?;
        place.0 = place.0.wrapping_add(1);
        let qp = Qp { slot: slot as u16, generation: place.0 };
        let side = self.net.borrow_mut().open(self.process, qp, shape);
        place.1 = Some(FakeQueue::new(side, shape, self.limits));
        Ok((qp, side))
    }

    fn queue(&self, qp: Qp) -> Option<&FakeQueue<B>> {
        let (generation, queue) = self.queues.get(usize::from(qp.slot))?;
        queue.as_ref().filter(|_| *generation == qp.generation)
    }

    fn queue_mut(&mut self, qp: Qp) -> Option<&mut FakeQueue<B>> {
        let (generation, queue) = self.queues.get_mut(usize::from(qp.slot))?;
        queue.as_mut().filter(|_| *generation == qp.generation)
    }

    fn read_mail(&mut self, events: &mut Vec<Event<B>>) -> bool {
        let mut any = false;
        loop {
            let mut net = self.net.borrow_mut();
            let Some(mail) = net.next_mail(self.process) else { return any };
            any = true;
            let local = |net: &Net, side| net.sides.get(&side).map(|found| found.qp);
            let event = match mail {
                Mail::Requested { from, ask, reads } => {
                    self.requests.push(from);
                    Some(Event::Requested { request: from, ask, reads })
                }
                Mail::Accepted { side, answer } => {
                    let peer = net.sides.get(&side).and_then(|found| found.peer);
                    let process = peer.and_then(|id| Some((id, net.sides.get(&id)?.process)));
                    if let Some((id, process)) = process {
                        net.post(process, Mail::Established { side: id });
                    }
                    local(&net, side).map(|qp| Event::Established { qp, answer })
                }
                Mail::Established { side } => {
                    let answer = Note::new(&[]);
                    local(&net, side).map(|qp| Event::Established { qp, answer })
                }
                Mail::Refused { side, answer } => {
                    local(&net, side).map(|qp| Event::Refused { qp, answer })
                }
                Mail::Disconnected { side } => {
                    local(&net, side).map(|qp| Event::Disconnected { qp })
                }
            };
            events.extend(event);
        }
    }
}

impl<B: Buffer> Provider for FakeVerbs<B> {
    type Buffer = B;
    type Region = FakeRegion;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn shared_receives(&self) -> u32 {
        self.shared.len() as u32
    }

    fn poll(&mut self, now_us: u64, events: &mut Vec<Event<B>>) -> bool {
        debug_assert!(now_us <= self.net.borrow().now_us, "time is the fabric's");
        let before = events.len();
        self.ring_shared();
        // What has arrived is seen before the end of the connection that it came on.
        for (slot, (generation, queue)) in self.queues.iter_mut().enumerate() {
            let Some(queue) = queue else { continue };
            let qp = Qp { slot: slot as u16, generation: *generation };
            let (net, shared) = (&mut self.net.borrow_mut(), &mut self.shared);
            queue.turn(net, qp, &mut self.counters, events, shared);
        }
        let mail = self.read_mail(events);
        mail || events.len() > before
    }

    fn accept(&mut self, request: u32, answer: Note, shape: Shape) -> Result<Qp, ProviderError> {
        self.requests.retain(|other| *other != request);
        if !self.net.borrow().sides.contains_key(&request) {
            return Err(ProviderError::Gone);
        }
        let (qp, side) = self.open(shape)?;
        let mut net = self.net.borrow_mut();
        if let Some(found) = net.sides.get_mut(&side) {
            found.peer = Some(request);
        }
        let process = net.sides.get_mut(&request).map(|found| {
            found.peer = Some(side);
            found.process
        });
        if let Some(process) = process {
            net.post(process, Mail::Accepted { side: request, answer });
        }
        Ok(qp)
    }

    fn reject(&mut self, request: u32, answer: Note) {
        self.requests.retain(|other| *other != request);
        let mut net = self.net.borrow_mut();
        if let Some(process) = net.sides.get(&request).map(|found| found.process) {
            net.post(process, Mail::Refused { side: request, answer });
        }
    }

    fn connect(
        &mut self,
        address: SocketAddr,
        ask: Note,
        shape: Shape,
    ) -> Result<Qp, ProviderError> {
        let (qp, side) = self.open(shape)?;
        let mut net = self.net.borrow_mut();
        match net.listeners.get(&address).copied() {
            Some(process) => {
                net.post(process, Mail::Requested { from: side, ask, reads: shape.reads });
            }
            None => {
                let answer = Note::new(&[]);
                net.post(self.process, Mail::Refused { side, answer });
            }
        }
        Ok(qp)
    }

    fn received(&self, qp: Qp, receive: u16, length: u32) -> &[u8] {
        let Some(queue) = self.queue(qp) else { return &[] };
        let message = match queue.shares() {
            true => &self.shared[usize::from(receive)],
            false => queue.message(receive),
        };
        &message[..length as usize]
    }

    fn repost(&mut self, qp: Qp, receive: u16) {
        let Some(queue) = self.queue_mut(qp) else { return };
        if queue.shares() {
            self.reposted.push(receive);
        } else {
            queue.repost(receive);
        }
    }

    fn ring_receives(&mut self, qp: Qp) {
        self.ring_shared();
        let net = Rc::clone(&self.net);
        if let Some(queue) = self.queue_mut(qp) {
            queue.ring_receives(&mut net.borrow_mut());
        }
    }

    fn room(&self, qp: Qp) -> Room {
        self.queue(qp).map_or(Room::default(), FakeQueue::room)
    }

    fn in_flight(&self, qp: Qp) -> usize {
        self.queue(qp).map_or(0, FakeQueue::in_flight)
    }

    fn post(&mut self, qp: Qp, chain: &mut Chain<B>) {
        self.ring_receives(qp);
        self.counters.doorbells += 1;
        self.counters.works += chain.steps().len() as u64;
        if let Some(queue) = self.queue_mut(qp) {
            queue.post(chain);
        }
        chain.clear();
    }

    fn disconnect(&mut self, qp: Qp) {
        let side = self.queue(qp).map(FakeQueue::side);
        if let Some(side) = side {
            self.net.borrow_mut().say_disconnected(side);
        }
    }

    fn break_off(&mut self, qp: Qp) {
        let net = Rc::clone(&self.net);
        if let Some(queue) = self.queue_mut(qp) {
            queue.break_off(&mut net.borrow_mut());
        }
    }

    fn is_drained(&self, qp: Qp) -> bool {
        self.queue(qp).is_none_or(FakeQueue::is_drained)
    }

    fn release(&mut self, qp: Qp, ended: &mut dyn FnMut(u32, B)) {
        let Some((_, place)) = self.queues.get_mut(usize::from(qp.slot)) else { return };
        let Some(mut queue) = place.take() else { return };
        queue.give_up(ended);
        let mut net = self.net.borrow_mut();
        net.say_disconnected(queue.side());
        net.close(queue.side());
    }

    fn region(&mut self, _qp: Qp, bytes: usize) -> Result<FakeRegion, ProviderError> {
        let mut net = self.net.borrow_mut();
        let (key, address) = (net.number(), 1 << 20);
        let memory = Rc::new(RefCell::new(vec![0; bytes]));
        let (process, shared) = (self.process, Rc::clone(&memory));
        let bytes = net::Bytes::Own(shared);
        net.memory.insert(key, net::Memory { process, address, bytes });
        Ok(FakeRegion { net: Rc::clone(&self.net), key, address, memory })
    }

    fn offer(&mut self, qp: Qp, region: &region::Region) -> Result<u32, ProviderError> {
        if self.queue(qp).is_none() {
            return Err(ProviderError::Gone);
        }
        if !region.is_visible() {
            return Err(ProviderError::Unsuitable("no simulated device has dma-buf".to_owned()));
        }
        let (process, net) = (self.process, &self.net);
        let make = || {
            let mut inside = net.borrow_mut();
            let (key, address) = (inside.number(), region.device_address());
            let bytes = net::Bytes::Region(WeakRegion::new(region), region.bytes());
            inside.memory.insert(key, net::Memory { process, address, bytes });
            Ok(Offered { net: Rc::clone(net), key })
        };
        self.registry.with(region, make, |offered| offered.key)
    }
}

/// Simulated registered memory.
#[derive(Clone)]
pub struct FakeRegion {
    net: Rc<RefCell<Net>>,
    key: u32,
    address: u64,
    memory: Rc<RefCell<Vec<u8>>>,
}

impl Debug for FakeRegion {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeRegion").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Drop for FakeRegion {
    fn drop(&mut self) {
        // Ours, the fabric's, and nobody else's: the registration ends with the last handle.
        if Rc::strong_count(&self.memory) <= 2 {
            self.net.borrow_mut().memory.remove(&self.key);
        }
    }
}

impl LentRegion for FakeRegion {
    fn address(&self) -> u64 {
        self.address
    }

    fn key(&self) -> u32 {
        self.key
    }

    fn len(&self) -> usize {
        self.memory.borrow().len()
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.memory.borrow_mut()[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn read(&self, offset: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.memory.borrow()[offset..offset + bytes.len()]);
    }
}

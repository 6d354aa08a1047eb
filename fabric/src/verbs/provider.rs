//! Verbs as the transport sees them: all devices of this machine, and connections over any of them.

use super::completion::{Channel, Completion, Queue};
use super::device::{Abilities, Context, DeviceEvent, Domain, Gid, open_all};
use super::listener::Listener;
use super::manager::{EventChannel, Id, ManagerEvent, Tuning};
use super::memory::{Registration, Steady, VerbsRegion, keep_from_children};
use super::pair::{Pair, Parts, WorkId, completions};
use crate::rdma::{
    Chain, Event, Limits, Note, Provider, ProviderError, Qp, Room, Shape, Violation,
};
use ibverbs_sys as sys;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::any::Any;
use std::fmt::{Debug, Formatter};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

/// How often the connection manager and the devices are asked for news, in microseconds: that takes a
/// system call.
const NEWS_US: u64 = 100;
/// Completions that one poll takes from one queue, in batches.
const BATCHES_MAX: usize = 4;
/// Entries of a completion queue; more queues are made as more connections come.
const QUEUE_ENTRIES: usize = 8192;

/// How large queue pairs are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerbsConfig {
    /// Work requests of a send queue.
    pub works: usize,
    /// Buffers that they may refer to.
    pub buffers: usize,
    /// Pieces that one of them gathers.
    pub pieces: usize,
    /// Bytes of PDUs on their way that are too long to go inline.
    pub send_bytes: usize,
}

impl Default for VerbsConfig {
    fn default() -> Self {
        Self { works: 256, buffers: 512, pieces: 16, send_bytes: 256 << 10 }
    }
}

/// A device, and what is shared on it.
struct Adapter {
    abilities: Abilities,
    registrations: Vec<Registration>,
    queues: Vec<Rc<Queue>>,
    channel: Rc<Channel>,
    domain: Rc<Domain>,
    context: Rc<Context>,
}

/// One connection.
struct Connection<B> {
    pair: Option<Pair<B>>,
    adapter: usize,
    shape: Shape,
    /// What is asked for when the route is known.
    ask: Note,
    /// Its failure has been said, or was caused here.
    quiet: bool,
    id: Id,
}

struct Slot<B> {
    generation: u16,
    connection: Option<Connection<B>>,
}

/// The RDMA devices of this machine.
pub struct Verbs<B> {
    slots: Vec<Slot<B>>,
    requests: Vec<Option<(Id, u8)>>,
    /// Peers reach it as long as it lives.
    listener: Option<Id>,
    adapters: Vec<Adapter>,
    manager: Rc<EventChannel>,
    limits: Limits,
    /// The connection manager and the devices; and the same with the completions.
    news_epoll: Epoll,
    epoll: Epoll,
    armed: bool,
    next_news_us: u64,
    completions: Vec<Completion>,
    news: Vec<Event<B>>,
}

impl<B> Debug for Verbs<B> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let devices: Vec<_> = self.adapters.iter().map(|found| found.context.name()).collect();
        f.debug_struct("Verbs").field("devices", &devices).finish_non_exhaustive()
    }
}

impl<B: Steady> Verbs<B> {
    /// All devices that speak RoCE or InfiniBand, for connections that this side asks for.
    ///
    /// # Errors
    /// There is none, or one cannot be used.
    pub fn new(config: VerbsConfig) -> Result<Self, ProviderError> {
        Self::over(EventChannel::new()?, config)
    }

    fn over(manager: Rc<EventChannel>, config: VerbsConfig) -> Result<Self, ProviderError> {
        let adapters: Vec<_> = open_all()?.into_iter().map(adapter).collect::<Result<_, _>>()?;
        let limits = limits(&adapters, config)?;
        let (news_epoll, epoll) = watch(&manager, &adapters).map_err(|errno| {
            ProviderError::System { what: "cannot wait for RDMA devices", source: errno.into() }
        })?;
        Ok(Self {
            slots: Vec::new(),
            requests: Vec::new(),
            listener: None,
            adapters,
            manager,
            limits,
            news_epoll,
            epoll,
            armed: false,
            next_news_us: 0,
            completions: Vec::new(),
            news: Vec::new(),
        })
    }

    /// The same, and takes the connections of `listener`.
    ///
    /// # Errors
    /// There is no device, or one cannot be used.
    pub fn serve(config: VerbsConfig, listener: Listener) -> Result<Self, ProviderError> {
        let (listener, manager) = listener.into_parts();
        let mut verbs = Self::over(manager, config)?;
        verbs.listener = Some(listener);
        Ok(verbs)
    }

    /// Registers memory that buffers lie in, once, with every device: `owner` keeps it mapped where it
    /// is. No peer can reach it. Buffers elsewhere are registered each time that they are used.
    ///
    /// # Errors
    /// It cannot be locked.
    pub fn register(
        &mut self,
        address: usize,
        length: usize,
        owner: Rc<dyn Any>,
    ) -> Result<(), ProviderError> {
        keep_from_children(address, length);
        for adapter in &mut self.adapters {
            let owner = Some(Rc::clone(&owner));
            let made = Registration::local(&adapter.domain, address, length, owner)?;
            adapter.registrations.push(made);
        }
        Ok(())
    }

    /// The GID that stands for `address` on one of the devices: of RoCE v2 where there is the choice.
    #[must_use]
    pub fn gid_for(&self, address: IpAddr) -> Option<(String, Gid)> {
        self.adapters.iter().find_map(|adapter| {
            let gid = adapter.context.gid_for(address)?;
            Some((adapter.context.name().to_owned(), gid))
        })
    }
}

fn adapter(context: Rc<Context>) -> Result<Adapter, ProviderError> {
    super::manager::unblock(context.event_fd())?;
    let abilities = context.abilities()?;
    let domain = Domain::new(Rc::clone(&context))?;
    let channel = Channel::new(&context)?;
    let (registrations, queues) = (Vec::new(), Vec::new());
    Ok(Adapter { abilities, registrations, queues, channel, domain, context })
}

/// What the least of the devices can do.
fn limits(adapters: &[Adapter], config: VerbsConfig) -> Result<Limits, ProviderError> {
    let VerbsConfig { works, buffers, pieces, send_bytes } = config;
    let mut limits = Limits { works, buffers, pieces, message_bytes: 1 << 30, send_bytes };
    for adapter in adapters {
        limits.works = limits.works.min(adapter.abilities.works);
        limits.pieces = limits.pieces.min(adapter.abilities.pieces);
        for number in 1..=adapter.abilities.ports {
            let port = adapter.context.port(number)?;
            let name = adapter.context.name();
            if !port.active {
                log::warn!("RDMA device {name}: port {number} is down");
            }
            limits.message_bytes = limits.message_bytes.min(port.message_bytes);
        }
    }
    Ok(limits)
}

fn watch(
    manager: &EventChannel,
    adapters: &[Adapter],
) -> Result<(Epoll, Epoll), nix::errno::Errno> {
    let readable = EpollEvent::new(EpollFlags::EPOLLIN, 0);
    let news = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    news.add(manager.fd(), readable)?;
    let all = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    all.add(&news.0, readable)?;
    for adapter in adapters {
        news.add(adapter.context.event_fd(), readable)?;
        all.add(adapter.channel.fd(), readable)?;
    }
    Ok((news, all))
}

/// What a failed completion says of the connection.
fn violation(status: sys::ibv_wc_status::Type) -> Violation {
    use sys::ibv_wc_status as statuses;
    match status {
        statuses::IBV_WC_RETRY_EXC_ERR => Violation::Silent,
        statuses::IBV_WC_RNR_RETRY_EXC_ERR => Violation::NotReady,
        statuses::IBV_WC_REM_ACCESS_ERR => Violation::RemoteAccess,
        statuses::IBV_WC_LOC_ACCESS_ERR | statuses::IBV_WC_LOC_LEN_ERR => Violation::Forbidden,
        other => Violation::Other(other),
    }
}

/// A connection's number in the connection manager, and back. Never 0: that is a listener's.
fn number_of(qp: Qp) -> usize {
    usize::from(qp.slot) << 16 | usize::from(qp.generation) | 1 << 32
}

fn qp_of(number: usize) -> Qp {
    Qp { slot: (number >> 16) as u16, generation: number as u16 }
}

// The table of connections.
impl<B: Steady> Verbs<B> {
    fn connection(&self, qp: Qp) -> Option<&Connection<B>> {
        let slot = self.slots.get(usize::from(qp.slot))?;
        slot.connection.as_ref().filter(|_| slot.generation == qp.generation)
    }

    fn connection_mut(&mut self, qp: Qp) -> Option<&mut Connection<B>> {
        let slot = self.slots.get_mut(usize::from(qp.slot))?;
        slot.connection.as_mut().filter(|_| slot.generation == qp.generation)
    }

    /// A free slot under a new generation.
    fn reserve(&mut self) -> Result<Qp, ProviderError> {
        let free = self.slots.iter().position(|slot| slot.connection.is_none());
        let index = free.unwrap_or(self.slots.len());
        let slot = u16::try_from(index).map_err(|_| ProviderError::Full)?;
        if index == self.slots.len() {
            self.slots.push(Slot { generation: 0, connection: None });
        }
        let generation = self.slots[index].generation.wrapping_add(1);
        self.slots[index].generation = generation;
        Ok(Qp { slot, generation })
    }

    fn put(&mut self, qp: Qp, connection: Connection<B>) {
        self.slots[usize::from(qp.slot)].connection = Some(connection);
    }

    /// Our own context of the device that a connection runs over.
    fn adapter_of(&self, id: &Id) -> Result<usize, ProviderError> {
        let (theirs, _) = id.device().ok_or(ProviderError::Gone)?;
        // SAFETY: the connection manager keeps the context of a live connection open.
        let found = self
            .adapters
            .iter()
            .position(|adapter| unsafe { adapter.context.is_device_of(theirs) });
        found.ok_or_else(|| {
            ProviderError::Unsuitable("a connection over an RDMA device that is not used".into())
        })
    }

    /// A completion queue with room for one more queue pair.
    fn queue(&mut self, adapter: usize, shape: &Shape) -> Result<Rc<Queue>, ProviderError> {
        let wanted = completions(&self.limits, shape);
        let adapter = &mut self.adapters[adapter];
        if let Some(found) = adapter.queues.iter().find(|queue| queue.promise(wanted)) {
            return Ok(Rc::clone(found));
        }
        let entries = QUEUE_ENTRIES.max(wanted).min(adapter.abilities.completions);
        let queue = Queue::new(&adapter.context, &adapter.channel, entries)?;
        if self.armed {
            queue.arm();
        }
        adapter.queues.push(Rc::clone(&queue));
        if queue.promise(wanted) { Ok(queue) } else { Err(ProviderError::Full) }
    }

    fn pair(&mut self, qp: Qp, adapter: usize, shape: Shape) -> Result<Pair<B>, ProviderError> {
        let queue = self.queue(adapter, &shape)?;
        let (domain, limits) = (&self.adapters[adapter].domain, self.limits);
        Pair::new(Parts { qp, domain, queue, limits, shape })
    }

    fn tuning(&self, adapter: usize, shape: &Shape, reads: u8) -> Tuning {
        let abilities = self.adapters[adapter].abilities;
        let most = if shape.remote_access { abilities.read_targets } else { abilities.reads };
        let reads = reads.min(shape.reads).min(most);
        Tuning { reads, remote_access: shape.remote_access }
    }
}

// The connection manager's news.
impl<B: Steady> Verbs<B> {
    fn hear(&mut self, event: ManagerEvent) {
        match event {
            ManagerEvent::Requested { id, ask, reads } => {
                let free = self.requests.iter().position(Option::is_none);
                let index = free.unwrap_or(self.requests.len());
                if index == self.requests.len() {
                    self.requests.push(None);
                }
                self.requests[index] = Some((id, reads));
                self.news.push(Event::Requested { request: index as u32, ask, reads });
            }
            ManagerEvent::AddressResolved(number) => {
                self.go_on(qp_of(number), |connection| connection.id.resolve_route());
            }
            ManagerEvent::RouteResolved(number) => self.ask(qp_of(number)),
            ManagerEvent::Accepted { number, answer } => self.accepted(qp_of(number), answer),
            ManagerEvent::Established(number) => {
                let (qp, answer) = (qp_of(number), Note::new(&[]));
                self.news.push(Event::Established { qp, answer });
            }
            ManagerEvent::Refused { number, answer } => {
                self.news.push(Event::Refused { qp: qp_of(number), answer });
            }
            ManagerEvent::Disconnected(number) => {
                self.news.push(Event::Disconnected { qp: qp_of(number) });
            }
            ManagerEvent::Removed(number) => {
                self.news.push(Event::Broken { qp: qp_of(number), why: Violation::Silent });
            }
        }
    }

    /// The next step of a connection that is being made; where it fails, that is its end.
    fn go_on(
        &mut self,
        qp: Qp,
        step: impl FnOnce(&mut Connection<B>) -> Result<(), ProviderError>,
    ) {
        let Some(connection) = self.connection_mut(qp) else { return };
        if let Err(error) = step(connection) {
            self.refuse(qp, &error);
        }
    }

    fn refuse(&mut self, qp: Qp, error: &ProviderError) {
        log::warn!("an RDMA connection failed: {error}");
        self.news.push(Event::Refused { qp, answer: Note::new(&[]) });
    }

    /// The route is known, and with it the device: makes the queue pair and asks for the connection.
    fn ask(&mut self, qp: Qp) {
        let Some(Connection { id, shape, .. }) = self.connection(qp) else { return };
        let shape = *shape;
        let made = self.adapter_of(id).and_then(|adapter| {
            let pair = self.pair(qp, adapter, shape)?;
            Ok((adapter, pair))
        });
        let (adapter, mut pair) = match made {
            Ok(made) => made,
            Err(error) => return self.refuse(qp, &error),
        };
        let tuning = self.tuning(adapter, &shape, shape.reads);
        self.go_on(qp, |connection| {
            pair.prepare(&connection.id, &tuning)?;
            connection.id.connect(pair.number(), &connection.ask, tuning.reads)?;
            connection.adapter = adapter;
            connection.pair = Some(pair);
            Ok(())
        });
    }

    /// The other side has accepted: the queue pair becomes ready, and the other side hears of it.
    fn accepted(&mut self, qp: Qp, answer: Note) {
        let Some(Connection { adapter, shape, .. }) = self.connection(qp) else { return };
        let tuning = self.tuning(*adapter, shape, shape.reads);
        let mut ready = false;
        self.go_on(qp, |connection| {
            let pair = connection.pair.as_mut().ok_or(ProviderError::Gone)?;
            pair.connect(&connection.id, &tuning)?;
            connection.id.establish()?;
            ready = true;
            Ok(())
        });
        if ready {
            self.news.push(Event::Established { qp, answer });
        }
    }

    /// A device has something to say of itself.
    fn hear_device(&mut self, adapter: usize, event: DeviceEvent) {
        let name = self.adapters[adapter].context.name();
        match event {
            DeviceEvent::QueuePair { number, forbidden } => {
                let why = if forbidden { Violation::Forbidden } else { Violation::Other(0) };
                self.break_all(|connection| is_pair(connection, adapter, number), why);
            }
            DeviceEvent::CompletionQueue => {
                log::error!("RDMA device {name}: a completion queue has overrun");
                self.break_all(|connection| connection.adapter == adapter, Violation::Other(0));
            }
            DeviceEvent::Device => {
                log::error!("RDMA device {name} has failed");
                self.break_all(|connection| connection.adapter == adapter, Violation::Silent);
            }
            // Connections survive a short break; what takes longer ends by their own retries.
            DeviceEvent::Port { up } => {
                log::warn!("RDMA device {name}: a port is {}", if up { "up" } else { "down" });
            }
            DeviceEvent::Other(number) => log::debug!("RDMA device {name}: event {number}"),
        }
    }

    fn break_all(&mut self, which: impl Fn(&Connection<B>) -> bool, why: Violation) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(connection) = slot.connection.as_mut().filter(|found| which(found)) else {
                continue;
            };
            if !std::mem::replace(&mut connection.quiet, true) {
                let qp = Qp { slot: index as u16, generation: slot.generation };
                self.news.push(Event::Broken { qp, why });
            }
        }
    }

    /// Whether the connection manager or a device has news: one system call.
    fn has_news(&self) -> bool {
        let mut found = [EpollEvent::empty()];
        self.news_epoll.wait(&mut found, EpollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    fn take_news(&mut self, now_us: u64) {
        if now_us < self.next_news_us && !self.armed {
            return;
        }
        self.next_news_us = now_us + NEWS_US;
        if !self.has_news() {
            return;
        }
        while let Some(event) = self.manager.next_event() {
            self.hear(event);
        }
        for adapter in 0..self.adapters.len() {
            while let Some(event) = self.adapters[adapter].context.next_event() {
                self.hear_device(adapter, event);
            }
        }
    }
}

fn is_pair<B: Steady>(connection: &Connection<B>, adapter: usize, number: u32) -> bool {
    let pair = connection.pair.as_ref();
    connection.adapter == adapter && pair.is_some_and(|pair| pair.number() == number)
}

// Completions.
impl<B: Steady> Verbs<B> {
    /// `true` if there were any, even if they say nothing.
    fn take_completions(&mut self, events: &mut Vec<Event<B>>) -> bool {
        let mut found = std::mem::take(&mut self.completions);
        for queue in self.adapters.iter().flat_map(|adapter| &adapter.queues) {
            let mut batches = 0;
            while queue.poll(&mut found) && batches < BATCHES_MAX {
                batches += 1;
            }
        }
        let any = !found.is_empty();
        for completion in found.drain(..) {
            self.complete(completion, events);
        }
        self.completions = found;
        any
    }

    fn complete(&mut self, completion: Completion, events: &mut Vec<Event<B>>) {
        let Completion { id, status, length, immediate } = completion;
        let WorkId { qp, receive, sequence } = WorkId::parse(id);
        let Some(connection) = self.connection_mut(qp) else { return };
        let Some(pair) = &mut connection.pair else { return };
        let success = status == sys::ibv_wc_status::IBV_WC_SUCCESS;
        match receive {
            Some(receive) => {
                pair.receive_completed(receive);
                if let (true, Some(immediate)) = (success, immediate) {
                    events.push(Event::Received { qp, receive, length, immediate });
                    return;
                }
            }
            None => pair.send_completed(sequence, success, |token, buffer, complete| {
                events.push(Event::Read { qp, token, buffer, complete });
            }),
        }
        if success && receive.is_none() {
            let said = matches!(events.last(), Some(Event::Progress { qp: last }) if *last == qp);
            if !said {
                events.push(Event::Progress { qp });
            }
        } else if !std::mem::replace(&mut connection.quiet, true) {
            // A message without a number beside it is one that this protocol does not have.
            let why = if success { Violation::Forbidden } else { violation(status) };
            events.push(Event::Broken { qp, why });
        }
    }
}

impl<B: Steady> Provider for Verbs<B> {
    type Buffer = B;
    type Region = VerbsRegion;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn poll(&mut self, now_us: u64, events: &mut Vec<Event<B>>) -> bool {
        let before = events.len();
        // News first, told last: what had arrived when a connection ended is seen before its end.
        self.take_news(now_us);
        // A completion of something long released has used up the arming, too.
        let any = self.take_completions(events);
        events.append(&mut self.news);
        let moved = any || events.len() > before;
        if self.armed && moved {
            self.armed = false;
            self.adapters.iter().for_each(|adapter| adapter.channel.drain());
        }
        moved
    }

    fn accept(&mut self, request: u32, answer: Note, shape: Shape) -> Result<Qp, ProviderError> {
        let place = self.requests.get_mut(request as usize);
        let (id, reads) = place.and_then(Option::take).ok_or(ProviderError::Gone)?;
        let adapter = self.adapter_of(&id)?;
        let qp = self.reserve()?;
        id.set_number(number_of(qp));
        let tuning = self.tuning(adapter, &shape, reads);
        let made = self.pair(qp, adapter, shape).and_then(|mut pair| {
            pair.prepare(&id, &tuning)?;
            pair.connect(&id, &tuning)?;
            id.accept(pair.number(), &answer, tuning.reads)?;
            Ok(pair)
        });
        match made {
            Ok(pair) => {
                let (pair, ask) = (Some(pair), Note::new(&[]));
                self.put(qp, Connection { pair, adapter, shape, ask, quiet: false, id });
                Ok(qp)
            }
            Err(error) => {
                id.reject(&Note::new(&[]));
                Err(error)
            }
        }
    }

    fn reject(&mut self, request: u32, answer: Note) {
        let place = self.requests.get_mut(request as usize);
        if let Some((id, _)) = place.and_then(Option::take) {
            id.reject(&answer);
        }
    }

    fn connect(
        &mut self,
        address: SocketAddr,
        ask: Note,
        shape: Shape,
    ) -> Result<Qp, ProviderError> {
        let qp = self.reserve()?;
        let id = Id::resolve(&self.manager, address, number_of(qp))?;
        self.put(qp, Connection { pair: None, adapter: 0, shape, ask, quiet: false, id });
        Ok(qp)
    }

    fn received(&self, qp: Qp, receive: u16, length: u32) -> &[u8] {
        let pair = self.connection(qp).and_then(|connection| connection.pair.as_ref());
        pair.map_or(&[], |pair| pair.message(receive, length))
    }

    fn repost(&mut self, qp: Qp, receive: u16) {
        let pair = self.connection_mut(qp).and_then(|connection| connection.pair.as_mut());
        pair.into_iter().for_each(|pair| pair.repost(receive));
    }

    fn ring_receives(&mut self, qp: Qp) {
        let Some(connection) = self.connection_mut(qp) else { return };
        let Some(pair) = connection.pair.as_mut().filter(|_| !connection.quiet) else { return };
        if let Err(error) = pair.ring_receives() {
            log::debug!("queue pair {}: {error}", pair.number());
            connection.quiet = true;
            self.news.push(Event::Broken { qp, why: Violation::Other(0) });
        }
    }

    fn room(&self, qp: Qp) -> Room {
        let pair = self.connection(qp).and_then(|connection| connection.pair.as_ref());
        pair.map_or(Room::default(), Pair::room)
    }

    fn in_flight(&self, qp: Qp) -> usize {
        let pair = self.connection(qp).and_then(|connection| connection.pair.as_ref());
        pair.map_or(0, Pair::in_flight)
    }

    fn post(&mut self, qp: Qp, chain: &mut Chain<B>) {
        self.ring_receives(qp);
        let Some(slot) = self.slots.get_mut(usize::from(qp.slot)) else { return chain.clear() };
        let found = slot.connection.as_mut().filter(|_| slot.generation == qp.generation);
        let Some(connection) = found else { return chain.clear() };
        let Some(pair) = &mut connection.pair else { return chain.clear() };
        let registrations = &self.adapters[connection.adapter].registrations;
        let posted = pair.post(chain, |address, length| {
            let found = registrations.iter().find(|found| found.covers(address, length));
            found.map(Registration::local_key)
        });
        if let Err(error) = posted {
            log::debug!("queue pair {}: {error}", pair.number());
            if !std::mem::replace(&mut connection.quiet, true) {
                self.news.push(Event::Broken { qp, why: Violation::Other(0) });
            }
        }
    }

    fn disconnect(&mut self, qp: Qp) {
        if let Some(connection) = self.connection(qp) {
            connection.id.disconnect();
        }
    }

    fn break_off(&mut self, qp: Qp) {
        let Some(connection) = self.connection_mut(qp) else { return };
        connection.quiet = true;
        connection.pair.iter_mut().for_each(Pair::fail);
    }

    fn is_drained(&self, qp: Qp) -> bool {
        let pair = self.connection(qp).and_then(|connection| connection.pair.as_ref());
        pair.is_none_or(Pair::is_drained)
    }

    fn release(&mut self, qp: Qp, ended: &mut dyn FnMut(u32, B)) {
        let Some(slot) = self.slots.get_mut(usize::from(qp.slot)) else { return };
        if slot.generation != qp.generation {
            return;
        }
        let Some(Connection { pair, id, .. }) = slot.connection.take() else { return };
        id.disconnect();
        let Some(pair) = pair else { return };
        let queue = Rc::clone(pair.queue());
        pair.destroy(ended);
        // What it has left in the completion queue takes room that is now promised to others. It is not
        // known any more when it is looked at.
        while queue.poll(&mut self.completions) {}
    }

    fn region(&mut self, qp: Qp, bytes: usize) -> Result<VerbsRegion, ProviderError> {
        let adapter = self.connection(qp).ok_or(ProviderError::Gone)?.adapter;
        VerbsRegion::new(&self.adapters[adapter].domain, bytes)
    }

    fn arm(&mut self) -> bool {
        self.adapters.iter().for_each(|adapter| adapter.channel.drain());
        let mut found = std::mem::take(&mut self.completions);
        for queue in self.adapters.iter().flat_map(|adapter| &adapter.queues) {
            queue.arm();
            // What came before it was armed makes no event.
            queue.poll(&mut found);
        }
        let nothing = found.is_empty() && self.news.is_empty();
        self.completions = found;
        self.armed = nothing;
        nothing
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.0.as_fd())
    }
}

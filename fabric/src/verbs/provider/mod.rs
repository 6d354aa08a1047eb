//! Verbs as the transport sees them: all devices of this machine, and connections over any of them.

mod completions;
mod news;
mod seam;
mod sharing;
mod table;

use super::completion::{Channel, Completion, Queue};
use super::device::{Abilities, Context, Domain, Gid, open_all};
use super::listener::Listener;
use super::manager::{EventChannel, Id};
use super::memory::{Registration, Steady, keep_from_children};
use super::pair::{Pair, PairFacts};
use super::reaper::Reaper;
use super::shared::Shared;
use crate::rdma::{Event, Limits, Note, ProviderError, Qp, Shape};
use crate::region::Registry;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::{Debug, Formatter};
use std::net::IpAddr;
use std::rc::Rc;

/// Entries of a completion queue; more queues are made as more connections come.
const QUEUE_ENTRIES: usize = 16_384;

/// How large queue pairs are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerbsConfig {
    /// Work requests of a send queue: half of them carry a value in as many fragments as there may be.
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
        Self { works: 544, buffers: 512, pieces: 16, send_bytes: 256 << 10 }
    }
}

/// A device, and what is shared on it.
struct Adapter {
    abilities: Abilities,
    registrations: Vec<Registration>,
    /// Regions of callers.
    regions: Rc<Registry<Registration>>,
    queues: Vec<Rc<Queue>>,
    shared: Option<Shared>,
    /// The queue pairs that use it, by the numbers that the network knows them by.
    sharers: BTreeMap<u32, Qp>,
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
    reaper: Reaper<B>,
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
            reaper: Reaper::new()?,
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

    /// What the device says of a connection's queue pair.
    ///
    /// # Errors
    /// There is none, or the device does not say.
    pub fn facts(&self, qp: Qp) -> Result<PairFacts, ProviderError> {
        let pair = self.connection(qp).and_then(|connection| connection.pair.as_ref());
        pair.ok_or(ProviderError::Gone)?.facts()
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
    let (registrations, regions, queues) = (Vec::new(), Rc::default(), Vec::new());
    let (shared, sharers) = (None, BTreeMap::new());
    Ok(Adapter {
        abilities,
        registrations,
        regions,
        queues,
        shared,
        sharers,
        channel,
        domain,
        context,
    })
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

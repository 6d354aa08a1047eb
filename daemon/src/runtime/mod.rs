//! The daemon as a process: from a configuration to reactors that serve, and back to nothing.
//!
//! Guarantees: nothing listens before every shard is recovered; the first SIGTERM or SIGINT (or
//! `"drain"` on the admin socket) stops taking commands, answers what is in flight within
//! `drain_timeout_ms` and writes index checkpoints, so that the next start is quick; a second signal
//! ends the process at once, which loses nothing that was acknowledged. A reactor that fails ends the
//! daemon with its error.
//!
//! The main thread starts the reactors, then sleeps on signals, admin clients and the reactors' news;
//! it is never on the data path.

pub mod devices;
pub mod events;
pub mod listening;
pub mod nvme;
#[cfg_attr(not(feature = "rdma"), path = "no_rdma.rs")]
pub mod rdma;
pub mod thread;

use crate::admin::{Admin, AdminError, Request};
use crate::catalog::{Entry, Table};
use crate::mailbox::{self, ReplyTo};
use crate::reactor::mail::{Address, Notice, Report};
use crate::reactor::{Clock, Phase};
use crate::service;
use crate::signals::Signals;
use crate::store::{self, Class, Namespace, Usage};
use crossbeam_channel::{Sender, bounded};
use devices::{DeviceError, Devices, Media};
use events::{Event, Events, Inbox};
use forebay_config::Config;
use forebay_fabric::pdu::{CAPSULE_BYTES_DEFAULT, Endpoint};
use forebay_fabric::server::ServerConfig;
use forebay_nvme::arena::BUFFER_BYTES_MAX;
use forebay_nvme::{Arena, ArenaError};
use listening::Listening;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nvme::Drive;
use serde_json::{Value, json};
use std::thread::JoinHandle;
use std::time::Duration;
use thread::{Berth, CATALOG_REACTOR, Order};

/// Commands in flight on one connection.
const CONNECTION_DEPTH: u16 = 128;
/// Connections of one listener of one reactor.
const CONNECTIONS_MAX: u16 = 1024;
/// The longest deadline of a command, in microseconds.
const TIMEOUT_MAX_US: u32 = 60_000_000;
/// How long the admin socket waits for a reactor's report.
const REPORT_TIMEOUT: Duration = Duration::from_millis(500);

/// Why the daemon does not run, or ran into its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The devices, or the pool on them.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The arena.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The admin socket.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// A port, or a socket's path.
    #[error("cannot listen on {address}: {source}; write another one in [[listen]]")]
    Listen {
        /// Where.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A reactor failed.
    #[error("reactor {reactor}: {error}")]
    Reactor {
        /// Which.
        reactor: u16,
        /// What it said.
        error: String,
    },
    /// The system gives no descriptor or thread.
    #[error("the system has no descriptor or thread left: {0}; raise `ulimit -n` and `-u`")]
    System(#[from] std::io::Error),
}

impl From<nix::Error> for RunError {
    fn from(error: nix::Error) -> Self {
        Self::System(error.into())
    }
}

/// Runs the daemon until it is told to end. Called on the main thread, before any other is started.
///
/// # Errors
/// [`RunError`]: one line that says what to do.
pub fn run(config: &Config) -> Result<(), RunError> {
    let signals = Signals::block()?;
    let clock = Clock::start();
    let admin = Admin::bind(&config.daemon.admin_socket)?;
    let devices = Devices::open(config, clock)?;
    // Dropped behind the reactors and their queues.
    let drives = devices.drives.clone();
    let (events, inbox) = events::channel()?;
    let pool = devices.pool.clone();
    let usage = Usage::default();
    let nvme = devices.media.iter().filter_map(Media::drive).cloned().collect();
    let (addresses, reactors) = start(config, devices, clock, &usage, &events)?;
    let state = State::default();
    let mut daemon =
        Daemon { signals, admin, inbox, addresses, reactors, clock, pool, usage, nvme, state };
    let ended = daemon.serve(config);
    daemon.join();
    // Everything is on media; shutting the drives down is a courtesy that may take its time, too.
    daemon.signals.end_at_once_during(|| drop(drives))?;
    ended
}

/// One reactor's thread.
struct Thread {
    handle: Option<JoinHandle<()>>,
    orders: Sender<Order>,
    phase: Phase,
}

fn start(
    config: &Config,
    devices: Devices,
    clock: Clock,
    usage: &Usage,
    events: &Events,
) -> Result<(Vec<Address>, Vec<Thread>), RunError> {
    let daemon = &config.daemon;
    let count = daemon.cores.len();
    // Of each, in whole units of the arena.
    let tier_bytes = (daemon.dram_tier_bytes as usize).div_ceil(count);
    let tier_bytes = tier_bytes.next_multiple_of(BUFFER_BYTES_MAX);
    let memory = Arena::new(daemon.arena_bytes as usize + count * tier_bytes)?.split(count);
    let (seats, addresses) = mailbox::mesh(count as u16)?;
    let mut threads = Vec::new();
    for (((core, memory), seat), reactor) in daemon.cores.iter().zip(memory).zip(seats).zip(0..) {
        let berth = Berth {
            reactor,
            reactors: count as u16,
            core: *core,
            media: devices.media.clone(),
            queue_depth: daemon.queue_depth,
            memory,
            tier_bytes,
            pool: devices.pool.clone(),
            usage: usage.clone(),
            index_bytes: daemon.index_bytes as usize / count,
            seat,
            namespaces: config.namespaces.iter().map(namespace).collect(),
            idle_after_us: daemon.idle_after_us.into(),
            clock,
        };
        threads.push(spawn(berth, events.clone())?);
    }
    Ok((addresses, threads))
}

fn spawn(berth: Berth, events: Events) -> std::io::Result<Thread> {
    let (orders, orders_in) = bounded(1);
    let number = berth.reactor;
    let handle =
        std::thread::Builder::new().name(format!("reactor-{number}")).spawn(move || {
            let mut ending =
                Ending { reactor: number, events, error: Some("it panicked".to_owned()) };
            let lived = thread::live(berth, &ending.events, &orders_in);
            ending.error = lived.err().map(|error| error.to_string());
        })?;
    Ok(Thread { handle: Some(handle), orders, phase: Phase::Serving })
}

/// Tells of the end of a thread, however it ends.
struct Ending {
    reactor: u16,
    events: Events,
    error: Option<String>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let (reactor, error) = (self.reactor, self.error.take());
        self.events.send(Event::Ended { reactor, error });
    }
}

fn namespace(from: &forebay_config::Namespace) -> Namespace {
    let forebay_config::Namespace { name, class, quota_bytes, ttl_s } = from.clone();
    let class = match class {
        forebay_config::Class::Cache => Class::Cache,
        forebay_config::Class::Durable => Class::Durable,
    };
    Namespace { name, class, quota_bytes, ttl_s }
}

/// How far the daemon is.
#[derive(Debug, Default)]
struct State {
    listening: Vec<String>,
    table: Table,
    recovered: usize,
    keys: usize,
    ended: usize,
    /// When it stops waiting for commands in flight.
    drain_until_us: Option<u64>,
    stopping: bool,
}

/// The main thread's view of the daemon.
struct Daemon {
    signals: Signals,
    admin: Admin,
    inbox: Inbox,
    addresses: Vec<Address>,
    reactors: Vec<Thread>,
    clock: Clock,
    pool: store::Pool,
    usage: Usage,
    /// The drives of `driver = "vfio"`.
    nvme: Vec<Drive>,
    state: State,
}

impl Daemon {
    fn serve(&mut self, config: &Config) -> Result<(), RunError> {
        let drain_us = u64::from(config.daemon.drain_timeout_ms) * 1000;
        while self.state.ended < self.reactors.len() {
            self.wait()?;
            for _ in 0..self.signals.take() {
                self.end(drain_us);
            }
            self.inbox.quiet();
            while let Some(event) = self.inbox.take() {
                self.hear(event, config)?;
            }
            if self.answer_admin() {
                self.drain(drain_us);
            }
            self.stop_if_drained();
        }
        log::info!("ended");
        Ok(())
    }

    /// Sleeps until there is something to do.
    fn wait(&self) -> Result<(), RunError> {
        let mut fds = vec![
            PollFd::new(self.signals.wait_fd(), PollFlags::POLLIN),
            PollFd::new(self.inbox.wait_fd(), PollFlags::POLLIN),
        ];
        self.admin.wait_fds(&mut fds);
        let left_us = match self.state.drain_until_us {
            Some(until_us) if !self.state.stopping => {
                Some(until_us.saturating_sub(self.clock.now().us))
            }
            _ => None,
        };
        let timeout = left_us.map_or(PollTimeout::NONE, |left_us| {
            PollTimeout::try_from(Duration::from_micros(left_us + 999)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn hear(&mut self, event: Event, config: &Config) -> Result<(), RunError> {
        match event {
            Event::Recovered { reactor, keys, table } => {
                log::debug!("reactor {reactor} has recovered {keys} keys");
                self.state.recovered += 1;
                self.state.keys += keys;
                self.state.table = table.unwrap_or(std::mem::take(&mut self.state.table));
                if self.state.recovered == self.reactors.len() {
                    self.listen(config)?;
                }
                Ok(())
            }
            Event::Phase { reactor, phase } => {
                self.reactors[usize::from(reactor)].phase = phase;
                Ok(())
            }
            Event::Ended { reactor, error: Some(error) } => {
                Err(RunError::Reactor { reactor, error })
            }
            Event::Ended { .. } => {
                self.state.ended += 1;
                Ok(())
            }
        }
    }

    /// Binds every listener of every reactor, so that each can tell of all, and has them serve.
    fn listen(&mut self, config: &Config) -> Result<(), RunError> {
        let count = self.reactors.len() as u16;
        let listeners = &config.listeners;
        let places = (0..count).flat_map(|reactor| listeners.iter().map(move |l| (l, reactor)));
        let bound = places.map(|(listen, reactor)| Listening::bind(listen, reactor));
        let mut bound = bound.collect::<Result<Vec<_>, _>>()?;
        let endpoints = bound.iter().map(|bound| bound.endpoint).collect();
        let common = self.server_config(config, endpoints);
        self.state.listening = bound.iter_mut().map(|b| std::mem::take(&mut b.shown)).collect();
        let mut bound = bound.into_iter();
        for (reactor, number) in self.reactors.iter().zip(0..) {
            let config = ServerConfig { reactor: number, ..common.clone() };
            let own = bound.by_ref().take(listeners.len());
            let listeners = own.map(|own| (own.listening, config.clone())).collect();
            let order = Order { namespaces: self.state.table.clone(), listeners };
            if reactor.orders.send(order).is_err() {
                log::debug!("a reactor has ended already, and says why itself");
            }
        }
        let shown = self.state.listening.join(", ");
        log::info!("ready: {shown} with {} keys", self.state.keys);
        Ok(())
    }

    fn server_config(&self, config: &Config, endpoints: Vec<Endpoint>) -> ServerConfig {
        let reactors = self.reactors.len() as u16;
        ServerConfig {
            queue_depth: CONNECTION_DEPTH,
            capsule_bytes: CAPSULE_BYTES_DEFAULT as u32,
            keep_alive_ms: config.daemon.keep_alive_ms,
            timeout_max_us: TIMEOUT_MAX_US,
            connections_max: CONNECTIONS_MAX,
            pool: *self.pool.uuid(),
            incarnation: *uuid::Uuid::new_v4().as_bytes(),
            reactors,
            reactor: 0,
            catalog_reactor: CATALOG_REACTOR,
            shard_map: (0..self.pool.shards())
                .map(|shard| (shard % u32::from(reactors)) as u16)
                .collect(),
            endpoints,
        }
    }

    /// A signal came: the first drains, the second ends everything at once.
    fn end(&mut self, drain_us: u64) {
        if self.state.drain_until_us.is_some() {
            log::warn!("ending at once; what was acknowledged is on media");
            std::process::exit(1);
        }
        self.drain(drain_us);
    }

    fn drain(&mut self, drain_us: u64) {
        if self.state.drain_until_us.is_some() {
            return;
        }
        log::info!("draining");
        self.state.drain_until_us = Some(self.clock.now().us + drain_us);
        if self.state.listening.is_empty() {
            // Nobody is served yet: nothing to wait for. Without an order, the threads end.
            self.stop();
        } else {
            self.tell(&Notice::Drain);
        }
    }

    fn stop_if_drained(&mut self) {
        let Some(until_us) = self.state.drain_until_us else { return };
        if self.state.stopping {
            return;
        }
        let busy = self.reactors.iter().filter(|reactor| reactor.phase < Phase::Drained).count();
        let late = self.clock.now().us >= until_us;
        if late && busy > 0 {
            log::warn!("{busy} reactor(s) did not drain in time; ending without index checkpoints");
        }
        if late || busy == 0 {
            self.stop();
        }
    }

    fn stop(&mut self) {
        self.state.stopping = true;
        self.tell(&Notice::Stop);
        for reactor in &mut self.reactors {
            // A thread that still waits for its order learns that none will come.
            reactor.orders = bounded(0).0;
        }
    }

    fn tell(&self, notice: &Notice) {
        for address in &self.addresses {
            if !address.notify(notice.clone()) {
                log::debug!("a reactor has ended already");
            }
        }
    }

    /// Answers the admin clients; `true` if one of them wants the daemon to drain.
    fn answer_admin(&mut self) -> bool {
        let Self { admin, addresses, clock, pool, usage, nvme: drives, state, .. } = self;
        let mut drain = false;
        admin.serve(|request| match request {
            Request::Status => status(addresses, *clock, pool, state),
            Request::Namespaces => namespaces(&state.table, usage),
            Request::Devices => nvme::report(drives, REPORT_TIMEOUT),
            Request::Drain => {
                drain = true;
                json!({ "draining": true })
            }
        });
        drain
    }

    fn join(&mut self) {
        for (number, reactor) in self.reactors.iter_mut().enumerate() {
            let Some(handle) = reactor.handle.take() else { continue };
            // After an error the others are still serving: the process ends without them.
            if handle.is_finished() && handle.join().is_err() {
                log::error!("reactor {number} panicked");
            }
        }
    }
}

fn status(addresses: &[Address], clock: Clock, pool: &store::Pool, state: &State) -> Value {
    let (reply_to, replies) = ReplyTo::new(addresses.len());
    let notice = Notice::Report(reply_to);
    let asked = addresses.iter().filter(|address| address.notify(notice.clone())).count();
    drop(notice);
    let reports = (0..asked).map_while(|_| replies.recv_timeout(REPORT_TIMEOUT).ok());
    let mut reports: Vec<Report> = reports.collect();
    reports.sort_by_key(|report| report.reactor);
    let draining = state.drain_until_us.is_some();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pool": uuid::Uuid::from_bytes(*pool.uuid()).to_string(),
        "uptime_s": clock.now().us / 1_000_000,
        "phase": if draining { "draining" } else { "serving" },
        "addresses": state.listening,
        "reactors": reports.into_iter().map(|report| report.json).collect::<Vec<_>>(),
    })
}

fn namespaces(table: &Table, usage: &Usage) -> Value {
    let one = |entry: &Entry| service::namespace(entry, usage.bytes(entry.number as u16));
    table.entries().iter().map(one).collect()
}

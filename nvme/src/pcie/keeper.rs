//! The thread that looks after controllers: off the data path, mostly asleep.
//!
//! Guarantees: a controller whose drive is pulled, or that a queue complains about, is polled within a
//! millisecond; one that is well costs ten looks a second. When the keeper is dropped it shuts its controllers
//! down in order, within the time that they give themselves.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Controller, Drive, Options, State, Trouble};
use crate::Pool;
use crate::arena::{Arena, ArenaError, BUFFER_BYTES_MAX};
use crate::hardware::{Hardware, MapError};

/// How long it sleeps while a controller is getting on, in milliseconds.
const BUSY_MS: u8 = 1;
/// How long it sleeps while all are well, in milliseconds.
const IDLE_MS: u8 = 100;

/// Why a controller could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// It does not come up.
    #[error("{name}: {trouble}")]
    Controller {
        /// What it is called.
        name: String,
        /// What is wrong.
        trouble: Trouble,
    },
    /// The keeper's memory cannot be mapped for it.
    #[error("{name}: {source}")]
    Map {
        /// What it is called.
        name: String,
        /// Why.
        source: MapError,
    },
    /// No memory.
    #[error(transparent)]
    Memory(#[from] ArenaError),
    /// No thread or descriptor.
    #[error("the system has no thread or descriptor left: {0}; raise `ulimit -n` and `-u`")]
    System(#[from] std::io::Error),
}

/// A controller to be taken, and who waits for it.
struct Order<H: Hardware> {
    hardware: H,
    options: Options,
    reply: Sender<Result<Drive<H::Registers>, KeeperError>>,
}

/// A handle on the thread.
#[derive(Debug)]
pub struct Keeper<H: Hardware> {
    orders: Option<Sender<Order<H>>>,
    bell: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl<H: Hardware + Send> Keeper<H> {
    /// Starts the thread. `clock` gives microseconds that never go back.
    ///
    /// # Errors
    /// The system gives no thread, descriptor or memory.
    pub fn start(clock: impl Fn() -> u64 + Send + 'static) -> Result<Self, KeeperError> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let bell = Arc::new(EventFd::from_flags(flags).map_err(std::io::Error::from)?);
        let (orders, inbox) = crossbeam_channel::unbounded();
        let memory = Arena::on_demand(BUFFER_BYTES_MAX)?.split(1).remove(0);
        let own_bell = Arc::clone(&bell);
        let thread =
            std::thread::Builder::new().name("nvme-keeper".to_owned()).spawn(move || {
                let pool = memory.into_pool();
                Watch { inbox, bell: own_bell, pool, kept: Vec::new() }.run(&clock);
            })?;
        Ok(Self { orders: Some(orders), bell, thread: Some(thread) })
    }

    /// Takes a controller and waits until it is ready.
    ///
    /// # Errors
    /// It does not come up; it has been let go of.
    pub fn adopt(&self, hardware: H, options: Options) -> Result<Drive<H::Registers>, KeeperError> {
        let name = hardware.name().to_owned();
        let (reply, answer) = crossbeam_channel::bounded(1);
        let order = Order { hardware, options, reply };
        let sent = self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok());
        ring(&self.bell);
        let lost = || Err(KeeperError::Controller { name, trouble: Trouble::Closed });
        if sent { answer.recv().unwrap_or_else(|_| lost()) } else { lost() }
    }
}

impl<H: Hardware> Drop for Keeper<H> {
    fn drop(&mut self) {
        self.orders = None;
        ring(&self.bell);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the keeper of the NVMe controllers panicked");
        }
    }
}

fn ring(bell: &EventFd) {
    // A full counter wakes as well as one more.
    if let Err(error) = bell.write(1) {
        log::debug!("waking the keeper: {error}");
    }
}

struct Kept<H: Hardware> {
    controller: Controller<H>,
    name: String,
    /// Descriptors of the hardware's events.
    fds: Vec<OwnedFd>,
    reply: Option<Sender<Result<Drive<H::Registers>, KeeperError>>>,
}

/// What the thread has.
struct Watch<H: Hardware> {
    inbox: Receiver<Order<H>>,
    bell: Arc<EventFd>,
    pool: Pool,
    kept: Vec<Kept<H>>,
}

impl<H: Hardware> Watch<H> {
    fn run(mut self, clock: &dyn Fn() -> u64) {
        loop {
            let over = self.take_orders();
            if over {
                self.kept.iter_mut().for_each(|kept| kept.controller.close());
            }
            let mut busy = false;
            for kept in &mut self.kept {
                busy |= kept.controller.poll(clock());
                kept.tell();
            }
            if over {
                self.kept.retain(|kept| kept.controller.state() != State::Gone);
                if self.kept.is_empty() {
                    return;
                }
            }
            self.sleep(if busy || over { BUSY_MS } else { IDLE_MS });
        }
    }

    /// `true`: there will be no more.
    fn take_orders(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(order) => self.take(order),
                Err(crossbeam_channel::TryRecvError::Empty) => return false,
                Err(crossbeam_channel::TryRecvError::Disconnected) => return true,
            }
        }
    }

    fn take(&mut self, order: Order<H>) {
        let Order { hardware, options, reply } = order;
        let name = hardware.name().to_owned();
        let mut fds = Vec::new();
        hardware.wait_fds(&mut |fd| match fd.try_clone_to_owned() {
            Ok(fd) => fds.push(fd),
            Err(error) => log::warn!("events are noticed later: {error}"),
        });
        let bell = Arc::clone(&self.bell);
        match Controller::new(hardware, options, &self.pool, Box::new(move || ring(&bell))) {
            Ok(controller) => self.kept.push(Kept { controller, name, fds, reply: Some(reply) }),
            Err(source) => answer(&reply, Err(KeeperError::Map { name, source })),
        }
    }

    /// Until the bell rings, a drive reports something, or for so long.
    fn sleep(&mut self, ms: u8) {
        let mut fds = vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
        for kept in self.kept.iter().filter(|kept| kept.controller.state() != State::Gone) {
            fds.extend(kept.fds.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        }
        if let Err(error) = poll(&mut fds, PollTimeout::from(ms)) {
            log::debug!("the keeper's sleep: {error}");
        }
        while self.bell.read().is_ok_and(|rings| rings > 0) {}
    }
}

impl<H: Hardware> Kept<H> {
    /// Answers whoever waits for the controller, once it is clear what comes of it.
    fn tell(&mut self) {
        let state = self.controller.state();
        if state == State::Gone {
            self.fds.clear();
        }
        let outcome = match (state, self.controller.drive()) {
            (State::Gone, _) => {
                let trouble = self.controller.trouble().unwrap_or(Trouble::Gone);
                Err(KeeperError::Controller { name: self.name.clone(), trouble })
            }
            (State::Ready, Some(drive)) => Ok(drive),
            _ => return,
        };
        if let Some(reply) = self.reply.take() {
            answer(&reply, outcome);
        }
    }
}

fn answer<T>(reply: &Sender<T>, outcome: T) {
    if reply.send(outcome).is_err() {
        log::debug!("nobody waits for a controller any more");
    }
}

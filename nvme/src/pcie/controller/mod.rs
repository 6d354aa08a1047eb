//! A controller's life: from whatever state it is in, to ready, through trouble and back, to its end.
//!
//! Written as one straight-line `async` story that [`Controller::poll`] drives; it waits by looking again at
//! the next poll, with the time that it is given. It never blocks and never reads a clock.
//!
//! ```text
//!   bring up ──► serve ──trouble──► stop ──quiet──► bring up …
//!      │                             │
//!      └──────── trouble ────────────┤ not quiet, or too often, or gone
//!                                    ▼
//!                                 give up: every queue's gate turns Gone
//! ```

mod bring_up;
mod serve;
mod stop;
mod wait;

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crossbeam_channel::Receiver;

use super::admin::AdminQueue;
use super::doorbell::Shadows;
use super::drive::Drive;
use super::error::Trouble;
use super::link::{Gate, Link, Message, Shared};
use super::{Facts, Options};
use crate::Pool;
use crate::hardware::{Dma, Hardware, MapError, Mapping};
use crate::spec::registers::Capabilities;
use wait::Clock;

/// How a controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is being brought up for the first time.
    Starting,
    /// It works.
    Ready,
    /// It is being reset; requests wait.
    Resetting,
    /// It is given up. Requests end with [`crate::BlockError::Gone`].
    Gone,
}

/// One controller, owned. Dropping it stops the controller and ends its queues.
pub struct Controller<H: Hardware> {
    life: Pin<Box<dyn Future<Output = Infallible>>>,
    clock: Clock,
    shared: Arc<Shared<H::Registers>>,
    dma: Arc<dyn Dma>,
    options: Options,
    notes: Rc<Notes>,
}

/// What the story tells the handle.
#[derive(Default)]
struct Notes {
    trouble: Cell<Option<Trouble>>,
    /// It is waiting for the controller, and wants to be polled soon.
    busy: Cell<bool>,
    /// Times the controller had to be stopped.
    resets: Cell<u32>,
    /// It is to be shut down.
    closing: Cell<bool>,
}

impl<H: Hardware> fmt::Debug for Controller<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Controller({:?})", self.shared)
    }
}

impl<H: Hardware> Controller<H> {
    /// Takes the hardware. `pool` gives the few pages of the admin queue. `wake` is called when there is mail
    /// for the controller, from any thread: poll it soon.
    ///
    /// # Errors
    /// The pool cannot be mapped.
    pub fn new(
        hardware: H,
        options: Options,
        pool: &Pool,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Result<Self, MapError> {
        let dma: Arc<dyn Dma> = hardware.dma();
        let mapping = dma.map(&pool.span())?;
        let (shared, inbox) = Shared::new(hardware.name().to_owned(), wake);
        let (clock, notes) = (Clock::default(), Rc::new(Notes::default()));
        let story = Story {
            registers: Some(hardware.registers()),
            hardware: Some(hardware),
            capabilities: Capabilities(0),
            dma: Arc::clone(&dma),
            options,
            pool: pool.clone(),
            mapping,
            clock: clock.clone(),
            shared: Arc::clone(&shared),
            inbox,
            admin: None,
            queues: Vec::new(),
            shadows: None,
            deferred: VecDeque::new(),
            reformatted: false,
            aborts: VecDeque::new(),
            abort_sent: None,
            notes: Rc::clone(&notes),
        };
        let life = Box::pin(story.live());
        Ok(Self { life, clock, shared, dma, options, notes })
    }

    /// Lets it get on. Never blocks. `true`: it is waiting for the controller, so poll again soon;
    /// `false`: nothing is under way, and ten times a second is enough.
    pub fn poll(&mut self, now_us: u64) -> bool {
        self.clock.set(now_us);
        self.notes.busy.set(false);
        let mut context = Context::from_waker(Waker::noop());
        match self.life.as_mut().poll(&mut context) {
            Poll::Pending => self.notes.busy.get(),
        }
    }

    /// Has it shut down, in order: polls make it so, until [`Controller::state`] is `Gone`.
    pub fn close(&mut self) {
        self.notes.closing.set(true);
    }

    /// How it is.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// What was last wrong with it.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        self.notes.trouble.get()
    }

    /// How often it has been stopped and brought up again.
    #[must_use]
    pub fn resets(&self) -> u32 {
        self.notes.resets.get()
    }

    /// A handle for those who want queues, once it has been ready.
    #[must_use]
    pub fn drive(&self) -> Option<Drive<H::Registers>> {
        let facts = Arc::new(self.shared.facts.get()?.clone());
        let (shared, dma) = (Arc::clone(&self.shared), Arc::clone(&self.dma));
        Some(Drive { shared, dma, facts, options: self.options })
    }
}

/// A queue that the controller knows, or knew before it was stopped. Its identifier is no other queue's until
/// it has left: its thread may be about to ring that doorbell, and hear of the stop only afterwards.
struct Known {
    link: Arc<Link>,
    id: u16,
    /// The controller knows it now.
    live: bool,
}

/// A command that is to be aborted.
#[derive(Clone, Copy, Debug)]
struct Late {
    queue: u16,
    cid: u16,
    since_us: u64,
}

/// The one who lives the life.
struct Story<H: Hardware> {
    /// Dropped when the controller is given up, so that the system can have the device back.
    hardware: Option<H>,
    registers: Option<Arc<H::Registers>>,
    capabilities: Capabilities,
    dma: Arc<dyn Dma>,
    options: Options,
    pool: Pool,
    mapping: Mapping,
    clock: Clock,
    shared: Arc<Shared<H::Registers>>,
    inbox: Receiver<Message<H::Registers>>,
    admin: Option<AdminQueue<H::Registers>>,
    queues: Vec<Known>,
    shadows: Option<Arc<Shadows>>,
    /// Mail for when the controller serves again, in its order.
    deferred: VecDeque<Message<H::Registers>>,
    /// A namespace was formatted by an admin command: that it has changed is no news.
    reformatted: bool,
    /// Aborts that wait until fewer are under way.
    aborts: VecDeque<Late>,
    /// CID of an abort that is under way, and since when it has been looked at.
    abort_sent: Option<(u16, u64)>,
    notes: Rc<Notes>,
}

/// Tries to bring a controller up that fail one behind the other, and it is given up: each may take minutes.
const BRING_UPS_MAX: u32 = 2;
/// More resets than this within [`RESETS_WINDOW_US`], and the controller is given up.
const RESETS_MAX: u32 = 5;
const RESETS_WINDOW_US: u64 = 60_000_000;

impl<H: Hardware> Story<H> {
    async fn live(mut self) -> Infallible {
        let mut recent: Vec<u64> = Vec::new();
        let mut failed = 0;
        loop {
            let Err(trouble) = self.session().await;
            let was_ready = self.shared.state() == State::Ready;
            failed = if was_ready { 0 } else { failed + 1 };
            let again = self.after(trouble, failed, &mut recent);
            if let Err(end) = self.stop(trouble).await.and(again) {
                self.note(end);
                break;
            }
            self.let_leave();
        }
        self.give_up();
        self.answer_for_ever().await
    }

    /// From disabled to trouble.
    async fn session(&mut self) -> Result<Infallible, Trouble> {
        let facts = self.bring_up().await?;
        let known = self.shared.facts.get_or_init(|| facts.clone());
        if !known.still_hold(&facts) {
            return Err(Trouble::Changed);
        }
        self.announce(&facts);
        self.shared.set_state(State::Ready);
        self.serve(&facts).await
    }

    /// Takes note of the trouble: is it worth another try?
    fn after(&self, trouble: Trouble, failed: u32, recent: &mut Vec<u64>) -> Result<(), Trouble> {
        self.note(trouble);
        if trouble.is_final() || failed >= BRING_UPS_MAX {
            return Err(trouble);
        }
        let now_us = self.clock.now_us();
        recent.retain(|at_us| now_us - at_us < RESETS_WINDOW_US);
        recent.push(now_us);
        self.notes.resets.set(self.notes.resets.get() + 1);
        if recent.len() as u32 > RESETS_MAX {
            let s = RESETS_WINDOW_US / 1_000_000;
            return Err(Trouble::Resets { times: recent.len() as u32, s });
        }
        log::warn!("{}: {trouble}; resetting the controller", self.shared.name);
        self.shared.set_state(State::Resetting);
        Ok(())
    }

    fn note(&self, trouble: Trouble) {
        self.notes.trouble.set(Some(trouble));
    }

    fn announce(&self, facts: &Facts) {
        log::info!(
            "{}: {} {}, firmware {}, namespace {}: {} MiB in blocks of {}, {} write cache, {} I/O queues",
            self.shared.name,
            facts.model,
            facts.serial,
            facts.firmware,
            facts.namespace,
            facts.blocks >> 8,
            facts.lba_bytes,
            if facts.volatile_write_cache { "volatile" } else { "no volatile" },
            facts.queues,
        );
        if facts.ignores_fua {
            log::info!("{}: it is known to ignore FUA: a flush follows", self.shared.name);
        }
    }

    /// Tells all queues that the controller knows.
    fn set_gates(&self, gate: Gate) {
        let live = self.queues.iter().filter(|known| known.live);
        live.for_each(|known| known.link.set(gate));
    }

    fn registers(&self) -> &H::Registers {
        self.registers.as_deref().expect("held until the controller is given up")
    }

    fn hardware(&mut self) -> &mut H {
        self.hardware.as_mut().expect("held until the controller is given up")
    }
}

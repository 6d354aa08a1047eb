//! The reactor: one thread's loop over network, mail, tasks and devices.
//!
//! Guarantees: everything that a tick finds is carried as far as it can go within the tick; a tick
//! never blocks; with the same inputs and the same clock a run replays exactly. Production pins one
//! reactor to each core and loops ([`run`]); simulation calls [`Reactor::tick`] on several of them in
//! seeded order ([`sim`]).
//!
//! What would break it: a task that loops without waiting, or anything that takes the time from
//! elsewhere than its argument.

mod clock;
pub mod core;
pub mod mail;
pub mod run;
pub mod sim;
mod sleep;

pub use clock::{Clock, Now};
pub use core::{Core, Parts};
pub use sleep::{LONGEST_SLEEP_US, Sleeper};

use crate::mailbox::Mail;
use crate::service::{self, Commands, Context, Door, Outgoing};
use forebay_fabric::Status;
use forebay_fabric::server::Server;
use forebay_fabric::transport::Transport;
use forebay_nvme::Buffer;
use mail::{Letters, Notice, Question, Report};
use std::rc::Rc;

/// How far a reactor is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It serves.
    Serving,
    /// It takes nothing new, and finishes what it has.
    Draining,
    /// Nothing is left; it still answers the other reactors.
    Drained,
    /// It was told to stop.
    Stopped,
}

/// One reactor. See the module.
pub struct Reactor<T: Transport<Buffer = Buffer>> {
    core: Core,
    cx: Rc<Context>,
    commands: Box<dyn Commands>,
    servers: Vec<Server<T>>,
    mailbox: Rc<Letters>,
}

impl<T: Transport<Buffer = Buffer>> std::fmt::Debug for Reactor<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reactor").field("core", &self.core).finish_non_exhaustive()
    }
}

impl<T: Transport<Buffer = Buffer>> Reactor<T> {
    /// A reactor that serves the store of `core` to the clients of `servers`.
    #[must_use]
    pub fn new(core: Core, cx: Rc<Context>, servers: Vec<Server<T>>) -> Self {
        let (commands, mailbox) = (service::commands(&cx), cx.mailbox.clone());
        Self { core, cx, commands, servers, mailbox }
    }

    /// One round. `true` if there was anything to do.
    pub fn tick(&mut self, now: Now) -> bool {
        // Commands begin while the network is read: the time comes first.
        self.core.set_time(now);
        let mut busy = self.listen(now);
        busy |= self.read_mail(now);
        self.cx.memory.tick();
        self.keep_up();
        let Self { core, commands, .. } = self;
        busy |= core.turn(now, &mut |task| {
            commands.run(task);
        });
        busy |= self.deliver(now);
        self.mailbox.retry();
        self.count(busy);
        busy
    }

    /// Where it is on its way out.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.cx.phase.get()
    }

    /// The engine, for what comes after the last tick.
    #[must_use]
    pub fn into_core(self) -> Core {
        self.core
    }

    /// The engine.
    #[must_use]
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// What its commands share.
    #[must_use]
    pub fn context(&self) -> &Rc<Context> {
        &self.cx
    }

    /// When it has to be called again at the latest, in microseconds.
    #[must_use]
    pub fn next_deadline_us(&self) -> Option<u64> {
        let servers = self.servers.iter().filter_map(Server::next_deadline_us);
        let checkpoints = self.cx.checkpoints.as_ref().and_then(|one| one.next_deadline_us());
        servers.chain(self.cx.memory.next_deadline_us()).chain(checkpoints).min()
    }

    /// Takes nothing new from now on, and finishes what it has.
    pub fn drain(&mut self, now: Now) {
        if self.phase() == Phase::Serving {
            self.cx.phase.set(Phase::Draining);
            self.servers.iter_mut().for_each(|server| server.drain(now.us));
        }
    }

    fn listen(&mut self, now: Now) -> bool {
        let Self { servers, cx, commands, .. } = self;
        let mut busy = false;
        for (server, listener) in servers.iter_mut().zip(0..) {
            let mut door = Door { cx, commands: commands.as_mut(), listener };
            busy |= server.poll(now.us, &mut door);
        }
        busy
    }

    fn read_mail(&mut self, now: Now) -> bool {
        let mut busy = false;
        while let Some(mail) = self.mailbox.receive() {
            busy = true;
            match mail {
                Mail::Question { from, call, question } => {
                    self.answer(from, call, question);
                }
                Mail::Notice(Notice::Drain) => self.drain(now),
                Mail::Notice(Notice::Stop) => self.cx.phase.set(Phase::Stopped),
                Mail::Notice(Notice::Report(reply_to)) => {
                    reply_to.send(Report { reactor: self.mailbox.me(), json: self.cx.report() });
                }
                Mail::Answer { .. } => unreachable!("the mailbox keeps answers to itself"),
            }
        }
        busy
    }

    /// Hands what the tasks have made to the servers, and what the servers have to the network.
    fn deliver(&mut self, now: Now) -> bool {
        let Self { servers, cx, .. } = self;
        let busy = cx.deliver(|outgoing| match outgoing {
            Outgoing::Reply(origin, reply) => {
                servers[usize::from(origin.listener)].reply(origin.id, reply);
            }
            Outgoing::Parts(origin, reply, mut parts) => {
                let server = &mut servers[usize::from(origin.listener)];
                server.reply_parts(origin.id, &reply, &mut parts);
                cx.sent(parts);
            }
            Outgoing::Pull(origin, buffer) => {
                servers[usize::from(origin.listener)].pull(origin.id, buffer);
            }
        });
        servers.iter_mut().for_each(|server| server.flush(now.us));
        busy
    }

    /// Answers another reactor, in the background.
    fn answer(&mut self, from: u16, call: u32, question: Question) {
        let (store, mailbox) = (self.core.store.clone(), self.mailbox.clone());
        let started = self.core.spawn(Box::pin(async move {
            let answer = service::answer(&store, question).await;
            mailbox.answer(from, call, answer);
        }));
        if !started {
            self.mailbox.answer(from, call, Err(Status::Busy));
        }
    }

    /// What nobody asks for: checkpoint sessions that have run out of time.
    fn keep_up(&mut self) {
        if let Some(task) = service::checkpoint_upkeep(&self.cx)
            && !self.core.spawn(task)
        {
            log::debug!("too many background tasks: checkpoint sessions expire later");
        }
    }

    /// Takes note of what happened, for those who ask.
    fn count(&mut self, busy: bool) {
        let counters = &self.cx.counters;
        counters.ticks.bump();
        if !busy {
            counters.idle_ticks.bump();
        }
        for (place, server) in self.cx.listeners.iter().zip(&self.servers) {
            place.set(server.counters());
        }
        let quiet = || self.cx.slots.in_use() == 0 && self.servers.iter().all(Server::is_idle);
        if self.phase() == Phase::Draining && quiet() {
            self.cx.phase.set(Phase::Drained);
        }
    }
}

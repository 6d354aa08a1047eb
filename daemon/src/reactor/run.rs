//! A reactor in production: its loop, and its sleep when there is nothing to do.
//!
//! Guarantees: the clock is read once per tick; a busy reactor never sleeps; an idle one costs next
//! to nothing, because it sleeps on everything that can give it work, until its next deadline.

use super::{Clock, LONGEST_SLEEP_US, Now, Phase, Reactor, Sleeper};
use forebay_fabric::transport::Transport;
use forebay_nvme::Buffer;

/// Loops until the reactor is told to stop. `on_phase` hears of every change of its phase.
///
/// # Errors
/// The reactor cannot wait for its descriptors.
pub fn run<T: Transport<Buffer = Buffer>>(
    reactor: &mut Reactor<T>,
    clock: Clock,
    idle_after_us: u64,
    mut on_phase: impl FnMut(Phase),
) -> nix::Result<()> {
    let sleeper = reactor.sleeper()?;
    let mut phase = reactor.phase();
    let mut busy_at_us = clock.now().us;
    while phase < Phase::Stopped {
        let now = clock.now();
        if reactor.tick(now) {
            busy_at_us = now.us;
        } else if now.us - busy_at_us >= idle_after_us {
            reactor.sleep(&sleeper, now)?;
        } else {
            // Whoever works for this reactor on its own core gets on: io_uring's workers, where a file
            // system has no asynchronous reads, or a client. With the core to itself this costs nothing.
            std::thread::yield_now();
        }
        if reactor.phase() != phase {
            phase = reactor.phase();
            on_phase(phase);
        }
    }
    Ok(())
}

impl<T: Transport<Buffer = Buffer>> Reactor<T> {
    /// A sleeper that everything wakes which can give this reactor work.
    fn sleeper(&self) -> nix::Result<Sleeper> {
        let mut sleeper = Sleeper::new()?;
        let mut outcome = sleeper.add(Some(self.mailbox.wait_fd()));
        for server in &self.servers {
            outcome = outcome.and(sleeper.add(server.wait_fd()));
        }
        self.core.disk.wait_fds(|fd| outcome = outcome.and(sleeper.add(Some(fd))));
        outcome.map(|()| sleeper)
    }

    /// Sleeps until there is work or the next deadline.
    fn sleep(&mut self, sleeper: &Sleeper, now: Now) -> nix::Result<()> {
        let deadline_us = self.next_deadline_us().unwrap_or(u64::MAX);
        let longest_us = deadline_us.saturating_sub(now.us).min(LONGEST_SLEEP_US);
        if !self.core.disk.wait_fds(|_| {}) {
            // A queue that has to be polled has something under way: a drive answers in microseconds, and no
            // sleep is as short as that.
            std::thread::yield_now();
            return Ok(());
        }
        let awake = self.servers.iter_mut().any(|server| !server.may_sleep());
        if longest_us == 0 || awake || !self.core.ready.is_empty() || !self.mailbox.may_sleep() {
            return Ok(());
        }
        self.cx.counters.sleeps.bump();
        let slept = sleeper.sleep(longest_us);
        self.mailbox.woke();
        slept
    }
}

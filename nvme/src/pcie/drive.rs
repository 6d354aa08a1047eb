//! A handle on a controller that is up: makes queues, asks for logs. Goes to any thread.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::error::AdminError;
use super::facts::Facts;
use super::link::{Data, Message, Shared};
use super::queue::Queue;
use super::{Options, State};
use crate::Pool;
use crate::hardware::{Dma, Registers};
use crate::spec::command::{self, Submission};
use crate::spec::log::{self, SmartLog};
use zerocopy::FromBytes;

/// How long the caller of an admin command waits at most; the controller itself is bounded more tightly.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// How often it is looked whether a queue is there.
const OPEN_PAUSE: Duration = Duration::from_millis(1);

/// The answer of an admin command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminReply {
    /// Dword 0 of the completion.
    pub result: u32,
    /// What came from the controller.
    pub data: Vec<u8>,
}

/// The SMART / health log in an answer.
#[must_use]
pub fn smart_of(reply: &AdminReply) -> Option<SmartLog> {
    SmartLog::read_from_bytes(&reply.data).ok()
}

/// A controller that is up. Clones are handles on the same one.
pub struct Drive<R: Registers> {
    pub(super) shared: Arc<Shared<R>>,
    pub(super) dma: Arc<dyn Dma>,
    pub(super) facts: Arc<Facts>,
    pub(super) options: Options,
}

impl<R: Registers> Clone for Drive<R> {
    fn clone(&self) -> Self {
        let Self { shared, dma, facts, options } = self;
        let (shared, dma, facts) = (Arc::clone(shared), Arc::clone(dma), Arc::clone(facts));
        Self { shared, dma, facts, options: *options }
    }
}

impl<R: Registers> fmt::Debug for Drive<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Drive({:?})", self.shared)
    }
}

impl<R: Registers> Drive<R> {
    /// What it is called: its PCI address.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What it is.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// How it is.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// A queue for this thread, with `depth` requests in flight at most (less if the controller's queues are
    /// short). Its rings come from `pool`, as do the buffers of its requests. Requests wait until the controller
    /// has made its side of the queue.
    ///
    /// # Errors
    /// The arena cannot be mapped, or has no room for the rings.
    pub fn queue(&self, pool: &Pool, depth: u32) -> Result<Queue<R>, AdminError> {
        Queue::new(self, pool, depth)
    }

    /// As [`Drive::queue`], and waits until the controller has made its side. Not for a reactor's thread that
    /// serves already.
    ///
    /// # Errors
    /// It refuses, or is given up.
    pub fn open_queue(&self, pool: &Pool, depth: u32) -> Result<Queue<R>, AdminError> {
        let mut queue = self.queue(pool, depth)?;
        let never = crossbeam_channel::never::<()>();
        let mut tries = ANSWER_TIMEOUT.as_millis() / OPEN_PAUSE.as_millis();
        while !queue.is_open()? {
            tries = tries.checked_sub(1).ok_or(AdminError::NoAnswer)?;
            if never.recv_timeout(OPEN_PAUSE).is_ok() {
                break;
            }
        }
        Ok(queue)
    }

    /// Has the controller carry out an admin command. The answer comes by the receiver.
    #[must_use]
    pub fn ask(
        &self,
        command: Submission,
        data: Vec<u8>,
        bytes_in: usize,
    ) -> Receiver<Result<AdminReply, AdminError>> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        let data = match (data.is_empty(), bytes_in) {
            (false, _) => Data::Out(data),
            (true, 0) => Data::None,
            (true, bytes) => Data::In(bytes),
        };
        if !self.shared.send(Message::Admin { command, data, reply }) {
            ::log::debug!("{}: has left", self.shared.name);
        }
        answer
    }

    /// As [`Drive::ask`], and waits. Not for a reactor's thread.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn admin(
        &self,
        command: Submission,
        data: Vec<u8>,
        bytes_in: usize,
    ) -> Result<AdminReply, AdminError> {
        let answer = self.ask(command, data, bytes_in).recv_timeout(ANSWER_TIMEOUT);
        answer.unwrap_or(Err(AdminError::NoAnswer))
    }

    /// The SMART / health log. Waits: not for a reactor's thread.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn smart(&self) -> Result<SmartLog, AdminError> {
        let answer = self.ask_smart().recv_timeout(ANSWER_TIMEOUT);
        let answer = answer.unwrap_or(Err(AdminError::NoAnswer))?;
        smart_of(&answer).ok_or(AdminError::NoAnswer)
    }

    /// Asks for the SMART / health log: [`smart_of`] reads the answer.
    #[must_use]
    pub fn ask_smart(&self) -> Receiver<Result<AdminReply, AdminError>> {
        let bytes = size_of::<SmartLog>();
        // The controller puts its own buffer in.
        let nowhere = command::Data::Prp(0, 0);
        let command = Submission::get_log_page(log::SMART, u32::MAX, bytes as u32, nowhere);
        self.ask(command, Vec::new(), bytes)
    }
}

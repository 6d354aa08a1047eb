//! What can be wrong with a controller, and with an admin command.

use crate::hardware::MapError;
use crate::spec::status::Status;

/// Why a controller is stopped, reset or given up. `Copy`: it travels through mailboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Its registers read as ones.
    #[error("it is gone: its registers do not answer (pulled, or without power)")]
    Gone,
    /// The system wants it back.
    #[error("the system is removing it")]
    Removal,
    /// It was told to.
    #[error("it was shut down")]
    Closed,
    /// CSTS.CFS (NVMe Base 2.0, "Controller Status").
    #[error("it reports a fatal error (CSTS.CFS)")]
    Fatal,
    /// The bus reports an error.
    #[error("the PCI bus reports an uncorrectable error")]
    Bus,
    /// It did not get ready, or not quiet, in the time that it gave itself.
    #[error("it did not become {what} within {ms} ms")]
    Stuck {
        /// "ready", or "quiet".
        what: &'static str,
        /// How long it was waited for.
        ms: u64,
    },
    /// An admin command did not end.
    #[error("the admin command {command} did not end within {ms} ms")]
    AdminTimeout {
        /// Its name.
        command: &'static str,
        /// How long it was waited for.
        ms: u64,
    },
    /// An I/O command did not end, not even when it was aborted.
    #[error("a command on queue {queue} is late, and its abort did not help")]
    CommandTimeout {
        /// The queue's identifier.
        queue: u16,
    },
    /// It completed what nobody had asked for, or twice.
    #[error("it breaks the protocol on queue {queue}: {what}")]
    Protocol {
        /// The queue's identifier; 0 is the admin queue.
        queue: u16,
        /// How.
        what: &'static str,
    },
    /// It does not do what every controller must.
    #[error("it cannot be used: {what}")]
    Unusable {
        /// Why not.
        what: &'static str,
    },
    /// A command that it has to carry out was refused.
    #[error("it refuses {command}: {status}")]
    Refused {
        /// The command's name.
        command: &'static str,
        /// What it said.
        status: Status,
    },
    /// Behind the address is another drive now.
    #[error("another drive, another namespace format, or firmware that can do less, is there now")]
    Changed,
    /// The function cannot be reset.
    #[error("it does not stop, and its function cannot be reset")]
    ResetFailed,
    /// Its memory cannot be mapped.
    #[error("its memory cannot be mapped")]
    Memory,
    /// It had to be reset too often.
    #[error("it had to be reset {times} times within {s} s")]
    Resets {
        /// How often.
        times: u32,
        /// Within how many seconds.
        s: u64,
    },
}

impl Trouble {
    /// Whether a reset could help.
    pub(super) fn is_final(self) -> bool {
        use Trouble::{Changed, Closed, Gone, Memory, Removal, ResetFailed, Resets, Unusable};
        matches!(
            self,
            Gone | Removal
                | Closed
                | Unusable { .. }
                | Changed
                | ResetFailed
                | Memory
                | Resets { .. }
        )
    }
}

/// Why an admin command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The controller says no.
    #[error("the controller refuses {command}: {status}")]
    Status {
        /// The command's name.
        command: &'static str,
        /// What it said.
        status: Status,
    },
    /// The controller is in trouble.
    #[error("{0}")]
    Trouble(Trouble),
    /// It would take the namespace from those who use it.
    #[error("the drive is in use: a namespace is formatted when no queue is open")]
    Serving,
    /// The controller has not that many queues.
    #[error(
        "the controller has only {granted} I/O queues, one for each core: list fewer cores in [daemon]"
    )]
    NoQueue {
        /// How many it has.
        granted: u16,
    },
    /// More data than one admin command carries here.
    #[error("admin commands carry at most {max} bytes here")]
    TooLarge {
        /// The most.
        max: usize,
    },
    /// The memory of the queue cannot be given to the device.
    #[error(transparent)]
    Map(#[from] MapError),
    /// There is no room for a queue's rings in the arena.
    #[error(
        "no room for the queue's rings in the arena: make arena larger, or queue_depth smaller"
    )]
    NoMemory,
    /// No answer.
    #[error("the controller does not answer; look at the log for its state")]
    NoAnswer,
}

impl From<Trouble> for AdminError {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

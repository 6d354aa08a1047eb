//! What reactors say to each other, and the main thread to them.

use crate::mailbox::{Mailbox, ReplyTo};
use forebay_fabric::Status;
use serde_json::Value;

/// A reactor's mailbox.
pub type Letters = Mailbox<Question, Answer, Notice>;
/// What makes one.
pub type Seat = crate::mailbox::Seat<Question, Answer, Notice>;
/// Where a reactor is reached.
pub type Address = crate::mailbox::Address<Question, Answer, Notice>;

/// An order of the main thread.
#[derive(Clone, Debug)]
pub enum Notice {
    /// Take nothing new, finish what there is.
    Drain,
    /// Leave the loop.
    Stop,
    /// Say how you are.
    Report(ReplyTo<Report>),
}

/// What one reactor asks another, whose shards own the keys. Control path: these own their bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Store a value, durably.
    Store {
        /// The namespace's number.
        namespace: u32,
        /// The key.
        key: Vec<u8>,
        /// The value.
        value: Vec<u8>,
    },
    /// The whole value of a key.
    Retrieve {
        /// The namespace's number.
        namespace: u32,
        /// The key.
        key: Vec<u8>,
    },
    /// The lengths of these keys' values.
    Lengths {
        /// The namespace's number.
        namespace: u32,
        /// The keys.
        keys: Vec<Vec<u8>>,
    },
    /// Lengths and checksums of these keys' values, by reading them.
    Checksums {
        /// The namespace's number.
        namespace: u32,
        /// The keys.
        keys: Vec<Vec<u8>>,
    },
    /// Delete these keys; one that is not there is no error.
    Delete {
        /// The namespace's number.
        namespace: u32,
        /// The keys.
        keys: Vec<Vec<u8>>,
    },
    /// A page of keys.
    List {
        /// The namespace's number.
        namespace: u32,
        /// Where to go on.
        cursor: u64,
        /// What they begin with.
        prefix: Vec<u8>,
    },
}

/// The answer to a [`Question`], or why there is none.
pub type Answer = Result<Told, Status>;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is done.
    Done,
    /// A value.
    Value(Vec<u8>),
    /// In the order of the keys; `None`: not there.
    Lengths(Vec<Option<u32>>),
    /// In the order of the keys; `None`: not there or not readable.
    Checksums(Vec<Option<(u32, u32)>>),
    /// List entries in the wire's format, and the next cursor (0: the end).
    Page(Vec<u8>, u64),
}

/// How a reactor is.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its number.
    pub reactor: u16,
    /// Everything that it counts.
    pub json: Value,
}

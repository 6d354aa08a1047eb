//! Why a connection or an operation failed, in words for whoever reads them.

use super::address::Address;
use crate::Status;
use crate::pdu::GoAwayReason;
use std::io;

/// Why one connection ended. The client connects again by itself unless it is fatal.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The network refused or failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The peer broke the protocol, or is no Forebay server at all.
    #[error("the peer does not follow the protocol ({0})")]
    Protocol(&'static str),
    /// The server speaks another version.
    #[error("the server speaks protocol version {0}, and this client only {version}", version = crate::pdu::VERSION)]
    Version(u16),
    /// Nothing was heard for the time of the keep-alive.
    #[error("the server was silent for too long")]
    Silent,
    /// The handshake did not end in time.
    #[error("the server did not answer in time")]
    Handshake,
    /// The server said GOAWAY.
    #[error("the server refused the connection: {}", go_away_text(*.0))]
    GoAway(GoAwayReason),
    /// The server drains, and all that was in flight here has been answered.
    #[error("the server is shutting down")]
    Drained,
    /// The caller wants memory back that this connection's server may still use.
    #[error("ended here, to have a region's memory back")]
    Reclaimed,
    /// Another reactor answered at this reactor's address.
    #[error("another reactor answered")]
    OtherReactor,
    /// The server at this address now serves another pool.
    #[error("the server now serves pool {found}, and this client was connected to pool {expected}")]
    OtherPool {
        /// The pool that the client knows, as hexadecimal digits.
        expected: String,
        /// The pool that is there now.
        found: String,
    },
}

impl LinkError {
    /// Connecting again would end the same way.
    pub(super) fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Version(_)
                | Self::OtherPool { .. }
                | Self::GoAway(GoAwayReason::Version | GoAwayReason::Auth)
        )
    }

    /// The same error once more: what is fatal is told each time that it is asked for.
    pub(super) fn again(&self) -> Self {
        match self {
            Self::Version(version) => Self::Version(*version),
            Self::GoAway(reason) => Self::GoAway(*reason),
            Self::OtherPool { expected, found } => {
                Self::OtherPool { expected: expected.clone(), found: found.clone() }
            }
            _ => Self::Closed,
        }
    }
}

fn go_away_text(reason: GoAwayReason) -> &'static str {
    match reason {
        GoAwayReason::Drain => "it is shutting down",
        GoAwayReason::Protocol => "it says that this client broke the protocol",
        GoAwayReason::Version => "it speaks no protocol version that this client knows",
        GoAwayReason::Auth => "it did not accept this client's authentication",
        GoAwayReason::Full => "it has no room for another connection",
        GoAwayReason::KeepAlive => "it heard nothing for too long",
    }
}

/// What went wrong for the caller.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// [`super::ClientConfig::addresses`] is empty.
    #[error("no server address was given")]
    NoAddress,
    /// The server could not be reached, or a lost connection cannot be made again.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where.
        address: Address,
        /// Why.
        source: LinkError,
    },
    /// There is no namespace of this name.
    #[error("no namespace named {name:?}; there are: {known}")]
    NoNamespace {
        /// The name that was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// An operation ended with a status that is not Ok.
    #[error("{operation} {key}: {status}")]
    Operation {
        /// Which one.
        operation: &'static str,
        /// The key, printable.
        key: String,
        /// How it ended.
        status: Status,
    },
    /// A region cannot be used over the connection to a reactor.
    #[error("the region cannot be used over the connection to reactor {reactor}: {source}")]
    Region {
        /// Which reactor.
        reactor: u16,
        /// Why, and what to do.
        source: io::Error,
    },
    /// Waiting for the network failed.
    #[error("waiting for the network: {0}")]
    Wait(io::Error),
    /// The client lost track of a request: a bug of its own.
    #[error("a request has ended without an answer")]
    Unanswered,
    /// The server answered something that makes no sense.
    #[error("the server's answer makes no sense: {0}")]
    Answer(String),
}

impl ClientError {
    /// The status, if an operation ended with one.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Operation { status, .. } => Some(*status),
            _ => None,
        }
    }

    pub(super) fn operation(operation: &'static str, key: &[u8], status: Status) -> Self {
        Self::Operation { operation, key: key.escape_ascii().to_string(), status }
    }
}

//! Exit codes: stable, so that scripts can branch on them.
//!
//! Every error ends in exactly one [`Code`]: that of the first [`Failure`], [`ClientError`] or
//! [`Status`] in its chain, else [`Code::Failure`].

use forebay_fabric::Status;
use forebay_fabric::client::ClientError;
use std::fmt;

/// How the command ended, for the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    Ok = 0,
    Failure = 1,
    Usage = 2,
    NotFound = 3,
    Refused = 4,
    Unreachable = 5,
    Integrity = 6,
}

impl Code {
    /// Every code and what it means; printed by `--help`, and never renumbered.
    pub(crate) const TABLE: [(Self, &'static str); 7] = [
        (Self::Ok, "done"),
        (Self::Failure, "failed; the message says why"),
        (Self::Usage, "the command line makes no sense"),
        (Self::NotFound, "no such key, namespace or checkpoint"),
        (Self::Refused, "refused because it would destroy something"),
        (Self::Unreachable, "the server cannot be reached, or went away"),
        (Self::Integrity, "bytes came back that are not the ones that were stored"),
    ];

    /// What a server's answer means to the shell.
    fn of_status(status: Status) -> Self {
        match status {
            Status::Ok => Self::Ok,
            Status::NotFound | Status::NoNamespace | Status::NoCheckpoint => Self::NotFound,
            Status::CheckpointExists => Self::Refused,
            Status::Disconnected | Status::ShuttingDown => Self::Unreachable,
            Status::DataChecksum | Status::Corrupt => Self::Integrity,
            Status::KeyLength
            | Status::ValueLength
            | Status::Range
            | Status::NoSpace
            | Status::Quota
            | Status::Device
            | Status::Timeout
            | Status::Cancelled
            | Status::Busy
            | Status::WrongReactor
            | Status::Unsupported
            | Status::Malformed
            | Status::NoSession
            | Status::Incomplete
            | Status::Internal
            | Status::Memory => Self::Failure,
        }
    }

    fn of_client(error: &ClientError) -> Self {
        match error {
            ClientError::NoAddress => Self::Usage,
            ClientError::Connect { .. } | ClientError::Region { .. } | ClientError::Wait(_) => {
                Self::Unreachable
            }
            ClientError::NoNamespace { .. } => Self::NotFound,
            ClientError::Operation { status, .. } => Self::of_status(*status),
            ClientError::Region { .. } | ClientError::Unanswered | ClientError::Answer(_) => {
                Self::Failure
            }
        }
    }

    /// The code that `error` ends in.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        for cause in error.chain() {
            if let Some(failure) = cause.downcast_ref::<Failure>() {
                return failure.code;
            }
            if let Some(error) = cause.downcast_ref::<ClientError>() {
                return Self::of_client(error);
            }
            if let Some(status) = cause.downcast_ref::<Status>() {
                return Self::of_status(*status);
            }
        }
        Self::Failure
    }
}

/// The table of [`Code::TABLE`] as `--help` shows it.
pub(crate) fn help() -> String {
    let rows = Code::TABLE.iter().map(|(code, meaning)| format!("  {}  {meaning}", *code as u8));
    format!("Exit codes:\n{}", rows.collect::<Vec<_>>().join("\n"))
}

/// An error that knows its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    message: String,
    told: bool,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), told: false }
    }

    /// A failure that the command has printed itself, as its last line.
    pub(crate) fn told(code: Code) -> Self {
        Self { code, message: String::new(), told: true }
    }

    /// Whether `error` has been printed already.
    pub(crate) fn was_told(error: &anyhow::Error) -> bool {
        error.downcast_ref::<Self>().is_some_and(|failure| failure.told)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn codes_are_numbered_in_the_order_of_their_table() {
        for (number, (code, _)) in Code::TABLE.iter().enumerate() {
            assert_eq!(*code as usize, number);
        }
    }

    #[test]
    fn the_code_is_found_through_the_context_around_it() {
        for (error, expected) in [
            (anyhow::Error::new(Status::NotFound), Code::NotFound),
            (anyhow::Error::new(Status::Corrupt).context("key x"), Code::Integrity),
            (anyhow::Error::new(Failure::new(Code::Refused, "no")).context("y"), Code::Refused),
            (anyhow::anyhow!("plain"), Code::Failure),
            (anyhow::Error::new(ClientError::NoAddress), Code::Usage),
            (
                anyhow::Error::new(ClientError::Operation {
                    operation: "retrieve",
                    key: "k".to_owned(),
                    status: Status::Corrupt,
                }),
                Code::Integrity,
            ),
        ] {
            assert_eq!(Code::of(&error), expected, "{error:#}");
        }
        let wrapped = Err::<(), _>(Status::Quota).context("storing").unwrap_err();
        assert_eq!(Code::of(&wrapped), Code::Failure);
    }
}

//! How an operation ended, as it travels in a response.

/// The status of one operation or of one item of a batch. The numbers are on the wire and never
/// change their meaning; see `PROTOCOL.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[repr(u16)]
pub enum Status {
    /// Done, and for a durable namespace: on media.
    #[error("ok")]
    Ok = 0,
    /// No such key.
    #[error("no such key")]
    NotFound = 1,
    /// No such namespace.
    #[error("no such namespace")]
    NoNamespace = 2,
    /// The key's length is 0 or over the limit of 1024 bytes.
    #[error("the key is empty or longer than 1024 bytes")]
    KeyLength = 3,
    /// The value is longer than the server takes.
    #[error("the value is larger than the limit")]
    ValueLength = 4,
    /// The range begins or ends past the end of the value.
    #[error("the range is past the end of the value")]
    Range = 5,
    /// The device has no room left for this namespace; deletes still work.
    #[error("no space left")]
    NoSpace = 6,
    /// The namespace's quota is used up; deletes still work.
    #[error("quota exceeded")]
    Quota = 7,
    /// The data that arrived does not match its checksum; nothing was stored.
    #[error("data checksum mismatch on the wire")]
    DataChecksum = 8,
    /// The bytes on media do not match their checksum: they were not sent.
    #[error("the stored value fails its checksum")]
    Corrupt = 9,
    /// The device failed the read or the write.
    #[error("device error")]
    Device = 10,
    /// The deadline passed. A store or a delete may or may not have happened.
    #[error("the deadline passed")]
    Timeout = 11,
    /// The client cancelled it. A store or a delete may or may not have happened.
    #[error("cancelled")]
    Cancelled = 12,
    /// The server has no buffer or slot for it right now; try again.
    #[error("the server is busy")]
    Busy = 13,
    /// The server is draining and takes no new operations.
    #[error("the server is shutting down")]
    ShuttingDown = 14,
    /// Another reactor owns this key; `result` is its number.
    #[error("another reactor owns this key")]
    WrongReactor = 15,
    /// The opcode is not known here, or belongs to a feature that was not negotiated.
    #[error("unknown operation")]
    Unsupported = 16,
    /// A field of the command makes no sense.
    #[error("malformed command")]
    Malformed = 17,
    /// No such checkpoint.
    #[error("no such checkpoint")]
    NoCheckpoint = 18,
    /// A checkpoint of this name exists; checkpoints are immutable.
    #[error("the checkpoint exists already")]
    CheckpointExists = 19,
    /// The session is unknown, has ended, or was fenced by a newer epoch.
    #[error("no such checkpoint session")]
    NoSession = 20,
    /// A rank's boxes are not covered, overlap, or a rank has not sealed; `result` says which rank.
    #[error("the checkpoint is incomplete")]
    Incomplete = 21,
    /// The connection was lost before the answer came (made by the client, never on the wire).
    #[error("the connection was lost")]
    Disconnected = 22,
    /// Something in the server that should not happen; its log says what.
    #[error("internal error")]
    Internal = 23,
    /// The memory that the operation names cannot be used for it: a view of it is out, it is for the
    /// other direction only, or the connection cannot reach it (made by the client, never on the wire).
    #[error(
        "the operation's memory cannot be used: it is viewed, for the other direction only, or out of \
         the connection's reach (Pipeline::register says why)"
    )]
    Memory = 24,
}

impl Status {
    /// Every status, in the order of its number.
    pub const ALL: [Self; 25] = [
        Self::Ok,
        Self::NotFound,
        Self::NoNamespace,
        Self::KeyLength,
        Self::ValueLength,
        Self::Range,
        Self::NoSpace,
        Self::Quota,
        Self::DataChecksum,
        Self::Corrupt,
        Self::Device,
        Self::Timeout,
        Self::Cancelled,
        Self::Busy,
        Self::ShuttingDown,
        Self::WrongReactor,
        Self::Unsupported,
        Self::Malformed,
        Self::NoCheckpoint,
        Self::CheckpointExists,
        Self::NoSession,
        Self::Incomplete,
        Self::Disconnected,
        Self::Internal,
        Self::Memory,
    ];

    /// The status of this number; a number from a newer peer reads as [`Status::Internal`].
    #[must_use]
    pub fn from_wire(number: u16) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Internal)
    }
}

//! The byte-stream transport: one framing over any non-blocking stream.
//!
//! From the wire upwards: a [`Listener`] makes [`ByteStream`]s and says which of them are ready
//! ([`tcp`], [`sim`] and [`crate::shm`] are the three; the last one's peers also lend memory, in which
//! bulk data moves past the stream); a connection cuts the bytes into PDUs, steers DATA payload
//! into the buffer that was pulled for it and queues what leaves; [`StreamTransport`] keeps the
//! table of connections and is the [`crate::transport::Transport`] that a server runs on.

mod connection;
mod input;
mod queue;
pub mod sim;
pub mod tcp;
mod transport;

pub use transport::{StreamConfig, StreamTransport};

use crate::crc32c::Digest;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

/// A connected, non-blocking stream of bytes. `read` and `write` (and their vectored forms, which
/// an implementation should have) answer [`io::ErrorKind::WouldBlock`] where they would wait.
pub trait ByteStream: Read + Write {
    /// Says to the peer that nothing more will be written; reading goes on.
    ///
    /// # Errors
    /// The stream is broken.
    fn finish(&mut self) -> io::Result<()>;

    /// The peer's memory, where bulk data can be moved without the stream.
    fn memory(&self) -> Option<&dyn PeerMemory> {
        None
    }
}

/// Memory of the peer's that this side reaches. The peer may change it at any time.
pub trait PeerMemory {
    /// What commands call it; 0 stands for the stream.
    fn key(&self) -> u32;
    /// Copies out of it. `None`: the range is not inside, and nothing was copied.
    fn get(&self, address: u64, into: &mut [u8]) -> Option<()>;
    /// Copies into it; `sum` takes in what is copied. `None`: the range is not inside, and nothing was copied.
    fn put(&self, address: u64, from: &[u8], sum: Option<&mut Digest>) -> Option<()>;
}

/// What has become possible on a watched stream. May be said again, or when it is no longer so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// The number the stream is watched under.
    pub token: u32,
    /// A read will not block, or end the stream.
    pub readable: bool,
    /// A write will not block, or fail.
    pub writable: bool,
    /// The peer has ended its side, or the stream is broken: read until that shows.
    pub hangup: bool,
}

/// Accepts streams and says which are ready. Readiness is at least edge-triggered: said again each
/// time something new became possible after a `WouldBlock`.
pub trait Listener {
    /// What it accepts.
    type Stream: ByteStream;

    /// A read or write that moved fewer bytes than it was given would block now.
    const SHORT_BLOCKS: bool;
    /// Its streams' peers have memory: [`ByteStream::memory`] is there.
    const HAS_MEMORY: bool = false;

    /// The next waiting peer, if there is one.
    ///
    /// # Errors
    /// No stream could be made (too many files, say); waiting peers keep waiting.
    fn accept(&mut self) -> io::Result<Option<Self::Stream>>;

    /// Says from now on when `stream` is ready. Ends when the stream is dropped.
    ///
    /// # Errors
    /// The system refuses.
    fn watch(&mut self, stream: &Self::Stream, token: u32) -> io::Result<()>;

    /// Appends what became ready to `events`, at most up to its capacity, without waiting. Returns
    /// `true` if a peer waits to be accepted.
    ///
    /// # Errors
    /// The system refuses: nothing can be said about any stream.
    fn ready(&mut self, events: &mut Vec<Readiness>) -> io::Result<bool>;

    /// A descriptor that turns readable when `ready` has something to say.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// As [`crate::transport::Transport::may_sleep`].
    fn may_sleep(&mut self) -> bool {
        true
    }
}

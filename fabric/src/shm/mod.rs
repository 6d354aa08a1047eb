//! Shared memory: client and server on one host, with no network stack between them.
//!
//! A client makes a sealed memfd and passes it over a Unix socket. In it lie two byte rings that carry
//! the same PDUs as a TCP stream, and the client's *area*: memory of its own in which the server puts
//! and from which it takes bulk data, by one copy, as RDMA would (`PROTOCOL.md` has the table). While
//! both sides are busy there is no system call; a side that goes to sleep says so in the shared memory
//! and is woken by a byte on the socket, which also tells when the peer's process is gone.
//!
//! What the server guarantees, whatever the client does with the memory at any time:
//!
//! * only atomics and copied bytes are read from it, never a reference to plain data: each index is
//!   read once and then checked, and capsules are copied before they are looked at;
//! * the memory cannot shrink (sealed), so that touching it never raises SIGBUS; it is ordinary
//!   pages, whose size the server has bounded;
//! * an impossible index, or an address outside the area, ends that connection and no other;
//! * the server is never blocked by a peer: its doorbell is a datagram sent with `MSG_DONTWAIT`. (An
//!   eventfd would not do: `O_NONBLOCK` belongs to the open file, which the peer shares, so that a
//!   hostile one could clear it, fill the counter, and have the reactor wait for ever.)
//!
//! What breaks it: nothing that a peer does to what it shares. A peer of the server's own user can
//! signal and trace it, of course (the socket's mode says who may connect), and pages of an area that
//! the server touches first count as the server's memory: up to [`AREA_BYTES_MAX`] a connection.
//!
//! The client is less careful with the server, which it trusts with its values: it checks their checksum
//! where they lie, and hands them out as a [`View`]. A server that still wrote there after its answer could
//! change what the caller reads, and nothing else; indices and PDUs are copied on this side as well.
//!
//! From the bottom: `mapping` (memory access), `view` (answers in place) and `socket` (descriptors) hold the `unsafe`;
//! `ring`, `port` (sleep and wake), [`End`] (a stream over two rings), then [`Shm`] for the server and
//! [`ShmStream`] for the client.

mod area;
mod end;
mod listener;
mod mapping;
mod open;
mod pages;
mod port;
mod ring;
mod socket;
mod view;

pub use area::ShmStream;
pub use end::End;
pub use listener::{Shm, ShmServerStream};
pub use open::{AREA_BYTES_MAX, Refusal};
pub use view::View;

use std::path::{Path, PathBuf};

/// The [`crate::pdu::Command::memory_key`] of the area.
pub const MEMORY_KEY: u32 = 1;
/// The area that a client makes, in bytes. Its pages come when they are touched.
pub const AREA_BYTES: usize = 64 << 20;
/// The longest path of a socket without its number, in bytes (`sun_path` has 108).
pub const PATH_BYTES_MAX: usize = 100;

/// The socket of reactor `number` under the configured path.
#[must_use]
pub fn socket_path(path: &Path, number: u16) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// The layout of the memfd. A side's words are written by that side only, but for `sleep`, which
/// whoever wakes it clears; each stands on cache lines of its own.
mod layout {
    use super::mapping::PAGE_BYTES;

    /// Bytes of one ring: a power of two.
    pub(super) const RING_BYTES: usize = 256 << 10;
    /// The ring from client to server.
    pub(super) const TO_SERVER: usize = PAGE_BYTES;
    /// The ring from server to client.
    pub(super) const TO_CLIENT: usize = TO_SERVER + RING_BYTES;
    /// The area.
    pub(super) const AREA: usize = TO_CLIENT + RING_BYTES;

    /// Where one side's words are.
    #[derive(Clone, Copy, Debug)]
    pub(super) struct Words {
        /// Bytes it has produced (u64, never wraps).
        pub(super) tail: usize,
        /// It produces nothing any more (u32).
        pub(super) closed: usize,
        /// Bytes it has consumed (u64).
        pub(super) head: usize,
        /// What it sleeps for (u32): see `port`.
        pub(super) sleep: usize,
    }

    const fn words(base: usize) -> Words {
        Words { tail: base, closed: base + 8, head: base + 0x80, sleep: base + 0x100 }
    }

    pub(super) const CLIENT: Words = words(0);
    pub(super) const SERVER: Words = words(0x400);
    const _: () = assert!(RING_BYTES.is_power_of_two() && SERVER.sleep + 4 <= PAGE_BYTES);
}

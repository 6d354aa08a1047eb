//! Sleep and wake between two processes, and what is known of the peer without asking it.
//!
//! A side that is about to sleep writes what it sleeps for into its `sleep` word, and then looks once
//! more; a side that has moved an index looks at the peer's `sleep` word afterwards. Between the write
//! and the look each has a full fence, so at least one of them sees the other (Dekker): a wake-up is
//! never lost, and a side that does not sleep is never rung.
//!
//! What a hostile peer can do here is wake nobody but itself, ring too often (bounded, see
//! `socket::hear`) and give wrong hints about its ring, which cost a look each.

use super::layout::{CLIENT, RING_BYTES, SERVER, Words};
use super::mapping::Mapping;
use super::socket::{self, Heard};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};

/// Values of a `sleep` word: awake, until there is something to read, until there is something to
/// read or room to write.
const AWAKE: u32 = 0;
const FOR_INPUT: u32 = 1;
const FOR_INPUT_OR_ROOM: u32 = 2;

/// One side's view of a connection: shared by its stream and whoever waits for it.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) map: Mapping,
    socket: OwnedFd,
    mine: Words,
    theirs: Words,
    /// The socket has ended: the peer's process, or its stream, is gone.
    hung: AtomicBool,
    /// The last write found no room.
    blocked: AtomicBool,
    /// This side's stream still exists.
    open: AtomicBool,
    /// Why the server has refused this client; 0: it has not.
    refused: AtomicU8,
}

impl Port {
    fn new(map: Mapping, socket: OwnedFd, mine: Words, theirs: Words) -> Arc<Self> {
        let flag = AtomicBool::new;
        let (hung, blocked, open) = (flag(false), flag(false), flag(true));
        let refused = AtomicU8::new(0);
        Arc::new(Self { map, socket, mine, theirs, hung, blocked, open, refused })
    }

    pub(super) fn of_client(map: Mapping, socket: OwnedFd) -> Arc<Self> {
        Self::new(map, socket, CLIENT, SERVER)
    }

    pub(super) fn of_server(map: Mapping, socket: OwnedFd) -> Arc<Self> {
        Self::new(map, socket, SERVER, CLIENT)
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn refused(&self) -> Option<u8> {
        Some(self.refused.load(Ordering::Relaxed)).filter(|reason| *reason != 0)
    }

    /// The peer will not write any more. Look at this *before* the ring: then what it has written
    /// before it ended is seen.
    pub(super) fn is_over(&self) -> bool {
        let closed = self.map.half(self.theirs.closed).load(Ordering::Acquire) != 0;
        closed || self.hung.load(Ordering::Relaxed)
    }

    pub(super) fn is_hung(&self) -> bool {
        self.hung.load(Ordering::Relaxed)
    }

    /// This side writes nothing any more.
    pub(super) fn finish(&self) {
        self.map.half(self.mine.closed).store(1, Ordering::Release);
        self.wake(FOR_INPUT);
    }

    /// The end of this side's stream.
    pub(super) fn close(&self) {
        self.finish();
        self.open.store(false, Ordering::Relaxed);
        socket::shut(&self.socket);
    }

    pub(super) fn set_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::Relaxed);
    }

    /// Something can be read, or an end be seen: a hint, by indices that the peer can change.
    pub(super) fn has_input(&self) -> bool {
        let head = self.map.word(self.mine.head).load(Ordering::Relaxed);
        self.map.word(self.theirs.tail).load(Ordering::Acquire) != head || self.is_over()
    }

    /// What was blocked has room again: a hint as well.
    pub(super) fn has_room_again(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) && {
            let tail = self.map.word(self.mine.tail).load(Ordering::Relaxed);
            let head = self.map.word(self.theirs.head).load(Ordering::Acquire);
            tail.wrapping_sub(head) < RING_BYTES as u64
        }
    }

    /// From now on the peer rings. `false`: there is something to do already.
    pub(super) fn may_sleep(&self) -> bool {
        let blocked = self.blocked.load(Ordering::Relaxed);
        let wish = if blocked { FOR_INPUT_OR_ROOM } else { FOR_INPUT };
        self.map.half(self.mine.sleep).store(wish, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.has_input() && !self.has_room_again()
    }

    /// From now on it need not.
    pub(super) fn woke(&self) {
        self.map.half(self.mine.sleep).store(AWAKE, Ordering::Relaxed);
    }

    /// After input for the peer was published.
    pub(super) fn wake_for_input(&self) {
        self.wake(FOR_INPUT);
    }

    /// After room for the peer was published.
    pub(super) fn wake_for_room(&self) {
        self.wake(FOR_INPUT_OR_ROOM);
    }

    fn wake(&self, least: u32) {
        fence(Ordering::SeqCst);
        let sleep = self.map.half(self.theirs.sleep);
        if sleep.load(Ordering::Relaxed) >= least && sleep.swap(AWAKE, Ordering::Relaxed) != AWAKE {
            socket::ring(self.socket());
        }
    }

    /// Looks at the socket: rings are forgotten, an end is noted.
    pub(super) fn hear(&self) {
        match socket::hear(self.socket()) {
            Heard::Rings => {}
            Heard::Refused(reason) => {
                self.refused.store(reason, Ordering::Relaxed);
                self.hung.store(true, Ordering::Relaxed);
            }
            Heard::End => self.hung.store(true, Ordering::Relaxed),
        }
    }

    pub(super) fn hang_up(&self) {
        self.hung.store(true, Ordering::Relaxed);
    }
}

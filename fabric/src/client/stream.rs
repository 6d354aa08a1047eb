//! What a connection is to the client: a stream, and perhaps memory that the server reaches.

use crate::region::Region;
use crate::shm::View;
use crate::stream::sim::SimStream;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

/// A connection that never blocks: where a read or write would, it ends in
/// [`std::io::ErrorKind::WouldBlock`].
pub trait Stream: Read + Write {
    /// Memory in which the server puts and finds bulk data, where the transport has it.
    fn memory(&mut self) -> Option<&mut dyn Memory> {
        None
    }
}

impl Stream for TcpStream {}
impl Stream for SimStream {}

/// A piece of memory that the server may use until it has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lent {
    /// As it travels in [`crate::pdu::Command::address`].
    pub address: u64,
    /// As it travels in [`crate::pdu::Command::memory_key`].
    pub key: u32,
    /// Bytes.
    pub bytes: u32,
}

/// How the bytes of a caller's region move over a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The server moves them itself, and knows the region by this key.
    Key(u32),
    /// They are copied to and from memory that is lent, or move with the PDUs.
    Copied,
}

impl Reach {
    /// Of a connection whose server does not reach the caller's memory.
    ///
    /// # Errors
    /// No processor can copy it either.
    pub fn by_copy(region: &Region) -> io::Result<Self> {
        let text = "dma-buf memory can be reached by RDMA only: listen with transport = \"rdma\", or \
                    use a region of ordinary memory";
        let unseen = || io::Error::new(ErrorKind::Unsupported, text);
        region.is_visible().then_some(Self::Copied).ok_or_else(unseen)
    }

    /// How `stream` reaches `region`; a device that is to reach it has registered it then.
    ///
    /// # Errors
    /// It cannot, and says why.
    pub fn over(stream: &mut impl Stream, region: &Region) -> io::Result<Self> {
        match stream.memory() {
            Some(memory) => memory.reach(region),
            None => Self::by_copy(region),
        }
    }
}

/// Memory that the server reaches. What is lent and not taken back is gone with the connection.
pub trait Memory {
    /// A piece of `bytes`, if there is one.
    fn lend(&mut self, bytes: usize) -> Option<Lent>;

    /// Copies `from` into a piece.
    ///
    /// # Panics
    /// If that is more than was lent.
    fn put(&mut self, lent: Lent, offset: usize, from: &[u8]);

    /// Copies out of a piece: what is in it may change until then.
    ///
    /// # Panics
    /// If that is more than was lent.
    fn get(&self, lent: Lent, offset: usize, into: &mut [u8]);

    /// A hint that `count` bytes of a piece will be copied out soon.
    ///
    /// # Panics
    /// If that is more than was lent.
    fn prefetch(&self, lent: Lent, offset: usize, count: usize);

    /// Takes a piece back: the server has answered.
    fn take_back(&mut self, lent: Lent);

    /// The first `count` bytes of a piece whose command the server has answered, to be read where they are:
    /// the piece comes back when they are dropped. `None`: copy them, and take it back.
    ///
    /// # Panics
    /// If that is more than was lent.
    fn view(&mut self, _lent: Lent, _count: usize) -> Option<View> {
        None
    }

    /// How the server reaches `region`; a device that is to reach it registers it first, once.
    ///
    /// # Errors
    /// It cannot be reached: the text says why, and what to do.
    fn reach(&mut self, region: &Region) -> io::Result<Reach> {
        Reach::by_copy(region)
    }
}

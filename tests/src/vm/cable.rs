//! The wire between the network devices of two machines: frames go in at one end and come out at the other.
//!
//! Guarantees: nobody who sends is ever held up. What an end cannot take is kept for it, in order, up to
//! [`KEPT_BYTES`], and lost beyond that: as by a switch whose port is down. Either machine may go at any time and
//! come back. (QEMU 7.2 itself writes to the end that listens with a socket that blocks: its machine stands
//! still for as long as the other one boots.) What breaks it: a test's process that is stopped.

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Frames that wait for an end, in bytes.
const KEPT_BYTES: usize = 4 << 20;
/// Bytes that are read at once.
const READ_BYTES: usize = 64 << 10;
/// QEMU writes the length of a frame before it: big-endian, four bytes.
const LENGTH_BYTES: usize = 4;
/// How often it looks whether it is still needed.
const LOOK_MS: u16 = 100;

/// A wire, laid as long as this lives.
#[derive(Debug)]
pub(super) struct Cable {
    socket: PathBuf,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Cable {
    /// Lays one whose socket is `socket`: whoever connects there is an end of it.
    pub(super) fn lay(socket: PathBuf) -> anyhow::Result<Self> {
        let listener = UnixListener::bind(&socket).context("the socket of a wire")?;
        listener.set_nonblocking(true)?;
        let ends = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&ends);
        let mut hub = Hub { listener, plugs: Vec::new() };
        let carry = move || {
            while !over.load(Ordering::Relaxed) {
                hub.turn().expect("a wire that carries");
            }
        };
        let thread = Some(std::thread::Builder::new().name("cable".to_owned()).spawn(carry)?);
        Ok(Self { socket, ends, thread })
    }

    /// Where its ends connect.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("a wire between two machines broke");
        }
    }
}

/// What is plugged in.
struct Hub {
    listener: UnixListener,
    plugs: Vec<Plug>,
}

struct Plug {
    stream: UnixStream,
    /// What has come of frames that are not whole.
    coming: Vec<u8>,
    /// Whole frames, but for a part of the first that has gone.
    going: Vec<u8>,
    /// Nobody has pulled it out.
    is_in: bool,
}

impl Plug {
    fn new(stream: UnixStream) -> Self {
        Self { stream, coming: Vec::new(), going: Vec::new(), is_in: true }
    }

    /// Reads what is there once, and takes out all frames that are whole.
    fn take_frames(&mut self) -> Vec<u8> {
        let held = self.coming.len();
        self.coming.resize(held + READ_BYTES, 0);
        let read = self.stream.read(&mut self.coming[held..]);
        self.coming.truncate(held + read.as_ref().copied().unwrap_or(0));
        self.is_in &= match read {
            Ok(count) => count > 0,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        };
        let rest = self.coming.split_off(whole_frames(&self.coming));
        std::mem::replace(&mut self.coming, rest)
    }

    /// Keeps `frames` for its machine, or loses them.
    fn give(&mut self, frames: &[u8]) {
        if self.going.len() + frames.len() <= KEPT_BYTES {
            self.going.extend_from_slice(frames);
        }
    }

    /// Sends what its machine takes.
    fn send(&mut self) {
        match self.stream.write(&self.going) {
            Ok(count) => drop(self.going.drain(..count)),
            Err(error) => self.is_in &= error.kind() == ErrorKind::WouldBlock,
        }
    }
}

/// How many bytes at the beginning are frames without a gap.
fn whole_frames(bytes: &[u8]) -> usize {
    let mut end = 0;
    while let Some(length) = bytes[end..].first_chunk::<LENGTH_BYTES>() {
        let next = end + LENGTH_BYTES + u32::from_be_bytes(*length) as usize;
        if next > bytes.len() {
            break;
        }
        end = next;
    }
    end
}

impl Hub {
    /// Waits for something to do, and does it.
    fn turn(&mut self) -> anyhow::Result<()> {
        self.wait()?;
        while let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true)?;
            self.plugs.push(Plug::new(stream));
        }
        for from in 0..self.plugs.len() {
            let frames = self.plugs[from].take_frames();
            let others = self.plugs.iter_mut().enumerate().filter(|(to, _)| *to != from);
            others.for_each(|(_, plug)| plug.give(&frames));
        }
        self.plugs.iter_mut().for_each(Plug::send);
        self.plugs.retain(|plug| plug.is_in);
        Ok(())
    }

    fn wait(&self) -> anyhow::Result<()> {
        let mut fds = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.plugs.iter().map(|plug| {
            let sends = if plug.going.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            PollFd::new(plug.stream.as_fd(), PollFlags::POLLIN | sends)
        }));
        poll(&mut fds, PollTimeout::from(LOOK_MS)).context("waiting at a wire")?;
        Ok(())
    }
}

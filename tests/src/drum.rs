//! A device in memory that works only when it is told to: what a reactor costs without the device.
//!
//! Guarantees: `submit` and `poll` note and hand over, and nothing else; the bytes move in
//! [`Drum::work`], as a drive's DMA moves them, or in each `poll` while it is automatic. Nothing fails.

use forebay_nvme::{BLOCK_BYTES, BlockError, BlockQueue, Completion, Geometry, Operation, Request};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

/// Requests in flight.
const DEPTH: u32 = 256;

/// The device. Clones are handles on it.
#[derive(Clone)]
pub struct Drum(Rc<State>);

struct State {
    media: RefCell<Vec<u8>>,
    submitted: RefCell<VecDeque<Request>>,
    done: RefCell<VecDeque<Completion>>,
    automatic: Cell<bool>,
}

impl fmt::Debug for Drum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drum").field("in_flight", &self.queue().in_flight()).finish()
    }
}

impl Drum {
    /// A blank device, which works by itself until it is told otherwise.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(Rc::new(State {
            media: RefCell::new(vec![0; bytes]),
            submitted: RefCell::new(VecDeque::with_capacity(DEPTH as usize)),
            done: RefCell::new(VecDeque::with_capacity(DEPTH as usize)),
            automatic: Cell::new(true),
        }))
    }

    /// Its queue.
    #[must_use]
    pub fn queue(&self) -> DrumQueue {
        DrumQueue(self.clone())
    }

    /// From now on it works only when it is told to.
    pub fn stop(&self) {
        self.0.automatic.set(false);
    }

    /// Does everything that was submitted.
    pub fn work(&self) {
        let mut media = self.0.media.borrow_mut();
        for mut request in self.0.submitted.borrow_mut().drain(..) {
            let result = carry_out(&mut media, &mut request.operation);
            self.0.done.borrow_mut().push_back(request.end(result));
        }
    }
}

fn carry_out(media: &mut [u8], operation: &mut Operation) -> Result<(), BlockError> {
    let range = |block: u64, blocks: u64| {
        let start = block as usize * BLOCK_BYTES;
        start..start + blocks as usize * BLOCK_BYTES
    };
    match operation {
        Operation::Read { block, blocks, buffer } => {
            let range = range(*block, u64::from(*blocks));
            buffer[..range.len()].copy_from_slice(&media[range]);
        }
        Operation::Write { block, blocks, buffer, .. } => {
            let range = range(*block, u64::from(*blocks));
            let length = range.len();
            media[range].copy_from_slice(&buffer[..length]);
        }
        Operation::Flush => {}
        Operation::Discard { .. }
        | Operation::WriteZeroes { .. }
        | Operation::Compare { .. }
        | Operation::Verify { .. } => return Err(BlockError::Unsupported),
    }
    Ok(())
}

/// The one queue of a [`Drum`].
#[derive(Debug)]
pub struct DrumQueue(Drum);

impl BlockQueue for DrumQueue {
    fn geometry(&self) -> Geometry {
        Geometry {
            blocks: (self.0.0.media.borrow().len() / BLOCK_BYTES) as u64,
            max_transfer_blocks: 1024,
            depth: DEPTH,
            volatile_write_cache: false,
            discard: false,
            write_zeroes: false,
            compare: false,
            verify: false,
            atomic_write_bytes: BLOCK_BYTES as u32,
        }
    }

    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.in_flight() >= DEPTH as usize {
            return Err(request);
        }
        match self.geometry().check(&request.operation) {
            Ok(()) => self.0.0.submitted.borrow_mut().push_back(request),
            Err(error) => self.0.0.done.borrow_mut().push_back(request.end(Err(error))),
        }
        Ok(())
    }

    fn poll(&mut self, _now_us: u64, completions: &mut Vec<Completion>) -> usize {
        if self.0.0.automatic.get() {
            self.0.work();
        }
        let mut done = self.0.0.done.borrow_mut();
        let count = done.len().min(completions.capacity() - completions.len());
        completions.extend(done.drain(..count));
        count
    }

    fn in_flight(&self) -> usize {
        self.0.0.submitted.borrow().len() + self.0.0.done.borrow().len()
    }
}

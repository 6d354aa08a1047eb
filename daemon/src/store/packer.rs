//! Packing: values smaller than a block share blocks with the others of the same moment.
//!
//! A small value is copied into the filling buffer; when everything else that was ready has run, the
//! buffer is written in one go, and each value learns its address. A block is written once: the next
//! small value starts another, and the cleaner packs what is left more densely: its values wait until
//! the buffer is full or nothing more is to come.

use super::format::UNIT_BYTES;
use super::journal::{Tickets, settled};
use super::shard::{Pin, Shard, value_units};
use super::space::{SegmentClass, UNITS_PER_BLOCK};
use crate::executor::Waiters;
use forebay_fabric::Status;
use forebay_nvme::{BLOCK_BYTES, DmaBuf};
use std::cell::RefCell;
use std::rc::Rc;

/// Bytes that are packed for one write.
const BUFFER_BYTES: usize = 8 * BLOCK_BYTES;

/// Where a packed value is: its address in units, with a pin on its segment that the value has to
/// give back.
pub(super) type Packed = Result<u64, Status>;

#[derive(Debug)]
struct Waiting {
    ticket: u32,
    offset: usize,
}

#[derive(Debug)]
struct Pack {
    buffer: DmaBuf,
    used: usize,
    /// Bytes skipped because the next value did not fit into the rest of a block.
    skipped: usize,
    waiting: Vec<Waiting>,
}

/// The filling buffer of one class of a shard, and the one that is being written. Each class has its
/// own: values of different classes lie in different segments, and the cleaner, who makes space, never
/// queues behind values that wait for space.
#[derive(Debug)]
pub(super) struct Packer {
    filling: Pack,
    spare: Option<Pack>,
    tickets: Rc<RefCell<Tickets<Packed>>>,
    /// The packer's task waits here.
    pub(super) wakeup: Rc<Waiters>,
    /// Values wait here for room in the filling buffer.
    room: Rc<Waiters>,
}

impl Packer {
    /// Bytes that each of its two buffers needs.
    pub(super) const BUFFER_BYTES: usize = BUFFER_BYTES;

    /// Two buffers of [`Packer::BUFFER_BYTES`].
    #[must_use]
    pub(super) fn new(buffers: [DmaBuf; 2]) -> Self {
        let [filling, spare] = buffers.map(|buffer| Pack {
            buffer,
            used: 0,
            skipped: 0,
            waiting: Vec::with_capacity(BUFFER_BYTES / UNIT_BYTES as usize),
        });
        Self {
            filling,
            spare: Some(spare),
            tickets: Rc::default(),
            wakeup: Rc::new(Waiters::new(1)),
            room: Rc::new(Waiters::new(super::WAITERS)),
        }
    }

    /// Copies `value` in; `None` if it has to wait for the next buffer.
    fn push(&mut self, value: &[u8]) -> Option<u32> {
        let pack = &mut self.filling;
        let mut offset = pack.used;
        // No value lies across two blocks: one block read fetches it.
        if offset / BLOCK_BYTES != (offset + value.len() - 1) / BLOCK_BYTES {
            offset = offset.next_multiple_of(BLOCK_BYTES);
        }
        if offset + value.len() > BUFFER_BYTES {
            return None;
        }
        pack.buffer[pack.used..offset].fill(0);
        pack.skipped += offset - pack.used;
        let end = offset + value.len();
        pack.buffer[offset..end].copy_from_slice(value);
        pack.used = end.next_multiple_of(UNIT_BYTES as usize);
        pack.buffer[end..pack.used].fill(0);
        let ticket = self.tickets.borrow_mut().take();
        pack.waiting.push(Waiting { ticket, offset });
        Some(ticket)
    }

    /// Takes the filling buffer, unless it is to `hold` values until there are more.
    fn take(&mut self, hold: impl FnOnce(usize) -> bool) -> Option<Pack> {
        let values = self.filling.waiting.len();
        let is_full = !self.room.is_empty();
        if values == 0 || !is_full && hold(values) {
            return None;
        }
        let spare = self.spare.take()?;
        Some(std::mem::replace(&mut self.filling, spare))
    }
}

/// Packs `value` and waits until it is written. Returns its address and the pin on its segment.
pub(super) async fn pack(
    shard: &Rc<Shard>,
    class: SegmentClass,
    value: &[u8],
) -> Result<(u64, Pin), Status> {
    let ready = &shard.context.ready;
    let (tickets, room, wakeup) = {
        let packer = shard.packers[class as usize].borrow();
        (packer.tickets.clone(), packer.room.clone(), packer.wakeup.clone())
    };
    let push = || {
        wakeup.wake_all(ready);
        shard.packers[class as usize].borrow_mut().push(value)
    };
    let ticket = room.until(ready, push).await;
    shard.context.bytes_packed.add(value.len() as u64);
    let address = settled(&tickets, ticket, ready).await?;
    let is_new = class != SegmentClass::Cleaner;
    let units = if is_new { value_units(value.len() as u32) } else { 0 };
    Ok((address, Pin::adopt(shard, address, units)))
}

/// The task of a class's packer: writes each buffer once everything else that was ready has run.
pub(super) async fn run(shard: Rc<Shard>, class: SegmentClass) {
    let ready = shard.context.ready.clone();
    let packer = &shard.packers[class as usize];
    let wakeup = packer.borrow().wakeup.clone();
    let hold = |values| class == SegmentClass::Cleaner && shard.jobs.borrow().more_than(values);
    loop {
        let mut pack = wakeup.until(&ready, || packer.borrow_mut().take(hold)).await;
        let blocks = pack.used.div_ceil(BLOCK_BYTES);
        pack.buffer[pack.used..blocks * BLOCK_BYTES].fill(0);
        let (buffer, written) = write(&shard, pack.buffer, blocks as u32, class).await;
        if let Ok(pin) = &written {
            // The cleaner has done what can be done; what others leave of their last block it packs.
            let rest =
                if class == SegmentClass::Cleaner { blocks * BLOCK_BYTES - pack.used } else { 0 };
            let lost = (pack.skipped + rest) as u64 / UNIT_BYTES;
            shard.space.borrow_mut().lose(pin.address(), lost);
        }
        let mut packer = packer.borrow_mut();
        for Waiting { ticket, offset } in pack.waiting.drain(..) {
            let outcome = written.as_ref().map_or_else(
                |status| Err(*status),
                |pin| {
                    let address = pin.address() + offset as u64 / UNIT_BYTES;
                    shard.space.borrow_mut().pin(address);
                    Ok(address)
                },
            );
            packer.tickets.borrow_mut().settle(ticket, outcome, &ready);
        }
        packer.spare = Some(Pack { buffer, used: 0, skipped: 0, ..pack });
        packer.room.wake_all(&ready);
    }
}

async fn write(
    shard: &Rc<Shard>,
    buffer: DmaBuf,
    blocks: u32,
    class: SegmentClass,
) -> (DmaBuf, Result<Pin, Status>) {
    let pin = match shard.allocate(class, u64::from(blocks)).await {
        Ok(pin) => pin,
        Err(status) => return (buffer, Err(status)),
    };
    let block = shard.region.segments_block + pin.address() / UNITS_PER_BLOCK;
    let io = shard.context.disk.write(shard.region.device, block, blocks, buffer, false);
    let (result, buffer) = io.await;
    let buffer = buffer.expect("a write gives its buffer back");
    (buffer, result.map(|()| pin).map_err(Shard::status_of))
}

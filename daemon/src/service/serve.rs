//! One command from its slot to its reply: the story of a request in the daemon.
//!
//! Guarantees: every command ends in exactly one reply, and its slot is free after it; no task holds
//! a borrow of anything shared while it waits; what a client asks beyond its limits is answered with
//! a status before memory is taken for it.

use super::context::Context;
use super::slots::SlotIndex;
use super::{batch, control};
use crate::executor::TaskId;
use crate::store::namespace::{CHUNKS, FIRST_USER};
use crate::store::{Fragment, StoreRequest, Wanted};
use forebay_fabric::Status;
use forebay_fabric::pdu::{
    Capsule, Command, KEY_BYTES, Opcode, VALUE_BYTES_MAX, command_flags, crc32c,
};
use forebay_fabric::server::Reply;
use forebay_fabric::transport::Payload;
use forebay_nvme::{Buffer, DmaBuf};
use std::ops::Range;
use std::rc::Rc;
use std::task::Poll;

/// Why a command is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reply's status.
    pub status: Status,
    /// The reply's result.
    pub result: u64,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self { status, result: 0 }
    }
}

/// A reply with the bytes `range` of `buffer`.
#[must_use]
pub(super) fn with_data(
    buffer: impl Into<Buffer>,
    range: Range<usize>,
    crc: u32,
    result: u64,
) -> Reply<Buffer> {
    let buffer = buffer.into();
    let payload = (!range.is_empty()).then_some(Payload { buffer, range });
    Reply { status: Status::Ok, result, flags: 0, data_crc: crc, payload }
}

/// Carries out the commands in slot `at`, one after the other, and replies to each.
pub(super) async fn attend(cx: Rc<Context>, at: SlotIndex) {
    let refused = |refusal: Refusal| Reply::status(refusal.status, refusal.result);
    loop {
        cx.slots.taken(at).await;
        let words = cx.slots.at(at).borrow_mut().take_words();
        match words {
            None => cx.finish(at, carry_out(&cx, at).await.unwrap_or_else(refused)),
            Some(words) => match batch::serve(&cx, at, &words).await {
                Ok((reply, parts)) => cx.finish_parts(at, reply, parts),
                Err(refusal) => cx.finish(at, refused(refusal)),
            },
        }
    }
}

async fn carry_out(cx: &Rc<Context>, at: SlotIndex) -> Result<Reply<Buffer>, Refusal> {
    let (opcode, namespace) = {
        let slot = cx.slots.at(at).borrow();
        (slot.opcode, slot.namespace())
    };
    match opcode {
        Opcode::Store => store(cx, at, user(namespace)?).await,
        Opcode::Retrieve | Opcode::CheckpointRead => retrieve(cx, at).await,
        Opcode::Delete => delete(cx, at, user(namespace)?).await,
        Opcode::Exist => exist(cx, at, user(namespace)?),
        Opcode::List => list(cx, at, user(namespace)?).await,
        Opcode::CheckpointPut => control::put(cx, at).await,
        // Rare and large: boxed, so that they do not make every task as large as they are.
        _ => Box::pin(control::serve(cx, at, opcode)).await,
    }
}

/// The system's namespaces are reached by its own commands only.
pub(super) fn user(namespace: u32) -> Result<u32, Status> {
    if namespace < FIRST_USER { Err(Status::NoNamespace) } else { Ok(namespace) }
}

pub(super) fn check_key(key: &[u8]) -> Result<(), Status> {
    if KEY_BYTES.contains(&key.len()) { Ok(()) } else { Err(Status::KeyLength) }
}

pub(super) async fn store(
    cx: &Rc<Context>,
    at: SlotIndex,
    namespace: u32,
) -> Result<Reply<Buffer>, Refusal> {
    let key = cx.slots.lend_key(at);
    cx.check(namespace, &key)?;
    let value = client_data(cx, at).await?;
    let (length, crc, token) = {
        let command = &cx.slots.at(at).borrow().command;
        (command.data_length.get(), command.data_crc.get(), command.token.get())
    };
    let request = StoreRequest { namespace, key: &key, value, length, crc, token };
    cx.store.start_store(request)?.finish().await?;
    cx.counters.bytes_stored.add(length.into());
    Ok(Reply::status(Status::Ok, 0))
}

/// The data of a command that carries any: from the capsule, or brought from the client now.
pub(super) async fn client_data(cx: &Rc<Context>, at: SlotIndex) -> Result<DmaBuf, Refusal> {
    let (length, in_capsule, deadline_us) = {
        let slot = cx.slots.at(at).borrow();
        let in_capsule = slot.command.opflags & command_flags::IN_CAPSULE != 0;
        (slot.command.data_length.get() as usize, in_capsule, slot.deadline_us)
    };
    if length > VALUE_BYTES_MAX {
        return Err(Status::ValueLength.into());
    }
    if in_capsule {
        return Ok(cx.slots.take_data(at).ok_or(Status::Internal)?);
    }
    let buffer = cx.memory.alloc(length, deadline_us).await?;
    if cx.slots.at(at).borrow().abandoned {
        return Err(Status::Cancelled.into());
    }
    if length == 0 {
        return Ok(buffer);
    }
    cx.pull(at, buffer);
    let data = cx.slots.wait_pulled(at).await?;
    if cx.slots.at(at).borrow().abandoned { Err(Status::Cancelled.into()) } else { Ok(data) }
}

/// Is this a retrieve of one value?
pub(super) fn is_single_retrieve(opcode: Opcode, capsule: &Capsule<'_>) -> bool {
    matches!(opcode, Opcode::Retrieve | Opcode::CheckpointRead) && capsule.items.is_empty()
}

/// What a single retrieve asks for.
pub(super) fn wanted<'k>(
    opcode: Opcode,
    command: &Command,
    key: &'k [u8],
) -> Result<Wanted<'k>, Status> {
    let namespace = if opcode == Opcode::CheckpointRead {
        control::check_chunk(key)?;
        CHUNKS
    } else {
        user(command.namespace.get())?
    };
    Ok(Wanted { namespace, key, offset: command.offset.get(), length: command.data_length.get() })
}

/// Goes on with the single retrieve in slot `at` as `task`, and replies once it is done. `false`: there is
/// none there.
pub(super) fn advance_retrieve(cx: &Context, at: SlotIndex, task: TaskId) -> bool {
    let polled = match &mut cx.slots.at(at).borrow_mut().retrieve {
        Some(pending) => cx.ready.as_task(task, || pending.poll()),
        None => return false,
    };
    if let Poll::Ready(outcome) = polled {
        let refused = |status| Reply::status(status, 0);
        cx.finish(at, outcome.map_or_else(refused, |fragment| retrieved(cx, fragment)));
    }
    true
}

/// One that could not begin at once, for want of memory or of bytes in its value.
async fn retrieve(cx: &Context, at: SlotIndex) -> Result<Reply<Buffer>, Refusal> {
    let begun = {
        let slot = cx.slots.at(at).borrow();
        let wanted = wanted(slot.opcode, &slot.command, slot.key())?;
        let Wanted { namespace, key, offset, length } = wanted;
        let begun = cx.store.start_retrieve(namespace, key, offset, length);
        begun.map_err(|status| cx.refusal(namespace, key, status))?
    };
    Ok(retrieved(cx, begun.finish().await?))
}

pub(super) fn retrieved(cx: &Context, fragment: Fragment) -> Reply<Buffer> {
    let Fragment { buffer, range, crc, value_length } = fragment;
    cx.counters.bytes_retrieved.add(range.len() as u64);
    with_data(buffer, range, crc, value_length.into())
}

async fn delete(cx: &Rc<Context>, at: SlotIndex, namespace: u32) -> Result<Reply<Buffer>, Refusal> {
    let key = cx.slots.lend_key(at);
    let token = cx.slots.at(at).borrow().command.token.get();
    let started = cx.store.start_delete(namespace, &key, token);
    let started = started.map_err(|status| cx.refusal(namespace, &key, status))?;
    let was_there = started.finish().await?;
    Ok(Reply::status(Status::Ok, was_there.into()))
}

fn exist(cx: &Rc<Context>, at: SlotIndex, namespace: u32) -> Result<Reply<Buffer>, Refusal> {
    let slot = cx.slots.at(at).borrow();
    let found = cx.store.exist(namespace, slot.key());
    let length = found.map_err(|status| cx.refusal(namespace, slot.key(), status))?;
    Ok(Reply::status(Status::Ok, length.into()))
}

async fn list(cx: &Rc<Context>, at: SlotIndex, namespace: u32) -> Result<Reply<Buffer>, Refusal> {
    let prefix = cx.slots.lend_key(at);
    let (cursor, most) = {
        let command = &cx.slots.at(at).borrow().command;
        (command.offset.get(), command.data_length.get() as usize)
    };
    let most = most.min(VALUE_BYTES_MAX);
    // Rare and large: boxed, so that it does not make every task as large as it is.
    let listed = Box::pin(cx.store.list(namespace, cursor, &prefix, most)).await?;
    let crc = crc32c(&listed.buffer.as_ref()[..listed.bytes]);
    Ok(with_data(listed.buffer, 0..listed.bytes, crc, listed.cursor))
}

//! The commands beside the data path: checkpoints, namespaces, counters.

use super::context::Context;
use super::local;
use super::serve::{Refusal, client_data, store, with_data};
use super::slots::SlotIndex;
use crate::checkpoint::{Call, Clock, put_again};
use crate::store::Background;
use crate::store::namespace::CHUNKS;
use forebay_fabric::Status;
use forebay_fabric::checkpoint::{Chunk, ChunkKey};
use forebay_fabric::pdu::{Opcode, VALUE_BYTES_MAX, crc32c};
use forebay_fabric::server::Reply;
use forebay_nvme::Buffer;
use serde_json::Value;
use std::rc::Rc;

/// Carries out a command of the control path.
pub(super) async fn serve(
    cx: &Rc<Context>,
    at: SlotIndex,
    opcode: Opcode,
) -> Result<Reply<Buffer>, Refusal> {
    match opcode {
        Opcode::Namespaces => json_reply(cx, at, &cx.namespaces_report()).await,
        Opcode::Stats => json_reply(cx, at, &cx.report()).await,
        _ => checkpoint(cx, at, opcode).await,
    }
}

/// A key that a READ may name.
pub(super) fn check_chunk(key: &[u8]) -> Result<(), Status> {
    ChunkKey::parse(key).map(drop).ok_or(Status::Malformed)
}

/// PUT: a store in the chunks' namespace, but what is there already never changes.
pub(super) async fn put(cx: &Rc<Context>, at: SlotIndex) -> Result<Reply<Buffer>, Refusal> {
    let new = {
        let key = cx.slots.lend_key(at);
        ChunkKey::parse_put(&key).ok_or(Status::Malformed)?;
        cx.check(CHUNKS, &key)?;
        let command = cx.slots.at(at).borrow().command;
        let (length, crc) = (command.data_length.get(), command.data_crc.get());
        if !(1..=VALUE_BYTES_MAX).contains(&(length as usize)) {
            return Err(Status::ValueLength.into());
        }
        Chunk::new(length, crc)
    };
    if Box::pin(is_put(cx, at, new)).await? {
        return Ok(Reply::status(Status::Ok, 0));
    }
    store(cx, at, CHUNKS).await
}

/// Is this very chunk there already?
async fn is_put(cx: &Rc<Context>, at: SlotIndex, new: Chunk) -> Result<bool, Refusal> {
    let key = cx.slots.lend_key(at);
    if cx.store.exist(CHUNKS, &key) == Err(Status::NotFound) {
        return Ok(false);
    }
    let there = local::checksum(&cx.store, CHUNKS, &key).await;
    let there = there.map(|(length, crc)| Chunk::new(length, crc));
    Ok(!put_again(there, new)?)
}

async fn checkpoint(
    cx: &Rc<Context>,
    at: SlotIndex,
    opcode: Opcode,
) -> Result<Reply<Buffer>, Refusal> {
    let Some(service) = &cx.checkpoints else {
        let result = cx.catalog_reactor.into();
        return Err(Refusal { status: Status::WrongReactor, result });
    };
    let command = cx.slots.at(at).borrow().command;
    let bytes = if opcode.sends_data() { command.data_length.get() as usize } else { 0 };
    let data = match bytes {
        0 => None,
        _ => Some(client_data(cx, at).await?),
    };
    let payload = data.as_ref().map_or(&[][..], |data| &data.as_ref()[..bytes]);
    if !payload.is_empty() && crc32c(payload) != command.data_crc.get() {
        return Err(Status::DataChecksum.into());
    }
    let key = cx.slots.lend_key(at);
    let (offset, length) = (command.offset.get(), command.data_length.get());
    let clock = cx.checkpoint_clock();
    let answer = service.call(Call { opcode, key: &key, payload, offset, length, clock }).await;
    let mut reply = bytes_reply(cx, at, &answer.data, answer.result).await?;
    reply.status = answer.status;
    Ok(reply)
}

/// What the checkpoint store has to do by itself now, if anything.
#[must_use]
pub fn checkpoint_upkeep(cx: &Rc<Context>) -> Option<Background> {
    let service = cx.checkpoints.as_ref()?;
    let due = service.next_deadline_us().is_some_and(|at_us| at_us <= cx.now.get().us);
    let (service, clock) = (service.clone(), cx.checkpoint_clock());
    due.then(|| -> Background { Box::pin(async move { service.tick(clock).await }) })
}

/// Looks once for chunks that nothing names, left behind by a crash.
#[must_use]
pub fn checkpoint_sweep(cx: &Rc<Context>) -> Option<Background> {
    let service = cx.checkpoints.clone()?;
    Some(Box::pin(async move {
        match service.sweep().await {
            Ok(0) => {}
            Ok(chunks) => log::info!("freed {chunks} chunks of checkpoints that never were"),
            Err(status) => log::warn!("the sweep for stray checkpoint chunks ended: {status}"),
        }
    }))
}

impl Context {
    fn checkpoint_clock(&self) -> Clock {
        let now = self.now.get();
        Clock { now_us: now.us, now_s: now.unix_s }
    }
}

async fn json_reply(
    cx: &Rc<Context>,
    at: SlotIndex,
    json: &Value,
) -> Result<Reply<Buffer>, Refusal> {
    bytes_reply(cx, at, json.to_string().as_bytes(), 0).await
}

async fn bytes_reply(
    cx: &Rc<Context>,
    at: SlotIndex,
    bytes: &[u8],
    result: u64,
) -> Result<Reply<Buffer>, Refusal> {
    if bytes.is_empty() {
        return Ok(Reply::status(Status::Ok, result));
    }
    let deadline_us = cx.slots.at(at).borrow().deadline_us;
    let mut buffer = cx.memory.alloc(bytes.len(), deadline_us).await?;
    buffer.as_mut()[..bytes.len()].copy_from_slice(bytes);
    Ok(with_data(buffer, 0..bytes.len(), crc32c(bytes), result))
}

//! What a reactor counts. Plain cells: only its own thread touches them, and they are read by asking.

use forebay_fabric::Status;
use forebay_fabric::pdu::Opcode;
use serde_json::{Map, Value, json};
use std::cell::Cell;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(Cell<u64>);

impl Count {
    /// One more.
    pub fn bump(&self) {
        self.add(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.set(self.0.get() + n);
    }

    /// How many so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// The counters of one reactor.
#[derive(Debug)]
pub struct Counters {
    /// Commands by opcode.
    commands: [Count; 256],
    /// Replies by status.
    replies: [Count; Status::ALL.len()],
    /// Bytes of values that were stored, as they came over the fabric.
    pub bytes_stored: Count,
    /// Bytes of values that were retrieved.
    pub bytes_retrieved: Count,
    /// Bytes of values that the processor has copied on their way, the fabric's copies not included.
    pub bytes_copied: Count,
    /// Items in batches.
    pub items: Count,
    /// Commands that had to wait for memory.
    pub memory_waits: Count,
    /// Rounds of the reactor's loop.
    pub ticks: Count,
    /// Those in which there was nothing to do.
    pub idle_ticks: Count,
    /// Times the reactor went to sleep.
    pub sleeps: Count,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            commands: std::array::from_fn(|_| Count::default()),
            replies: Default::default(),
            bytes_stored: Count::default(),
            bytes_retrieved: Count::default(),
            bytes_copied: Count::default(),
            items: Count::default(),
            memory_waits: Count::default(),
            ticks: Count::default(),
            idle_ticks: Count::default(),
            sleeps: Count::default(),
        }
    }
}

impl Counters {
    /// A command came in.
    pub fn command(&self, opcode: u8) {
        self.commands[usize::from(opcode)].bump();
    }

    /// A command ended.
    pub fn reply(&self, status: Status) {
        self.replies[status as usize].bump();
    }

    /// All of them, for people and their tools. Only what is not zero among opcodes and statuses.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let Self { commands, replies, bytes_stored, bytes_retrieved, items, .. } = self;
        let Self { bytes_copied, memory_waits, ticks, idle_ticks, sleeps, .. } = self;
        let named = |opcode: Opcode| (format!("{opcode:?}"), commands[opcode as usize].get());
        let known = Opcode::ALL.into_iter().map(named);
        let all: u64 = commands.iter().map(Count::get).sum();
        let unknown = all - Opcode::ALL.into_iter().map(|o| named(o).1).sum::<u64>();
        let replies = Status::ALL.iter().zip(replies);
        json!({
            "commands": nonzero(known.chain([("Unknown".to_owned(), unknown)])),
            "replies": nonzero(replies.map(|(status, count)| (format!("{status:?}"), count.get()))),
            "bytes_stored": bytes_stored.get(),
            "bytes_retrieved": bytes_retrieved.get(),
            "bytes_copied": bytes_copied.get(),
            "items": items.get(),
            "memory_waits": memory_waits.get(),
            "ticks": ticks.get(),
            "idle_ticks": idle_ticks.get(),
            "sleeps": sleeps.get(),
        })
    }
}

fn nonzero(counts: impl Iterator<Item = (String, u64)>) -> Value {
    let nonzero = counts.filter(|(_, count)| *count > 0);
    Value::Object(nonzero.map(|(name, count)| (name, json!(count))).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_tell_what_was_counted_by_its_name() {
        let counters = Counters::default();
        counters.command(Opcode::Store as u8);
        counters.command(0xee);
        counters.reply(Status::NotFound);
        counters.bytes_stored.add(7);
        let json = counters.to_json();
        assert_eq!(json["commands"], json!({"Store": 1, "Unknown": 1}));
        assert_eq!(json["replies"], json!({"NotFound": 1}));
        assert_eq!(json["bytes_stored"], 7);
    }
}

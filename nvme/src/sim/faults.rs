//! What can go wrong with a simulated device.
//!
//! The model, in prose. A device may fail a read, a write or a flush and say so. It may also lie:
//! say that it wrote and have written nothing (lost), or have written it elsewhere (misdirected);
//! or let a bit of what it holds turn over (rot). A failed write leaves any of its blocks new and
//! the others old. A failed flush may have thrown away any of the writes that it was to make
//! durable, and the next flush will not know of it. At a power cut, every write that is in flight
//! or in the volatile cache is kept, dropped or torn at the atomic unit, each by its own; what was
//! flushed or written with FUA stays. Discarded blocks read as before or as zeroes, whatever the
//! power does.
//!
//! Not in the model: a device that answers twice, or never ([`Rule::Delay`] makes one that answers
//! too late).

/// How likely each fault is, and how finely a power cut tears.
///
/// The default is an honest device: nothing fails, and a power cut does its worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// Reads that fail, in a thousand.
    pub read_fail_per_mille: u32,
    /// Writes that fail, in a thousand.
    pub write_fail_per_mille: u32,
    /// Flushes that fail, in a thousand.
    pub flush_fail_per_mille: u32,
    /// Writes that report success and change nothing, in a thousand.
    pub lost_write_per_mille: u32,
    /// Writes that report success and land on other blocks, in a thousand.
    pub misdirected_write_per_mille: u32,
    /// Reads that find one bit of what they read turned over, for good, in a thousand.
    pub bit_rot_per_mille: u32,
    /// The most that is written whole or not at all at a power cut, in bytes: 512 to 4096
    /// (NVM Command Set 1.0, "Atomic Write Unit Power Fail").
    pub atomic_bytes: usize,
    /// Whether later writes in the volatile cache may survive a power cut that loses earlier ones.
    pub reordering: bool,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            read_fail_per_mille: 0,
            write_fail_per_mille: 0,
            flush_fail_per_mille: 0,
            lost_write_per_mille: 0,
            misdirected_write_per_mille: 0,
            bit_rot_per_mille: 0,
            atomic_bytes: 512,
            reordering: true,
        }
    }
}

/// A fault at a chosen place. `Next…` rules fire once; the others stay until
/// [`super::SimDevice::clear_rules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Every read that touches the block fails.
    FailRead {
        /// The block.
        block: u64,
    },
    /// Every write that touches the block fails.
    FailWrite {
        /// The block.
        block: u64,
    },
    /// The next flush fails.
    FailNextFlush,
    /// The next write that touches the block reports success and changes nothing.
    LoseNextWrite {
        /// The block.
        block: u64,
    },
    /// The next write that touches the block lands at `to` and reports success.
    MisdirectNextWrite {
        /// The block.
        block: u64,
        /// Where the write's first block lands instead.
        to: u64,
    },
    /// Every read or write that touches the block takes this much longer.
    Delay {
        /// The block.
        block: u64,
        /// How much longer.
        delay_us: u64,
    },
}

/// The rules in force, and the dice.
#[derive(Debug)]
pub(crate) struct FaultState {
    pub(crate) faults: Faults,
    pub(crate) rules: Vec<Rule>,
    pub(crate) rng: fastrand::Rng,
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteFate {
    Written,
    Failed,
    Lost,
    LandsAt(u64),
}

impl FaultState {
    pub(crate) fn hit(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.rng.u32(..1000) < per_mille
    }

    pub(crate) fn read_fails(&mut self, first: u64, blocks: u64) -> bool {
        let ruled = self
            .rules
            .iter()
            .any(|rule| matches!(rule, Rule::FailRead { block } if touches(first, blocks, *block)));
        ruled || self.hit(self.faults.read_fail_per_mille)
    }

    pub(crate) fn flush_fails(&mut self) -> bool {
        if let Some(at) = self.rules.iter().position(|rule| *rule == Rule::FailNextFlush) {
            self.rules.remove(at);
            return true;
        }
        self.hit(self.faults.flush_fail_per_mille)
    }

    pub(crate) fn delay_us(&self, first: u64, blocks: u64) -> u64 {
        let delay = |rule: &Rule| match rule {
            Rule::Delay { block, delay_us } if touches(first, blocks, *block) => *delay_us,
            _ => 0,
        };
        self.rules.iter().map(delay).sum()
    }

    /// `device_blocks` bounds where a misdirected write may land.
    pub(crate) fn write_fate(&mut self, first: u64, blocks: u64, device_blocks: u64) -> WriteFate {
        if let Some(fate) = self.ruled_write_fate(first, blocks) {
            return fate;
        }
        if self.hit(self.faults.write_fail_per_mille) {
            WriteFate::Failed
        } else if self.hit(self.faults.lost_write_per_mille) {
            WriteFate::Lost
        } else if self.hit(self.faults.misdirected_write_per_mille) {
            WriteFate::LandsAt(self.rng.u64(..=device_blocks - blocks))
        } else {
            WriteFate::Written
        }
    }

    fn ruled_write_fate(&mut self, first: u64, blocks: u64) -> Option<WriteFate> {
        let (at, fate) = self.rules.iter().enumerate().find_map(|(at, rule)| {
            let (block, fate) = match *rule {
                Rule::FailWrite { block } => (block, WriteFate::Failed),
                Rule::LoseNextWrite { block } => (block, WriteFate::Lost),
                Rule::MisdirectNextWrite { block, to } => (block, WriteFate::LandsAt(to)),
                _ => return None,
            };
            touches(first, blocks, block).then_some((at, fate))
        })?;
        if fate != WriteFate::Failed {
            self.rules.remove(at);
        }
        Some(fate)
    }
}

fn touches(first: u64, blocks: u64, block: u64) -> bool {
    (first..first + blocks).contains(&block)
}

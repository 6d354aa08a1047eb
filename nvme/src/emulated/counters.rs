//! What the controller has seen, and what the driver has done wrong.

use std::collections::BTreeMap;

use super::device::Device;
use super::queues::QueueId;
use crate::spec::status::Status;

/// Violations that are remembered; the others are counted.
const REMEMBERED: usize = 64;

/// What has happened so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Doorbell writes that the controller heard. Of several to one doorbell between two looks it hears one.
    pub doorbells: u64,
    /// Admin commands fetched, by opcode.
    pub admin: BTreeMap<u8, u64>,
    /// I/O commands fetched, by opcode.
    pub io: BTreeMap<u8, u64>,
    /// Commands that have not completed, without asynchronous event requests.
    pub in_flight: usize,
    /// Entries posted.
    pub completions: u64,
    /// Times that an entry had to wait for room in its queue.
    pub completion_queue_full: u64,
    /// Commands refused because the host had no reason to send them so.
    pub refused: u64,
    /// Bytes read from the media for the host.
    pub bytes_read: u64,
    /// Bytes that the host wrote.
    pub bytes_written: u64,
    /// Times that the controller was enabled.
    pub enables: u64,
    /// Times that it was disabled while it was on.
    pub disables: u64,
    /// Function resets that succeeded.
    pub function_resets: u64,
    /// Shutdowns that it was told of.
    pub shutdowns: u64,
    /// Accesses to memory that were blocked because the bus was taken from it.
    pub bus_master_blocked: u64,
    /// Accesses that the IOMMU blocked.
    pub iommu_faults: u64,
    /// Accesses that the controller made to nowhere, on purpose.
    pub stray_dma: u64,
    /// Times that the driver did what it must not.
    pub violations: u64,
}

/// Something that a driver must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A doorbell of a queue that is not there.
    DoorbellOfNoQueue {
        /// Its number.
        queue: QueueId,
    },
    /// A doorbell while the controller is not ready.
    DoorbellTooEarly {
        /// Its queue.
        queue: QueueId,
    },
    /// A doorbell value that is no entry of the queue.
    DoorbellValue {
        /// The queue.
        queue: QueueId,
        /// What was written.
        value: u32,
    },
    /// Entries were overwritten of which the host cannot know that they were fetched.
    SubmissionOverrun {
        /// The queue.
        queue: QueueId,
    },
    /// Entries were taken that had not been posted.
    CompletionOverrun {
        /// The queue.
        queue: QueueId,
    },
    /// A command identifier that is in flight.
    CidInUse {
        /// The queue.
        queue: QueueId,
        /// The identifier.
        cid: u16,
    },
    /// A PRP entry, or the pointer to a list of them, with an offset that it must not have.
    MisalignedPrp {
        /// The entry.
        address: u64,
    },
    /// The memory of a queue is not mapped, or not aligned.
    QueueMemory {
        /// The queue.
        queue: QueueId,
    },
    /// The admin queue, or the configuration, cannot work.
    BadConfiguration,
    /// A register was written that must not be, or not now.
    Register {
        /// Its offset.
        offset: usize,
    },
    /// A command that the controller never said it would take.
    Refused {
        /// The queue.
        queue: QueueId,
        /// The opcode.
        opcode: u8,
        /// What it was answered with.
        status: Status,
    },
}

/// Counters and violations as the device keeps them.
#[derive(Debug, Default)]
pub(super) struct Book {
    violations: Vec<Violation>,
    total: u64,
}

impl Device {
    pub(super) fn violation(&mut self, violation: Violation) {
        self.book.total += 1;
        if self.book.violations.len() < REMEMBERED {
            self.book.violations.push(violation);
        }
    }

    /// The first violations.
    pub(super) fn violations(&self) -> Vec<Violation> {
        let mut all = self.book.violations.clone();
        let (misused, offset) = self.registers.misused();
        if misused > 0 {
            all.push(Violation::Register { offset });
        }
        all
    }

    pub(super) fn counters(&self) -> Counters {
        let mut counters = self.counters.clone();
        let (iommu_faults, _) = self.dma.faults();
        counters.iommu_faults = iommu_faults;
        counters.violations = self.book.total + self.registers.misused().0;
        counters.in_flight = self.in_flight();
        counters
    }
}

//! Features (NVMe Base 2.0, "Set Features command", "Get Features command").

use std::collections::BTreeMap;

use super::config::Identity;
use super::device::{Device, Outcome};
use super::queues::QueueId;
use crate::spec::command::Submission;
use crate::spec::feature::{self, HOST_BEHAVIOR_BYTES};
use crate::spec::status::{command, generic};

/// What the host has set since the controller was enabled.
#[derive(Debug)]
pub(super) struct Features {
    /// Events that it wants to hear of.
    pub(super) async_events: u32,
    /// The volatile write cache is used.
    pub(super) write_cache: bool,
    /// It honours retry delays (ACRE).
    pub(super) retry_delays: bool,
    /// The others, which do nothing.
    values: BTreeMap<u8, u32>,
}

impl Features {
    pub(super) fn new(identity: &Identity) -> Self {
        let write_cache = identity.volatile_write_cache;
        // Composite temperature: over 343 K, which is the default of most drives.
        let values = [
            (feature::ARBITRATION, 0),
            (feature::POWER_MANAGEMENT, 0),
            (feature::TEMPERATURE_THRESHOLD, 343),
            (feature::ERROR_RECOVERY, 0),
            (feature::INTERRUPT_COALESCING, 0),
            (feature::INTERRUPT_VECTOR, 0),
            (feature::WRITE_ATOMICITY, 0),
        ];
        Self { async_events: 0, write_cache, retry_delays: false, values: values.into() }
    }
}

impl Device {
    pub(super) fn set_feature(&mut self, request: &Submission) -> Outcome {
        let (id, value) = (request.cdw10.get() as u8, request.cdw11.get());
        if request.cdw10.get() >> 31 != 0 {
            return Outcome::invalid(command::FEATURE_NOT_SAVEABLE);
        }
        match id {
            feature::NUMBER_OF_QUEUES => return self.set_queue_count(request, value),
            feature::VOLATILE_WRITE_CACHE => return self.set_write_cache(request, value & 1 != 0),
            feature::ASYNC_EVENTS => self.features.async_events = value,
            feature::HOST_BEHAVIOR => return self.set_host_behavior(request),
            _ => match self.features.values.get_mut(&id) {
                Some(there) => *there = value,
                None => return self.refuse(0, request, generic::INVALID_FIELD),
            },
        }
        Outcome::OK
    }

    pub(super) fn get_feature(&mut self, request: &Submission) -> Outcome {
        let (id, select) = (request.cdw10.get() as u8, request.cdw10.get() >> 8 & 7);
        let fresh;
        let features = match select {
            0 => &self.features,
            1 => {
                fresh = Features::new(&self.config.identity);
                &fresh
            }
            // Supported capabilities: changeable, and neither saveable nor of a namespace.
            3 => return Outcome::result(1 << 2),
            _ => return self.refuse(0, request, generic::INVALID_FIELD),
        };
        match id {
            feature::NUMBER_OF_QUEUES => Outcome::result(self.granted()),
            feature::VOLATILE_WRITE_CACHE if self.config.identity.volatile_write_cache => {
                Outcome::result(features.write_cache.into())
            }
            feature::ASYNC_EVENTS => Outcome::result(features.async_events),
            _ => match features.values.get(&id) {
                Some(value) => Outcome::result(*value),
                None => self.refuse(0, request, generic::INVALID_FIELD),
            },
        }
    }

    /// What it gives, whatever it was asked for. No queues at all cannot be said: as a broken drive would, it
    /// says the number below 1, which is the most that there can be.
    fn granted(&self) -> u32 {
        let queues = (self.config.queues as u16).wrapping_sub(1);
        u32::from(queues) | u32::from(queues) << 16
    }

    fn set_queue_count(&mut self, request: &Submission, value: u32) -> Outcome {
        let has_queues = self.submission.keys().any(|id: &QueueId| *id != 0);
        match value {
            _ if has_queues => self.refuse(0, request, generic::SEQUENCE_ERROR),
            value if value & 0xffff == 0xffff || value >> 16 == 0xffff => {
                self.refuse(0, request, generic::INVALID_FIELD)
            }
            _ => Outcome::result(self.granted()),
        }
    }

    fn set_write_cache(&mut self, request: &Submission, on: bool) -> Outcome {
        if !self.config.identity.volatile_write_cache {
            return self.refuse(0, request, generic::INVALID_FIELD);
        }
        self.features.write_cache = on;
        if !on {
            self.namespaces.values_mut().for_each(|namespace| namespace.settle());
        }
        Outcome::OK
    }

    fn set_host_behavior(&mut self, request: &Submission) -> Outcome {
        match self.pull(0, request, HOST_BEHAVIOR_BYTES) {
            Ok(data) => {
                self.features.retry_delays = data[0] == 1;
                Outcome::OK
            }
            Err(status) => Err(status).into(),
        }
    }

    /// Completed writes may be lost in a power cut.
    pub(super) fn caches(&self) -> bool {
        self.config.identity.volatile_write_cache && self.features.write_cache
    }
}

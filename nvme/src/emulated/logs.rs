//! Log pages (NVMe Base 2.0, "Get Log Page command").

use std::collections::VecDeque;

use zerocopy::{FromZeros, IntoBytes};

use super::device::{Device, Outcome};
use super::faults::Fault;
use super::queues::QueueId;
use crate::spec::command::Submission;

use crate::spec::log::{self, CHANGED_NAMESPACES_BYTES, ErrorLogEntry, FirmwareSlotLog, SmartLog};
use crate::spec::status::{Status, StatusKind, command, generic};

/// Entries of the error log (ELPE + 1).
pub(super) const ERRORS_MAX: usize = 64;

/// What the drive knows of itself.
#[derive(Debug)]
pub(super) struct Health {
    pub(super) critical_warning: u8,
    /// What the test says of it; counters are added.
    pub(super) smart: SmartLog,
    pub(super) commands_ended: u64,
    power_cycles: u64,
    unsafe_shutdowns: u64,
    media_errors: u64,
    /// It was told that the power would go.
    pub(super) shut_down: bool,
    errors: VecDeque<ErrorLogEntry>,
    errors_total: u64,
}

impl Default for Health {
    fn default() -> Self {
        let mut smart = SmartLog::new_zeroed();
        smart.temperature = 310.into();
        smart.available_spare = 100;
        smart.spare_threshold = 10;
        smart.percentage_used = 1;
        smart.power_on_hours = 1234.into();
        Self {
            critical_warning: 0,
            smart,
            commands_ended: 0,
            power_cycles: 1,
            unsafe_shutdowns: 0,
            media_errors: 0,
            shut_down: false,
            errors: VecDeque::new(),
            errors_total: 0,
        }
    }
}

impl Health {
    pub(super) fn lose_power(&mut self) {
        self.power_cycles += 1;
        self.unsafe_shutdowns += u64::from(!self.shut_down);
        self.shut_down = false;
        self.errors.clear();
    }
}

impl Device {
    pub(super) fn log_error(&mut self, queue: QueueId, request: &Submission, status: Status) {
        let health = &mut self.health;
        health.errors_total += 1;
        health.media_errors += u64::from(status.kind() == StatusKind::Media);
        let mut entry = ErrorLogEntry::new_zeroed();
        entry.error_count = health.errors_total.into();
        entry.sqid = queue.into();
        entry.cid = request.cid;
        entry.status_field = (status.0 << 1).into();
        entry.parameter_location = 0xffff.into();
        entry.lba = request.lba().into();
        entry.nsid = request.nsid;
        health.errors.push_front(entry);
        health.errors.truncate(ERRORS_MAX);
    }

    /// Get Log Page.
    pub(super) fn get_log_page(&mut self, request: &Submission, fault: Option<Fault>) -> Outcome {
        let (page, keep) = (request.cdw10.get() as u8, request.cdw10.get() & 1 << 15 != 0);
        let dwords = request.cdw10.get() >> 16 | (request.cdw11.get() & 0xffff) << 16;
        let offset = u64::from(request.cdw12.get()) | u64::from(request.cdw13.get()) << 32;
        let Some(mut content) = self.log_page(page) else {
            return self.refuse(0, request, command::INVALID_LOG_PAGE);
        };
        let bytes = (dwords as usize + 1).saturating_mul(4);
        if offset % 4 != 0 || offset > content.len() as u64 || bytes > 1 << 20 {
            return self.refuse(0, request, generic::INVALID_FIELD);
        }
        content.drain(..offset as usize);
        content.resize(bytes, 0);
        let pushed = self.push(0, request, content, fault);
        if pushed.is_ok() && !keep {
            self.notices.read(page);
            if page == log::CHANGED_NAMESPACES {
                self.notices.changed.clear();
            }
        }
        pushed.into()
    }

    fn log_page(&self, page: u8) -> Option<Vec<u8>> {
        match page {
            log::ERROR => {
                let entries = self.health.errors.iter();
                let mut bytes: Vec<u8> =
                    entries.flat_map(|entry| entry.as_bytes().to_vec()).collect();
                bytes.resize(ERRORS_MAX * size_of::<ErrorLogEntry>(), 0);
                Some(bytes)
            }
            log::SMART => Some(self.smart().as_bytes().to_vec()),
            log::FIRMWARE_SLOT => {
                let mut slots = FirmwareSlotLog::new_zeroed();
                slots.afi = 1;
                super::identify::ascii(&mut slots.frs[0], &self.config.identity.firmware);
                Some(slots.as_bytes().to_vec())
            }
            log::CHANGED_NAMESPACES => {
                let nsids = self.notices.changed.iter();
                let mut bytes: Vec<u8> = nsids.flat_map(|nsid| nsid.to_le_bytes()).collect();
                bytes.resize(CHANGED_NAMESPACES_BYTES, 0);
                Some(bytes)
            }
            _ => None,
        }
    }

    /// The SMART log.
    pub(super) fn smart(&self) -> SmartLog {
        let (health, counters) = (&self.health, &self.counters);
        let count = |opcodes: &[u8]| -> u128 {
            opcodes.iter().filter_map(|it| counters.io.get(it)).map(|n| u128::from(*n)).sum()
        };
        let units = |bytes: u64| u128::from(bytes.div_ceil(512_000));
        let mut smart = health.smart;
        smart.critical_warning |= health.critical_warning;
        smart.data_units_read = units(counters.bytes_read).into();
        smart.data_units_written = units(counters.bytes_written).into();
        smart.host_reads = count(&[crate::spec::opcode::io::READ]).into();
        smart.host_writes = count(&[crate::spec::opcode::io::WRITE]).into();
        smart.power_cycles = u128::from(health.power_cycles).into();
        smart.unsafe_shutdowns = u128::from(health.unsafe_shutdowns).into();
        smart.media_errors = u128::from(health.media_errors).into();
        smart.error_log_entries = u128::from(health.errors_total).into();
        smart
    }
}

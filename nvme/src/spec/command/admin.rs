//! Admin commands (Base, "Admin Command Set").

use zerocopy::little_endian::U32;

use super::{ALL_NAMESPACES, Data, Submission};
use crate::spec::{feature, opcode::admin};

/// Size of each of the two doorbell buffers at least: one memory page (Base, "Doorbell Buffer Config
/// command").
pub const DOORBELL_BUFFER_BYTES: usize = 4096;

/// Which data structure Identify returns (Base, "Identify command", CNS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum IdentifyKind {
    /// Identify Namespace of the NVM command set: [`crate::spec::identify::IdentifyNamespace`].
    Namespace = 0x00,
    /// Identify Controller: [`crate::spec::identify::IdentifyController`].
    Controller = 0x01,
    /// Active Namespace ID list: [`crate::spec::identify::ActiveNamespaces`].
    ActiveNamespaces = 0x02,
    /// Namespace Identification Descriptor list: [`crate::spec::identify::descriptors`].
    Descriptors = 0x03,
    /// I/O Command Set specific Identify Controller:
    /// [`crate::spec::identify::IdentifyControllerNvm`].
    ControllerCommandSet = 0x06,
}

/// What a format does to the data that was there (Base, "Format NVM command", SES).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum SecureErase {
    /// Nothing is promised.
    #[default]
    None = 0,
    /// User data is erased.
    UserData = 1,
    /// The key that user data was encrypted with is deleted.
    Cryptographic = 2,
}

impl Submission {
    /// Identify Controller (Base, "Identify command", CNS 01h).
    #[must_use]
    pub const fn identify_controller(data: Data) -> Self {
        Self::identify(IdentifyKind::Controller, 0, data)
    }

    /// The NVM command set's Identify Controller (NVM, "I/O Command Set specific Identify Controller
    /// data structure", CNS 06h, CSI 00h).
    #[must_use]
    pub const fn identify_controller_nvm(data: Data) -> Self {
        Self::identify(IdentifyKind::ControllerCommandSet, 0, data)
    }

    /// Identify Namespace (NVM, "Identify Namespace data structure", CNS 00h).
    #[must_use]
    pub const fn identify_namespace(nsid: u32, data: Data) -> Self {
        Self::identify(IdentifyKind::Namespace, nsid, data)
    }

    /// The first 1024 active namespaces above `after_nsid` (Base, "Active Namespace ID list", CNS 02h).
    #[must_use]
    pub const fn identify_active_namespaces(after_nsid: u32, data: Data) -> Self {
        Self::identify(IdentifyKind::ActiveNamespaces, after_nsid, data)
    }

    /// What identifies a namespace for ever (Base, "Namespace Identification Descriptor list", CNS 03h).
    #[must_use]
    pub const fn identify_descriptors(nsid: u32, data: Data) -> Self {
        Self::identify(IdentifyKind::Descriptors, nsid, data)
    }

    const fn identify(kind: IdentifyKind, nsid: u32, data: Data) -> Self {
        let mut command = Self::new(admin::IDENTIFY, nsid).with_data(data);
        command.cdw10 = U32::new(kind as u32);
        command
    }

    /// Create I/O Completion Queue, contiguous at `iova`; `interrupt` is its vector (Base, "Create I/O
    /// Completion Queue command").
    ///
    /// # Panics
    /// When `entries` is less than 2 or more than 65 536.
    #[must_use]
    pub const fn create_completion_queue(
        qid: u16,
        entries: u32,
        iova: u64,
        interrupt: Option<u16>,
    ) -> Self {
        let interrupt = match interrupt {
            Some(vector) => 1 << 1 | (vector as u32) << 16,
            None => 0,
        };
        Self::create_queue(admin::CREATE_CQ, qid, entries, iova, interrupt)
    }

    /// Create I/O Submission Queue, contiguous at `iova`, which completes to `cqid` (Base, "Create I/O
    /// Submission Queue command").
    ///
    /// # Panics
    /// When `entries` is less than 2 or more than 65 536.
    #[must_use]
    pub const fn create_submission_queue(qid: u16, entries: u32, iova: u64, cqid: u16) -> Self {
        Self::create_queue(admin::CREATE_SQ, qid, entries, iova, (cqid as u32) << 16)
    }

    const fn create_queue(opcode: u8, qid: u16, entries: u32, iova: u64, cdw11: u32) -> Self {
        const CONTIGUOUS: u32 = 1;
        assert!(entries >= 2 && entries <= 1 << 16);
        let mut command = Self::new(opcode, 0).with_data(Data::Prp(iova, 0));
        command.cdw10 = U32::new(qid as u32 | (entries - 1) << 16);
        command.cdw11 = U32::new(CONTIGUOUS | cdw11);
        command
    }

    /// Delete I/O Submission Queue (Base, "Delete I/O Submission Queue command"): before its completion
    /// queue.
    #[must_use]
    pub const fn delete_submission_queue(qid: u16) -> Self {
        Self::new(admin::DELETE_SQ, 0).with_cdw10(qid as u32)
    }

    /// Delete I/O Completion Queue (Base, "Delete I/O Completion Queue command").
    #[must_use]
    pub const fn delete_completion_queue(qid: u16) -> Self {
        Self::new(admin::DELETE_CQ, 0).with_cdw10(qid as u32)
    }

    /// Asks for so many I/O queues; [`feature::QueueCount`] is what it gets (Base, "Number of Queues").
    ///
    /// # Panics
    /// When a count is 0.
    #[must_use]
    pub const fn set_queue_count(submission: u16, completion: u16) -> Self {
        assert!(submission > 0 && completion > 0);
        let counts = (submission - 1) as u32 | ((completion - 1) as u32) << 16;
        Self::set_feature(feature::NUMBER_OF_QUEUES, 0, counts)
    }

    /// Set Features: `value` is dword 11; not saved (Base, "Set Features command").
    #[must_use]
    pub const fn set_feature(feature: u8, nsid: u32, value: u32) -> Self {
        let mut command = Self::new(admin::SET_FEATURES, nsid).with_cdw10(feature as u32);
        command.cdw11 = U32::new(value);
        command
    }

    /// Get Features: the current value is in the completion's result (Base, "Get Features command", SEL
    /// 000b).
    #[must_use]
    pub const fn get_feature(feature: u8, nsid: u32) -> Self {
        Self::new(admin::GET_FEATURES, nsid).with_cdw10(feature as u32)
    }

    /// Tells what the host can deal with: `data` is a [`feature::HostBehavior`] (Base, "Host Behavior
    /// Support").
    #[must_use]
    pub const fn set_host_behavior(data: Data) -> Self {
        Self::set_feature(feature::HOST_BEHAVIOR, 0, 0).with_data(data)
    }

    /// Chooses which events are reported: the bits are in [`feature::async_events`] (Base, "Asynchronous
    /// Event Configuration").
    #[must_use]
    pub const fn set_async_events(mask: u32) -> Self {
        Self::set_feature(feature::ASYNC_EVENTS, 0, mask)
    }

    /// Completes when something happens: [`crate::spec::event::AsyncEvent`] (Base, "Asynchronous Event
    /// Request command").
    #[must_use]
    pub const fn async_event_request() -> Self {
        Self::new(admin::ASYNC_EVENT_REQUEST, 0)
    }

    /// Abort command `cid` of queue `sqid`; bit 0 of the result is clear if it was (Base, "Abort
    /// command").
    #[must_use]
    pub const fn abort(sqid: u16, cid: u16) -> Self {
        Self::new(admin::ABORT, 0).with_cdw10(sqid as u32 | (cid as u32) << 16)
    }

    /// Get Log Page, from its beginning; reading it clears the event that it belongs to (Base, "Get Log
    /// Page command").
    ///
    /// # Panics
    /// When `bytes` is not a multiple of 4, or zero.
    #[must_use]
    pub const fn get_log_page(page: u8, nsid: u32, bytes: u32, data: Data) -> Self {
        assert!(bytes != 0 && bytes.is_multiple_of(4));
        let dwords = bytes / 4 - 1;
        let mut command = Self::new(admin::GET_LOG_PAGE, nsid).with_data(data);
        command.cdw10 = U32::new(page as u32 | (dwords & 0xffff) << 16);
        command.cdw11 = U32::new(dwords >> 16);
        command
    }

    /// A Get Log Page that leaves its event as it is (RAE), so that whoever waits for it still sees it.
    #[must_use]
    pub const fn with_retained_event(self) -> Self {
        self.with_cdw10(self.cdw10.get() | 1 << 15)
    }

    /// A Get Log Page from byte `offset` on, a multiple of 4 (LPOL, LPOU).
    #[must_use]
    pub const fn with_log_offset(mut self, offset: u64) -> Self {
        self.cdw12 = U32::new(offset as u32);
        self.cdw13 = U32::new((offset >> 32) as u32);
        self
    }

    /// Doorbell Buffer Config: where doorbells are written instead, and where the controller says when it
    /// has to be rung (Base, "Doorbell Buffer Config command").
    #[must_use]
    pub const fn doorbell_buffers(shadow_iova: u64, event_iova: u64) -> Self {
        Self::new(admin::DBBUF_CONFIG, 0).with_data(Data::Prp(shadow_iova, event_iova))
    }

    /// Format NVM with LBA format `lbaf`, without protection information or metadata settings (Base,
    /// "Format NVM command"; NVM, "Format NVM command": LBAFL, LBAFU). **All data is lost.**
    ///
    /// # Panics
    /// When `lbaf` is more than 63.
    #[must_use]
    pub const fn format_nvm(nsid: u32, lbaf: u8, ses: SecureErase) -> Self {
        assert!(lbaf < 64);
        let format = (lbaf & 15) as u32 | (lbaf as u32 >> 4) << 12;
        Self::new(admin::FORMAT_NVM, nsid).with_cdw10(format | (ses as u32) << 9)
    }

    /// Keep Alive (Base, "Keep Alive command"). We ask for no keep-alive timer on PCIe.
    #[must_use]
    pub const fn keep_alive() -> Self {
        Self::new(admin::KEEP_ALIVE, 0)
    }

    /// Every namespace that the controller has, where a command allows that.
    #[must_use]
    pub const fn for_all_namespaces(mut self) -> Self {
        self.nsid = U32::new(ALL_NAMESPACES);
        self
    }

    pub(super) const fn with_cdw10(mut self, cdw10: u32) -> Self {
        self.cdw10 = U32::new(cdw10);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    const DATA: Data = Data::Prp(0x10_0000, 0);

    /// The dwords 0, 1 and 10 to 13 of a command.
    fn dwords(command: Submission) -> [u32; 6] {
        let dword =
            |at: usize| u32::from_le_bytes(command.as_bytes()[at * 4..][..4].try_into().unwrap());
        assert_eq!((dword(14), dword(15)), (0, 0));
        [dword(0), dword(1), dword(10), dword(11), dword(12), dword(13)]
    }

    #[test]
    fn identify_commands_are_their_golden_dwords() {
        assert_eq!(dwords(Submission::identify_controller(DATA)), [6, 0, 1, 0, 0, 0]);
        assert_eq!(dwords(Submission::identify_controller_nvm(DATA)), [6, 0, 6, 0, 0, 0]);
        assert_eq!(dwords(Submission::identify_namespace(7, DATA)), [6, 7, 0, 0, 0, 0]);
        assert_eq!(dwords(Submission::identify_active_namespaces(9, DATA)), [6, 9, 2, 0, 0, 0]);
        assert_eq!(dwords(Submission::identify_descriptors(7, DATA)), [6, 7, 3, 0, 0, 0]);
        assert_eq!(Submission::identify_controller(DATA).data(), Some(DATA));
    }

    #[test]
    fn queue_commands_are_their_golden_dwords() {
        let cq = Submission::create_completion_queue(3, 1024, 0x2000, None);
        assert_eq!(dwords(cq), [5, 0, 0x03ff_0003, 1, 0, 0]);
        assert_eq!(cq.data(), Some(Data::Prp(0x2000, 0)));
        let cq = Submission::create_completion_queue(3, 65536, 0x2000, Some(2));
        assert_eq!(dwords(cq), [5, 0, 0xffff_0003, 0x0002_0003, 0, 0]);
        let sq = Submission::create_submission_queue(3, 1024, 0x4000, 5);
        assert_eq!(dwords(sq), [1, 0, 0x03ff_0003, 0x0005_0001, 0, 0]);
        assert_eq!(dwords(Submission::delete_submission_queue(3)), [0, 0, 3, 0, 0, 0]);
        assert_eq!(dwords(Submission::delete_completion_queue(3)), [4, 0, 3, 0, 0, 0]);
        assert_eq!(dwords(Submission::set_queue_count(4, 8)), [9, 0, 7, 0x0007_0003, 0, 0]);
    }

    #[test]
    fn feature_and_event_commands_are_their_golden_dwords() {
        assert_eq!(dwords(Submission::set_feature(6, 0, 1)), [9, 0, 6, 1, 0, 0]);
        assert_eq!(dwords(Submission::get_feature(4, 2)), [0x0a, 2, 4, 0, 0, 0]);
        assert_eq!(dwords(Submission::set_host_behavior(DATA)), [9, 0, 0x16, 0, 0, 0]);
        assert_eq!(Submission::set_host_behavior(DATA).data(), Some(DATA));
        assert_eq!(dwords(Submission::set_async_events(0x11f)), [9, 0, 0x0b, 0x11f, 0, 0]);
        assert_eq!(dwords(Submission::async_event_request()), [0x0c, 0, 0, 0, 0, 0]);
        assert_eq!(dwords(Submission::abort(3, 0x1234)), [8, 0, 0x1234_0003, 0, 0, 0]);
        assert_eq!(dwords(Submission::keep_alive()), [0x18, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn log_pages_are_counted_in_dwords() {
        let log = Submission::get_log_page(2, ALL_NAMESPACES, 512, DATA);
        assert_eq!(dwords(log), [2, u32::MAX, 0x007f_0002, 0, 0, 0]);
        let log = log.with_retained_event().with_log_offset(0x1_0000_0200);
        assert_eq!(dwords(log), [2, u32::MAX, 0x007f_8002, 0, 0x200, 1]);
        let large = Submission::get_log_page(7, 1, 1 << 20, DATA);
        assert_eq!(dwords(large), [2, 1, 0xffff_0007, 3, 0, 0]);
    }

    #[test]
    fn doorbell_buffers_and_format_are_their_golden_dwords() {
        let buffers = Submission::doorbell_buffers(0x1000, 0x2000);
        assert_eq!(dwords(buffers), [0x7c, 0, 0, 0, 0, 0]);
        assert_eq!(buffers.data(), Some(Data::Prp(0x1000, 0x2000)));
        let format = Submission::format_nvm(1, 0x2c, SecureErase::Cryptographic);
        assert_eq!(dwords(format), [0x80, 1, 0x240c, 0, 0, 0]);
        let all = Submission::format_nvm(1, 4, SecureErase::None).for_all_namespaces();
        assert_eq!(dwords(all), [0x80, u32::MAX, 4, 0, 0, 0]);
    }
}

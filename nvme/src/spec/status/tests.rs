//! Every status code, written down a second time: number by number, with its type and its text.

use super::*;

/// Constant, status code type, status code, text.
type Row = (u16, u8, u8, &'static str);

#[rustfmt::skip]
const GENERIC: &[Row] = &[
    (generic::SUCCESS, 0, 0x00, "successful completion"),
    (generic::INVALID_OPCODE, 0, 0x01, "invalid command opcode"),
    (generic::INVALID_FIELD, 0, 0x02, "invalid field in command"),
    (generic::COMMAND_ID_CONFLICT, 0, 0x03, "command ID conflict"),
    (generic::DATA_TRANSFER_ERROR, 0, 0x04, "data transfer error"),
    (generic::ABORTED_POWER_LOSS, 0, 0x05, "command aborted due to power loss notification"),
    (generic::INTERNAL_ERROR, 0, 0x06, "internal error"),
    (generic::ABORT_REQUESTED, 0, 0x07, "command abort requested"),
    (generic::ABORTED_SQ_DELETION, 0, 0x08, "command aborted due to submission queue deletion"),
    (generic::ABORTED_FAILED_FUSED, 0, 0x09, "command aborted due to failed fused command"),
    (generic::ABORTED_MISSING_FUSED, 0, 0x0a, "command aborted due to missing fused command"),
    (generic::INVALID_NAMESPACE, 0, 0x0b, "invalid namespace or format"),
    (generic::SEQUENCE_ERROR, 0, 0x0c, "command sequence error"),
    (generic::INVALID_SGL_SEGMENT, 0, 0x0d, "invalid SGL segment descriptor"),
    (generic::INVALID_SGL_COUNT, 0, 0x0e, "invalid number of SGL descriptors"),
    (generic::INVALID_DATA_SGL_LENGTH, 0, 0x0f, "data SGL length invalid"),
    (generic::INVALID_METADATA_SGL_LENGTH, 0, 0x10, "metadata SGL length invalid"),
    (generic::INVALID_SGL_TYPE, 0, 0x11, "SGL descriptor type invalid"),
    (generic::INVALID_CMB_USE, 0, 0x12, "invalid use of controller memory buffer"),
    (generic::INVALID_PRP_OFFSET, 0, 0x13, "PRP offset invalid"),
    (generic::ATOMIC_WRITE_UNIT_EXCEEDED, 0, 0x14, "atomic write unit exceeded"),
    (generic::OPERATION_DENIED, 0, 0x15, "operation denied"),
    (generic::INVALID_SGL_OFFSET, 0, 0x16, "SGL offset invalid"),
    (generic::HOST_ID_FORMAT, 0, 0x18, "host identifier inconsistent format"),
    (generic::KEEP_ALIVE_EXPIRED, 0, 0x19, "keep alive timer expired"),
    (generic::KEEP_ALIVE_INVALID, 0, 0x1a, "keep alive timeout invalid"),
    (generic::ABORTED_PREEMPT, 0, 0x1b, "command aborted due to preempt and abort"),
    (generic::SANITIZE_FAILED, 0, 0x1c, "sanitize failed"),
    (generic::SANITIZE_IN_PROGRESS, 0, 0x1d, "sanitize in progress"),
    (generic::INVALID_SGL_GRANULARITY, 0, 0x1e, "SGL data block granularity invalid"),
    (generic::UNSUPPORTED_CMB_QUEUE, 0, 0x1f, "command not supported for queue in CMB"),
    (generic::WRITE_PROTECTED, 0, 0x20, "namespace is write protected"),
    (generic::INTERRUPTED, 0, 0x21, "command interrupted"),
    (generic::TRANSIENT_TRANSPORT_ERROR, 0, 0x22, "transient transport error"),
    (generic::PROHIBITED_BY_LOCKDOWN, 0, 0x23, "command prohibited by command and feature lockdown"),
    (generic::MEDIA_NOT_READY, 0, 0x24, "admin command media not ready"),
    (generic::INVALID_KEY_TAG, 0, 0x25, "invalid key tag"),
    (generic::DISPERSED_NAMESPACE_DISABLED, 0, 0x26, "host dispersed namespace support not enabled"),
    (generic::HOST_ID_NOT_INITIALIZED, 0, 0x27, "host identifier not initialized"),
    (generic::INCORRECT_KEY, 0, 0x28, "incorrect key"),
    (generic::FDP_DISABLED, 0, 0x29, "flexible data placement disabled"),
    (generic::INVALID_PLACEMENT_HANDLES, 0, 0x2a, "invalid placement handle list"),
    (generic::LBA_OUT_OF_RANGE, 0, 0x80, "LBA out of range"),
    (generic::CAPACITY_EXCEEDED, 0, 0x81, "capacity exceeded"),
    (generic::NAMESPACE_NOT_READY, 0, 0x82, "namespace not ready"),
    (generic::RESERVATION_CONFLICT, 0, 0x83, "reservation conflict"),
    (generic::FORMAT_IN_PROGRESS, 0, 0x84, "format in progress"),
    (generic::INVALID_VALUE_SIZE, 0, 0x85, "invalid value size"),
    (generic::INVALID_KEY_SIZE, 0, 0x86, "invalid key size"),
    (generic::KEY_DOES_NOT_EXIST, 0, 0x87, "KV key does not exist"),
    (generic::UNRECOVERED_ERROR, 0, 0x88, "unrecovered error"),
    (generic::KEY_EXISTS, 0, 0x89, "key exists"),
];

#[rustfmt::skip]
const COMMAND: &[Row] = &[
    (command::INVALID_COMPLETION_QUEUE, 1, 0x00, "completion queue invalid"),
    (command::INVALID_QUEUE_ID, 1, 0x01, "invalid queue identifier"),
    (command::INVALID_QUEUE_SIZE, 1, 0x02, "invalid queue size"),
    (command::ABORT_LIMIT_EXCEEDED, 1, 0x03, "abort command limit exceeded"),
    (command::ABORT_MISSING, 1, 0x04, "abort command is missing"),
    (command::ASYNC_EVENT_LIMIT_EXCEEDED, 1, 0x05, "asynchronous event request limit exceeded"),
    (command::INVALID_FIRMWARE_SLOT, 1, 0x06, "invalid firmware slot"),
    (command::INVALID_FIRMWARE_IMAGE, 1, 0x07, "invalid firmware image"),
    (command::INVALID_INTERRUPT_VECTOR, 1, 0x08, "invalid interrupt vector"),
    (command::INVALID_LOG_PAGE, 1, 0x09, "invalid log page"),
    (command::INVALID_FORMAT, 1, 0x0a, "invalid format"),
    (command::FIRMWARE_NEEDS_CONVENTIONAL_RESET, 1, 0x0b, "firmware activation requires conventional reset"),
    (command::INVALID_QUEUE_DELETION, 1, 0x0c, "invalid queue deletion"),
    (command::FEATURE_NOT_SAVEABLE, 1, 0x0d, "feature identifier not saveable"),
    (command::FEATURE_NOT_CHANGEABLE, 1, 0x0e, "feature not changeable"),
    (command::FEATURE_NOT_PER_NAMESPACE, 1, 0x0f, "feature not namespace specific"),
    (command::FIRMWARE_NEEDS_SUBSYSTEM_RESET, 1, 0x10, "firmware activation requires NVM subsystem reset"),
    (command::FIRMWARE_NEEDS_CONTROLLER_RESET, 1, 0x11, "firmware activation requires controller level reset"),
    (command::FIRMWARE_NEEDS_MORE_TIME, 1, 0x12, "firmware activation requires maximum time violation"),
    (command::FIRMWARE_ACTIVATION_PROHIBITED, 1, 0x13, "firmware activation prohibited"),
    (command::OVERLAPPING_RANGE, 1, 0x14, "overlapping range"),
    (command::NAMESPACE_INSUFFICIENT_CAPACITY, 1, 0x15, "namespace insufficient capacity"),
    (command::NAMESPACE_ID_UNAVAILABLE, 1, 0x16, "namespace identifier unavailable"),
    (command::NAMESPACE_ALREADY_ATTACHED, 1, 0x18, "namespace already attached"),
    (command::NAMESPACE_IS_PRIVATE, 1, 0x19, "namespace is private"),
    (command::NAMESPACE_NOT_ATTACHED, 1, 0x1a, "namespace not attached"),
    (command::THIN_PROVISIONING_UNSUPPORTED, 1, 0x1b, "thin provisioning not supported"),
    (command::INVALID_CONTROLLER_LIST, 1, 0x1c, "controller list invalid"),
    (command::SELF_TEST_IN_PROGRESS, 1, 0x1d, "device self-test in progress"),
    (command::BOOT_PARTITION_WRITE_PROHIBITED, 1, 0x1e, "boot partition write prohibited"),
    (command::INVALID_CONTROLLER_ID, 1, 0x1f, "invalid controller identifier"),
    (command::INVALID_SECONDARY_STATE, 1, 0x20, "invalid secondary controller state"),
    (command::INVALID_RESOURCE_COUNT, 1, 0x21, "invalid number of controller resources"),
    (command::INVALID_RESOURCE_ID, 1, 0x22, "invalid resource identifier"),
    (command::SANITIZE_PROHIBITED_BY_PMR, 1, 0x23, "sanitize prohibited while persistent memory region is enabled"),
    (command::INVALID_ANA_GROUP, 1, 0x24, "ANA group identifier invalid"),
    (command::ANA_ATTACH_FAILED, 1, 0x25, "ANA attach failed"),
    (command::INSUFFICIENT_CAPACITY, 1, 0x26, "insufficient capacity"),
    (command::ATTACHMENT_LIMIT_EXCEEDED, 1, 0x27, "namespace attachment limit exceeded"),
    (command::LOCKDOWN_UNSUPPORTED, 1, 0x28, "prohibition of command execution not supported"),
    (command::COMMAND_SET_UNSUPPORTED, 1, 0x29, "I/O command set not supported"),
    (command::COMMAND_SET_NOT_ENABLED, 1, 0x2a, "I/O command set not enabled"),
    (command::COMMAND_SET_COMBINATION_REJECTED, 1, 0x2b, "I/O command set combination rejected"),
    (command::INVALID_COMMAND_SET, 1, 0x2c, "invalid I/O command set"),
    (command::IDENTIFIER_UNAVAILABLE, 1, 0x2d, "identifier unavailable"),
    (command::INVALID_DISCOVERY_INFORMATION, 1, 0x2f, "invalid discovery information"),
    (command::ZONING_DATA_LOCKED, 1, 0x30, "zoning data structure locked"),
    (command::ZONING_DATA_NOT_FOUND, 1, 0x31, "zoning data structure not found"),
    (command::INSUFFICIENT_DISCOVERY_RESOURCES, 1, 0x32, "insufficient discovery resources"),
    (command::REQUESTED_FUNCTION_DISABLED, 1, 0x33, "requested function disabled"),
    (command::INVALID_ZONE_GROUP_ORIGINATOR, 1, 0x34, "zone group originator invalid"),
    (command::CONFLICTING_ATTRIBUTES, 1, 0x80, "conflicting attributes"),
    (command::INVALID_PROTECTION_INFORMATION, 1, 0x81, "invalid protection information"),
    (command::WRITE_TO_READ_ONLY_RANGE, 1, 0x82, "attempted write to read only range"),
    (command::COMMAND_SIZE_LIMIT_EXCEEDED, 1, 0x83, "command size limit exceeded"),
    (command::INCOMPATIBLE_NAMESPACE, 1, 0x85, "incompatible namespace or format"),
    (command::FAST_COPY_NOT_POSSIBLE, 1, 0x86, "fast copy not possible"),
    (command::OVERLAPPING_IO_RANGE, 1, 0x87, "overlapping I/O range"),
    (command::INSUFFICIENT_RESOURCES, 1, 0x89, "insufficient resources"),
    (command::ZONE_INVALID_OPERATION, 1, 0xb6, "zoned: invalid zone operation request"),
    (command::ZRWA_RESOURCES_UNAVAILABLE, 1, 0xb7, "zoned: ZRWA resources unavailable"),
    (command::ZONE_BOUNDARY_ERROR, 1, 0xb8, "zoned: boundary error"),
    (command::ZONE_IS_FULL, 1, 0xb9, "zoned: zone is full"),
    (command::ZONE_IS_READ_ONLY, 1, 0xba, "zoned: zone is read only"),
    (command::ZONE_IS_OFFLINE, 1, 0xbb, "zoned: zone is offline"),
    (command::ZONE_INVALID_WRITE, 1, 0xbc, "zoned: zone invalid write"),
    (command::TOO_MANY_ACTIVE_ZONES, 1, 0xbd, "zoned: too many active zones"),
    (command::TOO_MANY_OPEN_ZONES, 1, 0xbe, "zoned: too many open zones"),
    (command::INVALID_ZONE_TRANSITION, 1, 0xbf, "zoned: invalid zone state transition"),
];

#[rustfmt::skip]
const MEDIA: &[Row] = &[
    (media::WRITE_FAULT, 2, 0x80, "write fault"),
    (media::UNRECOVERED_READ_ERROR, 2, 0x81, "unrecovered read error"),
    (media::GUARD_CHECK_ERROR, 2, 0x82, "end-to-end guard check error"),
    (media::APPLICATION_TAG_CHECK_ERROR, 2, 0x83, "end-to-end application tag check error"),
    (media::REFERENCE_TAG_CHECK_ERROR, 2, 0x84, "end-to-end reference tag check error"),
    (media::COMPARE_FAILURE, 2, 0x85, "compare failure"),
    (media::ACCESS_DENIED, 2, 0x86, "access denied"),
    (media::DEALLOCATED_BLOCK, 2, 0x87, "deallocated or unwritten logical block"),
    (media::STORAGE_TAG_CHECK_ERROR, 2, 0x88, "end-to-end storage tag check error"),
];

#[rustfmt::skip]
const PATH: &[Row] = &[
    (path::INTERNAL_PATH_ERROR, 3, 0x00, "internal path error"),
    (path::ANA_PERSISTENT_LOSS, 3, 0x01, "asymmetric access persistent loss"),
    (path::ANA_INACCESSIBLE, 3, 0x02, "asymmetric access inaccessible"),
    (path::ANA_TRANSITION, 3, 0x03, "asymmetric access transition"),
    (path::CONTROLLER_PATHING_ERROR, 3, 0x60, "controller pathing error"),
    (path::HOST_PATHING_ERROR, 3, 0x70, "host pathing error"),
    (path::ABORTED_BY_HOST, 3, 0x71, "command aborted by host"),
];

fn rows() -> impl Iterator<Item = &'static Row> {
    [GENERIC, COMMAND, MEDIA, PATH].into_iter().flatten()
}

#[test]
fn every_named_status_has_its_type_code_and_text() {
    for &(constant, code_type, code, text) in rows() {
        let status = Status::new(constant);
        let kind = match code_type {
            0 => StatusKind::Generic,
            1 => StatusKind::CommandSpecific,
            2 => StatusKind::Media,
            _ => StatusKind::Path,
        };
        assert_eq!((status.kind(), status.code()), (kind, code), "{text}");
        assert_eq!(status.full(), u16::from(code_type) << 8 | u16::from(code), "{text}");
        assert_eq!(status.name(), Some(text));
        assert_eq!(status.to_string(), format!("{text} (0x{code_type:x}{code:02x})"));
        assert_eq!(status.ok(), constant == 0);
        assert!(!status.more() && !status.do_not_retry() && status.retry_delay() == 0);
    }
}

#[test]
fn the_tables_hold_what_is_written_here_and_no_more() {
    let named = [generic::NAMES, command::NAMES, media::NAMES, path::NAMES];
    assert!(named.into_iter().flatten().is_sorted_by(|a, b| a.0 < b.0));
    let twice = rows().map(|row| (row.0, row.3));
    assert!(named.into_iter().flatten().copied().eq(twice));
}

#[test]
fn the_codes_of_base_2_0_are_all_there() {
    let base = (0x000..=0x024).chain(0x080..=0x084).chain(0x100..=0x12d).chain(0x180..=0x183);
    let base = base.chain(0x280..=0x288).chain(0x300..=0x303).chain([0x360, 0x370, 0x371]);
    for full in base.filter(|full| !matches!(full, 0x017 | 0x117)) {
        assert!(Status::new(full).name().is_some(), "{full:#05x}");
    }
}

#[test]
fn the_bits_above_the_code_are_read_apart() {
    let status = Status::new(generic::INTERRUPTED).with_retry_delay(2);
    assert_eq!(status.0, 0x1021);
    assert_eq!((status.retry_delay(), status.do_not_retry()), (2, false));
    let status = status.with_do_not_retry();
    assert_eq!((status.0, status.full()), (0x5021, generic::INTERRUPTED));
    assert_eq!(
        format!("{status:?}"),
        "Status(command interrupted (0x021), do not retry, retry delay 2)"
    );
    assert_eq!(format!("{:?}", Status(0x2281)), "Status(unrecovered read error (0x281), more)");
    assert!(Status(0x2281).more() && Status(0x5800).ok());
    assert_eq!(Status::SUCCESS, Status::new(generic::SUCCESS));
}

#[test]
fn every_value_is_a_status() {
    for bits in 0..=u16::MAX {
        let status = Status(bits);
        assert_eq!(status.ok(), status.full() == 0);
        assert!(status.full() <= 0x7ff && status.retry_delay() <= 3);
        assert!(status.to_string().ends_with(&format!("({:#05x})", bits & 0x7ff)));
    }
    assert_eq!(Status(0x0ff).to_string(), "unknown generic status (0x0ff)");
    assert_eq!(Status(0x7c1).to_string(), "vendor specific status (0x7c1)");
    assert_eq!(Status(0x512).kind(), StatusKind::Other(5));
    assert_eq!(Status(0x512).to_string(), "status of a reserved type (0x512)");
}

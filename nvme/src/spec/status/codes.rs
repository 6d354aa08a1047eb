//! The status codes, with their type: what [`super::Status::full`] returns.
//!
//! The tables hold every code of Base 2.0 and NVM 1.0, and of later revisions those that a drive can return
//! to a host which asked for nothing new; where a code is shared (80h to BFh of a type belong to the
//! command set or the transport) it is the NVM command set's.

/// Generic Command Status (Base, "Status Code – Generic Command Status Values"; from 80h on NVM,
/// "Generic Command Status Values", with the Key Value command set's from 85h to 89h but 88h).
pub mod generic {
    named! { u16;
        SUCCESS = 0x000, "successful completion";
        INVALID_OPCODE = 0x001, "invalid command opcode";
        INVALID_FIELD = 0x002, "invalid field in command";
        COMMAND_ID_CONFLICT = 0x003, "command ID conflict";
        DATA_TRANSFER_ERROR = 0x004, "data transfer error";
        ABORTED_POWER_LOSS = 0x005, "command aborted due to power loss notification";
        INTERNAL_ERROR = 0x006, "internal error";
        ABORT_REQUESTED = 0x007, "command abort requested";
        ABORTED_SQ_DELETION = 0x008, "command aborted due to submission queue deletion";
        ABORTED_FAILED_FUSED = 0x009, "command aborted due to failed fused command";
        ABORTED_MISSING_FUSED = 0x00a, "command aborted due to missing fused command";
        INVALID_NAMESPACE = 0x00b, "invalid namespace or format";
        SEQUENCE_ERROR = 0x00c, "command sequence error";
        INVALID_SGL_SEGMENT = 0x00d, "invalid SGL segment descriptor";
        INVALID_SGL_COUNT = 0x00e, "invalid number of SGL descriptors";
        INVALID_DATA_SGL_LENGTH = 0x00f, "data SGL length invalid";
        INVALID_METADATA_SGL_LENGTH = 0x010, "metadata SGL length invalid";
        INVALID_SGL_TYPE = 0x011, "SGL descriptor type invalid";
        INVALID_CMB_USE = 0x012, "invalid use of controller memory buffer";
        INVALID_PRP_OFFSET = 0x013, "PRP offset invalid";
        ATOMIC_WRITE_UNIT_EXCEEDED = 0x014, "atomic write unit exceeded";
        OPERATION_DENIED = 0x015, "operation denied";
        INVALID_SGL_OFFSET = 0x016, "SGL offset invalid";
        HOST_ID_FORMAT = 0x018, "host identifier inconsistent format";
        KEEP_ALIVE_EXPIRED = 0x019, "keep alive timer expired";
        KEEP_ALIVE_INVALID = 0x01a, "keep alive timeout invalid";
        ABORTED_PREEMPT = 0x01b, "command aborted due to preempt and abort";
        SANITIZE_FAILED = 0x01c, "sanitize failed";
        SANITIZE_IN_PROGRESS = 0x01d, "sanitize in progress";
        INVALID_SGL_GRANULARITY = 0x01e, "SGL data block granularity invalid";
        UNSUPPORTED_CMB_QUEUE = 0x01f, "command not supported for queue in CMB";
        WRITE_PROTECTED = 0x020, "namespace is write protected";
        INTERRUPTED = 0x021, "command interrupted";
        TRANSIENT_TRANSPORT_ERROR = 0x022, "transient transport error";
        PROHIBITED_BY_LOCKDOWN = 0x023, "command prohibited by command and feature lockdown";
        MEDIA_NOT_READY = 0x024, "admin command media not ready";
        INVALID_KEY_TAG = 0x025, "invalid key tag";
        DISPERSED_NAMESPACE_DISABLED = 0x026, "host dispersed namespace support not enabled";
        HOST_ID_NOT_INITIALIZED = 0x027, "host identifier not initialized";
        INCORRECT_KEY = 0x028, "incorrect key";
        FDP_DISABLED = 0x029, "flexible data placement disabled";
        INVALID_PLACEMENT_HANDLES = 0x02a, "invalid placement handle list";
        LBA_OUT_OF_RANGE = 0x080, "LBA out of range";
        CAPACITY_EXCEEDED = 0x081, "capacity exceeded";
        NAMESPACE_NOT_READY = 0x082, "namespace not ready";
        RESERVATION_CONFLICT = 0x083, "reservation conflict";
        FORMAT_IN_PROGRESS = 0x084, "format in progress";
        INVALID_VALUE_SIZE = 0x085, "invalid value size";
        INVALID_KEY_SIZE = 0x086, "invalid key size";
        KEY_DOES_NOT_EXIST = 0x087, "KV key does not exist";
        UNRECOVERED_ERROR = 0x088, "unrecovered error";
        KEY_EXISTS = 0x089, "key exists";
    }
}

/// Command Specific Status (Base, "Status Code – Command Specific Status Values"; from 80h on NVM,
/// "Command Specific Status Values", with the Zoned Namespace command set's at B8h and above).
pub mod command {
    named! { u16;
        INVALID_COMPLETION_QUEUE = 0x100, "completion queue invalid";
        INVALID_QUEUE_ID = 0x101, "invalid queue identifier";
        INVALID_QUEUE_SIZE = 0x102, "invalid queue size";
        ABORT_LIMIT_EXCEEDED = 0x103, "abort command limit exceeded";
        ABORT_MISSING = 0x104, "abort command is missing";
        ASYNC_EVENT_LIMIT_EXCEEDED = 0x105, "asynchronous event request limit exceeded";
        INVALID_FIRMWARE_SLOT = 0x106, "invalid firmware slot";
        INVALID_FIRMWARE_IMAGE = 0x107, "invalid firmware image";
        INVALID_INTERRUPT_VECTOR = 0x108, "invalid interrupt vector";
        INVALID_LOG_PAGE = 0x109, "invalid log page";
        INVALID_FORMAT = 0x10a, "invalid format";
        FIRMWARE_NEEDS_CONVENTIONAL_RESET = 0x10b, "firmware activation requires conventional reset";
        INVALID_QUEUE_DELETION = 0x10c, "invalid queue deletion";
        FEATURE_NOT_SAVEABLE = 0x10d, "feature identifier not saveable";
        FEATURE_NOT_CHANGEABLE = 0x10e, "feature not changeable";
        FEATURE_NOT_PER_NAMESPACE = 0x10f, "feature not namespace specific";
        FIRMWARE_NEEDS_SUBSYSTEM_RESET = 0x110, "firmware activation requires NVM subsystem reset";
        FIRMWARE_NEEDS_CONTROLLER_RESET = 0x111, "firmware activation requires controller level reset";
        FIRMWARE_NEEDS_MORE_TIME = 0x112, "firmware activation requires maximum time violation";
        FIRMWARE_ACTIVATION_PROHIBITED = 0x113, "firmware activation prohibited";
        OVERLAPPING_RANGE = 0x114, "overlapping range";
        NAMESPACE_INSUFFICIENT_CAPACITY = 0x115, "namespace insufficient capacity";
        NAMESPACE_ID_UNAVAILABLE = 0x116, "namespace identifier unavailable";
        NAMESPACE_ALREADY_ATTACHED = 0x118, "namespace already attached";
        NAMESPACE_IS_PRIVATE = 0x119, "namespace is private";
        NAMESPACE_NOT_ATTACHED = 0x11a, "namespace not attached";
        THIN_PROVISIONING_UNSUPPORTED = 0x11b, "thin provisioning not supported";
        INVALID_CONTROLLER_LIST = 0x11c, "controller list invalid";
        SELF_TEST_IN_PROGRESS = 0x11d, "device self-test in progress";
        BOOT_PARTITION_WRITE_PROHIBITED = 0x11e, "boot partition write prohibited";
        INVALID_CONTROLLER_ID = 0x11f, "invalid controller identifier";
        INVALID_SECONDARY_STATE = 0x120, "invalid secondary controller state";
        INVALID_RESOURCE_COUNT = 0x121, "invalid number of controller resources";
        INVALID_RESOURCE_ID = 0x122, "invalid resource identifier";
        SANITIZE_PROHIBITED_BY_PMR = 0x123, "sanitize prohibited while persistent memory region is enabled";
        INVALID_ANA_GROUP = 0x124, "ANA group identifier invalid";
        ANA_ATTACH_FAILED = 0x125, "ANA attach failed";
        INSUFFICIENT_CAPACITY = 0x126, "insufficient capacity";
        ATTACHMENT_LIMIT_EXCEEDED = 0x127, "namespace attachment limit exceeded";
        LOCKDOWN_UNSUPPORTED = 0x128, "prohibition of command execution not supported";
        COMMAND_SET_UNSUPPORTED = 0x129, "I/O command set not supported";
        COMMAND_SET_NOT_ENABLED = 0x12a, "I/O command set not enabled";
        COMMAND_SET_COMBINATION_REJECTED = 0x12b, "I/O command set combination rejected";
        INVALID_COMMAND_SET = 0x12c, "invalid I/O command set";
        IDENTIFIER_UNAVAILABLE = 0x12d, "identifier unavailable";
        INVALID_DISCOVERY_INFORMATION = 0x12f, "invalid discovery information";
        ZONING_DATA_LOCKED = 0x130, "zoning data structure locked";
        ZONING_DATA_NOT_FOUND = 0x131, "zoning data structure not found";
        INSUFFICIENT_DISCOVERY_RESOURCES = 0x132, "insufficient discovery resources";
        REQUESTED_FUNCTION_DISABLED = 0x133, "requested function disabled";
        INVALID_ZONE_GROUP_ORIGINATOR = 0x134, "zone group originator invalid";
        CONFLICTING_ATTRIBUTES = 0x180, "conflicting attributes";
        INVALID_PROTECTION_INFORMATION = 0x181, "invalid protection information";
        WRITE_TO_READ_ONLY_RANGE = 0x182, "attempted write to read only range";
        COMMAND_SIZE_LIMIT_EXCEEDED = 0x183, "command size limit exceeded";
        INCOMPATIBLE_NAMESPACE = 0x185, "incompatible namespace or format";
        FAST_COPY_NOT_POSSIBLE = 0x186, "fast copy not possible";
        OVERLAPPING_IO_RANGE = 0x187, "overlapping I/O range";
        INSUFFICIENT_RESOURCES = 0x189, "insufficient resources";
        ZONE_INVALID_OPERATION = 0x1b6, "zoned: invalid zone operation request";
        ZRWA_RESOURCES_UNAVAILABLE = 0x1b7, "zoned: ZRWA resources unavailable";
        ZONE_BOUNDARY_ERROR = 0x1b8, "zoned: boundary error";
        ZONE_IS_FULL = 0x1b9, "zoned: zone is full";
        ZONE_IS_READ_ONLY = 0x1ba, "zoned: zone is read only";
        ZONE_IS_OFFLINE = 0x1bb, "zoned: zone is offline";
        ZONE_INVALID_WRITE = 0x1bc, "zoned: zone invalid write";
        TOO_MANY_ACTIVE_ZONES = 0x1bd, "zoned: too many active zones";
        TOO_MANY_OPEN_ZONES = 0x1be, "zoned: too many open zones";
        INVALID_ZONE_TRANSITION = 0x1bf, "zoned: invalid zone state transition";
    }
}

/// Media and Data Integrity Errors (Base, "Status Code – Media and Data Integrity Error Values"; NVM,
/// "Media and Data Integrity Error Values").
pub mod media {
    named! { u16;
        WRITE_FAULT = 0x280, "write fault";
        UNRECOVERED_READ_ERROR = 0x281, "unrecovered read error";
        GUARD_CHECK_ERROR = 0x282, "end-to-end guard check error";
        APPLICATION_TAG_CHECK_ERROR = 0x283, "end-to-end application tag check error";
        REFERENCE_TAG_CHECK_ERROR = 0x284, "end-to-end reference tag check error";
        COMPARE_FAILURE = 0x285, "compare failure";
        ACCESS_DENIED = 0x286, "access denied";
        DEALLOCATED_BLOCK = 0x287, "deallocated or unwritten logical block";
        STORAGE_TAG_CHECK_ERROR = 0x288, "end-to-end storage tag check error";
    }
}

/// Path Related Status (Base, "Status Code – Path Related Status Values").
pub mod path {
    named! { u16;
        INTERNAL_PATH_ERROR = 0x300, "internal path error";
        ANA_PERSISTENT_LOSS = 0x301, "asymmetric access persistent loss";
        ANA_INACCESSIBLE = 0x302, "asymmetric access inaccessible";
        ANA_TRANSITION = 0x303, "asymmetric access transition";
        CONTROLLER_PATHING_ERROR = 0x360, "controller pathing error";
        HOST_PATHING_ERROR = 0x370, "host pathing error";
        ABORTED_BY_HOST = 0x371, "command aborted by host";
    }
}

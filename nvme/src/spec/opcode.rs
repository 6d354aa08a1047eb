//! Opcodes (Base, "Admin Command Set", "Opcodes for Admin Commands"; NVM, "Opcodes for NVM Commands").

use super::name_in;

/// Admin commands (Base, "Opcodes for Admin Commands").
pub mod admin {
    named! { u8;
        DELETE_SQ = 0x00, "delete I/O submission queue";
        CREATE_SQ = 0x01, "create I/O submission queue";
        GET_LOG_PAGE = 0x02, "get log page";
        DELETE_CQ = 0x04, "delete I/O completion queue";
        CREATE_CQ = 0x05, "create I/O completion queue";
        IDENTIFY = 0x06, "identify";
        ABORT = 0x08, "abort";
        SET_FEATURES = 0x09, "set features";
        GET_FEATURES = 0x0a, "get features";
        ASYNC_EVENT_REQUEST = 0x0c, "asynchronous event request";
        NAMESPACE_MANAGEMENT = 0x0d, "namespace management";
        FIRMWARE_COMMIT = 0x10, "firmware commit";
        FIRMWARE_DOWNLOAD = 0x11, "firmware image download";
        DEVICE_SELF_TEST = 0x14, "device self-test";
        NAMESPACE_ATTACHMENT = 0x15, "namespace attachment";
        KEEP_ALIVE = 0x18, "keep alive";
        DIRECTIVE_SEND = 0x19, "directive send";
        DIRECTIVE_RECEIVE = 0x1a, "directive receive";
        VIRTUALIZATION_MANAGEMENT = 0x1c, "virtualization management";
        MI_SEND = 0x1d, "NVMe-MI send";
        MI_RECEIVE = 0x1e, "NVMe-MI receive";
        CAPACITY_MANAGEMENT = 0x20, "capacity management";
        LOCKDOWN = 0x24, "lockdown";
        DBBUF_CONFIG = 0x7c, "doorbell buffer config";
        FABRICS = 0x7f, "fabrics";
        FORMAT_NVM = 0x80, "format NVM";
        SECURITY_SEND = 0x81, "security send";
        SECURITY_RECEIVE = 0x82, "security receive";
        SANITIZE = 0x84, "sanitize";
        GET_LBA_STATUS = 0x86, "get LBA status";
    }
}

/// I/O commands of the NVM command set (NVM, "Opcodes for NVM Commands").
pub mod io {
    named! { u8;
        FLUSH = 0x00, "flush";
        WRITE = 0x01, "write";
        READ = 0x02, "read";
        WRITE_UNCORRECTABLE = 0x04, "write uncorrectable";
        COMPARE = 0x05, "compare";
        WRITE_ZEROES = 0x08, "write zeroes";
        DATASET_MANAGEMENT = 0x09, "dataset management";
        VERIFY = 0x0c, "verify";
        RESERVATION_REGISTER = 0x0d, "reservation register";
        RESERVATION_REPORT = 0x0e, "reservation report";
        RESERVATION_ACQUIRE = 0x11, "reservation acquire";
        RESERVATION_RELEASE = 0x15, "reservation release";
        COPY = 0x19, "copy";
        FABRICS = 0x7f, "fabrics";
    }
}

/// Admin opcodes from here on are the vendor's (Base, "Opcodes for Admin Commands").
pub const VENDOR_ADMIN: u8 = 0xc0;
/// I/O opcodes from here on are the vendor's (NVM, "Opcodes for NVM Commands").
pub const VENDOR_IO: u8 = 0x80;

/// What an admin command is called in a message.
#[must_use]
pub fn admin_name(opcode: u8) -> &'static str {
    let unknown =
        if opcode >= VENDOR_ADMIN { "vendor admin command" } else { "unknown admin command" };
    name_in(admin::NAMES, opcode).unwrap_or(unknown)
}

/// What an I/O command is called in a message.
#[must_use]
pub fn io_name(opcode: u8) -> &'static str {
    let unknown = if opcode >= VENDOR_IO { "vendor I/O command" } else { "unknown I/O command" };
    name_in(io::NAMES, opcode).unwrap_or(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_opcode_has_a_name() {
        assert_eq!(admin_name(admin::IDENTIFY), "identify");
        assert_eq!(io_name(io::READ), "read");
        assert_eq!(admin_name(0x03), "unknown admin command");
        assert_eq!(admin_name(0xff), "vendor admin command");
        assert_eq!(io_name(0x80), "vendor I/O command");
        assert!((0..=u8::MAX).all(|opcode| !admin_name(opcode).is_empty()));
        assert!((0..=u8::MAX).all(|opcode| !io_name(opcode).is_empty()));
    }

    #[test]
    fn tables_ascend() {
        assert!(admin::NAMES.is_sorted_by(|a, b| a.0 < b.0));
        assert!(io::NAMES.is_sorted_by(|a, b| a.0 < b.0));
    }
}

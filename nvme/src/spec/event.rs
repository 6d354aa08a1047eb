//! Asynchronous events (Base, "Asynchronous Event Request command").
//!
//! Guarantees: any 32 bits are an event. What to beware of: an event of a kind is not reported again until its
//! log page has been read, and the request that has completed is gone: send the next one.

use core::fmt;

use super::{log, name_in};

/// What an event is about (Base, "Asynchronous Event Request command", Asynchronous Event Type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// 0h: an error that belongs to no command.
    Error,
    /// 1h: SMART / health status.
    Health,
    /// 2h: notice.
    Notice,
    /// 3h: immediate: the subsystem is shut down.
    Immediate,
    /// 6h: what belongs to the I/O command set.
    CommandSet,
    /// 7h: the vendor's.
    Vendor,
    /// Reserved.
    Other(u8),
}

/// Information of [`EventKind::Error`] (Base, "Asynchronous Event Information – Error Status").
pub mod error {
    named! { u8;
        INVALID_DOORBELL = 0x00, "write to an invalid doorbell register";
        INVALID_DOORBELL_VALUE = 0x01, "invalid doorbell write value";
        DIAGNOSTIC_FAILURE = 0x02, "diagnostic failure";
        PERSISTENT_INTERNAL_ERROR = 0x03, "persistent internal error";
        TRANSIENT_INTERNAL_ERROR = 0x04, "transient internal error";
        FIRMWARE_LOAD_ERROR = 0x05, "firmware image load error";
    }
}

/// Information of [`EventKind::Health`] (Base, "Asynchronous Event Information – SMART / Health Status").
pub mod health {
    named! { u8;
        RELIABILITY = 0x00, "reliability is degraded";
        TEMPERATURE = 0x01, "temperature past a threshold";
        SPARE_LOW = 0x02, "available spare is low";
    }
}

/// Information of [`EventKind::Notice`] (Base, "Asynchronous Event Information – Notice").
pub mod notice {
    named! { u8;
        NAMESPACE_CHANGED = 0x00, "namespace attribute changed";
        FIRMWARE_ACTIVATION = 0x01, "firmware activation is starting";
        TELEMETRY = 0x02, "telemetry log changed";
        ANA_CHANGED = 0x03, "asymmetric namespace access changed";
        PREDICTABLE_LATENCY = 0x04, "predictable latency event aggregate log changed";
        LBA_STATUS = 0x05, "LBA status information alert";
        ENDURANCE_GROUP = 0x06, "endurance group event aggregate log changed";
        DISCOVERY_CHANGED = 0xf0, "discovery log changed";
    }
}

/// Information of [`EventKind::Immediate`] (Base, "Asynchronous Event Information – Immediate").
pub mod immediate {
    named! { u8;
        SHUTDOWN = 0x00, "normal NVM subsystem shutdown";
    }
}

/// Information of [`EventKind::CommandSet`] (Base, "Asynchronous Event Information – I/O Command Specific
/// Status").
pub mod command_set {
    named! { u8;
        RESERVATION = 0x00, "reservation log page available";
        SANITIZE_COMPLETED = 0x01, "sanitize operation completed";
        SANITIZE_DEALLOCATED = 0x02, "sanitize operation completed with unexpected deallocation";
    }
}

/// Something has happened at the controller (Base, "Asynchronous Event Request command", Completion Queue Entry
/// dword 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// What it is about (bits 2:0).
    pub kind: EventKind,
    /// What has happened (bits 15:8).
    pub info: u8,
    /// The log page that has more, and whose reading allows the next event of this kind (bits 23:16).
    pub log_page: u8,
}

impl AsyncEvent {
    /// From the result of an Asynchronous Event Request.
    #[must_use]
    pub const fn from_result(result: u32) -> Self {
        let [kind, info, log_page, _] = result.to_le_bytes();
        let kind = match kind & 7 {
            0 => EventKind::Error,
            1 => EventKind::Health,
            2 => EventKind::Notice,
            3 => EventKind::Immediate,
            6 => EventKind::CommandSet,
            7 => EventKind::Vendor,
            other => EventKind::Other(other),
        };
        Self { kind, info, log_page }
    }

    /// The result that says this.
    #[must_use]
    pub const fn result(self) -> u32 {
        let kind = match self.kind {
            EventKind::Error => 0,
            EventKind::Health => 1,
            EventKind::Notice => 2,
            EventKind::Immediate => 3,
            EventKind::CommandSet => 6,
            EventKind::Vendor => 7,
            EventKind::Other(other) => other & 7,
        };
        u32::from_le_bytes([kind, self.info, self.log_page, 0])
    }

    /// What it is called in a message.
    #[must_use]
    pub fn name(self) -> &'static str {
        let (names, unknown): (&[_], _) = match self.kind {
            EventKind::Error => (error::NAMES, "unknown error event"),
            EventKind::Health => (health::NAMES, "unknown health event"),
            EventKind::Notice => (notice::NAMES, "unknown notice"),
            EventKind::Immediate => (immediate::NAMES, "unknown immediate event"),
            EventKind::CommandSet => (command_set::NAMES, "unknown command set event"),
            EventKind::Vendor => (&[], "vendor specific event"),
            EventKind::Other(_) => (&[], "event of a reserved type"),
        };
        name_in(names, self.info).unwrap_or(unknown)
    }
}

impl fmt::Display for AsyncEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let page = log::name(self.log_page);
        write!(f, "{} ({:#08x}, log page: {page})", self.name(), self.result())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_their_golden_bits() {
        let event = AsyncEvent::from_result(0x0004_0002);
        assert_eq!(
            event,
            AsyncEvent { kind: EventKind::Notice, info: notice::NAMESPACE_CHANGED, log_page: 4 }
        );
        assert_eq!(
            event.to_string(),
            "namespace attribute changed (0x040002, log page: changed namespace list)"
        );
        let event = AsyncEvent::from_result(0x0002_0101);
        assert_eq!((event.kind, event.info, event.log_page), (EventKind::Health, 1, log::SMART));
        assert_eq!(event.name(), "temperature past a threshold");
    }

    #[test]
    fn every_event_has_a_name_and_keeps_its_bits() {
        for bits in 0..1 << 16 {
            let result = bits & 7 | (bits >> 3 & 0xff) << 8 | (bits >> 11) << 16;
            let event = AsyncEvent::from_result(result);
            assert_eq!(event.result(), result);
            assert!(!event.name().is_empty());
        }
        for info in 0..=5 {
            let event = AsyncEvent { kind: EventKind::Error, info, log_page: log::ERROR };
            assert!(!event.name().starts_with("unknown"));
        }
        let mut rng = fastrand::Rng::with_seed(6);
        for _ in 0..100_000 {
            let result = rng.u32(..);
            assert_eq!(AsyncEvent::from_result(result).result(), result & 0x00ff_ff07);
        }
    }
}

//! Faults that a drive can have while the guest runs: bad sectors, failed writes, slowness, a warning.
//!
//! A filter is put between the drive's bytes and its controller, and taken out again. What is in
//! flight meanwhile is finished first: QEMU waits for it.

use super::drive::{device_id, file_node, top};
use super::machine::Machine;
use anyhow::Context as _;
use serde_json::{Value, json};

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultEvent {
    /// A read: an unrecovered read error to the guest.
    Read,
    /// A write: a write fault.
    Write,
    /// A flush.
    Flush,
}

/// One rule of a broken drive.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    event: FaultEvent,
    sector: Option<u64>,
    once: bool,
}

impl Fault {
    /// Each such command fails.
    #[must_use]
    pub fn every(event: FaultEvent) -> Self {
        Self { event, sector: None, once: false }
    }

    /// Only those that touch the byte at `offset` of the drive.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.sector = Some(offset / 512);
        self
    }

    /// Only the first one.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.once = true;
        self
    }

    fn to_json(self) -> Value {
        let iotype = match self.event {
            FaultEvent::Read => "read",
            FaultEvent::Write => "write",
            FaultEvent::Flush => "flush",
        };
        // One kind of event throughout: QEMU fires only one of several kinds.
        let mut rule = json!({ "event": "none", "iotype": iotype, "errno": 5, "once": self.once });
        if let Some(sector) = self.sector {
            rule["sector"] = sector.into();
        }
        rule
    }
}

impl Machine<'_> {
    /// Breaks drive `number` by these rules, until [`Machine::mend`].
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn damage(&self, number: usize, faults: &[Fault]) -> anyhow::Result<()> {
        let rules: Vec<_> = faults.iter().map(|fault| fault.to_json()).collect();
        self.insert(
            number,
            json!({ "driver": "blkdebug", "inject-error": rules, "image": file_node(number) }),
        )
    }

    /// Slows drive `number` down to so many bytes a second, until [`Machine::mend`].
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn slow_down(&self, number: usize, bytes_per_s: u64) -> anyhow::Result<()> {
        let group = format!("slow{number}");
        let limits = json!({ "bps-total": bytes_per_s });
        self.qmp(
            "object-add",
            &json!({ "qom-type": "throttle-group", "id": group, "limits": limits }),
        )?;
        self.insert(
            number,
            json!({ "driver": "throttle", "throttle-group": group, "file": file_node(number) }),
        )
    }

    /// Lets a slowed drive run at its full speed: what waits is done at once.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn speed_up(&self, number: usize) -> anyhow::Result<()> {
        let limits = json!({ "bps-total": 0 });
        let path = format!("/objects/slow{number}");
        self.qmp("qom-set", &json!({ "path": path, "property": "limits", "value": limits }))
            .map(drop)
    }

    /// Makes drive `number` whole again.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn mend(&self, number: usize) -> anyhow::Result<()> {
        self.reopen(number, &file_node(number))?;
        self.qmp("blockdev-del", &json!({ "node-name": filter_node(number) }))?;
        // There is one only if the fault was slowness.
        match self.qmp("object-del", &json!({ "id": format!("slow{number}") })) {
            Err(error) if !error.to_string().contains("not found") => Err(error),
            _ => Ok(()),
        }
    }

    /// Sets the critical warnings of drive `number`'s health log (NVMe Base 2.0, figure 207).
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn warn(&self, number: usize, warnings: u8) -> anyhow::Result<()> {
        let path = format!("/machine/peripheral/{}", device_id(number));
        let property = "smart_critical_warning";
        self.qmp("qom-set", &json!({ "path": path, "property": property, "value": warnings }))
            .map(drop)
    }

    fn insert(&self, number: usize, mut filter: Value) -> anyhow::Result<()> {
        filter["node-name"] = filter_node(number).into();
        self.qmp("blockdev-add", &filter)?;
        self.reopen(number, &filter_node(number))
    }

    fn reopen(&self, number: usize, below: &str) -> anyhow::Result<()> {
        let options = json!({ "options": [top(number, below)] });
        self.qmp("blockdev-reopen", &options).map(drop).context("changing a drive")
    }
}

fn filter_node(number: usize) -> String {
    format!("fault{number}")
}

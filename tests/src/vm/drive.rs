//! The drives of a machine: what a controller looks like to the guest, and what is behind it.
//!
//! Each drive is a chain of QEMU's block nodes, `file0` (the bytes) → `top0` (raw) → the NVMe
//! controller `nvme0` on a PCIe root port of its own, so that faults can be put between the first
//! two, and the controller pulled, while the guest runs.

use serde_json::{Map, Value, json};
use std::path::Path;

/// The PCI device number of the first drive's root port.
const PORT_FIRST: usize = 0x10;

/// Where a drive's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A sparse file of the place.
    File,
    /// The same file behind a write cache that a power cut empties: only what was flushed, or
    /// written with FUA, is in the file.
    Volatile,
    /// Nowhere: for measuring.
    Null,
}

/// One NVMe controller with one namespace.
#[derive(Clone, Debug)]
pub struct Drive {
    pub(super) backing: Backing,
    pub(super) bytes: u64,
    options: Map<String, Value>,
}

impl Drive {
    /// A drive on a file.
    #[must_use]
    pub fn file(bytes: u64) -> Self {
        Self { backing: Backing::File, bytes, options: Map::new() }
    }

    /// A drive with a volatile write cache.
    #[must_use]
    pub fn volatile(bytes: u64) -> Self {
        Self { backing: Backing::Volatile, ..Self::file(bytes) }
    }

    /// A drive that costs nothing, for measuring: a read leaves in the buffer whatever was there.
    #[must_use]
    pub fn null(bytes: u64) -> Self {
        Self { backing: Backing::Null, ..Self::file(bytes) }
    }

    /// Bytes of a logical block: 512 without this.
    #[must_use]
    pub fn lba_bytes(self, bytes: u32) -> Self {
        self.option("logical_block_size", bytes.into()).option("physical_block_size", bytes.into())
    }

    /// Any property of QEMU's `nvme`.
    #[must_use]
    pub fn option(mut self, name: &str, value: Value) -> Self {
        self.options.insert(name.to_owned(), value);
        self
    }

    /// The serial number of drive `number`, unless an option says otherwise.
    #[must_use]
    pub fn serial(number: usize) -> String {
        format!("forebay{number}")
    }

    /// Its block nodes, from below; `media` is the file or the socket.
    pub(super) fn nodes(&self, number: usize, media: &Path) -> Vec<Value> {
        let bytes = file_node(number);
        let below = match self.backing {
            Backing::File => json!({
                "driver": "file", "node-name": bytes, "filename": media, "discard": "unmap",
                // The host never loses power here, and its disk is not what is tested.
                "cache": { "no-flush": true }
            }),
            Backing::Volatile => json!({
                "driver": "nbd", "node-name": bytes, "server": { "type": "unix", "path": media }
            }),
            // No node above it: that would cost each operation as much again.
            Backing::Null => {
                let name = top_node(number);
                return vec![json!({ "driver": "null-co", "node-name": name, "size": self.bytes })];
            }
        };
        vec![below, top(number, &bytes)]
    }

    /// The controller, as `-device` and QMP's `device_add` take it.
    pub(super) fn device(&self, number: usize) -> Value {
        let mut device = json!({
            "driver": "nvme", "id": device_id(number), "serial": Self::serial(number),
            "drive": top_node(number), "bus": format!("port{number}"), "romfile": ""
        });
        for (name, value) in &self.options {
            device[name] = value.clone();
        }
        device
    }
}

/// The root port of drive `number`.
pub(super) fn root_port(number: usize) -> String {
    format!(
        "pcie-root-port,id=port{number},chassis={0},slot={0},bus=pcie.0,addr={1:#x},romfile=",
        number + 1,
        PORT_FIRST + number
    )
}

/// The PCI address of that port, for the guest.
pub(super) fn root_port_address(number: usize) -> String {
    format!("0000:00:{:02x}.0", PORT_FIRST + number)
}

/// The node that the controller reads and writes, on top of `below`.
pub(super) fn top(number: usize, below: &str) -> Value {
    json!({
        "driver": "raw", "node-name": top_node(number), "file": below, "discard": "unmap"
    })
}

pub(super) fn file_node(number: usize) -> String {
    format!("file{number}")
}

fn top_node(number: usize) -> String {
    format!("top{number}")
}

pub(super) fn device_id(number: usize) -> String {
    format!("nvme{number}")
}

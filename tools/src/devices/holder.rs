//! Which processes have a device open, by their descriptors in `/proc`.
//!
//! Guarantees: a device is known by its number, whatever its file is called, in whatever container
//! it lies, and also when the file was deleted since. A hint all the same: without root only one's
//! own processes show their descriptors, and one can be opened right after the look.

use super::drive::Node;
use crate::media::{DeviceId, System, attribute, names};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;

/// A process that has a device open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Holder {
    pub(super) pid: u32,
    pub(super) command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.command, self.pid)
    }
}

/// The holders of every device, and of every file below `/dev`, at one moment: the first of each.
#[derive(Debug, Default)]
pub(super) struct Holders {
    by_path: BTreeMap<PathBuf, Holder>,
    by_device: BTreeMap<DeviceId, Holder>,
}

impl Holders {
    /// Looks at all processes.
    pub(super) fn scan(system: &System) -> Self {
        let mut holders = Self::default();
        for pid in names(system.proc("")).iter().filter_map(|name| name.parse().ok()) {
            holders.add(system, pid);
        }
        holders
    }

    fn add(&mut self, system: &System, pid: u32) {
        let folder = system.proc(pid.to_string());
        let command = attribute(folder.join("comm")).unwrap_or("?".to_owned());
        let holder = Holder { pid, command };
        for descriptor in names(folder.join("fd")).iter().map(|name| folder.join("fd").join(name)) {
            let Ok(path) = fs::read_link(&descriptor) else { continue };
            // What is no file (`socket:[7]`) has no device behind it.
            if !path.is_absolute() {
                continue;
            }
            // Through the descriptor, not by the path: that is another file in another container.
            if let Some(device) = DeviceId::of(&descriptor) {
                self.by_device.entry(device).or_insert_with(|| holder.clone());
            }
            if path.starts_with(system.dev("")) {
                self.by_path.entry(path).or_insert_with(|| holder.clone());
            }
        }
    }

    /// The first that has any of `nodes` open.
    pub(super) fn first(&self, nodes: &[Node]) -> Option<&Holder> {
        nodes.iter().find_map(|node| self.of(node))
    }

    /// One that has `node` open.
    pub(super) fn of(&self, node: &Node) -> Option<&Holder> {
        let by_device = node.device.and_then(|device| self.by_device.get(&device));
        by_device.or_else(|| self.by_path.get(&node.path))
    }
}

//! Which processes have a device open, by their descriptors in `/proc`.
//!
//! A hint for people: without root only one's own processes show theirs, and a descriptor can be
//! opened right after the look.

use crate::media::{System, attribute, names};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

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

/// The holders of every file below `/dev`, at one moment.
#[derive(Debug, Default)]
pub(super) struct Holders {
    by_path: BTreeMap<PathBuf, Vec<Holder>>,
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
        let mut command = None;
        for name in names(folder.join("fd")) {
            let Ok(path) = fs::read_link(folder.join("fd").join(name)) else { continue };
            if !path.starts_with(system.dev("")) {
                continue;
            }
            let command = command
                .get_or_insert_with(|| attribute(folder.join("comm")).unwrap_or("?".to_owned()));
            let found = self.by_path.entry(path).or_default();
            if found.iter().all(|holder| holder.pid != pid) {
                found.push(Holder { pid, command: command.clone() });
            }
        }
    }

    /// The first that has any of `paths` open.
    pub(super) fn first(&self, paths: &[PathBuf]) -> Option<&Holder> {
        paths.iter().find_map(|path| self.of(path))
    }

    /// The first that has `path` open.
    pub(super) fn of(&self, path: &Path) -> Option<&Holder> {
        self.by_path.get(path)?.first()
    }
}

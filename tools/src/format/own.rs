//! The devices that are named by their PCI address: this process drives them.
//!
//! Guarantees: never a namespace that nobody named, where a drive has several.

use super::{DEPTH, refused};
use crate::exit::{Code, Failure};
use crate::media::blocks::Blocks;
use crate::media::signature::{self, Found};
use anyhow::Context as _;
use forebay_config::Nvme;
use forebay_nvme::pci::PciAddress;
use forebay_nvme::spec::command::{Data, Submission};
use forebay_nvme::spec::identify::{ActiveNamespaces, IDENTIFY_BYTES};
use forebay_nvme::{BlockQueue, Pool};
use forebayd::reactor::Clock;
use forebayd::runtime::nvme::{self, Drive, Drives, OnClock};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use zerocopy::FromBytes;

pub(super) struct Own<'a> {
    pub(super) queues: BTreeMap<PathBuf, Box<dyn BlockQueue>>,
    memory: &'a Pool,
    _drives: Option<Drives>,
}

impl<'a> Own<'a> {
    /// Brings those of `devices` up that are addresses; `namespace` is the one that was named.
    pub(super) fn open(
        devices: &[PathBuf],
        namespace: Option<u32>,
        memory: &'a Pool,
    ) -> anyhow::Result<Self> {
        let is_address = |path: &&PathBuf| path.to_string_lossy().parse::<PciAddress>().is_ok();
        let addresses: Vec<&PathBuf> = devices.iter().filter(is_address).collect();
        let mut own = Self { queues: BTreeMap::new(), memory, _drives: None };
        if addresses.is_empty() {
            return match namespace {
                None => Ok(own),
                Some(_) => {
                    let what = "--namespace is for drives that are named by their PCI address";
                    Err(Failure::new(Code::Usage, what.to_owned()).into())
                }
            };
        }
        let clock = Clock::start();
        let drives = Drives::start(clock).map_err(refused)?;
        for path in addresses {
            let address = path.to_string_lossy();
            let options = Nvme { namespace, ..Nvme::default() };
            let drive = drives.open(&address, &options).map_err(refused)?;
            if namespace.is_none() {
                let found = active(&drive).with_context(|| format!("{address}: its namespaces"))?;
                only(&address, &found)?;
            }
            let queue = nvme::queue(&drive, memory, DEPTH).map_err(refused)?;
            own.queues.insert(path.clone(), Box::new(OnClock::new(queue, clock)));
        }
        own._drives = Some(drives);
        Ok(own)
    }

    /// What the drive holds, if it is one of these.
    pub(super) fn signature(&mut self, path: &Path) -> Option<io::Result<Option<Found>>> {
        let queue = self.queues.get_mut(path)?;
        Some(signature::find(&mut Blocks::new(queue.as_mut(), self.memory)))
    }
}

/// The first active namespaces of a drive.
fn active(drive: &Drive) -> anyhow::Result<Vec<u32>> {
    let command = Submission::identify_active_namespaces(0, Data::Prp(0, 0));
    let reply = drive.admin(command, Vec::new(), IDENTIFY_BYTES)?;
    let page = ActiveNamespaces::read_from_bytes(&reply.data);
    let page = page.ok().context("a list of another length")?;
    Ok(page.after(0).collect())
}

/// Refuses to choose.
fn only(address: &str, namespaces: &[u32]) -> Result<(), Failure> {
    if namespaces.len() < 2 {
        return Ok(());
    }
    let numbers: Vec<String> = namespaces.iter().map(ToString::to_string).collect();
    let numbers = numbers.join(", ");
    let what = format!(
        "{address} has several namespaces; say which, here and as `namespace` in the configuration: \
         --namespace {numbers}"
    );
    Err(Failure::new(Code::Usage, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_namespaces_none_is_taken_unnamed() {
        assert!(only("0000:03:00.0", &[7]).is_ok());
        let refused = only("0000:03:00.0", &[1, 5]).unwrap_err();
        assert!(refused.to_string().contains("--namespace 1, 5"), "{refused}");
    }
}

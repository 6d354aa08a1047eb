//! The way to a controller that no daemon drives and that is with vfio-pci: the product's own driver.

use super::admin::AdminPath;
use crate::exit::{Code, Failure};
use anyhow::Context as _;
use forebay_config::Nvme;
use forebay_nvme::pci::PciAddress;
use forebay_nvme::spec::command::Submission;
use forebayd::reactor::Clock;
use forebayd::runtime::nvme::{Drive, Drives};

/// A controller that this process drives, for as long as this lives.
pub(super) struct OwnController {
    drive: Drive,
    /// Shuts the controller down when it is dropped, behind the handle on it.
    _drives: Drives,
}

impl OwnController {
    /// Brings the controller at `address` up.
    pub(super) fn open(address: PciAddress) -> anyhow::Result<Self> {
        let refused =
            |error: &dyn std::fmt::Display| Failure::new(Code::Refused, error.to_string());
        let drives = Drives::start(Clock::start()).map_err(|error| refused(&error))?;
        let drive = drives.open(&address.to_string(), &Nvme::default());
        Ok(Self { drive: drive.map_err(|error| refused(&error))?, _drives: drives })
    }
}

impl AdminPath for OwnController {
    fn admin(&mut self, command: Submission, data: &mut [u8]) -> anyhow::Result<u32> {
        let reply = self.drive.admin(command, Vec::new(), data.len())?;
        data.copy_from_slice(&reply.data);
        Ok(reply.result)
    }

    /// The controller's keeper runs one command after the other: nothing else gets through meanwhile.
    fn admin_long(
        &mut self,
        command: Submission,
        _meanwhile: &mut dyn FnMut(&mut dyn AdminPath),
    ) -> anyhow::Result<u32> {
        let answer = self.drive.ask(command, Vec::new(), 0);
        Ok(answer.recv().context("the controller left without an answer")??.result)
    }
}

//! A controller for tests, as far as admin commands go: it says what the test tells it to say.
//!
//! Fault model: it takes a format without doing it (`lazy`); it refuses everything (`mute`).

use super::admin::AdminPath;
use forebay_nvme::kernel::transfer_bytes;
use forebay_nvme::spec::command::Submission;
use forebay_nvme::spec::identify::{IdentifyController, IdentifyNamespace, LbaFormat};
use forebay_nvme::spec::log::{ErrorLogEntry, SmartLog};
use forebay_nvme::spec::opcode::admin;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use zerocopy::{FromZeros, IntoBytes};

/// What it says, and what it was sent.
pub(super) struct Says {
    pub(super) controller: IdentifyController,
    pub(super) namespaces: BTreeMap<u32, IdentifyNamespace>,
    pub(super) smart: SmartLog,
    pub(super) errors: Vec<ErrorLogEntry>,
    pub(super) formats: Vec<Submission>,
    pub(super) lazy: bool,
    pub(super) mute: bool,
}

impl Says {
    /// One namespace of 4 GiB, with blocks of 512 bytes; formats 0: 512, 1: 512+8, 2: 4096+8, 3: 4096.
    pub(super) fn new() -> Self {
        let mut controller = IdentifyController::new_zeroed();
        controller.sn = *b"S3                  ";
        controller.mn[..9].copy_from_slice(b"FAKE NVMe");
        controller.mn[9..].fill(b' ');
        controller.fr = *b"1.0     ";
        controller.oacs.set(2);
        controller.elpe = 3;
        let mut says = Self {
            controller,
            namespaces: BTreeMap::new(),
            smart: SmartLog::new_zeroed(),
            errors: Vec::new(),
            formats: Vec::new(),
            lazy: false,
            mute: false,
        };
        says.add_namespace(1);
        says
    }

    pub(super) fn add_namespace(&mut self, nsid: u32) {
        let mut namespace = IdentifyNamespace::new_zeroed();
        namespace.nsze.set(8 << 20);
        namespace.nlbaf = 3;
        for (index, format) in [(9, 0), (9, 8), (12, 8), (12, 0)].into_iter().enumerate() {
            namespace.lbaf[index] = LbaFormat::new(format.0, format.1);
        }
        self.namespaces.insert(nsid, namespace);
    }

    fn answer(&mut self, command: &Submission) -> Vec<u8> {
        let nsid = command.nsid.get();
        match (command.opcode, command.cdw10.get() & 0xff) {
            (admin::IDENTIFY, 0) => self.namespaces[&nsid].as_bytes().to_vec(),
            (admin::IDENTIFY, 1) => self.controller.as_bytes().to_vec(),
            (admin::IDENTIFY, 2) => {
                let above = self.namespaces.keys().filter(|other| **other > nsid);
                let mut page: Vec<u8> = above.flat_map(|nsid| nsid.to_le_bytes()).collect();
                page.resize(4096, 0);
                page
            }
            (admin::GET_LOG_PAGE, 1) => {
                let bytes = transfer_bytes(command).unwrap() as usize;
                let mut page = self.errors.as_slice().as_bytes().to_vec();
                page.resize(bytes, 0);
                page
            }
            (admin::GET_LOG_PAGE, 2) => self.smart.as_bytes().to_vec(),
            (admin::FORMAT_NVM, format) => {
                self.formats.push(*command);
                if !self.lazy {
                    self.namespaces.get_mut(&nsid).unwrap().flbas = (format & 15) as u8;
                }
                Vec::new()
            }
            other => panic!("nobody should send {other:?}"),
        }
    }
}

/// A way to it.
pub(super) struct FakeController(pub(super) Rc<RefCell<Says>>);

impl AdminPath for FakeController {
    fn admin(&mut self, command: Submission, data: &mut [u8]) -> anyhow::Result<u32> {
        assert_eq!(transfer_bytes(&command), Some(data.len() as u64));
        anyhow::ensure!(!self.0.borrow().mute, "it does not answer");
        data.copy_from_slice(&self.0.borrow_mut().answer(&command));
        Ok(0)
    }

    fn admin_long(
        &mut self,
        command: Submission,
        meanwhile: &mut dyn FnMut(&mut dyn AdminPath),
    ) -> anyhow::Result<u32> {
        meanwhile(self);
        self.admin(command, &mut [])
    }
}

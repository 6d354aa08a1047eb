//! What Identify returns (NVMe Base 2.0, "Identify command").

use zerocopy::{FromZeros, IntoBytes};

use super::config::NamespaceConfig;
use super::device::{Device, Outcome};
use super::faults::Fault;
use super::logs::ERRORS_MAX;
use super::namespace::Namespace;
use crate::spec::command::{ALL_NAMESPACES, Submission};
use crate::spec::identify::{
    ActiveNamespaces, IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, LbaFormat,
};
use crate::spec::status::generic;

/// NSFEAT: NAWUPF is this namespace's own.
const NSFEAT_ATOMICS: u8 = 1 << 1;
/// NSFEAT: NPWG and the like are there.
const NSFEAT_PERFORMANCE: u8 = 1 << 4;

impl Device {
    pub(super) fn identify(&mut self, request: &Submission, fault: Option<Fault>) -> Outcome {
        let (kind, nsid) = (request.cdw10.get() as u8, request.nsid.get());
        let valid = nsid != 0 && nsid <= self.namespaces_max();
        let data = match kind {
            0 if valid => self.identify_namespace(nsid),
            1 => self.identify_controller().as_bytes().to_vec(),
            2 if nsid < ALL_NAMESPACES - 1 => self.active_namespaces(nsid).as_bytes().to_vec(),
            3 if self.namespaces.contains_key(&nsid) => descriptors(nsid),
            // The NVM command set's part: nothing is limited.
            6 if request.cdw11.get() >> 24 == 0 => vec![0; IDENTIFY_BYTES],
            0 | 2 | 3 => return self.refuse(0, request, generic::INVALID_NAMESPACE),
            // A host finds out what there is by asking: no violation.
            _ => return Outcome::invalid(generic::INVALID_FIELD),
        };
        self.push(0, request, data, fault).into()
    }

    fn namespaces_max(&self) -> u32 {
        let highest = self.namespaces.keys().last().copied().unwrap_or(0);
        self.config.identity.nn.unwrap_or(highest)
    }

    fn identify_controller(&self) -> IdentifyController {
        let identity = &self.config.identity;
        let mut data = IdentifyController::new_zeroed();
        data.vid = 0x1d1d.into();
        data.ssvid = 0x1d1d.into();
        ascii(&mut data.sn, &identity.serial);
        ascii(&mut data.mn, &identity.model);
        ascii(&mut data.fr, &identity.firmware);
        data.mdts = identity.mdts;
        data.cntlid = 1.into();
        data.ver = self.config.registers.version.0.into();
        data.rtd3e = (self.config.times.shutdown_us.end as u32).into();
        data.oaes = identity.oaes.into();
        data.cntrltype = 1;
        [data.crdt1, data.crdt2, data.crdt3] = identity.crdt.map(Into::into);
        data.oacs = identity.oacs.into();
        data.acl = identity.acl;
        data.aerl = identity.aerl;
        data.frmw = 1 << 1 | 1;
        data.lpa = 1 << 2;
        data.elpe = (ERRORS_MAX - 1) as u8;
        data.wctemp = 343.into();
        data.cctemp = 353.into();
        let bytes = self.namespaces.values().map(|namespace| u128::from(namespace.bytes()));
        data.tnvmcap = bytes.sum::<u128>().into();
        data.sqes = 0x66;
        data.cqes = 0x44;
        data.nn = self.namespaces_max().into();
        data.oncs = identity.oncs.into();
        data.vwc = u8::from(identity.volatile_write_cache) | 3 << 1;
        data.awun = identity.awupf.into();
        data.awupf = identity.awupf.into();
        data.sgls = identity.sgls.into();
        let name = format!("nqn.2014-08.org.nvmexpress:emulated:{}", identity.serial);
        data.subnqn[..name.len().min(223)].copy_from_slice(&name.as_bytes()[..name.len().min(223)]);
        data
    }

    /// All zero for one that is not active.
    fn identify_namespace(&self, nsid: u32) -> Vec<u8> {
        let namespace = self.namespaces.get(&nsid).map(Namespace::config);
        namespace.map_or_else(|| vec![0; IDENTIFY_BYTES], |it| describe(it).as_bytes().to_vec())
    }

    fn active_namespaces(&self, after: u32) -> ActiveNamespaces {
        let mut list = ActiveNamespaces::new_zeroed();
        let above = self.namespaces.range(after.saturating_add(1)..);
        for (slot, (nsid, _)) in list.nsids.iter_mut().zip(above) {
            *slot = (*nsid).into();
        }
        list
    }
}

fn describe(config: &NamespaceConfig) -> IdentifyNamespace {
    let mut data = IdentifyNamespace::new_zeroed();
    data.nsze = config.lbas.into();
    data.ncap = config.lbas.into();
    data.nuse = config.lbas.into();
    data.nlbaf = (config.formats.len() as u8).wrapping_sub(1);
    data.flbas = config.format & 15 | (config.format >> 4 & 3) << 5;
    data.dps = config.protection;
    data.dlfeat = 1;
    data.noiob = config.boundary.into();
    if let Some(granularity) = config.write_granularity {
        data.nsfeat |= NSFEAT_PERFORMANCE;
        data.npwg = granularity.into();
        data.npwa = granularity.into();
    }
    if let Some(nawupf) = config.nawupf {
        data.nsfeat |= NSFEAT_ATOMICS;
        data.nawupf = nawupf.into();
    }
    data.eui64 = eui64(config.nsid);
    for (slot, (shift, metadata)) in data.lbaf.iter_mut().zip(&config.formats) {
        *slot = LbaFormat::new(*shift, *metadata);
    }
    data
}

fn eui64(nsid: u32) -> [u8; 8] {
    (0xe0_5fb0_0000_0000 | u64::from(nsid)).to_be_bytes()
}

/// An EUI-64 and a UUID, as descriptors.
fn descriptors(nsid: u32) -> Vec<u8> {
    let mut page = vec![1, 8, 0, 0];
    page.extend(eui64(nsid));
    page.extend([3, 16, 0, 0]);
    page.extend(
        u128::from(nsid).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes(),
    );
    page.resize(IDENTIFY_BYTES, 0);
    page
}

/// Text as an ASCII field has it: filled up with spaces.
pub(super) fn ascii(field: &mut [u8], text: &str) {
    field.fill(b' ');
    let count = text.len().min(field.len());
    field[..count].copy_from_slice(&text.as_bytes()[..count]);
}

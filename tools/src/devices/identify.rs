//! `forebay devices identify`: what a controller and its namespaces say of themselves.

use super::admin::{self, AdminPath};
use super::binding::Told;
use super::drive::Drive;
use super::fields::{Field, hex, object};
use super::holder::Holders;
use super::machine::Machine;
use crate::output;
use forebay_nvme::pci::PciAddress;
use forebay_nvme::spec::identify::{
    IdentifyController, IdentifyNamespace, LbaFormat, PowerState, SglSupport,
};
use serde_json::{Map, Value, json};

/// The unit of MDTS, CAP.MPSMIN, is not told through the kernel: it is 4 KiB in every drive there is.
const PAGE_BYTES: usize = 4096;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The drive, as `forebay devices list` names it
    #[arg(value_name = "ADDRESS")]
    address: PciAddress,
}

pub(super) fn identify(args: &Args, machine: &impl Machine) -> anyhow::Result<Told> {
    let drive = Drive::at(machine.system(), args.address)?;
    let holders = Holders::scan(machine.system());
    let mut path = admin::open_free(machine, &drive, &holders)?;
    let controller = admin::identify_controller(&mut *path)?;
    let namespaces = namespaces(&mut *path)?;
    let shown: Vec<Value> =
        namespaces.iter().map(|(nsid, namespace)| namespace_json(*nsid, namespace)).collect();
    let json = json!({
        "pci": args.address.to_string(),
        "controller": controller_json(&controller),
        "namespaces": shown,
    });
    let mut text = controller_text(args.address, &controller);
    for (nsid, namespace) in &namespaces {
        text += &namespace_text(*nsid, namespace, &controller);
    }
    Ok(Told { json, text })
}

/// The active namespaces with what they say.
pub(super) fn namespaces(
    path: &mut dyn AdminPath,
) -> anyhow::Result<Vec<(u32, Box<IdentifyNamespace>)>> {
    let nsids = admin::active_namespaces(path)?;
    nsids.into_iter().map(|nsid| Ok((nsid, admin::identify_namespace(path, nsid)?))).collect()
}

fn controller_text(address: PciAddress, it: &IdentifyController) -> String {
    let celsius = |value: Option<i32>| value.map_or("-".to_owned(), |value| format!("{value} °C"));
    let transfer = it.transfer_bytes_max(PAGE_BYTES);
    let cache = if it.volatile_write_cache() { "volatile" } else { "none that is volatile" };
    let sgl = match it.sgl_support() {
        SglSupport::None | SglSupport::Other => "no",
        SglSupport::Any => "yes",
        SglSupport::Dword => "in dwords",
    };
    let rows = [
        ("model", it.model().to_owned()),
        ("serial", it.serial().to_owned()),
        ("firmware", format!("{} ({} slots)", it.firmware(), it.firmware_slots())),
        ("NVMe version", it.version().to_string()),
        ("PCI vendor", format!("{:#06x} ({:#06x})", it.vid.get(), it.ssvid.get())),
        ("controller", it.cntlid.get().to_string()),
        ("subsystem", it.subsystem_name().to_owned()),
        ("capacity", size(it.tnvmcap.get())),
        ("unallocated", size(it.unvmcap.get())),
        ("largest transfer", transfer.map_or("no limit".to_owned(), output::bytes)),
        ("write cache", cache.to_owned()),
        ("SGLs", sgl.to_owned()),
        ("atomic in a power cut", lbas(it.atomic_lbas_power_fail())),
        ("warns at", celsius(it.warning_celsius())),
        ("critical at", celsius(it.critical_celsius())),
        ("has", abilities(it).join(", ")),
    ];
    let rows: Vec<_> = rows.into_iter().map(|(what, value)| vec![what.to_owned(), value]).collect();
    output::table(&[&address.to_string(), ""], &rows)
}

/// The optional commands and features that are there.
fn abilities(it: &IdentifyController) -> Vec<&'static str> {
    let all = [
        (it.has_format(), "format"),
        (it.has_cryptographic_erase(), "cryptographic erase"),
        (it.has_firmware_update(), "firmware update"),
        (it.has_namespace_management(), "namespace management"),
        (it.has_doorbell_buffers(), "doorbell buffers"),
        (it.has_compare(), "compare"),
        (it.has_write_uncorrectable(), "write uncorrectable"),
        (it.has_dataset_management(), "dataset management"),
        (it.has_write_zeroes(), "write zeroes"),
        (it.has_reservations(), "reservations"),
        (it.has_timestamp(), "timestamp"),
        (it.has_verify(), "verify"),
        (it.has_copy(), "copy"),
    ];
    all.into_iter().filter_map(|(there, name)| there.then_some(name)).collect()
}

fn namespace_text(nsid: u32, it: &IdentifyNamespace, controller: &IdentifyController) -> String {
    let or_none = |blocks: Option<u32>| blocks.map_or("-".to_owned(), lbas);
    let current = it.lba_format();
    let used = current.bytes().and_then(|bytes| it.nuse.get().checked_mul(bytes.into()));
    let mut rows = vec![
        ("size", it.bytes().map_or("?".to_owned(), output::bytes)),
        ("used", used.map_or("?".to_owned(), output::bytes)),
        ("LBA format", lba(&current, it.protected())),
        ("atomic in a power cut", lbas(it.atomic_lbas_power_fail(controller))),
        ("best boundary", or_none(it.optimal_boundary_lbas())),
        ("best write granularity", or_none(it.write_granularity_lbas())),
        ("best write size", or_none(it.optimal_write_lbas())),
        ("shared", if it.shared() { "yes" } else { "no" }.to_owned()),
        ("write protected", if it.write_protected() { "yes" } else { "no" }.to_owned()),
        ("NGUID", known(&it.nguid)),
        ("EUI-64", known(&it.eui64)),
    ]
    .into_iter()
    .map(|(what, value)| vec![what.to_owned(), value])
    .collect::<Vec<_>>();
    for (index, format) in it.lba_formats().iter().enumerate() {
        let mark = if index == usize::from(it.lba_format_index()) { " (now)" } else { "" };
        let speed = format.relative_performance();
        let text = format!("{}, performance {speed}{mark}", lba(format, false));
        rows.push(vec![format!("format {index}"), text]);
    }
    format!("\n{}", output::table(&[&format!("namespace {nsid}"), ""], &rows))
}

/// A form of blocks: `4096`, `4096+8`, `512+8 protected`.
pub(super) fn lba(format: &LbaFormat, protected: bool) -> String {
    let bytes = format.bytes().map_or("?".to_owned(), |bytes| bytes.to_string());
    let metadata = match format.metadata_bytes() {
        0 => String::new(),
        bytes => format!("+{bytes}"),
    };
    format!("{bytes}{metadata}{}", if protected { " protected" } else { "" })
}

fn lbas(count: u32) -> String {
    if count == 1 { "1 block".to_owned() } else { format!("{count} blocks") }
}

/// A capacity, where 0 is a drive that does not say.
fn size(bytes: u128) -> String {
    match u64::try_from(bytes).unwrap_or(u64::MAX) {
        0 => "-".to_owned(),
        bytes => output::bytes(bytes),
    }
}

/// An identifier, where all zero is none.
fn known(bytes: &[u8]) -> String {
    if bytes.iter().all(|byte| *byte == 0) { "-".to_owned() } else { hex(bytes) }
}

/// Every field.
fn controller_json(it: &IdentifyController) -> Value {
    let mut object = object!(it, IdentifyController {
        vid, ssvid, rab, ieee, cmic, mdts, cntlid, ver, rtd3r, rtd3e, oaes, ctratt, rrls, cntrltype,
        fguid, crdt1, crdt2, crdt3, nvmsr, vwci, mec, oacs, acl, aerl, frmw, lpa, elpe, npss, avscc,
        apsta, wctemp, cctemp, mtfa, hmpre, hmmin, tnvmcap, unvmcap, rpmbs, edstt, dsto, fwug, kas,
        hctma, mntmt, mxtmt, sanicap, hmminds, hmmaxd, nsetidmax, endgidmax, anatt, anacap, anagrpmax,
        nanagrpid, pels, domainid, megcap, sqes, cqes, maxcmd, nn, oncs, fuses, fna, vwc, awun, awupf,
        icsvscc, nwpc, acwu, cdfs, sgls, mnan, maxdna, maxcna, vendor,
    } but {
        sn, mn, fr, subnqn, psd, fabrics,
        reserved102, reserved134, reserved240, reserved358, reserved384, reserved564, reserved1024,
    });
    let texts = [
        ("sn", it.serial()),
        ("mn", it.model()),
        ("fr", it.firmware()),
        ("subnqn", it.subsystem_name()),
    ];
    object.extend(texts.map(|(name, text)| (name.to_owned(), text.into())));
    let states = it.power_states().iter().map(|state| power_state_json(state).into());
    object.insert("psd".to_owned(), Value::Array(states.collect()));
    object.insert("version".to_owned(), it.version().to_string().into());
    object.into()
}

fn power_state_json(it: &PowerState) -> Map<String, Value> {
    object!(it, PowerState {
        mp, flags, enlat, exlat, rrt, rrl, rwt, rwl, idlp, ips, actp, apws,
    } but { reserved2, reserved19, reserved23 })
}

fn namespace_json(nsid: u32, it: &IdentifyNamespace) -> Value {
    let mut object = object!(it, IdentifyNamespace {
        nsze, ncap, nuse, nsfeat, nlbaf, flbas, mc, dpc, dps, nmic, rescap, fpi, dlfeat, nawun, nawupf,
        nacwu, nabsn, nabo, nabspf, noiob, nvmcap, npwg, npwa, npdg, npda, nows, mssrl, mcl, msrc,
        anagrpid, nsattr, nvmsetid, endgid, nguid, eui64, vendor,
    } but { lbaf, reserved81, reserved96 });
    let formats = it.lba_formats().iter().map(|format| {
        let LbaFormat { ms, lbads, rp } = format;
        json!({"ms": ms.shown(), "lbads": lbads, "rp": rp, "bytes": format.bytes()})
    });
    object.insert("lbaf".to_owned(), Value::Array(formats.collect()));
    object.insert("nsid".to_owned(), nsid.into());
    object.insert("bytes".to_owned(), it.bytes().into());
    object.insert("lba_format".to_owned(), it.lba_format_index().into());
    object.into()
}

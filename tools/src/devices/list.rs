//! `forebay devices list`: every NVMe drive of this machine, and who has it.
//!
//! Each fact comes from whoever can tell it: the system's files, the drive itself where the kernel
//! has it, the daemon that drives it where vfio-pci has it. What nobody tells is `-`, or null.
//!
//! Guarantees: it changes nothing. A drive with vfio-pci that nobody drives would have to be brought up
//! to be asked, and is reset by that: only `--ask` does it.

use super::admin::{self, AdminPath};
use super::binding::Told;
use super::daemon::{self, DaemonDrive};
use super::drive::{Drive, VFIO};
use super::holder::Holders;
use super::identify;
use super::machine::Machine;
use super::smart::{names, warning_text};
use crate::media::usage;
use crate::output;
use anyhow::Context as _;
use forebay_nvme::BLOCK_BYTES;
use forebay_nvme::spec::log::CriticalWarning;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The admin socket of the daemon that may drive some of them
    #[arg(long, value_name = "SOCKET", default_value = super::ADMIN_SOCKET)]
    admin: PathBuf,
    /// Also ask drives that are with vfio-pci and that nobody drives: this brings them up, which resets
    /// them
    #[arg(long)]
    ask: bool,
}

/// What is known of a drive.
#[derive(Debug, Default)]
struct Facts {
    model: Option<String>,
    serial: Option<String>,
    firmware: Option<String>,
    bytes: Option<u64>,
    /// The LBA format of each namespace.
    lba: Vec<String>,
    percentage_used: Option<u8>,
    temperature_c: Option<i32>,
    warning: Option<CriticalWarning>,
    state: Option<String>,
    /// Why it told no more than the system knows.
    silent: Option<String>,
}

pub(super) fn list(args: &Args, machine: &impl Machine) -> anyhow::Result<Told> {
    let holders = Holders::scan(machine.system());
    let drives = Drive::all(machine.system())?;
    let told = match drives.iter().any(|drive| drive.has_driver(VFIO)) {
        true => daemon::drives(&args.admin),
        false => Vec::new(),
    };
    let (mut rows, mut shown, mut notes) = (Vec::new(), Vec::new(), String::new());
    for drive in &drives {
        let facts = Facts::of(drive, &told, &holders, machine, args.ask);
        let holder = holder(machine, drive, &holders);
        rows.push(facts.row(drive, holder.as_deref()));
        notes += &facts.notes(drive);
        shown.push(facts.json(drive, holder));
    }
    let json = json!(shown);
    if drives.is_empty() {
        return Ok(Told { json, text: "no NVMe drive\n".to_owned() });
    }
    let heads = [
        "address", "model", "serial", "firmware", "size", "LBA", "node", "driver", "group", "used",
        "temp", "holder",
    ];
    Ok(Told { json, text: output::table(&heads, &rows) + &notes })
}

/// Who uses the drive, in a word or two.
fn holder(machine: &impl Machine, drive: &Drive, holders: &Holders) -> Option<String> {
    let system = machine.system();
    let nodes = drive.nodes(system);
    let used = drive.disks.iter().find_map(|disk| usage::of_disk(system, &disk.folder));
    // "is mounted on /" of a disk is "mounted on /" in its column.
    let used = used.map(|how| how.trim_start_matches("is ").to_owned());
    used.or_else(|| holders.first(&nodes).map(ToString::to_string))
}

impl Facts {
    fn of(
        drive: &Drive,
        told: &[DaemonDrive],
        holders: &Holders,
        machine: &impl Machine,
        ask: bool,
    ) -> Self {
        let address = drive.address.to_string();
        if drive.has_driver(VFIO)
            && let Some(told) = told.iter().find(|told| told.pci == address)
        {
            return Self::told(told);
        }
        let mut facts = Self::of_system(drive);
        let free = holders.first(&drive.nodes(machine.system())).is_none();
        if drive.has_driver(VFIO) && free && !ask {
            let why = "not asked: that would bring it up, and reset it (--ask does it)";
            facts.silent = Some(format!("{address}: {why}"));
            return facts;
        }
        let asked = admin::open_free(machine, drive, holders)
            .and_then(|mut path| facts.ask(&mut *path).with_context(|| address.clone()));
        facts.silent = asked.err().map(|error| format!("{error:#}"));
        facts
    }

    fn told(told: &DaemonDrive) -> Self {
        let told = told.clone();
        Self {
            model: told.model,
            serial: told.serial,
            firmware: told.firmware,
            bytes: told.blocks.map(|blocks| blocks.saturating_mul(BLOCK_BYTES as u64)),
            lba: told.lba_bytes.iter().map(ToString::to_string).collect(),
            percentage_used: told.percentage_used,
            temperature_c: told.temperature_c,
            warning: told.critical_warning.map(CriticalWarning),
            state: told.state,
            silent: None,
        }
    }

    fn of_system(drive: &Drive) -> Self {
        let Some(controller) = drive.controller.clone() else { return Self::default() };
        let lba = drive.disks.iter().filter_map(|disk| disk.lba_bytes);
        Self {
            model: controller.model,
            serial: controller.serial,
            firmware: controller.firmware,
            bytes: Some(drive.disks.iter().map(|disk| disk.bytes).sum()),
            lba: lba.map(|bytes| bytes.to_string()).collect(),
            state: controller.state,
            ..Self::default()
        }
    }

    /// What only the drive itself knows.
    fn ask(&mut self, path: &mut dyn AdminPath) -> anyhow::Result<()> {
        let controller = admin::identify_controller(path)?;
        self.model = Some(controller.model().to_owned());
        self.serial = Some(controller.serial().to_owned());
        self.firmware = Some(controller.firmware().to_owned());
        let health = admin::smart(path)?;
        self.percentage_used = Some(health.percentage_used);
        self.temperature_c = health.celsius();
        self.warning = Some(health.warning());
        let namespaces = identify::namespaces(path)?;
        let formats =
            namespaces.iter().map(|(_, it)| identify::lba(&it.lba_format(), it.protected()));
        self.lba = formats.collect();
        let bytes = namespaces.iter().map(|(_, namespace)| namespace.bytes().unwrap_or(0));
        self.bytes = Some(bytes.fold(0, u64::saturating_add));
        Ok(())
    }

    fn row(&self, drive: &Drive, holder: Option<&str>) -> Vec<String> {
        let dash = || "-".to_owned();
        let text = |value: &Option<String>| value.clone().unwrap_or_else(dash);
        let number = |value: Option<u32>| value.map_or_else(dash, |value| value.to_string());
        vec![
            drive.address.to_string(),
            text(&self.model),
            text(&self.serial),
            text(&self.firmware),
            self.bytes.map_or_else(dash, output::bytes),
            self.lba_text().unwrap_or_else(dash),
            number(drive.numa_node),
            text(&drive.driver),
            number(drive.group),
            self.percentage_used.map_or_else(dash, |used| format!("{used}%")),
            self.temperature_c.map_or_else(dash, |t| format!("{t}°C")),
            holder.map_or_else(dash, str::to_owned),
        ]
    }

    /// One format, or that there are several.
    fn lba_text(&self) -> Option<String> {
        let first = self.lba.first()?;
        let same = self.lba.iter().all(|format| format == first);
        Some(if same { first.clone() } else { "mixed".to_owned() })
    }

    /// What has to be seen at once: warnings, and a controller that does not work.
    fn notes(&self, drive: &Drive) -> String {
        let mut notes = String::new();
        let who = format!("{} ({})", drive.address, self.serial.as_deref().unwrap_or("-"));
        if let Some(warning) = self.warning.filter(|warning| warning.any()) {
            notes += &format!("{who} warns: {}\n", warning_text(warning));
        }
        let state = self.state.as_deref().filter(|state| !matches!(*state, "live" | "ready"));
        if let Some(state) = state {
            notes += &format!("{who} is {state}\n");
        }
        if let Some(why) = &self.silent {
            notes += &format!("{why}\n");
        }
        notes
    }

    fn json(&self, drive: &Drive, holder: Option<String>) -> Value {
        json!({
            "pci": drive.address.to_string(),
            "model": self.model,
            "serial": self.serial,
            "firmware": self.firmware,
            "bytes": self.bytes,
            "lba": self.lba,
            "numa_node": drive.numa_node,
            "driver": drive.driver,
            "driver_override": drive.driver_override,
            "iommu_group": drive.group,
            "iommu_neighbours": drive.neighbours.iter().map(|(a, _)| a.to_string()).collect::<Vec<_>>(),
            "controller": drive.controller.as_ref().map(|controller| controller.name.as_str()),
            "disks": drive.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(),
            "state": self.state,
            "percentage_used": self.percentage_used,
            "temperature_c": self.temperature_c,
            "critical_warning": self.warning.map(|warning| warning.0),
            "warnings": self.warning.map(names),
            "holder": holder,
        })
    }
}

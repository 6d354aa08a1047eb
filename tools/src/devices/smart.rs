//! `forebay devices smart`: a drive's health, from itself or from the daemon that drives it.

use super::admin;
use super::binding::Told;
use super::daemon::{self, DaemonDrive};
use super::drive::{Drive, VFIO};
use super::fields::object;
use super::holder::Holders;
use super::machine::Machine;
use crate::output;
use forebay_nvme::pci::PciAddress;
use forebay_nvme::spec::log::{CriticalWarning, ErrorLogEntry, SmartLog};
use serde_json::{Value, json};
use std::path::PathBuf;

/// The newest errors that are shown.
const ERRORS_MAX: u32 = 8;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The drive, as `forebay devices list` names it
    #[arg(value_name = "ADDRESS")]
    address: PciAddress,
    /// The admin socket of the daemon that may drive it
    #[arg(long, value_name = "SOCKET", default_value = super::ADMIN_SOCKET)]
    admin: PathBuf,
}

pub(super) fn smart(args: &Args, machine: &impl Machine) -> anyhow::Result<Told> {
    let drive = Drive::at(machine.system(), args.address)?;
    if drive.has_driver(VFIO) {
        let address = args.address.to_string();
        let told = daemon::drives(&args.admin).into_iter().find(|told| told.pci == address);
        if let Some(told) = told {
            return Ok(of_daemon(&told));
        }
    }
    let holders = Holders::scan(machine.system());
    let mut path = admin::open_free(machine, &drive, &holders)?;
    let health = admin::smart(&mut *path)?;
    // Health is known even where a drive keeps no error log.
    let entries = admin::identify_controller(&mut *path)?.error_log_entries().min(ERRORS_MAX);
    let errors = admin::errors(&mut *path, entries as usize).unwrap_or_else(|error| {
        log::warn!("{}: no error log: {error:#}", args.address);
        Vec::new()
    });
    Ok(of_drive(args.address, &health, &errors))
}

fn of_drive(address: PciAddress, health: &SmartLog, errors: &[ErrorLogEntry]) -> Told {
    let mut rows = health_rows(health);
    for error in errors {
        rows.push((format!("error {}", error.error_count.get()), error_text(error)));
    }
    Told { json: json(address, health, errors), text: table(address, rows) }
}

fn of_daemon(told: &DaemonDrive) -> Told {
    let warning = told.critical_warning.map(CriticalWarning);
    let json = json!({
        "pci": told.pci,
        "from": "daemon",
        "critical_warning": told.critical_warning,
        "warnings": warning.map(names),
        "temperature_c": told.temperature_c,
        "percentage_used": told.percentage_used,
        "state": told.state,
    });
    let dash = || "-".to_owned();
    let rows = vec![
        ("critical warning".to_owned(), warning.map_or_else(dash, warning_text)),
        ("temperature".to_owned(), told.temperature_c.map_or_else(dash, |t| format!("{t} °C"))),
        ("used".to_owned(), told.percentage_used.map_or_else(dash, |used| format!("{used} %"))),
        ("state".to_owned(), told.state.clone().unwrap_or_else(dash)),
        ("told by".to_owned(), "its daemon".to_owned()),
    ];
    Told { json, text: table(&told.pci, rows) }
}

fn table(address: impl ToString, rows: Vec<(String, String)>) -> String {
    let rows: Vec<_> = rows.into_iter().map(|(what, value)| vec![what, value]).collect();
    output::table(&[&address.to_string(), ""], &rows)
}

fn health_rows(it: &SmartLog) -> Vec<(String, String)> {
    let celsius = |t: i32| format!("{t} °C");
    let size = |bytes: u128| output::bytes(u64::try_from(bytes).unwrap_or(u64::MAX));
    let spare = format!("{} % (warns below {} %)", it.available_spare, it.spare_threshold);
    let mut rows = vec![
        ("critical warning", warning_text(it.warning())),
        ("temperature", it.celsius().map_or("-".to_owned(), celsius)),
        ("spare", spare),
        ("used", format!("{} %", it.percentage_used)),
        ("read by hosts", size(it.bytes_read())),
        ("written by hosts", size(it.bytes_written())),
        ("read commands", it.host_reads.get().to_string()),
        ("write commands", it.host_writes.get().to_string()),
        ("busy", format!("{} min", it.busy_minutes.get())),
        ("power cycles", it.power_cycles.get().to_string()),
        ("power on", format!("{} h", it.power_on_hours.get())),
        ("unsafe shutdowns", it.unsafe_shutdowns.get().to_string()),
        ("media errors", it.media_errors.get().to_string()),
        ("error log entries", it.error_log_entries.get().to_string()),
        ("time too warm", format!("{} min", it.warning_temperature_minutes.get())),
        ("time critically warm", format!("{} min", it.critical_temperature_minutes.get())),
    ]
    .into_iter()
    .map(|(what, value)| (what.to_owned(), value))
    .collect::<Vec<_>>();
    let sensors = it.sensor_celsius();
    rows.extend(sensors.map(|(number, t)| (format!("sensor {number}"), celsius(t))));
    rows
}

/// The warnings in words.
pub(super) fn names(warning: CriticalWarning) -> Vec<&'static str> {
    warning.names().collect()
}

pub(super) fn warning_text(warning: CriticalWarning) -> String {
    if warning.any() { names(warning).join("; ") } else { "none".to_owned() }
}

fn error_text(error: &ErrorLogEntry) -> String {
    let place = match error.command() {
        Some((queue, _)) => {
            format!("queue {queue}, namespace {}, LBA {}", error.nsid.get(), error.lba.get())
        }
        None => "no command's".to_owned(),
    };
    format!("{} ({place})", error.status())
}

fn json(address: PciAddress, health: &SmartLog, errors: &[ErrorLogEntry]) -> Value {
    let mut object = object!(health, SmartLog {
        critical_warning, available_spare, spare_threshold, percentage_used, endurance_group_warning,
        data_units_read, data_units_written, host_reads, host_writes, busy_minutes, power_cycles,
        power_on_hours, unsafe_shutdowns, media_errors, error_log_entries, warning_temperature_minutes,
        critical_temperature_minutes, throttle1_count, throttle2_count, throttle1_s, throttle2_s,
    } but { temperature, sensors, reserved7, reserved232 });
    let sensors = health.sensor_celsius();
    let sensors: Vec<Value> =
        sensors.map(|(number, t)| json!({"sensor": number, "temperature_c": t})).collect();
    let errors: Vec<Value> = errors.iter().map(error_json).collect();
    for (name, value) in [
        ("pci", json!(address.to_string())),
        ("from", json!("drive")),
        ("warnings", json!(names(health.warning()))),
        ("temperature_c", json!(health.celsius())),
        ("sensors", json!(sensors)),
        ("errors", json!(errors)),
    ] {
        object.insert(name.to_owned(), value);
    }
    object.into()
}

fn error_json(error: &ErrorLogEntry) -> Value {
    let mut object = object!(error, ErrorLogEntry {
        error_count, sqid, cid, parameter_location, lba, nsid, vendor_page, transport, command_specific,
        transport_specific,
    } but { status_field, reserved30, reserved42 });
    object.insert("status".to_owned(), error.status().full().into());
    object.insert("status_text".to_owned(), error.status().to_string().into());
    object.into()
}

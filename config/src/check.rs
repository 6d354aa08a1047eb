//! What no single key can tell: values that contradict one another or the machine.

use crate::problem::Report;
use crate::read;
use crate::sections::Places;
use crate::units::format_size;
use crate::{Config, Listen, Machine, NAMESPACE_NAME_BYTES_MAX, RESERVED_NAMES};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use toml::de::DeValue;

/// Reports every contradiction in `config`. Runs also when some keys were wrong (they hold their
/// defaults, or their table is left out), so that all mistakes are told at once; a list that is
/// empty only because its tables were wrong is not called missing.
pub(crate) fn check(report: &mut Report<'_>, config: &Config, places: &Places, machine: &Machine) {
    cores(report, config, places, machine);
    devices(report, config, places);
    arena(report, config, places);
    listeners(report, config, places);
    namespaces(report, config, places);
}

/// The name of a namespace, if it can be one.
pub(crate) fn namespace_name(value: &DeValue<'_>) -> Result<String, String> {
    let name = read::filled(value)?;
    let legal = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-');
    if name.len() > NAMESPACE_NAME_BYTES_MAX {
        return Err(format!("is {} bytes long", name.len()));
    }
    if let Some(c) = name.chars().find(|c| !legal(*c)) {
        return Err(format!("is \"{name}\", which has a {c:?}"));
    }
    if name.starts_with(['.', '_', '-']) {
        return Err(format!("is \"{name}\", which begins with a mark"));
    }
    if RESERVED_NAMES.contains(&name) {
        return Err(format!("is \"{name}\", which the system itself uses"));
    }
    Ok(name.to_owned())
}

fn cores(report: &mut Report<'_>, config: &Config, places: &Places, machine: &Machine) {
    let mut seen = BTreeSet::new();
    for (core, place) in config.daemon.cores.iter().zip(&places.cores) {
        if *core >= machine.cpus {
            let what = format!("core {core} does not exist");
            let instead = match machine.cpus {
                1 => "write cores = [0]; this machine has one".to_owned(),
                cpus => format!("write cores from 0 to {}", cpus - 1),
            };
            report.add(*place, what, instead);
        }
        if !seen.insert(*core) {
            let what = format!("core {core} is listed twice");
            report.add(*place, what, "write each core once".to_owned());
        }
    }
}

fn devices(report: &mut Report<'_>, config: &Config, places: &Places) {
    if places.no_device {
        let instead = "write [[device]] with driver = \"uring\" and path = \"/dev/nvme0n1\"";
        report.add_missing("there is no device", instead);
    }
    let mut seen = BTreeSet::new();
    for (device, place) in config.devices.iter().zip(&places.devices) {
        if !device.path.as_os_str().is_empty() && !seen.insert(&device.path) {
            let what = format!("device {} is listed twice", device.path.display());
            report.add(*place, what, "write another path, or remove it".to_owned());
        }
    }
}

fn arena(report: &mut Report<'_>, config: &Config, places: &Places) {
    let (have, need) = (config.daemon.arena_bytes, config.arena_bytes_min());
    if have < need {
        let what = format!(
            "the arena of {} is smaller than the queues need ({}, {}, queue_depth {})",
            format_size(have),
            count(config.daemon.cores.len(), "core"),
            count(config.devices.len(), "device"),
            config.daemon.queue_depth,
        );
        let rounded = need.next_multiple_of(16 << 20);
        report.add(places.arena, what, format!("write arena = \"{}\"", format_size(rounded)));
    }
}

/// "1 core", "2 cores".
fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn listeners(report: &mut Report<'_>, config: &Config, places: &Places) {
    if places.no_listener {
        let instead = "write [[listen]] with transport = \"tcp\" and address = \"127.0.0.1:7400\"";
        report.add_missing("there is no listener", instead);
    }
    let ports = config.daemon.cores.len().min(usize::from(u16::MAX)) as u16;
    for (index, listen) in config.listeners.iter().enumerate() {
        let (is_rdma, address) = match listen {
            Listen::Tcp { address, .. } => (false, *address),
            Listen::Rdma { address, .. } => (true, *address),
            Listen::Shm { path, .. } => {
                shared_path(report, config, index, path, places.listeners[index]);
                continue;
            }
        };
        let first = address.port();
        if first.checked_add(ports - 1).is_none() {
            let what = format!("port {first} leaves no room for {ports} cores, one port each");
            let instead = format!("write a port up to {}", u16::MAX - (ports - 1));
            report.add(places.listeners[index], what, instead);
        }
        let mut others = config.listeners[..index].iter().filter_map(|other| match other {
            Listen::Tcp { address, .. } if !is_rdma => Some(*address),
            Listen::Rdma { address, .. } if is_rdma => Some(*address),
            _ => None,
        });
        if let Some(other) = others.find(|other| overlap(*other, address, ports)) {
            let what = format!(
                "listener {address} overlaps with {other}, as each takes {}, one for each core",
                count(usize::from(ports), "port"),
            );
            let instead = match other.port().checked_add(ports) {
                Some(port) => format!("write port {port} or higher"),
                None => "write a lower port".to_owned(),
            };
            report.add(places.listeners[index], what, instead);
        }
    }
}

/// Two listeners over shared memory want the same sockets.
fn shared_path(report: &mut Report<'_>, config: &Config, index: usize, path: &Path, place: usize) {
    let same = |other: &Listen| matches!(other, Listen::Shm { path: other, .. } if other == path);
    if config.listeners[..index].iter().any(same) {
        let what = format!("listener {} is there twice", path.display());
        report.add(place, what, "write another path, or remove it".to_owned());
    }
    let admin = config.daemon.admin_socket.as_os_str();
    let socket = |reactor| format!("{}.{reactor}", path.display());
    if (0..config.daemon.cores.len()).any(|reactor| admin == socket(reactor).as_str()) {
        let what = format!("listener {} takes the path of the admin socket", path.display());
        report.add(place, what, "write another path".to_owned());
    }
}

/// Two listeners want the same port of the same address; an unspecified address is every address
/// (`[::]` takes IPv4 too).
fn overlap(left: SocketAddr, right: SocketAddr, ports: u16) -> bool {
    let everywhere = |one: SocketAddr, other: SocketAddr| {
        one.ip().is_unspecified() && (one.is_ipv6() || other.is_ipv4())
    };
    let same = left.ip() == right.ip() || everywhere(left, right) || everywhere(right, left);
    same && left.port().abs_diff(right.port()) < ports
}

fn namespaces(report: &mut Report<'_>, config: &Config, places: &Places) {
    let mut seen = BTreeSet::new();
    for (namespace, place) in config.namespaces.iter().zip(&places.namespaces) {
        if !seen.insert(&namespace.name) {
            let what = format!("namespace \"{}\" is there twice", namespace.name);
            report.add(*place, what, "write another name, or remove it".to_owned());
        }
    }
}

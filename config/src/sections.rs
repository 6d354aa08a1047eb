//! From TOML to [`Config`]: one function for each section of the file.

use crate::problem::{Problem, Report};
use crate::read::{self, Found, Section};
use crate::{Class, Config, Daemon, Device, Driver, Listen, Log, LogFormat, LogLevel};
use crate::{DEVICE_BYTES_MIN, Machine, Namespace, Nvme, SHM_MODE, SHM_PATH_BYTES_MAX, check};
use std::net::SocketAddr;
use std::path::PathBuf;
use toml::de::{DeTable, DeValue};

/// Where the values that [`check`] compares with one another stand in the file.
pub(crate) struct Places {
    /// Of each core in `cores`; of the section where the key is missing.
    pub(crate) cores: Vec<usize>,
    pub(crate) arena: usize,
    /// There is no `[[device]]` at all, not even a wrong one.
    pub(crate) no_device: bool,
    /// There is no `[[listen]]` at all.
    pub(crate) no_listener: bool,
    /// Of each device's `path`.
    pub(crate) devices: Vec<usize>,
    /// Of each listener's `address`.
    pub(crate) listeners: Vec<usize>,
    /// Of each namespace's `name`.
    pub(crate) namespaces: Vec<usize>,
}

pub(crate) fn parse(file: &str, text: &str, machine: &Machine) -> Result<Config, Vec<Problem>> {
    let mut report = Report::new(file, text);
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let offset = error.span().map_or(0, |span| span.start);
        let what = format!("not TOML: {}", error.message().replace('\n', ", "));
        report.add(offset, what, "mend the line, then the rest can be checked".to_owned());
    }
    if !report.is_empty() {
        return Err(report.finish());
    }
    let (config, places) = root(&mut report, document.get_ref());
    check::check(&mut report, &config, &places, machine);
    if report.is_empty() { Ok(config) } else { Err(report.finish()) }
}

fn root(report: &mut Report<'_>, table: &DeTable<'_>) -> (Config, Places) {
    let mut root = Section::new("the file", table, 0);
    let (daemon, cores, arena) = daemon(report, &mut root);
    let (devices, device_places) = list(report, &mut root, "device", device).unzip();
    let (listeners, listener_places) = list(report, &mut root, "listen", listen).unzip();
    let (namespaces, namespace_places) = list(report, &mut root, "namespace", namespace).unzip();
    let log = log(report, &mut root);
    root.finish(report);
    let is_missing = |key| match table.get(key) {
        Some(value) => value.get_ref().as_array().is_some_and(|tables| tables.is_empty()),
        None => true,
    };
    let places = Places {
        cores,
        arena,
        no_device: is_missing("device"),
        no_listener: is_missing("listen"),
        devices: device_places,
        listeners: listener_places,
        namespaces: namespace_places,
    };
    (Config { daemon, devices, listeners, namespaces, log }, places)
}

/// Reads every table of `[[key]]`; what could not be read has been reported.
fn list<T>(
    report: &mut Report<'_>,
    root: &mut Section<'_, '_>,
    key: &'static str,
    one: impl Fn(&mut Report<'_>, &DeTable<'_>, usize) -> Option<Found<T>>,
) -> impl Iterator<Item = (T, usize)> {
    let example = format!("[[{key}]] above each one");
    let tables = root.read(report, key, &example, read::tables).map(|found| found.value);
    let mut items = Vec::new();
    for Found { value, offset } in tables.unwrap_or_default() {
        items.extend(one(report, value, offset).map(|found| (found.value, found.offset)));
    }
    items.into_iter()
}

fn table<'a, 's>(value: &'a DeValue<'s>) -> Result<&'a DeTable<'s>, String> {
    value.as_table().ok_or_else(|| format!("is {}", read::a_type(value)))
}

fn daemon(report: &mut Report<'_>, root: &mut Section<'_, '_>) -> (Daemon, Vec<usize>, usize) {
    let mut daemon = Daemon::default();
    let found = root.read(report, "daemon", "[daemon], once, above its keys", table);
    let Some(Found { value, offset }) = found else {
        return (daemon, vec![root.offset()], root.offset());
    };
    let mut section = Section::new("[daemon]", value, offset);
    let mut places = vec![offset];
    if let Some(cores) = section.read(report, "cores", "cores = [0, 1]", cores) {
        (daemon.cores, places) = cores.value.into_iter().unzip();
    }
    let size = |value: &DeValue<'_>| read::size(value, 1);
    let mut arena_place = offset;
    if let Some(arena) = section.read(report, "arena", "a size like arena = \"256MiB\"", size) {
        (daemon.arena_bytes, arena_place) = (arena.value, arena.offset);
    }
    let example = "a size like dram_tier = \"4GiB\", or nothing for none";
    if let Some(tier) = section.read(report, "dram_tier", example, size) {
        daemon.dram_tier_bytes = tier.value;
    }
    if let Some(index) = section
        .read(report, "index", "a size like index = \"256MiB\"", |value| read::size(value, 1 << 20))
    {
        daemon.index_bytes = index.value;
    }
    let example = "admin_socket = \"/run/forebay/admin.sock\"";
    if let Some(path) = section.read(report, "admin_socket", example, read::filled) {
        daemon.admin_socket = PathBuf::from(path.value);
    }
    let mut number = |key, example, range, target: &mut u32| {
        if let Some(found) = section.read(report, key, example, |value| read::integer(value, range))
        {
            *target = found.value;
        }
    };
    let target = &mut daemon;
    number("idle_after_us", "idle_after_us = 200", 0..=10_000_000, &mut target.idle_after_us);
    number(
        "drain_timeout_ms",
        "drain_timeout_ms = 10000",
        0..=600_000,
        &mut target.drain_timeout_ms,
    );
    number("queue_depth", "queue_depth = 128", 1..=4096, &mut target.queue_depth);
    number("keep_alive_ms", "keep_alive_ms = 10000", 100..=600_000, &mut target.keep_alive_ms);
    section.finish(report);
    (daemon, places, arena_place)
}

fn cores(value: &DeValue<'_>) -> Result<Vec<(usize, usize)>, String> {
    let array =
        value.as_array().ok_or_else(|| format!("is {}, not a list", read::a_type(value)))?;
    if array.is_empty() {
        return Err("is an empty list".to_owned());
    }
    let core = |item: &toml::Spanned<DeValue<'_>>| {
        read::integer(item.get_ref(), 0..=u32::from(u16::MAX))
            .map(|core| (core as usize, item.span().start))
            .map_err(|wrong| format!("holds a value that {wrong}"))
    };
    array.iter().map(core).collect()
}

fn device(report: &mut Report<'_>, table: &DeTable<'_>, offset: usize) -> Option<Found<Device>> {
    let mut section = Section::new("[[device]]", table, offset);
    let example = "driver = \"vfio\" (an NVMe drive, by its PCI address), \"uring\" (a file or block \
                   device) or \"sim\" (memory)";
    let choices = [("uring", Driver::Uring), ("vfio", Driver::Vfio), ("sim", Driver::Sim)];
    let driver = section.require(report, "driver", example, |value| read::choice(value, &choices));
    let device = match driver?.value {
        Driver::Uring => uring_device(report, &mut section),
        Driver::Vfio => vfio_device(report, &mut section),
        Driver::Sim => sim_device(report, &mut section),
    };
    section.finish(report);
    device
}

fn uring_device(report: &mut Report<'_>, section: &mut Section<'_, '_>) -> Option<Found<Device>> {
    let example = "path = \"/var/lib/forebay/forebay.img\" or \"/dev/nvme0n1\"";
    let path = section.require(report, "path", example, read::filled);
    let size = device_size(report, section);
    let blank = section.read(report, "format_if_blank", "format_if_blank = true", read::boolean);
    let path = path?;
    let block_device = path.value.starts_with("/dev/") && !path.value.starts_with("/dev/shm/");
    if let Some(size) = size.filter(|_| block_device) {
        let what = "`size` is for a file, and a block device has its own".to_owned();
        report.add(size.offset, what, "remove it".to_owned());
    }
    let value = Device {
        driver: Driver::Uring,
        path: PathBuf::from(path.value),
        size_bytes: size.map(|size| size.value),
        format_if_blank: blank.is_some_and(|blank| blank.value),
        nvme: Nvme::default(),
    };
    Some(Found { value, offset: path.offset })
}

fn vfio_device(report: &mut Report<'_>, section: &mut Section<'_, '_>) -> Option<Found<Device>> {
    let example = "pci = \"0000:03:00.0\"; `forebay devices list` shows the addresses";
    let pci = section.require(report, "pci", example, read::pci_address);
    let blank = section.read(report, "format_if_blank", "format_if_blank = true", read::boolean);
    let mut nvme = Nvme::default();
    let mut number = |key, example, range| {
        section.read(report, key, example, |value| read::integer(value, range))
    };
    nvme.namespace =
        number("namespace", "namespace = 1", 1..=u32::MAX - 1).map(|found| found.value);
    if let Some(found) = number("timeout_ms", "timeout_ms = 5000", 10..=600_000) {
        nvme.timeout_ms = found.value;
    }
    let example = "shadow_doorbells = true";
    if let Some(found) = section.read(report, "shadow_doorbells", example, read::boolean) {
        nvme.shadow_doorbells = found.value;
    }
    let pci = pci?;
    let value = Device {
        driver: Driver::Vfio,
        path: PathBuf::from(pci.value),
        size_bytes: None,
        format_if_blank: blank.is_some_and(|blank| blank.value),
        nvme,
    };
    Some(Found { value, offset: pci.offset })
}

fn sim_device(report: &mut Report<'_>, section: &mut Section<'_, '_>) -> Option<Found<Device>> {
    let size = device_size(report, section);
    if size.is_none() && section.raw("size").is_none() {
        let what = "[[device]] has no `size`".to_owned();
        report.add(section.offset(), what, "write size = \"1GiB\"".to_owned());
    }
    let size = size?;
    let value = Device {
        driver: Driver::Sim,
        path: PathBuf::new(),
        size_bytes: Some(size.value),
        format_if_blank: true,
        nvme: Nvme::default(),
    };
    Some(Found { value, offset: section.offset() })
}

fn device_size(report: &mut Report<'_>, section: &mut Section<'_, '_>) -> Option<Found<u64>> {
    section.read(report, "size", "a size like size = \"4GiB\"", |value| {
        read::size(value, DEVICE_BYTES_MIN)
    })
}

fn listen(report: &mut Report<'_>, table: &DeTable<'_>, offset: usize) -> Option<Found<Listen>> {
    let mut section = Section::new("[[listen]]", table, offset);
    let example = "transport = \"tcp\", \"rdma\" or \"shm\" (shared memory, on this host)";
    let choices = [("tcp", listen_tcp as ReadListen), ("rdma", listen_rdma), ("shm", listen_shm)];
    let transport =
        section.require(report, "transport", example, |value| read::choice(value, &choices));
    // Without it, which keys belong here cannot be told.
    let listen = transport?.value;
    let listen = listen(report, &mut section);
    section.finish(report);
    listen
}

/// Receives of an RDMA listener: enough for as many connections as a reactor has at most.
const RECEIVES: u16 = 4096;

type ReadListen = fn(&mut Report<'_>, &mut Section<'_, '_>) -> Option<Found<Listen>>;

fn listen_tcp(report: &mut Report<'_>, section: &mut Section<'_, '_>) -> Option<Found<Listen>> {
    let (Found { value: address, offset }, preference) = on_a_network(report, section)?;
    Some(Found { value: Listen::Tcp { address, preference }, offset })
}

fn listen_rdma(report: &mut Report<'_>, section: &mut Section<'_, '_>) -> Option<Found<Listen>> {
    let (Found { value: address, offset }, preference) = on_a_network(report, section)?;
    let example = "receives = 4096 (shared by the connections of a core; each takes 4 or more)";
    let receives = section.read(report, "receives", example, |v| read::integer(v, 64..=32_768));
    let receives = receives.map_or(RECEIVES, |found| found.value as u16);
    Some(Found { value: Listen::Rdma { address, preference, receives }, offset })
}

/// What listeners on a network have: an address, and where they stand among their like.
fn on_a_network(
    report: &mut Report<'_>,
    section: &mut Section<'_, '_>,
) -> Option<(Found<SocketAddr>, u16)> {
    let example = "preference = 0 (clients try the lowest first)";
    let range = 0..=u32::from(u16::MAX);
    let preference = section.read(report, "preference", example, |v| read::integer(v, range));
    let example = "an IP address and a port, like address = \"127.0.0.1:7400\"";
    let address = section.require(report, "address", example, |value| {
        let text = read::filled(value)?;
        let address = text
            .parse::<SocketAddr>()
            .map_err(|_| format!("is \"{text}\", which is no address"))?;
        if address.port() == 0 { Err("has port 0".to_owned()) } else { Ok(address) }
    });
    Some((address?, preference.map_or(0, |found| found.value as u16)))
}

fn listen_shm(report: &mut Report<'_>, section: &mut Section<'_, '_>) -> Option<Found<Listen>> {
    let example = format!(
        "an absolute path of at most {SHM_PATH_BYTES_MAX} bytes, like path = \"/run/forebay/shm\""
    );
    let path = section.require(report, "path", &example, |value| {
        let path = read::filled(value)?;
        match path.len() {
            length if length > SHM_PATH_BYTES_MAX => Err(format!("is {length} bytes long")),
            _ if !path.starts_with('/') => Err(format!("is \"{path}\", which is not absolute")),
            _ if path.ends_with('/') => Err(format!("is \"{path}\", which is a folder")),
            _ => Ok(path),
        }
    });
    let example = "mode = \"0600\" (this user) or \"0660\" (and its group)";
    let mode = section.read(report, "mode", example, |value| {
        let text = read::filled(value)?;
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| mode & !0o777 == 0);
        let mode = mode.ok_or_else(|| format!("is \"{text}\", which is no mode of a file"))?;
        let owner = mode & 0o600 == 0o600;
        if owner { Ok(mode) } else { Err(format!("is \"{text}\", which shuts its owner out")) }
    });
    let mode = mode.map_or(SHM_MODE, |found| found.value);
    path.map(|found| Found {
        value: Listen::Shm { path: PathBuf::from(found.value), mode },
        offset: found.offset,
    })
}

fn namespace(
    report: &mut Report<'_>,
    table: &DeTable<'_>,
    offset: usize,
) -> Option<Found<Namespace>> {
    let mut section = Section::new("[[namespace]]", table, offset);
    let example = "1 to 48 of a-z 0-9 . _ -, beginning with a letter or digit, like \
                   name = \"default\"";
    let name = section.require(report, "name", example, check::namespace_name);
    let classes = [("cache", Class::Cache), ("durable", Class::Durable)];
    let example = "class = \"durable\" (never loses) or \"cache\" (may evict)";
    let class = section.require(report, "class", example, |value| read::choice(value, &classes));
    let example = "a size like quota = \"100GiB\", or nothing for no limit";
    let quota = section.read(report, "quota", example, |value| read::size(value, 1));
    let example = "a duration like ttl = \"1h\" (s, m, h, d), or nothing to keep values";
    let ttl = section.read(report, "ttl", example, read::duration_s);
    section.finish(report);
    let (name, class) = (name?, class?);
    let value = Namespace {
        name: name.value,
        class: class.value,
        quota_bytes: quota.map(|quota| quota.value),
        ttl_s: ttl.map(|ttl| ttl.value),
    };
    Some(Found { value, offset: name.offset })
}

fn log(report: &mut Report<'_>, root: &mut Section<'_, '_>) -> Log {
    let mut log = Log::default();
    let Some(found) = root.read(report, "log", "[log], once, above its keys", table) else {
        return log;
    };
    let mut section = Section::new("[log]", found.value, found.offset);
    use LogLevel::{Debug, Error, Info, Trace, Warn};
    let levels = [Error, Warn, Info, Debug, Trace].map(|level| (level.name(), level));
    let example = "level = \"info\" (or error, warn, debug, trace)";
    if let Some(level) = section.read(report, "level", example, |v| read::choice(v, &levels)) {
        log.level = level.value;
    }
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let example = "format = \"text\" or \"json\"";
    if let Some(format) = section.read(report, "format", example, |v| read::choice(v, &formats)) {
        log.format = format.value;
    }
    section.finish(report);
    log
}

//! The annotated examples are what people copy: each one parses, and says what it seems to say.

use forebay_config::{Class, Config, Driver, Listen, Machine, Nvme, address_of};
use std::path::Path;

fn example(name: &str) -> Config {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    let text = std::fs::read_to_string(path).expect("the example is there");
    Config::parse(name, &text, &Machine { cpus: 18 }).unwrap_or_else(|problems| {
        panic!("{}", problems.iter().map(|p| format!("{p}\n")).collect::<String>())
    })
}

#[test]
fn dev_is_the_embedded_default_with_its_files_in_tmp() {
    let mut config = example("dev.toml");
    assert_eq!(config.namespaces[1].quota_bytes, Some(2 << 30));
    assert_eq!(config.namespaces[1].ttl_s, Some(3600));
    (config.namespaces[1].quota_bytes, config.namespaces[1].ttl_s) = (None, None);
    assert_eq!(config, Config::embedded(Path::new("/tmp/forebay")));
}

#[test]
fn single_nvme_parses() {
    let config = example("single-nvme.toml");
    assert_eq!(config.daemon.cores, [0, 1, 2, 3]);
    assert_eq!(config.devices.len(), 1);
    assert_eq!(config.devices[0].driver, Driver::Vfio);
    assert_eq!(config.devices[0].path, Path::new("0000:03:00.0"));
    assert_eq!(config.devices[0].nvme, Nvme::default());
    assert!(!config.devices[0].format_if_blank);
    assert_eq!(config.arena_bytes_min(), 192 << 20);
    assert_eq!(config.daemon.dram_tier_bytes, 8 << 30);
    let Listen::Tcp { address, .. } = config.listeners[0] else {
        panic!("the first listener is TCP")
    };
    assert_eq!(address_of(address, 3), "0.0.0.0:7403".parse().unwrap());
    let path = "/run/forebay/shm".into();
    assert_eq!(config.listeners[1], Listen::Shm { path, mode: 0o600 });
}

#[test]
fn eight_nvme_parses() {
    let config = example("eight-nvme.toml");
    assert_eq!(config.daemon.cores.len(), 16);
    assert_eq!(config.devices.len(), 8);
    assert_eq!(config.devices[7].path, Path::new("0000:48:00.0"));
    assert_eq!(config.arena_bytes_min(), 1536 << 20);
    let address = "192.168.20.1:7400".parse().unwrap();
    assert_eq!(config.listeners[1], Listen::Rdma { address, preference: 0, receives: 4096 });
    assert_eq!(config.listeners[3], Listen::Tcp { address, preference: 1 });
    assert_eq!(config.namespaces[1].class, Class::Cache);
}

#[test]
fn the_domain_of_a_drive_may_have_more_than_four_digits() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/single-nvme.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let moved = text.replace("0000:03:00.0", "10000:E1:00.0");
    let config = Config::parse("single-nvme.toml", &moved, &Machine { cpus: 4 }).unwrap();
    assert_eq!(config.devices[0].path, Path::new("10000:e1:00.0"));
}

/// The comment in `dev.toml` promises it: every commented-out key shows the real default.
#[test]
fn the_defaults_that_dev_shows_are_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/dev.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let is_key = |word: &str| word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let uncomment = |line: &str| {
        let rest = line.strip_prefix("# ")?;
        let (key, _) = rest.split_once(" = ")?;
        is_key(key).then(|| rest.to_owned())
    };
    let shown: String = text
        .lines()
        .map(|line| uncomment(line).unwrap_or_else(|| line.to_owned()) + "\n")
        .collect();
    assert_ne!(shown, text);
    let config = Config::parse("dev.toml", &shown, &Machine { cpus: 1 }).unwrap();
    assert_eq!(config, example("dev.toml"));
}

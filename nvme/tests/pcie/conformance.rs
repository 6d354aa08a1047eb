//! The block queue suite, on honest drives of every kind.

use forebay_nvme::conformance::{Harness, POOL_BYTES_MIN, run};
use forebay_nvme::emulated::{
    EmulatedConfig, EmulatedController, Identity, NamespaceConfig, RegisterConfig, Times,
};
use forebay_nvme::sim::Faults;

use crate::rig::{Rig, options, pool};

fn conforms(config: &EmulatedConfig, depth: u32) {
    let make = &mut || {
        let pool = pool(POOL_BYTES_MIN);
        let emulated = EmulatedController::new(config.clone());
        Harness { queue: Box::new(Rig::on(emulated, options(), depth, &pool)), pool }
    };
    run(make, config.seed);
}

#[test]
fn pcie_conforms_on_an_ordinary_drive() {
    conforms(&EmulatedConfig::default(), 128);
}

#[test]
fn pcie_conforms_at_every_depth() {
    for depth in [1, 2, 31, 200] {
        conforms(&EmulatedConfig::default(), depth);
    }
}

#[test]
fn pcie_conforms_when_nothing_takes_time() {
    conforms(&EmulatedConfig { times: Times::none(), ..EmulatedConfig::default() }, 64);
}

#[test]
fn pcie_conforms_with_sectors_of_512_bytes() {
    let namespaces = vec![NamespaceConfig::new(1, 65_536, 9)];
    conforms(&EmulatedConfig { namespaces, ..EmulatedConfig::default() }, 32);
}

#[test]
fn pcie_conforms_with_shadow_doorbells_at_any_stride() {
    for doorbell_stride in [0, 3] {
        let registers = RegisterConfig { doorbell_stride, ..RegisterConfig::default() };
        let identity = Identity { oacs: 1 << 8, ..Identity::default() };
        conforms(&EmulatedConfig { registers, identity, ..EmulatedConfig::default() }, 64);
    }
}

#[test]
fn pcie_conforms_with_scatter_gather_lists() {
    let identity = Identity { sgls: 2, mdts: 0, ..Identity::default() };
    conforms(&EmulatedConfig { identity, ..EmulatedConfig::default() }, 64);
}

#[test]
fn pcie_conforms_on_a_tiny_controller() {
    let registers = RegisterConfig { mqes: 1, ..RegisterConfig::default() };
    let identity = Identity { mdts: 1, oncs: 0, acl: 0, aerl: 0, ..Identity::default() };
    let config = EmulatedConfig { registers, identity, queues: 1, ..EmulatedConfig::default() };
    conforms(&config, 128);
}

fn personalities(from: u64) {
    for seed in from..from + 30 {
        let mut config = EmulatedConfig::personality(seed);
        config.media_faults = Faults::default();
        println!("seed {seed}: {config:?}");
        conforms(&config, 1 << (seed % 8));
    }
}

#[test]
fn pcie_conforms_on_sixty_personalities_first_half() {
    personalities(0);
}

#[test]
fn pcie_conforms_on_sixty_personalities_second_half() {
    personalities(30);
}

//! A whole drive out of a seed: its personality, and what goes wrong with it.
//!
//! Guarantees: the same seed is the same drive, and its `Debug` form says all of it. Most of them can be driven
//! most of the time; some must be refused; none loses what it has made durable, or returns what was not written
//! (a drive that lies is what the store's checksums are for, and not the driver's to find out).

use fastrand::Rng;

use super::config::{Identity, NamespaceConfig, RegisterConfig, Times, oacs, oncs};
use super::faults::{Chances, Scheduled, Stick};
use super::{EmulatedConfig, Faults};
use crate::sim::Latency;
use crate::spec::registers::Version;

/// Within this time the things happen that are scheduled.
const SCHEDULE_US: u64 = 400_000;

impl EmulatedConfig {
    /// An honest drive that nobody has met yet: every property within what the specification allows, of which
    /// a driver has no excuse to refuse any.
    #[must_use]
    pub fn personality(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ 0x7e55_0a17);
        let shift = if rng.bool() { 12 } else { 9 };
        let nsid = rng.choice([1, 1, 1, 2, 7, 4000]).unwrap_or(1);
        let mut namespace =
            NamespaceConfig::new(nsid, rng.u64(8192..65_536) << (12 - shift), shift);
        namespace.boundary = rng.choice([0, 0, 256, 8, 24]).unwrap_or(0);
        namespace.write_granularity = rng.bool().then(|| rng.u16(0..64));
        namespace.nawupf = rng.bool().then(|| rng.u16(0..16));
        if rng.bool() {
            // A format that is not in use does no harm.
            namespace.formats.push((9, 8));
        }
        Self {
            name: format!("emulated:{seed:x}"),
            seed,
            registers: registers(&mut rng),
            identity: identity(&mut rng),
            namespaces: vec![namespace],
            queues: rng.u32(1..32),
            times: times(&mut rng),
            iova_bits: if rng.bool() { 39 } else { 48 },
            ..Self::default()
        }
    }

    /// A personality, and what goes wrong with it.
    #[must_use]
    pub fn hostile(seed: u64) -> Self {
        let mut config = Self::personality(seed);
        let mut rng = Rng::with_seed(seed ^ 0xbad_d12e);
        config.seed = rng.u64(..);
        let harshness = rng.choice([0, 1, 1, 3, 10]).unwrap_or(1);
        config.io_chances = Chances { garbage: 0, ..chances(&mut rng, harshness) };
        config.admin_chances = chances(&mut rng, harshness / 2);
        config.media_faults = media_faults(&mut rng);
        if config.identity.ignores_fua {
            // The driver has flushes of its own then, and what one of those loses nobody could know.
            config.media_faults.flush_fail_per_mille = 0;
        }
        for _ in 0..rng.u32(..4) {
            let at_us = rng.u64(..SCHEDULE_US);
            let what = scheduled(&mut rng);
            if let Scheduled::Stick(_) = what
                && rng.bool()
            {
                config.schedule.push((at_us + rng.u64(..SCHEDULE_US), Scheduled::Unstick));
            }
            config.schedule.push((at_us, what));
        }
        if rng.u32(..8) == 0 {
            make_absurd(&mut config, &mut rng);
        }
        config
    }
}

fn registers(rng: &mut Rng) -> RegisterConfig {
    let ready_modes = rng.u8(..4);
    RegisterConfig {
        mqes: rng.choice([3, 15, 62, 127, 1023, 4095, u16::MAX]).unwrap_or(127),
        timeout: rng.u8(1..60),
        doorbell_stride: rng.choice([0, 0, 0, 1, 2, 4]).unwrap_or(0),
        page_min: 0,
        page_max: rng.u8(..5),
        command_sets: rng.choice([1, 1, 0x41]).unwrap_or(1),
        ready_modes,
        ready_timeouts: if ready_modes == 0 { 0 } else { rng.u32(1..60) * 0x1_0001 },
        version: Version::new(1, rng.u8(..5), 0),
        bar_bytes: rng.bool().then_some(0x4000),
    }
}

fn identity(rng: &mut Rng) -> Identity {
    let oncs = [oncs::COMPARE, oncs::DATASET_MANAGEMENT, oncs::WRITE_ZEROES, oncs::VERIFY];
    let doorbell_buffers = if rng.bool() { oacs::DOORBELL_BUFFERS } else { 0 };
    Identity {
        serial: format!("EMU{:08x}", rng.u32(..)),
        mdts: rng.choice([0, 1, 3, 5, 7, 9]).unwrap_or(5),
        volatile_write_cache: rng.u32(..4) > 0,
        awupf: rng.choice([0, 0, 7, 255, u16::MAX]).unwrap_or(0),
        oncs: oncs.into_iter().filter(|_| rng.u32(..4) > 0).sum(),
        oacs: oacs::FORMAT | doorbell_buffers,
        sgls: rng.choice([0, 1, 2, 1 | 1 << 18]).unwrap_or(0),
        acl: rng.choice([0, 3, 3, 15]).unwrap_or(3),
        aerl: rng.choice([0, 3, 3, 15]).unwrap_or(3),
        oaes: rng.choice([0, 0x100, 0x300]).unwrap_or(0),
        crdt: [rng.u16(..3), rng.u16(..10), rng.u16(..30)],
        ..if rng.u32(..4) == 0 { Identity::ignoring_fua() } else { Identity::default() }
    }
}

fn times(rng: &mut Rng) -> Times {
    let io = match rng.u32(..4) {
        0 => Latency::none(),
        1 => Latency { read_us: 1..3, write_us: 1..3, flush_us: 1..50, discard_us: 1..10 },
        _ => Latency::default(),
    };
    Times { io, enable_us: 0..rng.u64(1..200_000), ..Times::default() }
}

/// Of 10 000 commands, on the average `harshness` × 10 or so meet each fault that is possible at all.
fn chances(rng: &mut Rng, harshness: u32) -> Chances {
    let mut chance = |most: u32| if rng.bool() { rng.u32(..=most * harshness) } else { 0 };
    Chances {
        transient: chance(40),
        permanent: chance(10),
        lost: chance(6),
        late: chance(10),
        duplicate: chance(3),
        unknown_cid: chance(3),
        wrong_phase: chance(3),
        wrong_sq_id: chance(3),
        wrong_sq_head: chance(20),
        fatal: chance(2),
        stray_dma: chance(5),
        garbage: chance(20),
        event_storm: chance(10),
        late_us: 8_000_000,
    }
}

fn media_faults(rng: &mut Rng) -> Faults {
    let mut chance = |most: u32| if rng.u32(..4) == 0 { rng.u32(..most) } else { 0 };
    Faults {
        read_fail_per_mille: chance(20),
        write_fail_per_mille: chance(20),
        flush_fail_per_mille: chance(20),
        ..Faults::default()
    }
}

fn scheduled(rng: &mut Rng) -> Scheduled {
    match rng.u32(..12) {
        0 | 1 => Scheduled::Fatal,
        2 => Scheduled::Unplug,
        3 => Scheduled::RequestRemoval,
        4 => Scheduled::BusError,
        5 => Scheduled::CriticalWarning(rng.u8(..)),
        6 => Scheduled::NamespaceChanged(rng.u32(..)),
        7 => Scheduled::EventStorm(rng.u32(..200)),
        8 => Scheduled::Stick(
            rng.choice([Stick::AtZero, Stick::AtOne, Stick::AtOneUntilReset])
                .unwrap_or(Stick::AtZero),
        ),
        9 => Scheduled::FailResets(rng.choice([1, 2, u32::MAX]).unwrap_or(1)),
        10 => Scheduled::Stall { us: rng.u64(..10_000_000) },
        _ => Scheduled::Fatal,
    }
}

/// One or two things that no drive should say.
fn make_absurd(config: &mut EmulatedConfig, rng: &mut Rng) {
    for _ in 0..rng.u32(1..3) {
        let namespace = &mut config.namespaces[0];
        match rng.u32(..16) {
            0 => namespace.lbas = 0,
            1 => namespace.lbas = u64::MAX,
            2 => namespace.formats[0] = (rng.u8(..), 0),
            3 => namespace.formats[0] = (rng.u8(9..13), rng.u16(1..200)),
            4 => namespace.protection = rng.u8(..),
            5 => namespace.format = rng.u8(..),
            6 => namespace.boundary = rng.u16(..),
            7 => config.namespaces.clear(),
            8 => config.identity.nn = Some(rng.choice([0, 1, u32::MAX]).unwrap_or(0)),
            9 => config.identity.mdts = rng.u8(..),
            10 => config.registers.mqes = rng.choice([0, 1, 2]).unwrap_or(0),
            11 => config.queues = rng.choice([0, 60_000]).unwrap_or(0),
            12 => config.registers.command_sets = rng.choice([0, 0x80]).unwrap_or(0),
            13 => config.registers.page_min = rng.u8(1..16),
            14 => config.registers.bar_bytes = Some(rng.usize(0x1008..0x1100)),
            _ => config.registers.doorbell_stride = rng.u8(5..16),
        }
        if config.namespaces.is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_is_the_same_drive() {
        for seed in 0..200 {
            let [one, two] = [(); 2].map(|()| format!("{:?}", EmulatedConfig::hostile(seed)));
            assert_eq!(one, two);
        }
        assert_ne!(
            format!("{:?}", EmulatedConfig::hostile(1)),
            format!("{:?}", EmulatedConfig::hostile(2))
        );
    }

    #[test]
    fn every_absurdity_can_be_made_into_a_controller() {
        for seed in 0..2000 {
            let controller = super::super::EmulatedController::new(EmulatedConfig::hostile(seed));
            for now_us in (0..SCHEDULE_US).step_by(50_000) {
                controller.step(now_us);
            }
        }
    }
}

//! What resets and power cuts leave behind.

use std::collections::BTreeSet;

use forebay_nvme::emulated::{
    EmulatedConfig, EmulatedController, Fault, Identity, NamespaceConfig, On, Rule,
};
use forebay_nvme::hardware::Hardware;
use forebay_nvme::spec::command::{Data, Submission};
use forebay_nvme::spec::opcode::io;

use crate::host::Host;

fn host(seed: u64) -> Host {
    Host::with_queue(EmulatedConfig { seed, ..EmulatedConfig::default() }, 32)
}

/// The first byte of each sector of a block.
fn sectors(controller: &EmulatedController, block: u64) -> Vec<u8> {
    controller.peek(1, block).chunks(512).map(|sector| sector[0]).collect()
}

#[test]
fn what_was_flushed_or_forced_outlives_a_power_cut() {
    for seed in 0..50 {
        let mut host = host(seed);
        assert!(host.write(0, 4, 10, false).status().ok());
        assert!(host.run(1, Submission::flush(1)).status().ok());
        assert!(host.write(8, 4, 20, true).status().ok());
        host.controller.crash(seed);
        assert!(!host.status().ready(), "power cuts disable it");
        for at in 0..4 {
            assert_eq!(sectors(&host.controller, at), [10 + at as u8; 8]);
            assert_eq!(sectors(&host.controller, 8 + at), [20 + at as u8; 8]);
        }
        host.enable();
        host.add_pair(1, 8);
        host.expect(0, 4, 10);
        host.assert_clean();
    }
}

#[test]
fn what_was_only_cached_may_be_lost_torn_or_kept() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let mut host = host(seed);
        assert!(host.write(0, 1, 1, true).status().ok());
        assert!(host.write(0, 1, 2, false).status().ok());
        host.controller.crash(seed);
        let left = sectors(&host.controller, 0);
        assert!(left.iter().all(|byte| *byte == 1 || *byte == 2));
        let news = left.iter().filter(|byte| **byte == 2).count();
        seen.insert(match news {
            0 => "lost",
            8 => "kept",
            _ => "torn",
        });
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn without_a_volatile_cache_completed_is_durable() {
    for disabled in [false, true] {
        let identity = Identity { volatile_write_cache: disabled, ..Identity::default() };
        let mut host =
            Host::with_queue(EmulatedConfig { identity, ..EmulatedConfig::default() }, 8);
        if disabled {
            assert!(host.write(1, 1, 4, false).status().ok());
            assert!(host.admin(Submission::set_feature(6, 0, 0)).status().ok());
        }
        assert!(host.write(0, 1, 3, false).status().ok());
        for seed in 0..20 {
            host.controller.crash(seed);
            assert_eq!(sectors(&host.controller, 0), [3; 8]);
            assert_eq!(sectors(&host.controller, 1), [if disabled { 4 } else { 0 }; 8]);
        }
    }
}

/// Four writes in flight, and then `stop`. Returns which of them are on the media, block by block.
fn interrupted(seed: u64, stop: impl FnOnce(&mut Host)) -> Vec<Vec<u8>> {
    let mut host = host(seed);
    let buffers = [(); 4].map(|()| host.buffer(2, 7));
    for (lba, buffer) in (0..).step_by(2).zip(&buffers) {
        let (data, _) = host.prps(buffer, 2);
        host.submit(1, Submission::write(1, lba, 2, data, true));
    }
    host.controller.step(host.now_us);
    assert_eq!(host.controller.counters().in_flight, 4);
    stop(&mut host);
    assert_eq!(host.controller.counters().in_flight, 0);
    // Whatever happens to the buffers now, it is too late.
    let mut buffers = buffers;
    buffers.iter_mut().for_each(|buffer| buffer.fill(0x99));
    let left: Vec<Vec<u8>> = (0..8).map(|block| sectors(&host.controller, block)).collect();
    host.pass(1_000_000);
    let later: Vec<Vec<u8>> = (0..8).map(|block| sectors(&host.controller, block)).collect();
    assert_eq!(left, later, "it was quiet");
    host.reap(1);
    assert!(host.pairs.get(&1).is_none_or(|pair| pair.log.is_empty()), "nothing completed");
    host.assert_clean();
    left
}

#[test]
fn a_reset_in_any_state_drops_what_is_in_flight() {
    for stop in 0..5 {
        let (mut written, mut missing) = (0, 0);
        for seed in 0..40 {
            let left = interrupted(seed, |host| match stop {
                0 => host.disable(),
                1 => host.hardware.reset().unwrap(),
                2 => host.controller.crash(seed),
                3 => host.controller.unplug(),
                _ => {
                    host.controller.fail_fatally();
                    host.disable();
                }
            });
            for (at, block) in left.iter().enumerate() {
                let fill = 7 + (at % 2) as u8;
                assert!(block.iter().all(|byte| *byte == fill || *byte == 0));
                written += usize::from(block[0] == fill);
                missing += usize::from(block[0] == 0);
            }
        }
        assert!(written > 20 && missing > 20, "{stop}: {written} written, {missing} missing");
    }
}

#[test]
fn a_reset_while_it_gets_ready_or_quiet_is_no_surprise() {
    let mut host = Host::new(EmulatedConfig::default());
    host.start();
    host.controller.step(0);
    host.hardware.reset().unwrap();
    host.pass(1_000_000);
    assert!(!host.status().ready());
    host.enable();
    host.disable();
    host.hardware.reset().unwrap();
    host.enable();
    host.add_pair(1, 8);
    assert!(host.run(1, Submission::flush(1)).status().ok());
    host.assert_clean();
}

#[test]
fn a_controller_reset_keeps_the_volatile_cache() {
    let mut host = host(1);
    assert!(host.write(0, 2, 9, false).status().ok());
    host.disable();
    host.enable();
    host.add_pair(1, 8);
    host.expect(0, 2, 9);
    assert!(host.run(1, Submission::flush(1)).status().ok());
    host.controller.crash(3);
    assert_eq!(sectors(&host.controller, 1), [10; 8]);
}

#[test]
fn an_aborted_write_is_undecided() {
    let mut seen = BTreeSet::new();
    for seed in 0..60 {
        let mut host = host(seed);
        host.controller.add_rule(Rule::next(On::Io(io::WRITE), Fault::Late { us: 9_000_000 }));
        let buffer = host.buffer(1, 5);
        let data = Data::Prp(host.iova(buffer.as_ptr().addr()), 0);
        let cid = host.submit(1, Submission::write(1, 0, 1, data, true));
        host.controller.step(host.now_us);
        assert_eq!(host.admin(Submission::abort(1, cid)).result.get(), 0);
        seen.insert(host.controller.peek(1, 0)[0]);
    }
    assert_eq!(seen, BTreeSet::from([0, 5]));
}

#[test]
fn flips_and_edits_are_seen_by_reads() {
    let namespaces = vec![NamespaceConfig::new(1, 100, 12)];
    let mut host = Host::with_queue(EmulatedConfig { namespaces, ..EmulatedConfig::default() }, 8);
    assert!(host.write(3, 1, 0, true).status().ok());
    host.controller.flip_bit(1, 3, 12);
    let (_, buffer) = host.read(3, 1);
    assert_eq!(buffer[1], 1 << 4);
    host.controller.add_rule(Rule::next(On::Io(io::READ), Fault::FlipBit));
    let (_, buffer) = host.read(3, 1);
    let ones: u32 = buffer.iter().map(|byte| byte.count_ones()).sum();
    assert!(ones == 2 || ones == 0);
}

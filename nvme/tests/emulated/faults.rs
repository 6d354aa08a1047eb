//! Each fault does what it says, and chance replays.

use forebay_nvme::emulated::{
    Chances, EmulatedConfig, EmulatedController, Fault, On, Rule, Scheduled, Traced,
};
use forebay_nvme::sim;
use forebay_nvme::spec::command::{Data, Submission};
use forebay_nvme::spec::opcode::io;
use forebay_nvme::spec::status::{Status, generic, media};

use crate::host::Host;

fn host() -> Host {
    Host::with_queue(EmulatedConfig::default(), 16)
}

/// The next flush meets `fault`.
fn flush(host: &mut Host, fault: Fault) -> u16 {
    host.controller.add_rule(Rule::next(On::Io(io::FLUSH), fault));
    host.submit(1, Submission::flush(1))
}

#[test]
fn a_status_is_returned_as_it_is() {
    let mut host = host();
    let status = Status::new(generic::INTERNAL_ERROR).with_do_not_retry();
    let cid = flush(&mut host, Fault::Status(status));
    assert_eq!(host.try_await(1, cid).unwrap().status(), status);
    assert!(host.run(1, Submission::flush(1)).status().ok(), "once");
}

#[test]
fn a_retry_delay_is_asked_for_only_of_hosts_that_know_it() {
    let mut host = host();
    let status = Status::new(generic::INTERRUPTED).with_retry_delay(2);
    let cid = flush(&mut host, Fault::Status(status));
    assert_eq!(host.try_await(1, cid).unwrap().status().retry_delay(), 0);
    let mut buffer = host.buffer(1, 0);
    buffer[0] = 1;
    let data = Data::Prp(host.iova(buffer.as_ptr().addr()), 0);
    assert!(host.admin(Submission::set_host_behavior(data)).status().ok());
    let cid = flush(&mut host, Fault::Status(status));
    assert_eq!(host.try_await(1, cid).unwrap().status(), status);
}

#[test]
fn lost_and_late_commands_keep_others_going() {
    let mut host = host();
    let lost = flush(&mut host, Fault::Lost { abortable: true });
    host.controller.step(host.now_us);
    let late = flush(&mut host, Fault::Late { us: 3_000_000 });
    assert!(host.run(1, Submission::flush(1)).status().ok());
    let before_us = host.now_us;
    assert!(host.try_await(1, late).unwrap().status().ok());
    assert!(host.now_us >= before_us + 2_900_000);
    assert!(host.try_await(1, lost).is_none());
    assert_eq!(host.admin(Submission::abort(1, lost)).result.get(), 0);
    host.reap(1);
    assert!(!host.try_await(1, lost).unwrap().status().ok());
}

#[test]
fn a_duplicate_comes_twice() {
    let mut host = host();
    let cid = flush(&mut host, Fault::Duplicate { us: 500 });
    host.pass(10_000);
    host.reap(1);
    let cids: Vec<u16> = host.pairs[&1].log.iter().map(|entry| entry.cid.get()).collect();
    assert_eq!(cids, [cid, cid]);
}

#[test]
fn entries_are_spoiled_as_the_fault_says() {
    let mut host = host();
    let cid = flush(&mut host, Fault::UnknownCid);
    host.pass(10_000);
    host.reap(1);
    assert_ne!(host.pairs[&1].log[0].cid.get(), cid);
    let cid = flush(&mut host, Fault::WrongSqId);
    assert_ne!(host.try_await(1, cid).unwrap().sq_id.get(), 1);
    let cid = flush(&mut host, Fault::WrongSqHead);
    assert!(host.try_await(1, cid).unwrap().sq_head.get() > 16);
    let cid = flush(&mut host, Fault::WrongPhase);
    assert!(host.try_await(1, cid).is_none());
    let next = host.submit(1, Submission::flush(1));
    assert!(host.try_await(1, next).is_none(), "it lies behind the one that cannot be seen");
    host.assert_clean();
}

#[test]
fn the_controller_can_die_at_a_command() {
    let mut host = host();
    let cid = flush(&mut host, Fault::Fatal);
    assert!(host.try_await(1, cid).is_none() && host.status().fatal());
    let mut host = self::host();
    let cid = flush(&mut host, Fault::Unplug);
    assert!(host.try_await(1, cid).is_none() && host.status().gone());
}

#[test]
fn a_stray_access_is_blocked_and_counted() {
    let mut host = host();
    let before = host.pool.alloc(4096).map(|buffer| buffer.to_vec());
    let cid = flush(&mut host, Fault::StrayDma);
    assert!(host.try_await(1, cid).unwrap().status().ok());
    let counters = host.controller.counters();
    assert_eq!((counters.stray_dma, counters.iommu_faults), (1, 1));
    assert_eq!(before, host.pool.alloc(4096).map(|buffer| buffer.to_vec()));
}

#[test]
fn a_storm_of_events_answers_every_request() {
    let mut host = host();
    host.controller.happen(Scheduled::EventStorm(40));
    for _ in 0..40 {
        assert!(host.admin(Submission::async_event_request()).status().ok());
    }
    let cid = host.submit(0, Submission::async_event_request());
    assert!(host.try_await(0, cid).is_none(), "it is over");
}

#[test]
fn a_stall_holds_everything_up() {
    let mut host = host();
    host.submit(1, Submission::flush(1));
    host.controller.step(host.now_us);
    host.controller.happen(Scheduled::Stall { us: 2_000_000 });
    let start_us = host.now_us;
    assert!(host.run(1, Submission::flush(1)).status().ok());
    assert!(host.now_us >= start_us + 2_000_000);
    host.pass(10_000);
    host.reap(1);
    assert_eq!(host.pairs[&1].log.len(), 2);
    host.assert_clean();
}

#[test]
fn media_rules_fail_the_blocks_that_they_name() {
    let mut host = host();
    host.controller.add_media_rule(1, sim::Rule::FailRead { block: 5 });
    host.controller.add_media_rule(1, sim::Rule::FailWrite { block: 9 });
    host.controller.add_media_rule(1, sim::Rule::FailNextFlush);
    host.controller.add_media_rule(1, sim::Rule::Delay { block: 20, delay_us: 40_000 });
    assert_eq!(host.read(4, 2).0.status().full(), media::UNRECOVERED_READ_ERROR);
    assert!(host.read(6, 2).0.status().ok());
    assert_eq!(host.write(9, 1, 1, false).status().full(), media::WRITE_FAULT);
    assert!(!host.run(1, Submission::flush(1)).status().ok());
    assert!(host.run(1, Submission::flush(1)).status().ok());
    let start_us = host.now_us;
    assert!(host.read(20, 1).0.status().ok() && host.now_us > start_us + 40_000);
    host.controller.clear_rules();
    assert!(host.read(5, 1).0.status().ok());
}

/// What happens on a hostile drive to a host that only ever waits a little.
fn run(seed: u64) -> (Vec<Traced>, Vec<u16>, u64) {
    let mut config = EmulatedConfig::hostile(seed);
    (config.trace, config.queues) = (true, 4);
    let controller = EmulatedController::new(config);
    let mut host = Host::on(controller.clone());
    host.start();
    if !host.wait(|host| host.status().ready()) {
        return (controller.trace(), Vec::new(), host.now_us);
    }
    let rng = &mut fastrand::Rng::with_seed(seed);
    for _ in 0..30 {
        host.submit(0, Submission::get_feature(rng.u8(1..12), 0));
        host.pass(rng.u64(..20_000));
        host.reap(0);
    }
    let cids = host.pairs[&0].log.iter().map(|entry| entry.cid.get()).collect();
    (controller.trace(), cids, host.now_us)
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let mut completed = 0;
    for seed in 0..300 {
        let (one, two) = (run(seed), run(seed));
        assert_eq!(one, two, "{:?}", EmulatedConfig::hostile(seed));
        completed += one.1.len();
    }
    assert!(completed > 3000, "most drives work most of the time: {completed}");
}

#[test]
fn chances_change_with_the_configuration() {
    let io_chances = Chances { permanent: 10_000, ..Chances::default() };
    let mut host = Host::with_queue(EmulatedConfig { io_chances, ..EmulatedConfig::default() }, 16);
    assert!(host.run(1, Submission::flush(1)).status().do_not_retry());
    host.controller.calm_down();
    assert!(host.run(1, Submission::flush(1)).status().ok());
}

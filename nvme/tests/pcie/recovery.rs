//! What a controller can do to a request, and what the driver makes of it.

use forebay_nvme::emulated::{
    EmulatedConfig, Fault, Identity, NamespaceConfig, On, RegisterConfig, Rule, Scheduled, Stick,
    Times, Traced,
};
use forebay_nvme::pcie::{State, Trouble};
use forebay_nvme::sim::{self, Latency};
use forebay_nvme::spec::log::CriticalWarning;
use forebay_nvme::spec::opcode::{admin, io};
use forebay_nvme::spec::status::{Status, generic, media};
use forebay_nvme::{BlockError, BlockQueue, Operation};

use crate::rig::Rig;

fn rig() -> Rig {
    Rig::new(EmulatedConfig { trace: true, ..EmulatedConfig::default() })
}

/// The next command of this kind meets `fault`.
fn next(rig: &Rig, opcode: u8, fault: Fault) {
    rig.emulated().add_rule(Rule::next(On::Io(opcode), fault));
}

fn count(rig: &Rig, opcode: u8) -> u64 {
    rig.emulated().counters().io.get(&opcode).copied().unwrap_or(0)
}

fn traced(rig: &Rig, opcode: u8) -> Vec<Traced> {
    let trace = rig.emulated().trace().into_iter();
    trace.filter(|it| it.queue != 0 && it.opcode == opcode).collect()
}

#[test]
fn a_transient_status_is_tried_again() {
    for full in [generic::INTERNAL_ERROR, generic::NAMESPACE_NOT_READY, generic::INTERRUPTED] {
        let mut rig = rig();
        next(&rig, io::WRITE, Fault::Status(Status::new(full)));
        rig.ok(rig.write(3, 2, 8));
        rig.expect_fill(3, 2, 8);
        assert_eq!(count(&rig, io::WRITE), 2);
        assert_eq!(rig.drive.controller.resets(), 0);
    }
}

#[test]
fn a_retry_waits_as_long_as_the_status_asks_for() {
    for (index, ms) in [(1, 100), (2, 500), (3, 2000)] {
        let mut rig = rig();
        let status = Status::new(generic::INTERRUPTED).with_retry_delay(index);
        next(&rig, io::READ, Fault::Status(status));
        rig.ok(rig.read(0, 1));
        let [first, second] = traced(&rig, io::READ)[..] else { panic!("two tries") };
        assert_eq!(first.status, status, "the driver said that it honours delays");
        let waited_us = second.fetched_us - first.at_us;
        assert!((ms * 1000..ms * 1000 + 50_000).contains(&waited_us), "{waited_us} µs");
    }
}

#[test]
fn what_will_not_get_better_is_not_tried_again() {
    let cases = [
        (io::READ, Status::new(media::UNRECOVERED_READ_ERROR), BlockError::Read),
        (io::WRITE, Status::new(media::WRITE_FAULT), BlockError::Write),
        (io::WRITE, Status::new(generic::INTERNAL_ERROR), BlockError::Write),
        (io::WRITE, Status::new(generic::CAPACITY_EXCEEDED), BlockError::NoSpace),
        (io::READ, Status::new(0x7c1), BlockError::Read),
    ];
    for (opcode, status, error) in cases {
        let mut rig = rig();
        next(&rig, opcode, Fault::Status(status.with_do_not_retry()));
        let operation = if opcode == io::READ { rig.read(0, 1) } else { rig.write(0, 1, 1) };
        let completion = rig.run(operation);
        assert_eq!((completion.result, completion.buffer.is_some()), (Err(error), true));
        assert_eq!(count(&rig, opcode), 1);
        rig.ok(rig.write(0, 1, 1));
    }
}

#[test]
fn a_status_for_ever_ends_the_request_after_some_tries() {
    let mut rig = rig();
    let fault = Fault::Status(Status::new(generic::INTERNAL_ERROR));
    rig.emulated().add_rule(Rule::always(On::Io(io::READ), fault));
    assert_eq!(rig.run(rig.read(0, 1)).result, Err(BlockError::Read));
    assert!((2..10).contains(&count(&rig, io::READ)));
}

#[test]
fn a_flush_that_fails_is_never_tried_again() {
    let faults = [
        Fault::Status(Status::new(generic::INTERNAL_ERROR)),
        Fault::Lost { abortable: true },
        Fault::Lost { abortable: false },
        Fault::Fatal,
    ];
    for fault in faults {
        let mut rig = rig();
        next(&rig, io::FLUSH, fault);
        assert_eq!(rig.run(Operation::Flush).result, Err(BlockError::Flush), "{fault:?}");
        assert_eq!(count(&rig, io::FLUSH), 1, "{fault:?}");
        rig.ok(Operation::Flush);
    }
}

#[test]
fn a_flush_follows_a_write_with_fua_where_the_drive_takes_no_notice_of_that() {
    let durable = |rig: &Rig, block, blocks, fill| {
        let buffer = rig.buffer(blocks, fill);
        Operation::Write { block, blocks, buffer, fua: true }
    };
    for (identity, flushes) in [
        (Identity::ignoring_fua(), 1),
        (Identity { volatile_write_cache: false, ..Identity::ignoring_fua() }, 0),
        (Identity::default(), 0),
    ] {
        let config = EmulatedConfig { trace: true, identity, ..EmulatedConfig::default() };
        let mut rig = Rig::new(config);
        rig.ok(rig.write(0, 1, 1));
        assert_eq!(count(&rig, io::FLUSH), 0, "it was not asked to be durable");
        // Cut into several commands: one flush behind the last.
        rig.ok(durable(&rig, 8, 100, 7));
        assert!(count(&rig, io::WRITE) > 3);
        assert_eq!(count(&rig, io::FLUSH), flushes);
        rig.emulated().crash(flushes);
        rig.expect_fill(8, 100, 7);
    }
    let mut rig = Rig::new(EmulatedConfig {
        identity: Identity::ignoring_fua(),
        ..EmulatedConfig::default()
    });
    next(&rig, io::FLUSH, Fault::Status(Status::new(generic::INTERNAL_ERROR)));
    let completion = rig.run(durable(&rig, 0, 2, 1));
    assert_eq!((completion.result, completion.buffer.is_some()), (Err(BlockError::Flush), true));
    let status = Status::new(media::WRITE_FAULT).with_do_not_retry();
    next(&rig, io::WRITE, Fault::Status(status));
    assert_eq!(rig.run(durable(&rig, 0, 2, 1)).result, Err(BlockError::Write));
    assert_eq!(count(&rig, io::FLUSH), 1, "nothing to flush for");
    rig.ok(durable(&rig, 0, 2, 1));
}

#[test]
fn a_flush_that_waited_out_a_reset_is_carried_out() {
    let mut rig = rig();
    rig.emulated().fail_fatally();
    rig.drive.until(|drive| drive.state() == State::Resetting);
    rig.step();
    // Not with the controller when it was stopped: nothing has failed.
    rig.ok(Operation::Flush);
    assert_eq!(count(&rig, io::FLUSH), 1);
}

#[test]
fn a_late_command_is_aborted_and_tried_again() {
    let mut rig = rig();
    next(&rig, io::WRITE, Fault::Late { us: 100_000_000 });
    let late = rig.start(rig.write(5, 3, 4));
    for block in 20..30 {
        rig.ok(rig.write(block, 1, 1));
    }
    let completion = rig.end(late);
    assert_eq!(completion.result, Ok(()));
    rig.expect_fill(5, 3, 4);
    let counters = rig.emulated().counters();
    assert_eq!((counters.admin[&admin::ABORT], counters.enables), (1, 1), "no reset");
}

#[test]
fn a_command_that_no_abort_ends_costs_a_reset_and_nothing_else() {
    for abort in [None, Some(Fault::Lost { abortable: false }), Some(Fault::UnknownCid)] {
        let mut rig = rig();
        next(&rig, io::READ, Fault::Lost { abortable: false });
        if let Some(fault) = abort {
            rig.emulated().add_rule(Rule::next(On::Admin(admin::ABORT), fault));
        }
        rig.ok(rig.write(0, 4, 6));
        let lost = rig.start(rig.read(0, 4));
        let others: Vec<u64> = (8..16).map(|block| rig.start(rig.write(block, 1, 9))).collect();
        assert_eq!(rig.end(lost).result, Ok(()), "{abort:?}");
        for tag in others {
            assert_eq!(rig.end(tag).result, Ok(()));
        }
        rig.expect_fill(8, 8, 9);
        assert_eq!(rig.emulated().counters().enables, 2, "{abort:?}");
        assert_eq!(rig.drive.state(), State::Ready);
    }
}

#[test]
fn a_refused_abort_is_not_the_end() {
    let mut rig = rig();
    next(&rig, io::READ, Fault::Lost { abortable: true });
    let status = Status::new(generic::INTERNAL_ERROR);
    let rule = Rule::always(On::Admin(admin::ABORT), Fault::Status(status));
    rig.emulated().add_rule(rule);
    rig.ok(rig.read(0, 1));
    assert_eq!(rig.emulated().counters().enables, 2);
}

#[test]
fn aborts_stay_below_the_limit_of_the_controller() {
    let identity = Identity { acl: 0, ..Identity::default() };
    let mut rig = Rig::new(EmulatedConfig { identity, ..EmulatedConfig::default() });
    rig.emulated().add_rule(Rule {
        on: On::Io(io::READ),
        after: 0,
        times: 20,
        fault: Fault::Lost { abortable: true },
    });
    let tags: Vec<u64> = (0..20).map(|block| rig.start(rig.read(block, 1))).collect();
    for tag in tags {
        assert_eq!(rig.end(tag).result, Ok(()));
    }
    assert_eq!(rig.emulated().counters().admin[&admin::ABORT], 20);
    assert_eq!(rig.emulated().counters().enables, 1);
}

#[test]
fn a_controller_that_breaks_the_protocol_is_reset_and_nothing_is_lost() {
    for fault in [Fault::UnknownCid, Fault::Duplicate { us: 3 }, Fault::WrongPhase, Fault::Fatal] {
        let mut rig = rig();
        rig.ok(rig.write(0, 8, 2));
        next(&rig, io::READ, fault);
        let tags: Vec<u64> = (0..8).map(|block| rig.start(rig.read(block, 1))).collect();
        for tag in tags {
            let completion = rig.end(tag);
            assert_eq!(completion.result, Ok(()), "{fault:?}");
            let buffer = completion.buffer.expect("a read has a buffer");
            assert!(buffer[..4096].iter().all(|byte| *byte == 2), "{fault:?}");
        }
        rig.drive.pass(10_000);
        for _ in 0..3 {
            rig.step();
        }
        rig.expect_fill(0, 8, 2);
        assert_eq!(rig.emulated().counters().enables, 2, "{fault:?}");
    }
}

#[test]
fn a_second_completion_does_not_end_the_next_command_in_its_place() {
    for seed in 0..20 {
        let mut rig = Rig::new(EmulatedConfig { seed, ..EmulatedConfig::default() });
        rig.ok(rig.write(0, 1, 2));
        // Reads take 60 µs and more: the second one is under way in the place of the first.
        next(&rig, io::READ, Fault::Duplicate { us: 30 });
        rig.ok(rig.read(1, 1));
        rig.expect_fill(0, 1, 2);
        assert_eq!(rig.emulated().counters().enables, 2, "seed {seed}");
    }
}

#[test]
fn odd_entries_that_can_be_understood_are() {
    for fault in [Fault::WrongSqId, Fault::WrongSqHead, Fault::StrayDma] {
        let mut rig = rig();
        rig.emulated().add_rule(Rule::always(On::AnyIo, fault));
        for round in 0..50 {
            rig.ok(rig.write(round, 1, round as u8));
            rig.expect_fill(round, 1, round as u8);
        }
    }
}

#[test]
fn a_pulled_drive_ends_every_request_with_gone() {
    let mut rig = rig();
    let tags: Vec<u64> = (0..16).map(|block| rig.start(rig.write(block, 1, 1))).collect();
    rig.step();
    rig.emulated().unplug();
    for tag in tags {
        let completion = rig.end(tag);
        assert!(completion.buffer.is_some());
        assert!(matches!(completion.result, Ok(()) | Err(BlockError::Gone)));
    }
    assert_eq!(rig.run(rig.read(0, 1)).result, Err(BlockError::Gone));
    assert_eq!(rig.run(Operation::Flush).result, Err(BlockError::Gone));
    assert_eq!(
        (rig.drive.state(), rig.drive.controller.trouble()),
        (State::Gone, Some(Trouble::Gone))
    );
}

#[test]
fn a_drive_that_the_system_wants_back_is_stopped_and_let_go() {
    let mut rig = rig();
    let tags: Vec<u64> = (0..16).map(|block| rig.start(rig.write(block, 1, 1))).collect();
    rig.step();
    rig.emulated().request_removal();
    for tag in tags {
        assert!(matches!(rig.end(tag).result, Ok(()) | Err(BlockError::Gone)));
    }
    rig.drive.until(|drive| drive.state() == State::Gone);
    assert_eq!(rig.drive.controller.trouble(), Some(Trouble::Removal));
    assert_eq!(rig.emulated().counters().disables, 1, "it was stopped");
}

#[test]
fn a_bus_error_costs_a_function_reset() {
    let mut rig = rig();
    rig.ok(rig.write(0, 4, 1));
    rig.emulated().bus_error();
    let tag = rig.start(rig.read(0, 4));
    assert_eq!(rig.end(tag).result, Ok(()));
    rig.drive.until(|drive| drive.emulated.counters().function_resets == 1);
    rig.drive.until(|drive| drive.state() == State::Ready);
    rig.expect_fill(0, 4, 1);
}

#[test]
fn a_controller_that_does_not_stop_is_reset_as_a_function() {
    // It gives itself a second to stop, which is less than a request has.
    let registers = RegisterConfig { timeout: 2, ready_modes: 0, ..RegisterConfig::default() };
    let mut rig = Rig::new(EmulatedConfig { registers, ..EmulatedConfig::default() });
    rig.emulated().set_stick(Some(Stick::AtOneUntilReset));
    rig.emulated().fail_fatally();
    rig.ok(rig.write(0, 2, 5));
    rig.expect_fill(0, 2, 5);
    assert_eq!(rig.emulated().counters().function_resets, 1);
}

#[test]
fn a_controller_that_nothing_stops_loses_the_bus() {
    let mut rig = rig();
    next(&rig, io::WRITE, Fault::Lost { abortable: false });
    let tag = rig.start(rig.write(0, 1, 5));
    rig.step();
    rig.emulated().set_stick(Some(Stick::AtOne));
    rig.emulated().fail_resets(u32::MAX);
    // Its time is over long before the controller is given up, and not before that is its buffer back.
    assert_eq!(rig.end(tag).result, Err(BlockError::Timeout));
    assert_eq!(rig.drive.state(), State::Gone);
    assert_eq!(rig.drive.controller.trouble(), Some(Trouble::ResetFailed));
    assert_eq!(rig.run(rig.read(0, 1)).result, Err(BlockError::Gone));
}

#[test]
fn a_controller_that_fails_again_and_again_is_given_up() {
    let mut rig = rig();
    rig.emulated().add_rule(Rule::always(On::Io(io::READ), Fault::Fatal));
    let result = rig.run(rig.read(0, 1)).result;
    assert!(result.is_err(), "{result:?}");
    while rig.drive.state() != State::Gone {
        assert!(rig.drive.controller.resets() < 20);
        let result = rig.run(rig.read(0, 1)).result;
        assert!(result.is_err(), "{result:?}");
    }
}

#[test]
fn another_drive_in_the_place_of_the_first_is_not_written_to() {
    let mut rig = rig();
    rig.ok(rig.write(0, 1, 1));
    rig.emulated().reconfigure(|config| config.identity.serial = "ANOTHER".to_owned());
    rig.emulated().fail_fatally();
    assert_eq!(rig.run(rig.write(0, 1, 2)).result, Err(BlockError::Gone));
    assert_eq!(rig.drive.controller.trouble(), Some(Trouble::Changed));
    assert_eq!(rig.emulated().peek(1, 0)[0], 1);
}

#[test]
fn a_namespace_that_changes_its_size_is_let_go_and_other_changes_are_heard() {
    let mut rig = rig();
    rig.emulated().change_namespace(1, |namespace| namespace.boundary = 16);
    rig.drive.pass(1_000_000);
    rig.ok(rig.write(0, 1, 1));
    rig.emulated().change_namespace(1, |namespace| namespace.lbas /= 2);
    rig.drive.pass(1_000_000);
    assert_eq!(rig.run(rig.write(0, 1, 2)).result, Err(BlockError::Gone));
    assert_eq!(rig.drive.controller.trouble(), Some(Trouble::Changed));
}

#[test]
fn health_events_are_looked_into_one_after_the_other() {
    let mut rig = rig();
    for (number, bit) in
        [CriticalWarning::SPARE_LOW, CriticalWarning::TEMPERATURE].iter().enumerate()
    {
        rig.emulated().set_critical_warning(*bit);
        rig.drive.pass(1_000_000);
        let logs = rig.emulated().counters().admin[&admin::GET_LOG_PAGE];
        assert_eq!(logs, number as u64 + 1);
    }
    rig.ok(rig.write(0, 1, 1));
    let smart = rig.drive.controller.drive().expect("it is up").ask_smart();
    rig.drive.pass(100_000);
    assert!(smart.try_recv().is_ok_and(|answer| answer.is_ok()));
}

#[test]
fn a_storm_of_events_does_not_stop_requests() {
    let mut rig = rig();
    for round in 0..20 {
        rig.emulated().happen(Scheduled::EventStorm(100));
        for block in 0..8 {
            rig.ok(rig.write(block, 1, round));
        }
    }
    rig.expect_fill(0, 8, 19);
    // Whoever hears an event asks for the page that it names; there are not all of those.
    rig.drive.assert_clean_but_refused();
    rig.keep_quiet();
}

#[test]
fn a_slow_drive_is_not_a_broken_one() {
    let mut rig = rig();
    let delay = sim::Rule::Delay { block: 3, delay_us: 900_000 };
    rig.emulated().add_media_rule(1, delay);
    rig.ok(rig.read(3, 1));
    rig.emulated().happen(Scheduled::Stall { us: 800_000 });
    rig.ok(rig.read(4, 1));
    assert!(!rig.emulated().counters().admin.contains_key(&admin::ABORT));
}

#[test]
fn large_requests_are_split_where_the_drive_wants_it() {
    let mut namespace = NamespaceConfig::new(1, 65_536, 9);
    namespace.boundary = 80;
    let identity = Identity { mdts: 3, ..Identity::default() };
    let config = EmulatedConfig {
        namespaces: vec![namespace],
        identity,
        trace: true,
        ..EmulatedConfig::default()
    };
    let mut rig = Rig::new(config);
    rig.ok(rig.write(7, 64, 3));
    rig.expect_fill(7, 64, 3);
    for command in traced(&rig, io::WRITE) {
        let (first, count) = (command.dwords[0], (command.dwords[2] & 0xffff) + 1);
        assert!(count <= 64, "MDTS is 32 KiB");
        assert_eq!(first / 80, (first + count - 1) / 80, "{first}+{count} crosses a boundary");
    }
    assert_eq!(rig.emulated().counters().bytes_written, 64 * 4096);
}

#[test]
fn one_part_that_fails_fails_the_whole_and_the_others_are_waited_for() {
    let identity = Identity { mdts: 1, ..Identity::default() };
    let mut rig = Rig::new(EmulatedConfig { identity, ..EmulatedConfig::default() });
    rig.emulated().add_media_rule(1, sim::Rule::FailRead { block: 9 });
    let completion = rig.run(rig.read(0, 64));
    assert_eq!((completion.result, completion.buffer.is_some()), (Err(BlockError::Read), true));
    drop(completion);
    assert_eq!(rig.emulated().counters().in_flight, 0, "nothing is still on its way");
    rig.ok(rig.read(10, 8));
}

#[test]
fn a_batch_costs_one_doorbell() {
    let times = Times { io: Latency::none(), ..Times::default() };
    let mut rig = Rig::new(EmulatedConfig { times, ..EmulatedConfig::default() });
    rig.drive.pass(10_000);
    let before = rig.emulated().counters().doorbells;
    let tags: Vec<u64> = (0..24).map(|block| rig.start(rig.read(block, 1))).collect();
    rig.step();
    assert_eq!(rig.emulated().counters().doorbells, before + 1);
    for tag in tags {
        assert_eq!(rig.end(tag).result, Ok(()));
    }
    assert!(rig.emulated().counters().doorbells <= before + 2, "and one for what was reaped");
}

#[test]
fn a_driver_that_is_dropped_takes_the_device_with_it() {
    let mut rig = rig();
    let tags: Vec<u64> = (0..16).map(|block| rig.start(rig.write(block, 1, 1))).collect();
    rig.step();
    rig.drop_controller();
    for tag in tags {
        assert!(matches!(rig.end(tag).result, Ok(()) | Err(BlockError::Gone)));
    }
    let media: Vec<u8> = (0..16).map(|block| rig.emulated().peek(1, block)[0]).collect();
    rig.drive.pass(1_000_000);
    let later: Vec<u8> = (0..16).map(|block| rig.emulated().peek(1, block)[0]).collect();
    assert_eq!(media, later);
}

#[test]
fn a_queue_is_closed_while_the_controller_is_being_reset() {
    let mut rig = rig();
    rig.ok(rig.write(0, 1, 1));
    rig.emulated().set_stick(Some(Stick::AtZero));
    rig.emulated().fail_fatally();
    rig.drive.until(|drive| drive.state() == State::Resetting);
    let before_us = rig.drive.now_us;
    let tag = rig.start(rig.write(1, 1, 1));
    assert!(rig.end(tag).result.is_err());
    assert!(rig.drive.now_us - before_us < 120_000_000);
}

#[test]
fn a_power_cut_under_the_driver_is_a_reset_like_any_other() {
    for seed in 0..20 {
        let mut rig = rig();
        rig.ok(rig.write(0, 2, 1));
        rig.ok(Operation::Flush);
        let tag = rig.start(rig.write(4, 2, 2));
        rig.step();
        rig.emulated().crash(seed);
        assert_eq!(rig.end(tag).result, Ok(()), "seed {seed}");
        rig.expect_fill(0, 2, 1);
        rig.expect_fill(4, 2, 2);
        assert_eq!(rig.queue().in_flight(), 0);
    }
}

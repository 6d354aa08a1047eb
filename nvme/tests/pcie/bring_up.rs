//! A controller is brought up from any state, or refused with a reason.

use forebay_nvme::emulated::{
    EmulatedConfig, EmulatedController, Fault, Identity, NamespaceConfig, On, RegisterConfig, Rule,
    Scheduled, Stick,
};
use forebay_nvme::hardware::{Dma, Hardware, Registers};
use forebay_nvme::pcie::{Options, State, Trouble};
use forebay_nvme::spec::opcode::admin;
use forebay_nvme::spec::registers::{
    ACQ, AQA, ASQ, AdminQueueSizes, CC, CSTS, Configuration, ControllerStatus, Shutdown,
};
use forebay_nvme::spec::status::{Status, generic};
use forebay_nvme::{BlockError, BlockQueue};

use crate::rig::{Drive, Held, Rig, options, pool};

fn namespace(change: impl FnOnce(&mut NamespaceConfig)) -> EmulatedConfig {
    let mut config = EmulatedConfig::default();
    change(&mut config.namespaces[0]);
    config
}

fn registers(change: impl FnOnce(&mut RegisterConfig)) -> EmulatedConfig {
    let mut config = EmulatedConfig::default();
    change(&mut config.registers);
    config
}

/// Why the driver does not take this drive.
fn trouble(config: EmulatedConfig) -> Trouble {
    trouble_with(&EmulatedController::new(config), options())
}

fn trouble_with(emulated: &EmulatedController, options: Options) -> Trouble {
    let pages = pool(4 << 20);
    let mut drive = Drive::new(emulated.clone(), options, &pages);
    assert!(!drive.bring_up(), "it was taken");
    assert_eq!(drive.state(), State::Gone);
    drive.assert_clean();
    let trouble = drive.controller.trouble().expect("a reason");
    drop(drive);
    assert_eq!(pages.free_bytes(), pages.total_bytes());
    trouble
}

/// Leaves the controller as somebody else has: enabled, with an admin queue of his own.
fn abandon(emulated: &EmulatedController, until_us: u64, cc: impl FnOnce(Configuration) -> u32) {
    let mut hardware = emulated.hardware();
    let (arena, registers) = (pool(4 << 20), hardware.registers());
    let mapping = hardware.dma().map(&arena.span()).expect("IOVAs");
    hardware.set_bus_master(true).expect("it is there");
    registers.write32(AQA, AdminQueueSizes::new(8, 8).0);
    registers.write64(ASQ, mapping.iova());
    registers.write64(ACQ, mapping.iova() + 4096);
    registers.write32(CC, Configuration::enable(4096).0);
    (0..=until_us).step_by(100).for_each(|now_us| emulated.step(now_us));
    registers.write32(CC, cc(Configuration::enable(4096)));
    emulated.step(until_us);
    // The kernel would reset a function that is let go of; a firmware would not.
    std::mem::forget((hardware, mapping, arena));
}

#[test]
fn it_comes_up_from_any_state() {
    type Leave = fn(&EmulatedController);
    let states: [(&str, Leave); 7] = [
        ("disabled", |_| {}),
        ("on its way up", |it| abandon(it, 0, |cc| cc.0)),
        ("ready", |it| abandon(it, 100_000, |cc| cc.0)),
        ("on its way down", |it| abandon(it, 100_000, |cc| cc.disable().0)),
        ("shutting down", |it| abandon(it, 100_000, |cc| cc.with_shutdown(Shutdown::Normal).0)),
        ("fatal", |it| {
            abandon(it, 100_000, |cc| cc.0);
            it.fail_fatally();
        }),
        ("stuck until its function is reset", |it| {
            abandon(it, 100_000, |cc| cc.0);
            it.set_stick(Some(Stick::AtOneUntilReset));
        }),
    ];
    for (name, leave) in states {
        let emulated = EmulatedController::new(EmulatedConfig::default());
        leave(&emulated);
        let mut rig = Rig::on(emulated, options(), 8, &pool(16 << 20));
        rig.ok(rig.write(0, 4, 7));
        rig.expect_fill(0, 4, 7);
        let resets = rig.emulated().counters().function_resets;
        assert_eq!(resets > 0, name.starts_with("stuck"), "{name}");
    }
}

#[test]
fn it_takes_the_first_active_namespace_or_the_one_that_is_asked_for() {
    let namespaces = vec![NamespaceConfig::new(3, 1000, 12), NamespaceConfig::new(9, 8000, 9)];
    let config = EmulatedConfig { namespaces, ..EmulatedConfig::default() };
    for (asked, nsid, blocks) in [(None, 3, 1000), (Some(9), 9, 1000), (Some(3), 3, 1000)] {
        let options = Options { namespace: asked, ..options() };
        let emulated = EmulatedController::new(config.clone());
        let mut rig = Rig::on(emulated, options, 8, &pool(16 << 20));
        assert_eq!(rig.queue().geometry().blocks, blocks);
        rig.ok(rig.write(1, 1, 5));
        assert_eq!(rig.emulated().peek(nsid, 1)[0], 5);
    }
    let options = Options { namespace: Some(4), ..options() };
    let trouble = trouble_with(&EmulatedController::new(config), options);
    assert!(matches!(trouble, Trouble::Unusable { .. }), "{trouble}");
}

#[test]
fn what_cannot_be_driven_is_refused_with_the_reason() {
    let cases = [
        (namespace(|it| it.formats[0] = (12, 8)), "metadata"),
        (namespace(|it| it.protection = 1), "protection information"),
        (namespace(|it| it.formats[0] = (8, 0)), "512 to 4096 bytes"),
        (namespace(|it| it.formats[0] = (13, 0)), "512 to 4096 bytes"),
        (namespace(|it| it.formats[0] = (40, 0)), "512 to 4096 bytes"),
        (namespace(|it| it.formats[0] = (0, 0)), "512 to 4096 bytes"),
        (namespace(|it| it.lbas = 0), "no size"),
        (EmulatedConfig { namespaces: Vec::new(), ..EmulatedConfig::default() }, "no active"),
        (registers(|it| it.command_sets = 0), "CAP.CSS"),
        (registers(|it| it.page_min = 1), "CAP.MPSMIN"),
        (registers(|it| it.mqes = 0), "CAP.MQES"),
        (registers(|it| (it.doorbell_stride, it.bar_bytes) = (12, Some(0x2000))), "CAP.DSTRD"),
    ];
    for (config, reason) in cases {
        let trouble = trouble(config);
        assert!(matches!(trouble, Trouble::Unusable { .. }), "{trouble}");
        assert!(trouble.to_string().contains(reason), "{trouble}, and not {reason}");
    }
}

#[test]
fn a_namespace_that_is_absurdly_large_does_no_harm() {
    let mut rig = Rig::new(namespace(|it| it.lbas = u64::MAX));
    rig.ok(rig.write(5, 1, 1));
    // The emulated drive has no such block, whatever it says.
    assert!(rig.run(rig.read(1 << 60, 1)).result.is_err());
    rig.keep_quiet();
}

#[test]
fn garbage_for_identify_does_no_harm() {
    for seed in 0..200 {
        for (fault, times) in [(Fault::Garbage, 1), (Fault::Garbage, 3), (Fault::Zeroes, 2)] {
            let emulated =
                EmulatedController::new(EmulatedConfig { seed, ..EmulatedConfig::default() });
            let on = On::Admin(admin::IDENTIFY);
            emulated.add_rule(Rule { on, after: seed % 3, times, fault });
            let pages = pool(4 << 20);
            let mut drive = Drive::new(emulated, options(), &pages);
            drive.bring_up();
            assert!(matches!(drive.state(), State::Ready | State::Gone));
            drive.assert_clean_but_refused();
        }
    }
}

#[test]
fn a_short_identify_is_read_as_zeroes_behind_its_end() {
    let emulated = EmulatedController::new(EmulatedConfig::default());
    let on = On::Admin(admin::IDENTIFY);
    // The namespace's: its size comes, its formats do not.
    emulated.add_rule(Rule { on, after: 2, times: 1, fault: Fault::Short(64) });
    let trouble = trouble_with(&emulated, options());
    assert!(trouble.to_string().contains("512 to 4096 bytes"), "{trouble}");
}

#[test]
fn a_controller_that_never_gets_ready_is_given_up() {
    for stick in [Stick::AtZero, Stick::AtOne] {
        let emulated = EmulatedController::new(EmulatedConfig::default());
        if stick == Stick::AtOne {
            abandon(&emulated, 100_000, |cc| cc.0);
            emulated.fail_resets(u32::MAX);
        }
        emulated.set_stick(Some(stick));
        let trouble = trouble_with(&emulated, options());
        let expected = match stick {
            Stick::AtZero => matches!(trouble, Trouble::Stuck { .. } | Trouble::Resets { .. }),
            _ => trouble == Trouble::ResetFailed,
        };
        assert!(expected, "{stick:?}: {trouble}");
    }
}

#[test]
fn a_drive_that_leaves_at_any_moment_of_bring_up_is_gone() {
    for at_us in (0..40_000).step_by(700) {
        let schedule = vec![(at_us, Scheduled::Unplug)];
        let pages = pool(4 << 20);
        let emulated =
            EmulatedController::new(EmulatedConfig { schedule, ..EmulatedConfig::default() });
        let mut drive = Drive::new(emulated, options(), &pages);
        drive.pass(200_000);
        assert_eq!((drive.state(), drive.controller.trouble()), (State::Gone, Some(Trouble::Gone)));
        drive.assert_clean();
    }
}

#[test]
fn a_drive_that_is_wanted_back_at_any_moment_of_bring_up_is_let_go() {
    for at_us in (0..40_000).step_by(700) {
        let schedule = vec![(at_us, Scheduled::RequestRemoval)];
        let pages = pool(4 << 20);
        let emulated =
            EmulatedController::new(EmulatedConfig { schedule, ..EmulatedConfig::default() });
        let mut drive = Drive::new(emulated.clone(), options(), &pages);
        drive.pass(1_000_000);
        assert_eq!(drive.controller.trouble(), Some(Trouble::Removal));
        assert_eq!(drive.state(), State::Gone);
        drive.assert_clean();
        let status = ControllerStatus(emulated.hardware().registers().read32(CSTS));
        assert!(!status.ready(), "it was left running");
    }
}

#[test]
fn bring_up_survives_what_a_reset_can_help() {
    for (fault, resets) in [
        (Fault::Fatal, 1),
        (Fault::Lost { abortable: true }, 1),
        (Fault::Duplicate { us: 1 }, 1),
        (Fault::UnknownCid, 1),
        (Fault::WrongPhase, 1),
        (Fault::WrongSqId, 0),
        (Fault::WrongSqHead, 0),
        (Fault::Late { us: 1_000_000 }, 0),
        (Fault::EventStorm(50), 0),
        (Fault::StrayDma, 0),
    ] {
        for after in 0..6 {
            let emulated = EmulatedController::new(EmulatedConfig::default());
            emulated.add_rule(Rule { on: On::AnyAdmin, after, times: 1, fault });
            let pages = pool(4 << 20);
            let mut drive = Drive::new(emulated, options(), &pages);
            assert!(drive.bring_up(), "{fault:?} at {after}: {:?}", drive.controller.trouble());
            drive.pass(50_000);
            drive.until(|drive| drive.state() == State::Ready);
            assert!(drive.controller.resets() <= resets, "{fault:?} at {after}");
            drive.assert_clean_but_refused();
        }
    }
}

#[test]
fn what_is_only_nice_to_have_may_be_refused() {
    let status = Status::new(generic::INVALID_FIELD).with_do_not_retry();
    // Everything that is set, but for the number of queues.
    for after in 1..4 {
        let identity = Identity { oacs: 1 << 8, ..Identity::default() };
        let emulated =
            EmulatedController::new(EmulatedConfig { identity, ..EmulatedConfig::default() });
        let rule = |on| Rule { on, after, times: 9, fault: Fault::Status(status) };
        emulated.add_rule(rule(On::Admin(admin::SET_FEATURES)));
        emulated.add_rule(Rule::always(On::Admin(admin::DBBUF_CONFIG), Fault::Status(status)));
        let event = On::Admin(admin::ASYNC_EVENT_REQUEST);
        emulated.add_rule(Rule::always(event, Fault::Status(status)));
        let mut rig = Rig::on(emulated, options(), 8, &pool(16 << 20));
        rig.ok(rig.write(0, 1, 3));
        rig.drive.pass(1_000_000);
        let asked = rig.emulated().counters().admin[&admin::ASYNC_EVENT_REQUEST];
        assert!(asked <= 4, "asked {asked} times in vain");
    }
}

#[test]
fn a_queue_beyond_what_was_granted_is_refused() {
    let config = EmulatedConfig { queues: 2, ..EmulatedConfig::default() };
    let (buffers, pages) = (pool(16 << 20), pool(4 << 20));
    let mut drive = Drive::new(EmulatedController::new(config), options(), &pages);
    assert!(drive.bring_up());
    let handle = drive.controller.drive().expect("it is up");
    assert_eq!(handle.facts().queues, 2);
    let mut queues: Vec<Held> =
        (0..3).map(|_| Held::new(handle.queue(&buffers, 8).expect("room"))).collect();
    drive.pass(100_000);
    assert!(queues[0].is_open().is_ok_and(|open| open));
    assert!(queues[1].is_open().is_ok_and(|open| open));
    let refusal = queues[2].is_open().expect_err("there are two").to_string();
    assert!(refusal.contains("only 2 I/O queues"), "{refusal}");
    queues.into_iter().for_each(|queue| queue.close(&mut drive));
    // A place that is free again is given again.
    let mut queue = Held::new(handle.queue(&buffers, 8).expect("room"));
    drive.pass(100_000);
    assert!(queue.is_open().is_ok_and(|open| open));
    queue.close(&mut drive);
    drive.assert_clean();
}

#[test]
fn the_same_drive_is_taken_again_by_the_next_driver() {
    let emulated = EmulatedController::new(EmulatedConfig::default());
    for round in 1..4 {
        let mut rig = Rig::on(emulated.clone(), options(), 8, &pool(16 << 20));
        if round > 1 {
            rig.expect_fill(0, 4, round - 1);
        }
        rig.ok(rig.write(0, 4, round));
        if round == 2 {
            rig.drive.controller.close();
            rig.drive.until(|drive| drive.state() == State::Gone);
            assert_eq!(rig.drive.controller.trouble(), Some(Trouble::Closed));
            assert_eq!(rig.run(rig.read(0, 1)).result, Err(BlockError::Gone));
        }
    }
    assert_eq!(emulated.counters().shutdowns, 1);
}

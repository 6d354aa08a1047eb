//! What only a drive that is broken in several ways at once brings about.

use forebay_nvme::emulated::{
    EmulatedConfig, EmulatedController, Fault, Identity, NamespaceConfig, On, RegisterConfig, Rule,
    Stick,
};
use forebay_nvme::pcie::{AdminError, State, Trouble};
use forebay_nvme::spec::command::{SecureErase, Submission};
use forebay_nvme::spec::opcode::{admin, io};
use forebay_nvme::spec::status::{Status, generic, media};
use forebay_nvme::{BlockError, BlockQueue};

use crate::rig::{Drive, FOREVER_US, Held, Rig, options, pool};

fn rig_with(identity: Identity) -> Rig {
    Rig::new(EmulatedConfig { identity, trace: true, ..EmulatedConfig::default() })
}

fn rig() -> Rig {
    rig_with(Identity::default())
}

/// A second queue on the rig's drive.
fn another(rig: &Rig) -> Held {
    let drive = rig.drive.controller.drive().expect("it is up");
    Held::new(drive.queue(&rig.pool, 8).expect("room"))
}

fn refuse(rig: &Rig, opcode: u8) {
    let status = Status::new(generic::INTERNAL_ERROR);
    rig.emulated().add_rule(Rule::next(On::Admin(opcode), Fault::Status(status)));
}

/// The queue identifiers of the submission queues that were made, in their order.
fn made(rig: &Rig) -> Vec<u32> {
    let trace = rig.emulated().trace().into_iter();
    let made = trace.filter(|it| it.queue == 0 && it.opcode == admin::CREATE_SQ);
    made.map(|it| it.dwords[0] & 0xffff).collect()
}

#[test]
fn a_queue_keeps_its_number_however_late_it_hears_of_a_reset() {
    let mut rig = rig();
    let mut second = another(&rig);
    while !second.is_open().expect("a queue") {
        rig.drive.step();
    }
    rig.emulated().fail_fatally();
    // The first queue's thread sleeps; the second one is there again before it.
    while made(&rig).len() < 3 {
        second.poll(rig.drive.now_us, &mut rig.done);
        rig.drive.step();
    }
    rig.ok(rig.write(0, 1, 1));
    assert_eq!(made(&rig), [1, 2, 2, 1]);
    second.close(&mut rig.drive);
}

#[test]
fn of_a_request_that_has_failed_nothing_is_tried_again() {
    // Two blocks in each command, and a retry that would come after a minute.
    let mut rig = rig_with(Identity { mdts: 1, crdt: [600; 3], ..Identity::default() });
    let busy = Status::new(generic::INTERRUPTED).with_retry_delay(1);
    let broken = Status::new(media::WRITE_FAULT).with_do_not_retry();
    for status in [busy, broken] {
        rig.emulated().add_rule(Rule::next(On::Io(io::WRITE), Fault::Status(status)));
    }
    let before_us = rig.drive.now_us;
    assert_eq!(rig.run(rig.write(0, 4, 1)).result, Err(BlockError::Write));
    assert!(rig.drive.now_us - before_us < 1_000_000, "{} µs", rig.drive.now_us - before_us);
    rig.drive.pass(100_000_000);
    assert_eq!(rig.emulated().counters().io[&io::WRITE], 2);
}

#[test]
fn a_retry_that_would_come_after_the_deadline_is_not_waited_for() {
    let mut rig = rig_with(Identity { crdt: [600; 3], ..Identity::default() });
    let busy = Status::new(generic::INTERRUPTED).with_retry_delay(1);
    rig.emulated().add_rule(Rule::next(On::Io(io::WRITE), Fault::Status(busy)));
    assert_eq!(rig.run(rig.write(0, 1, 1)).result, Err(BlockError::Write));
    assert!(rig.drive.now_us < 1_000_000);
}

#[test]
fn events_without_end_do_not_keep_the_mail_waiting() {
    let mut rig = rig();
    // Whoever looks into an event finds another one behind it.
    rig.emulated().add_rule(Rule::always(On::Admin(admin::GET_LOG_PAGE), Fault::EventStorm(8)));
    rig.emulated().happen(forebay_nvme::emulated::Scheduled::EventStorm(8));
    rig.emulated().add_rule(Rule::next(On::Io(io::WRITE), Fault::Lost { abortable: true }));
    rig.ok(rig.write(0, 1, 1));
    assert_eq!(rig.emulated().counters().admin[&admin::ABORT], 1);
    rig.keep_quiet();
}

#[test]
fn a_completion_queue_that_cannot_be_deleted_costs_a_reset() {
    let mut rig = rig();
    refuse(&rig, admin::CREATE_SQ);
    refuse(&rig, admin::DELETE_CQ);
    let mut second = another(&rig);
    while !second.is_open().expect("made after the reset") {
        rig.drive.step();
    }
    assert_eq!(rig.drive.controller.resets(), 1);
    second.close(&mut rig.drive);
    rig.keep_quiet();
}

#[test]
fn an_abort_that_is_never_answered_costs_a_reset() {
    let mut rig = rig();
    rig.emulated().add_rule(Rule::next(On::Admin(admin::ABORT), Fault::Lost { abortable: false }));
    // Too late for its own time, and there before the reset that it would cost.
    rig.emulated().add_rule(Rule::next(On::Io(io::WRITE), Fault::Late { us: 1_200_000 }));
    rig.ok(rig.write(0, 1, 1));
    assert_eq!(rig.drive.controller.resets(), 0);
    rig.drive.pass(5_000_000);
    assert_eq!(rig.drive.controller.resets(), 1);
    rig.ok(rig.write(0, 1, 2));
}

#[test]
fn a_queue_leaves_a_controller_that_does_not_come_up_again() {
    let mut rig = rig();
    let second = another(&rig);
    rig.drive.pass(100_000);
    rig.emulated().set_stick(Some(Stick::AtZero));
    rig.emulated().fail_fatally();
    rig.drive.until(|drive| drive.state() != State::Ready);
    second.close(&mut rig.drive);
}

#[test]
fn no_controller_is_waited_for_longer_than_cap_can_say() {
    let registers = RegisterConfig { ready_timeouts: u32::MAX, ..RegisterConfig::default() };
    let emulated =
        EmulatedController::new(EmulatedConfig { registers, ..EmulatedConfig::default() });
    emulated.set_stick(Some(Stick::AtZero));
    let mut drive = Drive::new(emulated, options(), &pool(4 << 20));
    assert!(!drive.bring_up());
    assert!(drive.now_us < FOREVER_US, "{} s", drive.now_us / 1_000_000);
    assert!(matches!(drive.controller.trouble(), Some(Trouble::Stuck { ms: 127_500, .. })));
}

#[test]
fn a_drive_that_can_do_less_after_a_reset_is_given_up() {
    let changes: [fn(&mut EmulatedConfig); 3] = [
        |config| config.identity.volatile_write_cache = !config.identity.volatile_write_cache,
        |config| config.identity.mdts = 1,
        |config| config.identity.oncs = 0,
    ];
    for change in changes {
        let identity = Identity { volatile_write_cache: false, mdts: 5, ..Identity::default() };
        let mut rig = rig_with(identity);
        rig.ok(rig.write(0, 1, 1));
        rig.emulated().reconfigure(change);
        rig.emulated().fail_fatally();
        assert_eq!(rig.run(rig.write(0, 1, 2)).result, Err(BlockError::Gone));
        assert_eq!(rig.drive.controller.trouble(), Some(Trouble::Changed));
    }
}

/// What the drive answers to a format with this LBA format.
fn format(drive: &mut Drive, format: u8) -> Result<(), AdminError> {
    let command = Submission::format_nvm(1, format, SecureErase::None);
    let answer = drive.controller.drive().expect("it is up").ask(command, Vec::new(), 0);
    let mut result = None;
    drive.until(|_| {
        result = answer.try_recv().ok();
        result.is_some()
    });
    result.expect("an answer").map(drop)
}

#[test]
fn a_namespace_is_formatted_by_whoever_has_no_queue_and_its_change_is_no_trouble() {
    let mut namespace = NamespaceConfig::new(1, 65_536, 9);
    namespace.formats = vec![(9, 0), (12, 0)];
    let namespaces = vec![namespace];
    let emulated =
        EmulatedController::new(EmulatedConfig { namespaces, ..EmulatedConfig::default() });
    let mut drive = Drive::new(emulated, options(), &pool(4 << 20));
    assert!(drive.bring_up());
    format(&mut drive, 1).expect("nobody uses it");
    drive.pass(1_000_000);
    assert_eq!(drive.state(), State::Ready, "{:?}", drive.controller.trouble());
    assert_eq!(drive.emulated.counters().admin[&admin::FORMAT_NVM], 1);
}

#[test]
fn a_namespace_in_use_is_not_formatted() {
    let mut rig = rig();
    assert!(matches!(format(&mut rig.drive, 0), Err(AdminError::Serving)));
    rig.ok(rig.write(0, 1, 1));
}

#[test]
fn a_write_that_is_called_atomic_is_one_command_and_crosses_no_boundary() {
    // One block; cut by MDTS; 20 blocks are no power of two; 24 blocks from one boundary to the next.
    let cases = [(0, 0, 5, 4096), (255, 0, 5, 131_072), (19, 0, 9, 65_536), (255, 24, 9, 32_768)];
    for (awupf, boundary, mdts, bytes) in cases {
        let mut namespace = NamespaceConfig::new(1, 65_536, 12);
        namespace.boundary = boundary;
        let identity = Identity { awupf, mdts, ..Identity::default() };
        let namespaces = vec![namespace];
        let config = EmulatedConfig { identity, namespaces, ..EmulatedConfig::default() };
        let rig = Rig::new(config);
        assert_eq!(rig.geometry().atomic_write_bytes, bytes, "{awupf} {boundary} {mdts}");
    }
}

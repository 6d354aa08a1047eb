//! From disabled to ready and back.

use forebay_nvme::emulated::{EmulatedConfig, RegisterConfig, Stick, Violation};
use forebay_nvme::hardware::{Hardware, HardwareEvent, Registers};
use forebay_nvme::spec::command::Submission;
use forebay_nvme::spec::registers::{
    AQA, ASQ, CAP, CC, CRTO, CSTS, Capabilities, Configuration, NSSR, Shutdown, VS, Version,
    submission_doorbell,
};

use crate::host::Host;

#[test]
fn registers_say_what_the_configuration_says() {
    let registers = RegisterConfig {
        mqes: 62,
        timeout: 7,
        doorbell_stride: 3,
        page_min: 1,
        page_max: 5,
        command_sets: 1,
        ready_modes: 3,
        ready_timeouts: 0x0002_0001,
        version: Version::new(1, 4, 0),
        bar_bytes: Some(0x2345),
    };
    let host = Host::new(EmulatedConfig { registers, ..EmulatedConfig::default() });
    let cap = Capabilities(host.registers.read64(CAP));
    assert_eq!((cap.queue_entries_max(), cap.timeout_ms()), (63, 3500));
    assert_eq!((cap.doorbell_stride_bytes(), host.registers.bytes()), (32, 0x3000));
    assert_eq!((cap.page_bytes_min(), cap.page_bytes_max()), (8192, 1 << 17));
    assert!(cap.nvm_command_set() && cap.contiguous_queues());
    assert!(cap.ready_modes().ready_with_media() && cap.ready_modes().ready_independent());
    assert_eq!(host.registers.read32(VS), Version::new(1, 4, 0).0);
    assert_eq!(host.registers.read32(CRTO), 0x0002_0001);
    assert_eq!(host.registers.read32(CSTS), 0);
}

#[test]
fn it_gets_ready_after_a_while_and_quiet_again() {
    let mut host = Host::new(EmulatedConfig::default());
    host.start();
    host.controller.step(0);
    assert!(!host.status().ready(), "it takes its time");
    assert!(host.wait(|host| host.status().ready()));
    assert!(host.now_us >= 2000);
    host.disable();
    host.enable();
    assert_eq!((host.controller.counters().enables, host.controller.counters().disables), (2, 1));
    host.assert_clean();
}

#[test]
fn registers_written_at_the_wrong_time_are_violations() {
    let host = Host::ready(EmulatedConfig::default());
    host.registers.write32(AQA, 1);
    assert_eq!(host.controller.violations(), [Violation::Register { offset: AQA }]);
    host.registers.write64(ASQ, 0);
    host.registers.write32(CC, Configuration::enable(8192).0);
    assert_eq!(host.controller.counters().violations, 4);
    let host = Host::ready(EmulatedConfig::default());
    host.registers.write32(CC, 0);
    host.registers.write32(CC, Configuration::enable(4096).0);
    assert_eq!(host.controller.counters().violations, 1, "enabled before it was quiet");
    host.registers.write32(NSSR, 1);
    assert_eq!(host.controller.counters().violations, 1);
}

#[test]
fn a_doorbell_before_ready_or_of_no_queue_is_a_violation() {
    let mut host = Host::new(EmulatedConfig::default());
    host.start();
    host.registers.write32(submission_doorbell(0, 4), 1);
    host.controller.step(0);
    assert_eq!(host.controller.violations(), [Violation::DoorbellTooEarly { queue: 0 }]);
    let host = Host::ready(EmulatedConfig::default());
    host.registers.write32(submission_doorbell(3, 4), 1);
    host.registers.write32(submission_doorbell(0, 4), 16);
    host.controller.step(host.now_us);
    assert_eq!(
        host.controller.violations(),
        [
            Violation::DoorbellValue { queue: 0, value: 16 },
            Violation::DoorbellOfNoQueue { queue: 3 }
        ]
    );
}

#[test]
fn a_configuration_that_cannot_work_is_fatal() {
    let mut host = Host::new(EmulatedConfig::default());
    host.start();
    host.registers.write32(CC, 0);
    host.registers.write32(CC, Configuration::enable(1 << 20).0);
    assert!(host.wait(|host| host.status().fatal()));
    assert_eq!(host.controller.violations(), [Violation::BadConfiguration]);
}

#[test]
fn without_the_bus_it_cannot_fetch() {
    let mut host = Host::ready(EmulatedConfig::default());
    host.hardware.set_bus_master(false).unwrap();
    host.submit(0, Submission::keep_alive());
    host.pass(1000);
    assert!(host.status().fatal());
    assert_eq!(host.controller.counters().bus_master_blocked, 1);
    host.assert_clean();
}

#[test]
fn a_fatal_status_goes_with_a_reset() {
    let mut host = Host::ready(EmulatedConfig::default());
    host.controller.fail_fatally();
    assert!(host.status().fatal() && host.status().ready());
    let cid = host.submit(0, Submission::keep_alive());
    assert!(host.try_await(0, cid).is_none());
    host.disable();
    assert!(!host.status().fatal());
    host.enable();
    assert!(host.admin(Submission::keep_alive()).status().ok());
    host.assert_clean();
}

#[test]
fn a_stuck_ready_bit_stays_until_it_is_freed() {
    let mut host = Host::new(EmulatedConfig::default());
    host.controller.set_stick(Some(Stick::AtZero));
    host.start();
    assert!(!host.wait(|host| host.status().ready()));
    host.controller.set_stick(None);
    assert!(host.wait(|host| host.status().ready()));
    host.controller.set_stick(Some(Stick::AtOne));
    host.registers.write32(CC, 0);
    assert!(!host.wait(|host| !host.status().ready()));
    host.hardware.reset().unwrap();
    assert!(!host.status().ready(), "a function reset clears the registers");
}

#[test]
fn a_function_reset_can_cure_or_fail() {
    let mut host = Host::ready(EmulatedConfig::default());
    host.controller.set_stick(Some(Stick::AtOneUntilReset));
    host.controller.fail_resets(1);
    assert!(host.hardware.reset().is_err());
    assert!(host.status().ready());
    host.hardware.reset().unwrap();
    host.enable();
    host.disable();
    assert_eq!(host.controller.counters().function_resets, 1);
    host.assert_clean();
}

#[test]
fn a_shutdown_is_acknowledged_and_makes_everything_durable() {
    let mut host = Host::with_queue(EmulatedConfig::default(), 8);
    assert!(host.write(3, 1, 7, false).status().ok());
    let cc = Configuration(host.registers.read32(CC));
    host.registers.write32(CC, cc.with_shutdown(Shutdown::Normal).0);
    host.controller.step(host.now_us);
    assert!(host.status().shutdown_occurring());
    assert!(host.wait(|host| host.status().shutdown_complete()));
    let unsafe_before = host.controller.smart().unsafe_shutdowns.get();
    host.controller.crash(1);
    assert_eq!(host.controller.peek(1, 3)[0], 7);
    assert_eq!(host.controller.smart().unsafe_shutdowns.get(), unsafe_before);
    host.assert_clean();
}

#[test]
fn a_pulled_drive_reads_as_ones_and_comes_back_disabled() {
    let mut host = Host::ready(EmulatedConfig::default());
    host.controller.unplug();
    assert!(host.status().gone());
    assert_eq!(host.registers.read64(CAP), u64::MAX);
    assert!(host.hardware.reset().is_err() && host.hardware.set_bus_master(true).is_err());
    host.submit(0, Submission::keep_alive());
    host.controller.step(host.now_us);
    host.controller.plug();
    assert_eq!(host.registers.read32(CC), 0);
    host.enable();
    assert!(host.admin(Submission::keep_alive()).status().ok());
    host.assert_clean();
}

#[test]
fn the_system_can_ask_for_the_device() {
    let mut host = Host::ready(EmulatedConfig::default());
    host.controller.request_removal();
    host.controller.bus_error();
    let events: Vec<_> = std::iter::from_fn(|| host.hardware.next_event()).collect();
    assert_eq!(events, [HardwareEvent::RemovalRequested, HardwareEvent::Error]);
}

#[test]
fn letting_go_of_the_hardware_resets_it() {
    let host = Host::ready(EmulatedConfig::default());
    let controller = host.controller.clone();
    drop(host);
    let mut host = Host::on(controller);
    assert!(!host.status().ready());
    host.enable();
    host.assert_clean();
}

#[test]
fn every_stride_has_its_doorbells() {
    for doorbell_stride in [0, 1, 4, 9] {
        let registers = RegisterConfig { doorbell_stride, ..RegisterConfig::default() };
        let mut host = Host::ready(EmulatedConfig { registers, ..EmulatedConfig::default() });
        host.add_pair(1, 4);
        host.add_pair(16, 4);
        for queue in [1, 16] {
            for _ in 0..9 {
                assert!(host.run(queue, Submission::flush(1)).status().ok());
            }
        }
        host.assert_clean();
    }
}

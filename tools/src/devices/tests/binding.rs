//! Binding, against a kernel of our own: every refusal, every write in its order, every interruption.

use super::{FakeMachine, arguments};
use crate::devices::binding::{self, Told};
use crate::devices::fake::DRIVE;
use crate::devices::machine::Machine;
use crate::exit::Code;
use crate::media::DeviceId;
use std::path::Path;

fn bind(machine: &mut FakeMachine, line: &str) -> anyhow::Result<Told> {
    binding::bind(&arguments(line).unwrap(), machine)
}

fn unbind(machine: &mut FakeMachine, line: &str) -> anyhow::Result<Told> {
    binding::unbind(&arguments(line).unwrap(), machine)
}

const YES: &str = "0000:03:00.0 --yes";

/// `line` is refused with a message that has all of `words`, and nothing was written.
fn refused(machine: &mut FakeMachine, line: &str, words: &[&str]) {
    let error = bind(machine, line).unwrap_err();
    let message = format!("{error:#}");
    assert_eq!(Code::of(&error), Code::Refused, "{message}");
    words.iter().for_each(|word| assert!(message.contains(word), "{word} is not in: {message}"));
    assert!(machine.log.is_empty(), "{:?}", machine.log);
    assert_eq!(machine.driver(DRIVE).as_deref(), Some("nvme"));
}

#[test]
fn a_dry_run_shows_every_write_and_does_none() {
    let mut machine = FakeMachine::new();
    let root = machine.path("").display().to_string();
    let told = bind(&mut machine, DRIVE).unwrap();
    assert!(machine.log.is_empty());
    let shown: Vec<String> =
        told.text.lines().filter_map(|line| line.strip_prefix("  ")).map(str::to_owned).collect();
    bind(&mut machine, YES).unwrap();
    let written: Vec<String> = machine
        .log
        .iter()
        .map(|line| format!("echo {}", line.replace("> /", &format!("> {root}"))))
        .collect();
    assert_eq!(shown, written);
    assert!(told.text.contains("Nothing was written"), "{}", told.text);
    assert_eq!(told.json["written"], false);
    assert_eq!(told.json["drives"][0]["steps"].as_array().unwrap().len(), 3);
}

#[test]
fn bind_and_unbind_write_these_and_nothing_else() {
    let mut machine = FakeMachine::new();
    let told = bind(&mut machine, YES).unwrap();
    let expected = [
        "vfio-pci > /sys/bus/pci/devices/0000:03:00.0/driver_override",
        "0000:03:00.0 > /sys/bus/pci/drivers/nvme/unbind",
        "0000:03:00.0 > /sys/bus/pci/drivers_probe",
    ];
    assert_eq!(machine.log, expected);
    assert_eq!(machine.driver(DRIVE).as_deref(), Some("vfio-pci"));
    assert!(told.text.contains("forebay devices unbind 0000:03:00.0 --yes"), "{}", told.text);

    machine.log.clear();
    unbind(&mut machine, YES).unwrap();
    let expected = [
        "nvme > /sys/bus/pci/devices/0000:03:00.0/driver_override",
        "0000:03:00.0 > /sys/bus/pci/drivers/vfio-pci/unbind",
        "0000:03:00.0 > /sys/bus/pci/drivers_probe",
        " > /sys/bus/pci/devices/0000:03:00.0/driver_override",
    ];
    assert_eq!(machine.log, expected);
    assert_eq!(machine.driver(DRIVE).as_deref(), Some("nvme"));
    assert_eq!(machine.driver_override(DRIVE), "(null)");
}

#[test]
fn a_second_time_there_is_nothing_to_do() {
    let mut machine = FakeMachine::new();
    assert!(unbind(&mut machine, YES).unwrap().text.contains("with nvme already"));
    assert!(machine.log.is_empty());
    bind(&mut machine, YES).unwrap();
    machine.log.clear();
    assert!(bind(&mut machine, YES).unwrap().text.contains("with vfio-pci already"));
    assert!(bind(&mut machine, DRIVE).unwrap().text.contains("with vfio-pci already"));
    assert!(machine.log.is_empty());
}

#[test]
fn a_module_that_is_not_loaded_is_loaded_first_and_said_so() {
    let mut machine = FakeMachine::new();
    std::fs::remove_dir(machine.path("sys/bus/pci/drivers/vfio-pci")).unwrap();
    assert!(bind(&mut machine, DRIVE).unwrap().text.contains("  modprobe vfio-pci\n"));
    bind(&mut machine, YES).unwrap();
    assert_eq!(machine.log[0], "modprobe vfio-pci");
    assert_eq!(machine.driver(DRIVE).as_deref(), Some("vfio-pci"));
    std::fs::remove_dir(machine.path("sys/bus/pci/drivers/nvme")).unwrap();
    machine.log.clear();
    unbind(&mut machine, YES).unwrap();
    assert_eq!(machine.log[0], "modprobe nvme");
}

#[test]
fn a_drive_in_use_is_never_taken_whatever_is_typed() {
    type Use = fn(&mut FakeMachine);
    let cases: [(Use, &str); 6] = [
        (
            |m| m.put("proc/self/mountinfo", "22 1 259:3 / /data rw - ext4 /dev/x rw\n"),
            "nvme3n1 is mounted on /data",
        ),
        (|m| m.put("proc/swaps", "/dev/nvme3n1 partition 1 0 -2\n"), "is a swap area in use"),
        (|m| m.put("sys/block/nvme3n1/holders/dm-4/x", ""), "is used by dm-4"),
        (|m| m.claimed = vec!["nvme3n1"], "is in use in the kernel"),
        (|m| m.process(17, "fio", "dev/nvme3n1"), "nvme3n1 is open in fio (pid 17)"),
        (|m| m.process(18, "nvme", "dev/ng3n1"), "ng3n1 is open in nvme (pid 18)"),
    ];
    for (prepare, why) in cases {
        let mut machine = FakeMachine::new();
        prepare(&mut machine);
        for line in [DRIVE, YES, "0000:03:00.0 --yes --confirm S3"] {
            refused(&mut machine, line, &[DRIVE, "S3", why, "free it first"]);
        }
    }
}

/// A container has its own names for devices, and a file can be gone while it is open.
#[test]
fn a_device_that_is_open_under_another_name_is_found_by_its_number() {
    let number = DeviceId::of(Path::new("/dev/null")).unwrap();
    assert_eq!(number, DeviceId::Character(1, 3));
    let mut machine = FakeMachine::new();
    machine.put("proc/40/comm", "other\n");
    std::fs::create_dir_all(machine.path("proc/40/fd")).unwrap();
    std::os::unix::fs::symlink("/dev/null", machine.path("proc/40/fd/5")).unwrap();
    machine.put("sys/class/nvme-generic/ng3n1/dev", "1:4\n");
    bind(&mut machine, DRIVE).unwrap();
    machine.put("sys/class/nvme-generic/ng3n1/dev", "1:3\n");
    refused(&mut machine, "0000:03:00.0 --yes --confirm S3", &["ng3n1 is open in other (pid 40)"]);

    let mut machine = FakeMachine::new();
    bind(&mut machine, YES).unwrap();
    machine.process(31, "forebayd", "somewhere/else");
    std::fs::remove_file(machine.path("proc/31/fd/3")).unwrap();
    std::os::unix::fs::symlink("/dev/null", machine.path("proc/31/fd/3")).unwrap();
    machine.put("sys/class/vfio/7/dev", "1:3\n");
    let error = unbind(&mut machine, YES).unwrap_err();
    assert!(error.to_string().contains("driven by forebayd (pid 31)"), "{error}");
}

#[test]
fn a_mounted_partition_is_its_drives_use() {
    let mut machine = FakeMachine::new();
    machine.put("sys/block/nvme3n1/nvme3n1p2/partition", "2\n");
    machine.put("sys/block/nvme3n1/nvme3n1p2/dev", "259:20\n");
    machine.put("proc/self/mountinfo", "22 1 259:20 / / rw - ext4 /dev/root rw\n");
    refused(&mut machine, "0000:03:00.0 --yes --confirm S3", &["is mounted on /"]);
    machine.put("proc/self/mountinfo", "");
    machine.process(9, "dd", "dev/nvme3n1p2");
    refused(&mut machine, "0000:03:00.0 --yes --confirm S3", &["nvme3n1p2 is open in dd (pid 9)"]);
}

#[test]
fn a_drive_that_holds_something_is_taken_only_by_its_serial_number() {
    type Content = fn(&FakeMachine);
    let cases: [(Content, &str); 5] = [
        (|m| m.put("sys/block/nvme3n1/nvme3n1p1/partition", "1\n"), "holds 1 partition ("),
        (|m| m.put("dev/nvme3n1", disk(1080, &[0x53, 0xef])), "holds an ext file system"),
        (|m| m.put("dev/nvme3n1", disk(9999, &[1])), "holds data of unknown kind"),
        (|m| m.put("sys/block/nvme3n1/size", "0\n"), "cannot be read by the kernel"),
        (
            |m| m.put("sys/bus/pci/devices/0000:03:00.0/nvme/nvme3/state", "resetting\n"),
            "is resetting, so that what it holds cannot be seen",
        ),
    ];
    for (prepare, why) in cases {
        let mut machine = FakeMachine::new();
        prepare(&machine);
        for line in [DRIVE, YES] {
            refused(&mut machine, line, &[DRIVE, "S3", why, "--confirm SERIAL"]);
        }
        let error = bind(&mut machine, "0000:03:00.0 --yes --confirm S4").unwrap_err();
        assert_eq!(Code::of(&error), Code::Usage, "{error}");
        bind(&mut machine, "0000:03:00.0 --yes --confirm S3").unwrap();
        assert_eq!(machine.driver(DRIVE).as_deref(), Some("vfio-pci"), "{why}");
    }
}

#[test]
fn a_namespace_that_shows_no_disk_is_not_an_empty_one() {
    type Hide = fn(&mut FakeMachine);
    let cases: [(Hide, &str); 6] = [
        (|m| m.says.borrow_mut().add_namespace(9), "namespace 9 shows no disk"),
        (|m| m.put("sys/block/nvme3n1/nsid", ""), "namespace 1 shows no disk"),
        (|m| m.put("sys/block/nvme3n1/size", ""), "nvme3n1 cannot be read by the kernel"),
        (|m| m.says.borrow_mut().mute = true, "does not tell its namespaces (it does not answer)"),
        (
            |m| m.put("sys/bus/pci/devices/0000:03:00.0/nvme/nvme3/state", ""),
            "its controller is in no known state",
        ),
        (
            |m| std::fs::remove_dir_all(m.path("sys/bus/pci/devices/0000:03:00.0/nvme")).unwrap(),
            "its controller is not there yet",
        ),
    ];
    for (hide, why) in cases {
        let mut machine = FakeMachine::new();
        hide(&mut machine);
        for line in [DRIVE, YES] {
            refused(&mut machine, line, &[DRIVE, why, "--confirm SERIAL"]);
        }
    }
    let mut machine = FakeMachine::new();
    machine.says.borrow_mut().add_namespace(9);
    machine.add_disk(DRIVE, 9);
    bind(&mut machine, YES).unwrap();
    assert_eq!(machine.claims.get(), 2);
}

/// The kernel shows a drive's disks only some time after its controller is live: `bind` right behind
/// `unbind` saw no disk, and took a drive with a file system on it.
#[test]
fn unbind_waits_for_the_disks_so_that_bind_sees_them() {
    let mut machine = FakeMachine::new();
    machine.put("dev/nvme3n1", disk(1080, &[0x53, 0xef]));
    bind(&mut machine, "0000:03:00.0 --yes --confirm S3").unwrap();
    machine.scan = 5;
    unbind(&mut machine, YES).unwrap();
    assert_eq!(machine.pauses, 5);
    machine.log.clear();
    refused(&mut machine, YES, &["holds an ext file system"]);
}

#[test]
fn a_namespace_that_never_shows_a_disk_does_not_keep_unbind() {
    for hide in [
        |m: &mut FakeMachine| m.says.borrow_mut().add_namespace(9),
        |m: &mut FakeMachine| {
            m.says.borrow_mut().mute = true;
        },
    ] {
        let mut machine = FakeMachine::new();
        bind(&mut machine, YES).unwrap();
        hide(&mut machine);
        unbind(&mut machine, YES).unwrap();
        machine.log.clear();
        refused(&mut machine, YES, &["cannot be seen"]);
    }
}

/// 4 MiB of zeros but for `bytes`.
fn disk(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; 4 << 20];
    disk[at..at + bytes.len()].copy_from_slice(bytes);
    disk
}

#[test]
fn a_pool_of_ours_needs_no_serial_number() {
    let mut machine = FakeMachine::new();
    let magic = forebayd::store::format::superblock::MAGIC;
    machine.put("dev/nvme3n1", disk(3 << 20, &magic));
    bind(&mut machine, YES).unwrap();
    assert_eq!(machine.claims.get(), 1, "it was claimed while it was looked at");
}

#[test]
fn a_drive_without_an_iommu_is_refused_with_what_to_turn_on() {
    let mut machine = FakeMachine::new();
    std::fs::remove_file(machine.path("sys/bus/pci/devices/0000:03:00.0/iommu_group")).unwrap();
    refused(&mut machine, YES, &["no IOMMU", "intel_iommu=on"]);
    let mut machine = FakeMachine::new();
    machine.put("sys/kernel/iommu_groups/7/name", "vfio-noiommu\n");
    refused(&mut machine, YES, &["no IOMMU", "intel_iommu=on"]);
}

#[test]
fn a_shared_group_is_refused_by_the_name_of_who_is_in_the_way() {
    let mut machine = FakeMachine::new();
    machine.function("0000:03:00.1", "0x020000", Some(7));
    machine.function("0000:00:01.0", "0x060400", Some(7));
    machine.attach("0000:00:01.0", "pcieport");
    bind(&mut machine, DRIVE).expect("a bridge and a function without driver are no obstacle");
    machine.attach("0000:03:00.1", "e1000e");
    refused(&mut machine, YES, &["group 7", "0000:03:00.1", "e1000e"]);
}

#[test]
fn two_drives_of_one_group_are_bound_together_or_not_at_all() {
    let mut machine = FakeMachine::new();
    machine.function("0000:04:00.0", "0x010802", Some(7));
    machine.attach("0000:04:00.0", "nvme");
    refused(&mut machine, YES, &["0000:04:00.0", "which nvme has"]);
    machine.put("dev/nvme4n1", disk(0, b"XFSB"));
    refused(&mut machine, "03:00.0 04:00.0 --yes", &["0000:04:00.0", "S4", "an XFS file system"]);
    bind(&mut machine, "03:00.0 04:00.0 --yes --confirm S4").unwrap();
    assert_eq!(machine.driver("0000:04:00.0").as_deref(), Some("vfio-pci"));
    unbind(&mut machine, "03:00.0 04:00.0 --yes").unwrap();
    assert_eq!(machine.driver("0000:04:00.0").as_deref(), Some("nvme"));
}

#[test]
fn another_programs_driver_is_left_alone() {
    let mut machine = FakeMachine::new();
    machine.function("0000:05:00.0", "0x010802", Some(9));
    machine.put("sys/bus/pci/drivers/uio_pci_generic/module", "");
    machine.attach("0000:05:00.0", "uio_pci_generic");
    refused(&mut machine, "05:00.0 --yes", &["is bound to uio_pci_generic"]);
    let error = unbind(&mut machine, "05:00.0 --yes").unwrap_err();
    assert_eq!(Code::of(&error), Code::Refused, "{error}");
}

#[test]
fn what_is_no_drive_is_not_found() {
    let mut machine = FakeMachine::new();
    machine.function("0000:06:00.0", "0x020000", Some(9));
    for (line, why) in
        [("06:00.0", "is no NVMe controller (class 0x020000)"), ("07:00.0", "is not there")]
    {
        let error = bind(&mut machine, line).unwrap_err();
        assert_eq!(Code::of(&error), Code::NotFound);
        assert!(error.to_string().contains(why), "{error}");
    }
    let twice = bind(&mut machine, "03:00.0 0000:03:00.0").unwrap_err();
    assert_eq!(Code::of(&twice), Code::Usage);
}

#[test]
fn a_drive_without_a_driver_has_to_be_looked_at_first() {
    let mut machine = FakeMachine::new();
    machine.function("0000:08:00.0", "0x010802", Some(9));
    refused(&mut machine, "08:00.0 --yes", &["has no driver", "devices unbind 0000:08:00.0 --yes"]);
    machine.put("sys/bus/pci/devices/0000:08:00.0/driver_override", "vfio-pci\n");
    refused(&mut machine, "08:00.0 --yes", &["has no driver"]);
    unbind(&mut machine, "08:00.0 --yes").unwrap();
    bind(&mut machine, "08:00.0 --yes").unwrap();
}

#[test]
fn a_daemons_drive_is_not_taken_from_it() {
    let mut machine = FakeMachine::new();
    bind(&mut machine, YES).unwrap();
    machine.process(31, "forebayd", "dev/vfio/7");
    machine.log.clear();
    let error = unbind(&mut machine, YES).unwrap_err();
    assert_eq!(Code::of(&error), Code::Refused);
    assert!(error.to_string().contains("driven by forebayd (pid 31)"), "{error}");
    assert!(machine.log.is_empty());
}

/// One in a container, or of another user, shows no descriptors here; an unbind would wait for it.
#[test]
fn a_drive_whose_group_the_kernel_has_given_out_is_not_taken_back() {
    let mut machine = FakeMachine::new();
    bind(&mut machine, YES).unwrap();
    machine.claimed = vec!["vfio/7"];
    machine.log.clear();
    let error = unbind(&mut machine, YES).unwrap_err();
    assert_eq!(Code::of(&error), Code::Refused);
    assert!(error.to_string().contains("driven by a process that is not seen here"), "{error}");
    assert!(machine.log.is_empty());
    machine.claimed.clear();
    unbind(&mut machine, YES).unwrap();
}

#[test]
fn an_interruption_anywhere_is_mended_by_unbind_and_finished_by_bind() {
    // Without a driver nobody sees what the drive holds, so that only unbind leads on.
    let both = |machine: &mut FakeMachine, line: &str| {
        if machine.driver(DRIVE).is_none() {
            let error = bind(machine, line).unwrap_err().to_string();
            assert!(error.contains("has no driver"), "{error}");
            unbind(machine, line)?;
        }
        bind(machine, line)
    };
    for mend in [unbind, both] {
        for died in 0.. {
            let mut machine = FakeMachine::new();
            std::fs::remove_dir(machine.path("sys/bus/pci/drivers/vfio-pci")).unwrap();
            machine.die_before = Some(died);
            let ended = bind(&mut machine, YES);
            machine.die_before = None;
            if ended.is_ok() {
                assert_eq!(died, 4, "every change was interrupted once");
                break;
            }
            mend(&mut machine, YES).unwrap();
            let driver = machine.driver(DRIVE).unwrap();
            match machine.driver_override(DRIVE).as_str() {
                "(null)" => assert_eq!(driver, "nvme"),
                named => assert_eq!((named, driver.as_str()), ("vfio-pci", "vfio-pci")),
            }
        }
    }
}

#[test]
fn an_interrupted_unbind_is_ended_by_the_next() {
    for died in 0.. {
        let mut machine = FakeMachine::new();
        bind(&mut machine, YES).unwrap();
        machine.log.clear();
        machine.die_before = Some(died);
        let ended = unbind(&mut machine, YES);
        machine.die_before = None;
        if ended.is_ok() {
            assert_eq!(died, 4, "every change was interrupted once");
            break;
        }
        unbind(&mut machine, YES).unwrap();
        assert_eq!(machine.driver(DRIVE).as_deref(), Some("nvme"));
        assert_eq!(machine.driver_override(DRIVE), "(null)");
    }
}

#[test]
fn a_driver_that_does_not_take_the_drive_is_told_with_the_way_back() {
    let mut machine = FakeMachine::new();
    machine.broken = Some("vfio-pci");
    let error = format!("{:#}", bind(&mut machine, YES).unwrap_err());
    assert!(error.contains("is with no driver, not with vfio-pci"), "{error}");
    assert!(error.contains("forebay devices unbind 0000:03:00.0 --yes"), "{error}");
    unbind(&mut machine, YES).unwrap();
    assert_eq!(machine.driver(DRIVE).as_deref(), Some("nvme"));
}

#[test]
fn a_slow_driver_is_waited_for() {
    let mut machine = FakeMachine::new();
    machine.slow = 7;
    bind(&mut machine, YES).unwrap();
    assert_eq!(machine.pauses, 7);
    assert!(machine.system().sys("bus").exists());
}

//! List, smart, identify and format.

use super::{FakeMachine, arguments};
use crate::devices::binding::Told;
use crate::devices::fake::DRIVE;
use crate::devices::{binding, identify, lba, list, smart};
use crate::exit::Code;
use forebay_nvme::spec::log::ErrorLogEntry;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use zerocopy::FromZeros;

fn list(machine: &FakeMachine) -> Told {
    let socket = machine.path("admin.sock");
    list::list(&arguments(&format!("--admin {}", socket.display())).unwrap(), machine).unwrap()
}

fn smart(machine: &FakeMachine) -> anyhow::Result<Told> {
    let socket = machine.path("admin.sock");
    smart::smart(&arguments(&format!("{DRIVE} --admin {}", socket.display())).unwrap(), machine)
}

fn format(machine: &FakeMachine, line: &str) -> anyhow::Result<Told> {
    lba::format(&arguments(&format!("{DRIVE} {line}")).unwrap(), machine)
}

/// The cells of a drive's line.
fn cells(told: &Told, line: usize) -> Vec<String> {
    let line = told.text.lines().nth(line).unwrap();
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
}

/// A daemon that answers one question, and the drives it tells of.
fn daemon(machine: &FakeMachine, answer: Value) -> std::thread::JoinHandle<String> {
    let listener = UnixListener::bind(machine.path("admin.sock")).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        writeln!(stream, "{answer}").unwrap();
        line
    })
}

/// The drive with vfio-pci, and a daemon that has it open.
fn driven() -> FakeMachine {
    let mut machine = FakeMachine::new();
    binding::bind(&arguments(&format!("{DRIVE} --yes")).unwrap(), &mut machine).unwrap();
    machine.process(31, "forebayd", "dev/vfio/7");
    machine
}

#[test]
fn a_drive_of_the_kernels_is_listed_with_all_that_it_says() {
    let machine = FakeMachine::new();
    {
        let mut says = machine.says.borrow_mut();
        says.smart.percentage_used = 7;
        says.smart.temperature.set(313);
    }
    let told = list(&machine);
    let row = cells(&told, 1);
    let expected =
        ["FAKE NVMe", "S3", "1.0", "4.00 GiB", "512", "1", "nvme", "7", "7%", "40°C", "-"];
    assert_eq!(row, [&[DRIVE][..], &expected].concat());
    assert_eq!(told.text.lines().count(), 2, "{}", told.text);
    let drive = &told.json[0];
    assert_eq!((&drive["bytes"], &drive["temperature_c"]), (&json!(4_u64 << 30), &json!(40)));
    assert_eq!((&drive["disks"], &drive["holder"]), (&json!(["nvme3n1"]), &Value::Null));
}

#[test]
fn a_warning_is_seen_under_the_list() {
    let machine = FakeMachine::new();
    machine.says.borrow_mut().smart.critical_warning = 0b1100;
    let told = list(&machine);
    let warning = "0000:03:00.0 (S3) warns: reliability is degraded; media is read only";
    assert_eq!(told.text.lines().nth(2), Some(warning));
    assert_eq!(told.json[0]["warnings"], json!(["reliability is degraded", "media is read only"]));
    assert_eq!(told.json[0]["critical_warning"], 12);
}

#[test]
fn a_drive_that_does_not_answer_is_listed_by_what_the_system_knows() {
    let machine = FakeMachine::new();
    machine.says.borrow_mut().mute = true;
    machine.put("sys/bus/pci/devices/0000:03:00.0/nvme/nvme3/state", "dead\n");
    machine.put("sys/bus/pci/devices/0000:03:00.0/nvme/nvme3/model", "A\x1b[2J B\n");
    let told = list(&machine);
    let row = cells(&told, 1);
    assert_eq!(row[1..6], ["A?[2J B", "S3", "1.0", "4.00 MiB", "4096"]);
    assert_eq!(row[9..], ["-", "-", "-"]);
    assert_eq!(told.text.lines().nth(2), Some("0000:03:00.0 (S3) is dead"));
    assert_eq!(told.text.lines().nth(3), Some("0000:03:00.0: it does not answer"));
}

#[test]
fn the_holder_is_named() {
    let machine = FakeMachine::new();
    machine.process(12, "forebayd", "dev/nvme3n1");
    assert_eq!(list(&machine).json[0]["holder"], "forebayd (pid 12)");
    machine.put("proc/self/mountinfo", "22 1 259:3 / /data rw - ext4 /dev/x rw\n");
    assert_eq!(list(&machine).json[0]["holder"], "mounted on /data");
}

#[test]
fn a_daemons_drive_is_listed_as_the_daemon_tells_it() {
    let machine = driven();
    let asked = daemon(
        &machine,
        json!([{
            "pci": DRIVE, "model": "FAKE NVMe", "serial": "S3", "firmware": "1.0", "blocks": 1 << 20,
            "lba_bytes": 4096, "critical_warning": 4, "temperature_c": 41, "percentage_used": 3,
            "state": "ready",
        }]),
    );
    let told = list(&machine);
    assert_eq!(asked.join().unwrap(), "\"devices\"\n");
    let expected = [
        "FAKE NVMe",
        "S3",
        "1.0",
        "4.00 GiB",
        "4096",
        "1",
        "vfio-pci",
        "7",
        "3%",
        "41°C",
        "forebayd (pid 31)",
    ];
    assert_eq!(cells(&told, 1), [&[DRIVE][..], &expected].concat());
    assert!(told.text.ends_with("(S3) warns: reliability is degraded\n"), "{}", told.text);
}

#[test]
fn a_daemons_drive_is_listed_without_the_daemon_too() {
    let machine = driven();
    let told = list(&machine);
    assert_eq!(cells(&told, 1)[6..], ["1", "vfio-pci", "7", "-", "-", "forebayd (pid 31)"]);
    let error = smart(&machine).unwrap_err();
    let why = "0000:03:00.0: driven by forebayd (pid 31), which alone can ask it";
    assert!(format!("{error:#}").starts_with(why), "{error:#}");
    assert!(told.text.lines().nth(2).unwrap().starts_with(why), "{}", told.text);
}

#[test]
fn a_free_drive_of_vfio_is_reset_only_by_who_says_so() {
    let mut machine = FakeMachine::new();
    binding::bind(&arguments(&format!("{DRIVE} --yes")).unwrap(), &mut machine).unwrap();
    let told = list(&machine);
    let why = "0000:03:00.0: not asked: that would bring it up, and reset it (--ask does it)";
    assert_eq!(told.text.lines().nth(2), Some(why));
    // The way there is none in this machine: it was tried.
    let told = list::list(&arguments("--ask --admin /none").unwrap(), &machine).unwrap();
    assert!(told.text.contains("no way to a drive with"), "{}", told.text);
}

#[test]
fn a_machine_without_drives_says_so() {
    let machine = FakeMachine::new();
    std::fs::remove_dir_all(machine.path("sys/bus/pci/devices/0000:03:00.0")).unwrap();
    assert_eq!(list(&machine).text, "no NVMe drive\n");
    assert_eq!(list(&machine).json, json!([]));
}

#[test]
fn health_is_told_in_words() {
    let machine = FakeMachine::new();
    {
        let mut says = machine.says.borrow_mut();
        says.smart.critical_warning = 1;
        says.smart.data_units_written.set(u128::MAX);
        says.smart.error_log_entries.set(2);
        let mut error = ErrorLogEntry::new_zeroed();
        error.error_count.set(2);
        error.nsid.set(1);
        error.lba.set(77);
        error.status_field.set(0x281 << 1);
        says.errors.push(error);
    }
    let told = smart(&machine).unwrap();
    for line in [
        "critical warning  available spare is low",
        "error log entries  2",
        "error 2  unrecovered read error (0x281) (queue 0, namespace 1, LBA 77)",
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let has = |text: &str| text.split_whitespace().eq(words.iter().copied());
        assert!(told.text.lines().any(has), "{line} is not in {}", told.text);
    }
    assert_eq!(told.json["warnings"], json!(["available spare is low"]));
    assert_eq!(told.json["data_units_written"], u64::MAX);
    assert_eq!(told.json["errors"][0]["status"], 0x281);
}

#[test]
fn a_daemon_tells_the_health_of_its_drive() {
    let machine = driven();
    let asked = daemon(&machine, json!({"devices": [{"pci": DRIVE, "critical_warning": 2}]}));
    let told = smart(&machine).unwrap();
    asked.join().unwrap();
    assert_eq!(told.json["warnings"], json!(["temperature past a threshold"]));
    assert_eq!(told.json["from"], "daemon");
    assert!(told.text.contains("temperature past a threshold"), "{}", told.text);
}

#[test]
fn identify_shows_what_matters_and_every_field() {
    let machine = FakeMachine::new();
    let told = identify::identify(&arguments(DRIVE).unwrap(), &machine).unwrap();
    for line in
        ["model  FAKE NVMe", "LBA format  512", "format 3  4096, performance 0", "has  format"]
    {
        let words: Vec<&str> = line.split_whitespace().collect();
        let has = |text: &str| text.split_whitespace().eq(words.iter().copied());
        assert!(told.text.lines().any(has), "{line} is not in {}", told.text);
    }
    let controller = &told.json["controller"];
    let fields = controller.as_object().unwrap();
    assert!(fields.keys().all(|name| !name.contains("reserved")) && fields.contains_key("maxcna"));
    assert_eq!((&controller["sn"], &controller["oacs"]), (&json!("S3"), &json!(2)));
    let namespace = &told.json["namespaces"][0];
    assert_eq!((&namespace["nsze"], &namespace["bytes"]), (&json!(8 << 20), &json!(4_u64 << 30)));
    assert_eq!(namespace["lbaf"][2], json!({"ms": 8, "lbads": 12, "rp": 0, "bytes": 4096}));
}

#[test]
fn a_format_is_shown_and_sent_only_with_the_serial_number() {
    let machine = FakeMachine::new();
    let told = format(&machine, "--block-size 4096").unwrap();
    assert!(told.text.contains("from LBA format 512 to 4096 (number 3)"), "{}", told.text);
    assert!(told.text.contains("all its data is lost"), "{}", told.text);
    assert_eq!(told.json["sent"], false);
    let wrong = format(&machine, "--block-size 4096 --confirm S4").unwrap_err();
    assert_eq!(Code::of(&wrong), Code::Usage, "{wrong}");
    assert!(machine.says.borrow().formats.is_empty());

    let told = format(&machine, "--block-size 4KiB --confirm S3 --secure-erase user").unwrap();
    assert_eq!(told.json["sent"], true);
    let sent = machine.says.borrow().formats.clone();
    assert_eq!((sent.len(), sent[0].nsid.get(), sent[0].cdw10.get()), (1, 1, 3 | 1 << 9));
    let told = format(&machine, "--lba-format 3 --confirm S3").unwrap();
    assert!(told.text.contains("has LBA format 4096 already"), "{}", told.text);
    assert_eq!(machine.says.borrow().formats.len(), 1);
}

#[test]
fn a_format_says_what_is_lost_and_forgets_its_partitions() {
    let machine = FakeMachine::new();
    let mut pool = vec![0; 4 << 20];
    pool[3 << 20..][..8].copy_from_slice(&forebayd::store::format::superblock::MAGIC);
    machine.put("dev/nvme3n1", pool);
    let told = format(&machine, "--block-size 4096").unwrap();
    assert!(told.text.contains("  nvme3n1 holds a Forebay pool"), "{}", told.text);
    assert_eq!(machine.rereads.get(), 0);
    format(&machine, "--block-size 4096 --confirm S3").unwrap();
    assert_eq!(machine.rereads.get(), 1);
}

#[test]
fn a_drive_in_use_is_never_formatted() {
    type Use = fn(&mut FakeMachine);
    let cases: [(Use, &str); 3] = [
        (|m| m.claimed = vec!["nvme3n1"], "in use in the kernel"),
        (|m| m.process(12, "forebayd", "dev/nvme3n1"), "open in forebayd (pid 12)"),
        (|m| m.put("proc/swaps", "/dev/nvme3n1 partition 1 0 -2\n"), "swap area in use"),
    ];
    for (prepare, why) in cases {
        let mut machine = FakeMachine::new();
        prepare(&mut machine);
        for line in ["--block-size 4096", "--block-size 4096 --confirm S3"] {
            let error = format(&machine, line).unwrap_err();
            assert_eq!(Code::of(&error), Code::Refused);
            assert!(error.to_string().contains(why), "{error}");
        }
        assert!(machine.says.borrow().formats.is_empty());
    }
    let error = format(&driven(), "--block-size 4096 --confirm S3").unwrap_err();
    assert!(error.to_string().contains("driven by forebayd (pid 31)"), "{error}");
}

#[test]
fn what_cannot_be_formatted_is_refused_with_what_there_is() {
    let machine = FakeMachine::new();
    for (line, code, why) in [
        ("--lba-format 2", Code::Refused, "has metadata behind its blocks"),
        ("--lba-format 9", Code::NotFound, "0: 512, 1: 512+8, 2: 4096+8, 3: 4096"),
        ("--block-size 8192", Code::NotFound, "no such LBA format"),
        ("--block-size 4096 --secure-erase crypto", Code::Refused, "--secure-erase user"),
        ("--block-size 4096 --namespace 2", Code::NotFound, "no namespace 2; it has 1"),
    ] {
        let error = format(&machine, &format!("{line} --confirm S3")).unwrap_err();
        assert_eq!(Code::of(&error), code, "{line}: {error}");
        assert!(error.to_string().contains(why), "{line}: {error}");
    }
    machine.says.borrow_mut().add_namespace(5);
    let error = format(&machine, "--block-size 4096 --confirm S3").unwrap_err();
    assert!(error.to_string().contains("--namespace 1, 5"), "{error}");
    machine.says.borrow_mut().controller.fna = 1;
    let told = format(&machine, "--block-size 4096 --namespace 5").unwrap();
    assert!(told.text.contains("formats all of its 2 namespaces"), "{}", told.text);
    machine.says.borrow_mut().controller.oacs.set(0);
    let error = format(&machine, "--block-size 4096 --namespace 5").unwrap_err();
    assert!(error.to_string().contains("no Format NVM"), "{error}");
    assert!(machine.says.borrow().formats.is_empty());
    for line in ["0000:03:00.0", "0000:03:00.0 --lba-format 1 --block-size 512"] {
        assert!(arguments::<lba::Args>(line).is_err(), "{line}");
    }
}

#[test]
fn a_drive_that_only_pretends_to_format_is_found_out() {
    let machine = FakeMachine::new();
    machine.says.borrow_mut().lazy = true;
    let error = format(&machine, "--block-size 4096 --confirm S3").unwrap_err();
    assert!(error.to_string().contains("its LBA format is 512 now"), "{error}");
}

//! QEMU's command line: what a machine of a place looks like to its guest.

use super::drive;
use super::place::{Place, Wire, bound_to_this_thread};
use anyhow::{Context as _, bail};
use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Stdio};

/// Cores of a machine: a daemon with two reactors has both.
const CORES: u32 = 2;
/// Its memory, in MiB.
const MEMORY_MIB: u32 = 2048;
/// Ports in a row that lead into the guest.
const PORTS: u16 = 4;
/// The network device at the wire, by QEMU's name for it.
pub(super) const WIRE: &str = "wire0";

/// Starts it; `media` are the files and sockets behind the drives.
pub(super) fn start(place: &Place, media: &[PathBuf], port: u16) -> anyhow::Result<Child> {
    let log = File::create(place.path("qemu.log"))?;
    let mut command = bound_to_this_thread("qemu-system-x86_64");
    command.current_dir(place.folder()).args(arguments(place, media, port));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command
        .spawn()
        .context("cannot start qemu-system-x86_64: run `make test-vm`, which installs it")
}

fn arguments(place: &Place, media: &[PathBuf], port: u16) -> Vec<String> {
    let (kernel, initramfs) = (place.prepared.kernel(), place.prepared.initramfs());
    let agent = place.prepared.agent().display();
    let mut all: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| all.extend([option.to_owned(), value]);
    add("-M", "q35,kernel-irqchip=split".to_owned());
    add("-accel", "tcg,thread=multi".to_owned());
    add("-cpu", "max".to_owned());
    add("-smp", CORES.to_string());
    add("-m", format!("{MEMORY_MIB}M"));
    add("-display", "none".to_owned());
    add("-kernel", kernel.display().to_string());
    add("-initrd", initramfs.display().to_string());
    let iommu = if place.iommu { "intel_iommu=on iommu=pt" } else { "intel_iommu=off" };
    // On a busy host the kernel would find that its timer does not work, and give up.
    let console = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check";
    let modules = place.prepared.modules();
    let ours = format!("forebay.agent={agent} forebay.modules={}", modules.display());
    add("-append", format!("{console} {iommu} {ours}"));
    if place.iommu {
        let iommu = "intel-iommu,intremap=on,caching-mode=on,aw-bits=48";
        add("-device", iommu.to_owned());
    }
    add("-chardev", "file,id=console,path=console.log,append=on".to_owned());
    add("-serial", "chardev:console".to_owned());
    for (name, path, how) in [("host", "/", ",readonly=on,multidevs=remap"), ("share", "share", "")]
    {
        add("-fsdev", format!("local,id={name},path={path},security_model=none{how}"));
        add("-device", format!("virtio-9p-pci,fsdev={name},mount_tag={name},ioeventfd=off"));
    }
    // Each queue's eventfd would be looked at whenever QEMU's main loop wakes, which a drive's doorbell has
    // it do: those of a serial device of the usual size take more than half of the drive's speed.
    add("-device", "virtio-serial-pci,max_ports=2,ioeventfd=off".to_owned());
    add("-chardev", "socket,id=agent,path=agent.sock,server=on,wait=off".to_owned());
    add("-device", "virtserialport,chardev=agent,name=agent".to_owned());
    add("-qmp", "unix:qmp.sock,server=on,wait=off".to_owned());
    let forwards =
        (port..port + PORTS).map(|port| format!(",hostfwd=tcp:127.0.0.1:{port}-:{port}"));
    add("-netdev", format!("user,id=net{}", forwards.collect::<String>()));
    add("-device", "virtio-net-pci,netdev=net,romfile=,ioeventfd=off".to_owned());
    if let Some((netdev, device)) = wire(place.wire.as_ref()) {
        add("-netdev", netdev);
        add("-device", device);
    }
    for (number, (drive, media)) in place.drives.iter().zip(media).enumerate() {
        add("-device", drive::root_port(number));
        for node in drive.nodes(number, media) {
            add("-blockdev", node.to_string());
        }
        add("-device", drive.device(number).to_string());
    }
    all.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    all
}

/// The second network device, `eth1` in the guest.
fn wire(wire: Option<&Wire>) -> Option<(String, String)> {
    let Wire { cable, number } = wire?;
    let path = cable.socket().display();
    let netdev = format!("stream,id=wire,server=off,addr.type=unix,addr.path={path}");
    // Each end has an address of its own: QEMU would give both the same.
    let mac = format!("52:54:00:09:00:0{number}");
    let device = format!("virtio-net-pci,id={WIRE},netdev=wire,mac={mac},romfile=,ioeventfd=off");
    Some((netdev, device))
}

/// The first of [`PORTS`] ports in a row that nobody listens on.
pub(super) fn free_ports() -> anyhow::Result<u16> {
    for _ in 0..100 {
        let first = TcpListener::bind("127.0.0.1:0").context("no port of 127.0.0.1 is free")?;
        let port = first.local_addr()?.port();
        let Some(last) = port.checked_add(PORTS - 1) else { continue };
        if (port + 1..=last).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return Ok(port);
        }
    }
    bail!("no {PORTS} ports in a row are free")
}

//! Shows that a drive can be driven from here: opens it over VFIO, gives it memory, has it identify itself, resets
//! it, and gives it back.
//!
//! `vfio_probe ADDRESS …`: the whole round, with all drives open at once.
//! `vfio_probe hold SECONDS ADDRESS`: opens it, and waits until the system wants it back, or that long.
//!
//! The drives must be bound to vfio-pci; whatever is on them stays as it is.

#![expect(clippy::disallowed_methods, reason = "a tool that waits for hardware reads the clock")]

use std::error::Error;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use forebay_nvme::arena::DmaWords;
use forebay_nvme::hardware::{Dma, Hardware, HardwareEvent, Mapping, Registers};
use forebay_nvme::vfio::{VfioDevice, VfioIommu};
use forebay_nvme::{Arena, Pool};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ARENA_BYTES: usize = 64 << 20;

/// Registers (NVMe Base 2.0, section 3.1.4) and the admin queue's doorbells, for a stride of 4 bytes.
const CAP: usize = 0x00;
const VS: usize = 0x08;
const CC: usize = 0x14;
const CSTS: usize = 0x1C;
const AQA: usize = 0x24;
const ASQ: usize = 0x28;
const ACQ: usize = 0x30;
const SUBMISSION_TAIL: usize = 0x1000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let run = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["hold", seconds, address] => hold(seconds, address),
        [] => Err("usage: vfio_probe ADDRESS … | vfio_probe hold SECONDS ADDRESS".into()),
        ref addresses => probe(addresses),
    };
    if let Err(error) = run {
        println!("error: {error}");
        std::process::exit(1);
    }
}

fn probe(addresses: &[&str]) -> Result<()> {
    let iommu = VfioIommu::new();
    let mut devices = open_all(&iommu, addresses)?;
    println!("IOVA ranges: {}", iommu.ranges());
    let again = VfioDevice::open(&iommu, addresses[0].parse()?).map(|_| ());
    println!("opened twice: {}", again.expect_err("a drive is open once"));

    let pool = Arena::new(ARENA_BYTES)?.pool();
    let mapping = map_from_four_threads(&iommu, &pool)?;
    println!("{mapping:?}");
    for device in &mut devices {
        identify(device, &pool, &mapping)?;
        device.reset()?;
        let status = device.registers().read32(CSTS);
        println!(
            "{}: reset, CSTS {status:#x}, CC {:#x}",
            device.name(),
            device.registers().read32(CC)
        );
        identify(device, &pool, &mapping)?;
        silenced(device, &pool, &mapping)?;
    }

    let late = devices[0].registers();
    drop(devices);
    println!("dropped, with registers of the first left: CAP {:#x}", late.read64(CAP));
    drop(late);
    println!("IOVA ranges: {}", iommu.ranges());
    let mut devices = open_all(&iommu, addresses)?;
    let same = iommu.map(&pool.span())?;
    if same.iova() != mapping.iova() {
        return Err(format!("{same:?} is not where it was, {mapping:?}").into());
    }
    identify(&mut devices[0], &pool, &same)?;
    println!("opened again: mapped where it was");
    drop((mapping, same));
    let fresh = Arena::new(2 * ARENA_BYTES)?.pool();
    println!("unmapped; another arena: {:?}", iommu.map(&fresh.span())?);
    println!("done");
    Ok(())
}

fn open_all(iommu: &Arc<VfioIommu>, addresses: &[&str]) -> Result<Vec<VfioDevice>> {
    let mut devices = Vec::new();
    for address in addresses {
        let device = VfioDevice::open(iommu, address.parse()?)?;
        let registers = device.registers();
        let (cap, version) = (registers.read64(CAP), registers.read32(VS));
        let bytes = registers.bytes();
        println!(
            "{}: CAP {cap:#018x}, VS {version:#x}, {bytes:#x} bytes of registers",
            device.name()
        );
        devices.push(device);
    }
    Ok(devices)
}

fn map_from_four_threads(iommu: &VfioIommu, pool: &Pool) -> Result<Mapping> {
    let span = pool.span();
    let mappings: Vec<Mapping> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| iommu.map(&span))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect::<std::result::Result<_, _>>()
    })?;
    if mappings.iter().any(|mapping| mapping.iova() != mappings[0].iova()) {
        return Err(format!("one arena, several maps: {mappings:?}").into());
    }
    Ok(mappings[0].clone())
}

/// Enables the controller with an admin queue of two entries, and returns what Identify Controller says.
fn ask(
    device: &mut VfioDevice,
    pool: &Pool,
    mapping: &Mapping,
    master: bool,
) -> Result<Option<String>> {
    let words = || pool.alloc(4096).map(DmaWords::new).ok_or("the pool is empty");
    let (submission, completion, data) = (words()?, words()?, words()?);
    let iova =
        |words: &DmaWords| mapping.translate(words.address(), 4096).ok_or("not in the arena");
    let registers = device.registers();
    registers.write32(CC, 0);
    wait(|| registers.read32(CSTS) & 1 == 0).ok_or("the controller does not stop")?;
    device.set_bus_master(true)?;
    registers.write32(AQA, 0x0001_0001);
    registers.write64(ASQ, iova(&submission)?);
    registers.write64(ACQ, iova(&completion)?);
    registers.write32(CC, 0x0046_0001);
    wait(|| registers.read32(CSTS) & 1 == 1).ok_or("the controller does not start")?;
    device.set_bus_master(master)?;

    let command = submission.words();
    command[0].store(0x0001_0006, Ordering::Relaxed);
    command[3].store(iova(&data)?, Ordering::Relaxed);
    command[5].store(1, Ordering::Relaxed);
    registers.write32(SUBMISSION_TAIL, 1);
    let ended = wait(|| completion.words()[1].load(Ordering::Acquire) >> 48 & 1 == 1);
    let text: Vec<u8> = data.words()[3..8]
        .iter()
        .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
        .collect();
    device.set_bus_master(true)?;
    device.reset()?;
    Ok(ended.map(|()| String::from_utf8_lossy(&text).trim().to_owned()))
}

fn identify(device: &mut VfioDevice, pool: &Pool, mapping: &Mapping) -> Result<()> {
    let model = ask(device, pool, mapping, true)?.ok_or("Identify does not end")?;
    println!("{}: {model}", device.name());
    Ok(())
}

/// Without bus master nothing arrives in memory.
fn silenced(device: &mut VfioDevice, pool: &Pool, mapping: &Mapping) -> Result<()> {
    if let Some(model) = ask(device, pool, mapping, false)? {
        return Err(format!("it wrote {model:?} without being a bus master").into());
    }
    println!("{}: silent without bus master", device.name());
    Ok(())
}

/// Waits a second for something to become true.
fn wait(mut happened: impl FnMut() -> bool) -> Option<()> {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(1) {
        if happened() {
            return Some(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

fn hold(seconds: &str, address: &str) -> Result<()> {
    let iommu = VfioIommu::new();
    let mut device = VfioDevice::open(&iommu, address.parse()?)?;
    let pool = Arena::new(ARENA_BYTES)?.pool();
    let mapping = iommu.map(&pool.span())?;
    let mut fds = Vec::new();
    device.wait_fds(&mut |fd| fds.push(fd.as_raw_fd()));
    println!("holding {address}, {} event channels", fds.len());
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(seconds.parse()?) {
        match device.next_event() {
            Some(HardwareEvent::RemovalRequested) => {
                let left = device.registers();
                let reset = device.reset();
                println!("removal requested; a reset now: {reset:?}; CAP {:#x}", left.read64(CAP));
                drop(device);
                println!("dropped the device, registers left");
                std::thread::sleep(Duration::from_secs(3));
                println!("dropping the registers");
                drop((left, mapping));
                println!("dropped everything");
                return Ok(());
            }
            Some(event) => println!("event: {event:?}"),
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    println!("nothing happened");
    Ok(())
}

//! `forebay format`: makes a pool of devices.
//!
//! Guarantees: a device that holds anything (a file system, a partition table, another pool, bytes
//! of unknown kind) or that the system uses is left alone, unless it was named twice; all devices
//! are looked at before the first one is written; nothing that was there before is left at either end,
//! where it would be taken for what the device holds now.

mod own;

use crate::context::Context;
use crate::exit::{Code, Failure};
use crate::media::blocks::Blocks;
use crate::media::{signature, usage};
use crate::output;
use anyhow::Context as _;
use forebay_config::units;
use forebay_nvme::uring::UringDevice;
use forebay_nvme::{Arena, BLOCK_BYTES, BlockQueue, Pool};
use forebayd::store::format::Superblock;
use forebayd::store::format::superblock::COPIES;
use forebayd::store::geometry::FormatOptions;
use forebayd::store::pool::{self, Identity};
use own::Own;
use serde_json::json;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Memory for the few blocks that are written, in bytes.
const ARENA_BYTES: usize = 8 << 20;
/// Commands in flight.
const DEPTH: u32 = 8;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The files, block devices or PCI addresses of the pool, in the order of the configuration
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<PathBuf>,
    /// Name a device a second time to destroy what it holds (once for each such device)
    #[arg(long, value_name = "DEVICE")]
    confirm: Vec<PathBuf>,
    /// Which namespace of the drives that are named by PCI address, where they have several
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    namespace: Option<u32>,
    /// Create files that do not exist in this size, like 4GiB
    #[arg(long, value_parser = size)]
    size: Option<u64>,
    /// Virtual shards: the most cores that can ever serve the pool; by capacity without it
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    shards: Option<u32>,
    /// Bytes in a segment, like 64MiB; by capacity without it
    #[arg(long, value_parser = size)]
    segment_size: Option<u64>,
}

fn size(text: &str) -> Result<u64, String> {
    units::parse_size(text)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("{text} is no size; write one like 4GiB"))
}

pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let memory = Arena::on_demand(ARENA_BYTES).context("no memory")?.pool();
    let mut own = Own::open(&args.devices, args.namespace, &memory)?;
    check(&args, &mut own)?;
    let mut queues: Vec<Box<dyn BlockQueue>> = Vec::new();
    for path in &args.devices {
        queues.push(match own.queues.remove(path) {
            Some(queue) => queue,
            None => {
                let device = UringDevice::open(path, args.size).map_err(refused)?;
                Box::new(device.queue(&memory, DEPTH)?)
            }
        });
    }
    let options = FormatOptions {
        shards: args.shards,
        segment_bytes: args.segment_size,
        ..FormatOptions::default()
    };
    let superblock = pool::format(&mut queues, &memory, &identity(args.devices.len())?, options)?;
    for queue in &mut queues {
        clean(queue.as_mut(), &memory).context("the pool is made, but its ends are not clean")?;
    }
    // The queues go before the controllers that have them.
    drop(queues);
    drop(own);
    report(&superblock, &args.devices, context)
}

/// Wipes what lies between and behind the superblocks: others' signatures.
fn clean(queue: &mut dyn BlockQueue, memory: &Pool) -> io::Result<()> {
    let blocks = queue.geometry().blocks;
    // Each superblock has as much behind it as lies between the first two.
    let apart = Superblock::block_of_copy(1, blocks);
    let mut device = Blocks::new(queue, memory);
    for copy in 0..COPIES {
        device.wipe(Superblock::block_of_copy(copy, blocks) + 1, apart - 1)?;
    }
    device.flush()
}

#[expect(clippy::needless_pass_by_value, reason = "maps an error")]
fn refused(error: impl ToString) -> Failure {
    Failure::new(Code::Refused, error.to_string())
}

/// Looks at every device before anything is written.
fn check(args: &Args, own: &mut Own<'_>) -> anyhow::Result<()> {
    if let Some(stray) = args.confirm.iter().find(|path| !args.devices.contains(path)) {
        let what = format!("--confirm {} names no device that is to be formatted", stray.display());
        return Err(Failure::new(Code::Usage, what).into());
    }
    let mut refused = Vec::new();
    for (number, path) in args.devices.iter().enumerate() {
        if args.devices[..number].contains(path) {
            let what = format!("{} is named twice among the devices", path.display());
            return Err(Failure::new(Code::Usage, what).into());
        }
        if args.confirm.contains(path) {
            continue;
        }
        refused.extend(danger(path, own)?.map(|danger| format!("{} {danger}", path.display())));
    }
    if refused.is_empty() {
        return Ok(());
    }
    let told = refused.join("; ");
    let what = format!(
        "{told}. Nothing was written. To destroy what is there, name each of them again: \
         --confirm DEVICE"
    );
    Err(Failure::new(Code::Refused, what).into())
}

/// Why a device should not be formatted, if there is a reason.
fn danger(path: &Path, own: &mut Own<'_>) -> anyhow::Result<Option<String>> {
    if let Some(found) = own.signature(path) {
        let found = found.with_context(|| format!("cannot read {}", path.display()))?;
        return Ok(found.map(|found| format!("holds {}", found.what())));
    }
    if !path.exists() {
        return Ok(None);
    }
    if let Some(how) = usage::in_use(path) {
        return Ok(Some(how));
    }
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let found =
        signature::find(&mut file).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(found.map(|found| format!("holds {}", found.what())))
}

/// Random identities for a new pool.
fn identity(devices: usize) -> anyhow::Result<Identity> {
    let mut hash_key = [0; 16];
    let source = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut hash_key));
    source.context("no random numbers")?;
    Ok(Identity {
        pool: *Uuid::new_v4().as_bytes(),
        devices: (0..devices).map(|_| *Uuid::new_v4().as_bytes()).collect(),
        hash_key,
        created_s: crate::clock::unix_time().as_secs(),
    })
}

fn report(made: &Superblock, devices: &[PathBuf], context: &Context) -> anyhow::Result<()> {
    let (layout, pool) = (&made.layout, Uuid::from_bytes(made.pool));
    let capacity_bytes =
        layout.segment_bytes() * u64::from(layout.segments) * u64::from(made.shards);
    let shown: Vec<String> = devices.iter().map(|path| path.display().to_string()).collect();
    let json = json!({
        "pool": pool.to_string(),
        "devices": shown,
        "device_bytes": made.device_blocks * BLOCK_BYTES as u64,
        "shards": made.shards,
        "segment_bytes": layout.segment_bytes(),
        "segments_per_shard": layout.segments,
        "capacity_bytes": capacity_bytes,
    });
    context.emit(&json, || {
        format!(
            "pool {pool} on {}: {} shards of {} segments of {}, {} in all",
            shown.join(", "),
            made.shards,
            layout.segments,
            output::bytes(layout.segment_bytes()),
            output::bytes(capacity_bytes),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::signature::Found;
    use forebay_nvme::sim::{SimConfig, SimDevice};

    fn args(devices: &[&Path], confirm: &[&Path]) -> Args {
        let owned = |paths: &[&Path]| paths.iter().map(|path| path.to_path_buf()).collect();
        let (devices, confirm) = (owned(devices), owned(confirm));
        Args { devices, confirm, namespace: None, size: None, shards: None, segment_size: None }
    }

    fn look(args: &Args) -> anyhow::Result<()> {
        let memory = Arena::on_demand(ARENA_BYTES)?.pool();
        check(args, &mut Own::open(&[], None, &memory)?)
    }

    #[test]
    fn a_file_that_holds_something_is_refused_until_it_is_named_twice() {
        let folder = tempfile::tempdir().unwrap();
        let (blank, full) = (folder.path().join("blank"), folder.path().join("full"));
        let missing = folder.path().join("missing");
        std::fs::write(&blank, vec![0; 3 << 20]).unwrap();
        std::fs::write(&full, vec![1; 3 << 20]).unwrap();
        look(&args(&[&blank, &missing], &[])).unwrap();
        let error = look(&args(&[&blank, &full], &[])).unwrap_err();
        assert_eq!(Code::of(&error), Code::Refused);
        assert!(error.to_string().contains("full holds data of unknown kind"), "{error}");
        look(&args(&[&blank, &full], &[&full])).unwrap();
    }

    /// What was there before would be taken for what the device holds: `forebay devices bind` would ask
    /// for the serial number of a drive with a pool.
    #[test]
    fn nothing_at_the_ends_survives_a_format() {
        let blocks = 1 << 18;
        let device = SimDevice::new(SimConfig { blocks, ..SimConfig::default() });
        for block in (0..512).chain(blocks - 512..blocks) {
            device.edit(block, |data| data.fill(0xfc));
        }
        device.edit(1, |data| data[..8].copy_from_slice(b"EFI PART"));
        device.edit(blocks - 1, |data| data[..8].copy_from_slice(b"EFI PART"));
        let memory = Arena::on_demand(ARENA_BYTES).unwrap().pool();
        let queues: &mut [Box<dyn BlockQueue>] = &mut [Box::new(device.queue())];
        pool::format(queues, &memory, &identity(1).unwrap(), FormatOptions::default()).unwrap();
        clean(queues[0].as_mut(), &memory).unwrap();
        let found = signature::find(&mut Blocks::new(queues[0].as_mut(), &memory)).unwrap();
        assert_eq!(found, Some(Found::Ours("a Forebay pool")));
        pool::open(queues, &memory, 1).unwrap();
    }

    #[test]
    fn a_namespace_is_only_named_of_a_drive() {
        let memory = Arena::on_demand(ARENA_BYTES).unwrap().pool();
        let error = Own::open(&["/nonexistent".into()], Some(2), &memory).err().unwrap();
        assert_eq!(Code::of(&error), Code::Usage, "{error}");
    }

    #[test]
    fn a_name_that_fits_no_device_or_comes_twice_is_a_mistake() {
        let (a, b) = (Path::new("/nonexistent/a"), Path::new("/nonexistent/b"));
        for wrong in [args(&[a], &[b]), args(&[a, a], &[])] {
            assert_eq!(Code::of(&look(&wrong).unwrap_err()), Code::Usage);
        }
    }
}

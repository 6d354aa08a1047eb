//! `forebay inspect segment`.

use super::image::{Found, Image, ShardImage};
use crate::context::Context;
use crate::exit::{Code, Failure};
use crate::output;
use crate::progress::Progress;
use forebay_nvme::BLOCK_BYTES;
use forebayd::store::format::UNIT_BYTES;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// All files or block devices of the pool
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<PathBuf>,
    /// Show the segments of this shard
    #[arg(long)]
    shard: Option<u32>,
    /// Show the keys in this segment of the shard
    #[arg(long, requires = "shard")]
    segment: Option<u64>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let image = Image::open(&args.devices)?;
    let Some(shard) = args.shard else { return shards(&image, context) };
    let layout = image.pool.layout();
    let (shards, segments) = (image.pool.shards(), u64::from(layout.segments));
    if shard >= shards {
        let what = format!("there is no shard {shard}; there are {shards}");
        return Err(Failure::new(Code::NotFound, what).into());
    }
    let found = image.shard(shard)?;
    match args.segment {
        None => one_shard(&image, shard, &found, context),
        Some(segment) if segment < segments => {
            let inside = |found: &&Found| segment_of(&image, found) == segment;
            keys(found.keys.values().filter(inside), context)
        }
        Some(segment) => {
            let what = format!("there is no segment {segment}; shard {shard} has {segments}");
            Err(Failure::new(Code::NotFound, what).into())
        }
    }
}

/// The segment that a value lies in.
pub(super) fn segment_of(image: &Image, found: &Found) -> u64 {
    found.pointer.address * UNIT_BYTES / image.pool.layout().segment_bytes()
}

fn shards(image: &Image, context: &Context) -> anyhow::Result<()> {
    let progress = Progress::of_count(u64::from(image.pool.shards()), "reading shards");
    let (mut rows, mut all) = (Vec::new(), Vec::new());
    for shard in 0..image.pool.shards() {
        let found = image.shard(shard)?;
        let live_bytes: u64 = found.keys.values().map(|key| u64::from(key.pointer.length)).sum();
        let used = by_segment(image, &found).len();
        let device = image.path(image.pool.region(shard).device).display().to_string();
        rows.push(vec![
            shard.to_string(),
            device.clone(),
            found.keys.len().to_string(),
            output::bytes(live_bytes),
            format!("{used} of {}", image.pool.layout().segments),
            found.generation.to_string(),
            found.journal_pages.to_string(),
        ]);
        all.push(json!({
            "shard": shard,
            "device": device,
            "keys": found.keys.len(),
            "live_bytes": live_bytes,
            "segments_used": used,
            "segments": image.pool.layout().segments,
            "checkpoint_generation": found.generation,
            "journal_pages": found.journal_pages,
        }));
        progress.inc(1);
    }
    drop(progress);
    let heads = ["shard", "device", "keys", "live", "segments", "checkpoint", "journal pages"];
    context.emit(&all, || output::table(&heads, &rows))
}

/// Keys and live bytes of each segment that holds any.
fn by_segment(image: &Image, found: &ShardImage) -> BTreeMap<u64, (u64, u64)> {
    let mut segments = BTreeMap::new();
    for key in found.keys.values() {
        let (keys, bytes) = segments.entry(segment_of(image, key)).or_insert((0, 0));
        *keys += 1;
        *bytes += u64::from(key.pointer.length);
    }
    segments
}

fn one_shard(
    image: &Image,
    shard: u32,
    found: &ShardImage,
    context: &Context,
) -> anyhow::Result<()> {
    let layout = image.pool.layout();
    let first = image.pool.region(shard).segments_block;
    let (mut rows, mut all) = (Vec::new(), Vec::new());
    for (segment, (keys, bytes)) in by_segment(image, found) {
        let block = first + segment * u64::from(layout.segment_blocks);
        let percent = 100.0 * bytes as f64 / layout.segment_bytes() as f64;
        rows.push(vec![
            segment.to_string(),
            (block * BLOCK_BYTES as u64).to_string(),
            keys.to_string(),
            output::bytes(bytes),
            format!("{percent:.1} %"),
        ]);
        all.push(json!({
            "segment": segment,
            "offset_bytes": block * BLOCK_BYTES as u64,
            "keys": keys,
            "live_bytes": bytes,
        }));
    }
    let heads = ["segment", "offset", "keys", "live", "full"];
    context.emit(&all, || output::table(&heads, &rows))
}

fn keys<'a>(found: impl Iterator<Item = &'a Found>, context: &Context) -> anyhow::Result<()> {
    let mut found: Vec<&Found> = found.collect();
    found.sort_by_key(|found| found.pointer.address);
    let row = |found: &&Found| {
        vec![
            found.key.escape_ascii().to_string(),
            found.pointer.namespace.to_string(),
            (found.pointer.address * UNIT_BYTES).to_string(),
            found.pointer.length.to_string(),
        ]
    };
    let rows: Vec<_> = found.iter().map(row).collect();
    let object = |found: &&Found| -> Value {
        json!({
            "key": found.key.escape_ascii().to_string(),
            "namespace": found.pointer.namespace,
            "address_bytes": found.pointer.address * UNIT_BYTES,
            "bytes": found.pointer.length,
        })
    };
    let all: Vec<_> = found.iter().map(object).collect();
    context.emit(&all, || output::table(&["key", "namespace", "address", "bytes"], &rows))
}

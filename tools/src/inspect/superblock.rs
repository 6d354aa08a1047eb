//! `forebay inspect superblock`.

use super::image::Device;
use crate::context::Context;
use crate::exit::{Code, Failure};
use crate::output;
use forebay_nvme::BLOCK_BYTES;
use forebayd::store::format::{FormatError, Superblock};
use serde_json::{Value, json};
use std::path::PathBuf;
use uuid::Uuid;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Files or block devices
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<PathBuf>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let (mut all, mut text, mut bad) = (Vec::new(), String::new(), Vec::new());
    for path in &args.devices {
        let device = Device::open(path)?;
        let (places, copies) = device.copies();
        let rows: Vec<_> =
            places.iter().zip(copies.each()).map(|(block, copy)| row(*block, copy)).collect();
        text += &format!("{}\n", path.display());
        text += &output::table(&["block", "state", "generation"], &rows);
        let quorum = copies.quorum();
        match &quorum {
            Ok(superblock) => text += &describe(superblock),
            Err(error) => bad.push(format!("{}: {error}", path.display())),
        }
        all.push(json!({
            "device": path.display().to_string(),
            "copies": places.iter().zip(copies.each())
                .map(|(block, copy)| copy_json(*block, copy)).collect::<Vec<_>>(),
            "quorum": quorum.ok().map(to_json),
        }));
    }
    context.emit(&all, || text)?;
    if bad.is_empty() {
        return Ok(());
    }
    let what = format!("no quorum of good superblocks: {}", bad.join("; "));
    Err(Failure::new(Code::Integrity, what).into())
}

fn row(block: u64, copy: &Result<Superblock, FormatError>) -> Vec<String> {
    let (state, generation) = match copy {
        Ok(superblock) => ("good".to_owned(), superblock.generation.to_string()),
        Err(error) => (error.to_string(), "-".to_owned()),
    };
    vec![block.to_string(), state, generation]
}

fn copy_json(block: u64, copy: &Result<Superblock, FormatError>) -> Value {
    match copy {
        Ok(superblock) => {
            json!({"block": block, "good": true, "generation": superblock.generation})
        }
        Err(error) => json!({"block": block, "good": false, "error": error.to_string()}),
    }
}

/// Everything but the secret.
fn to_json(superblock: &Superblock) -> Value {
    // Destructured in full, so that a new field is not forgotten here.
    let Superblock { generation, pool, device, device_index, device_count, .. } = superblock;
    let Superblock { shards, device_blocks, layout, created_s, hash_key: _, .. } = superblock;
    json!({
        "generation": generation,
        "pool": Uuid::from_bytes(*pool).to_string(),
        "device": Uuid::from_bytes(*device).to_string(),
        "device_index": device_index,
        "device_count": device_count,
        "shards": shards,
        "device_bytes": device_blocks * BLOCK_BYTES as u64,
        "data_block": layout.data_block,
        "stride_blocks": layout.stride_blocks,
        "journal_blocks": layout.journal_blocks,
        "index_blocks": layout.index_blocks,
        "segment_bytes": layout.segment_bytes(),
        "segments_per_shard": layout.segments,
        "created_s": created_s,
    })
}

fn describe(superblock: &Superblock) -> String {
    let layout = &superblock.layout;
    format!(
        "pool {}, device {} of {}, {} shards of {} segments of {}, opened {} times\n\n",
        Uuid::from_bytes(superblock.pool),
        superblock.device_index,
        superblock.device_count,
        superblock.shards,
        layout.segments,
        output::bytes(layout.segment_bytes()),
        superblock.generation.saturating_sub(1),
    )
}

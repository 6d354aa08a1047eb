//! `forebay inspect key`.

use super::image::{Found, Image};
use super::segment::segment_of;
use crate::context::Context;
use crate::exit::{Code, Failure};
use crate::output;
use forebay_nvme::BLOCK_BYTES;
use forebayd::store::format::UNIT_BYTES;
use forebayd::store::namespace::CATALOG;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Args {
    key: String,
    /// All files or block devices of the pool
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<PathBuf>,
    /// The namespace's name, or its number
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let image = Image::open(&args.devices)?;
    let namespace = namespace(&image, &args.namespace)?;
    let (shard, hash) = image.locate(namespace, args.key.as_bytes());
    let Some(found) = image.shard(shard)?.keys.remove(&hash) else {
        let what = format!("no key {} in namespace {}", args.key, args.namespace);
        return Err(Failure::new(Code::NotFound, what).into());
    };
    let value = image.value(shard, &found.pointer);
    let json = describe(&image, namespace, shard, &found, value.is_ok());
    context.emit(&json, || {
        let rows: Vec<Vec<String>> = json.as_object().map_or(Vec::new(), |fields| {
            let text = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
            fields.iter().map(|(name, value)| vec![name.clone(), text(value)]).collect()
        });
        output::table(&["key", &args.key], &rows)
    })?;
    value.map(drop)
}

fn describe(image: &Image, namespace: u32, shard: u32, found: &Found, sound: bool) -> Value {
    let pointer = &found.pointer;
    let region = image.pool.region(shard);
    let offset = region.segments_block * BLOCK_BYTES as u64 + pointer.address * UNIT_BYTES;
    json!({
        "namespace": namespace,
        "hash": format!("{:028x}", pointer.hash.get()),
        "shard": shard,
        "device": image.path(region.device).display().to_string(),
        "segment": segment_of(image, found),
        "offset_bytes": offset,
        "bytes": pointer.length,
        "crc32c": format!("{:08x}", pointer.crc),
        "expiry_s": pointer.expiry_s,
        "found_in": found.source.to_string(),
        "sound": sound,
    })
}

/// The number of a namespace: given, or from the pool's catalog.
fn namespace(image: &Image, name: &str) -> anyhow::Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let key = format!("ns/{name}");
    let (shard, hash) = image.locate(CATALOG, key.as_bytes());
    let Some(found) = image.shard(shard)?.keys.remove(&hash) else {
        let what = format!("the pool's catalog has no namespace {name}");
        return Err(Failure::new(Code::NotFound, what).into());
    };
    let record: Value = serde_json::from_slice(&image.value(shard, &found.pointer)?)?;
    let number = record.get("number").and_then(Value::as_u64);
    number.and_then(|number| u32::try_from(number).ok()).ok_or_else(|| {
        let what = format!("the catalog's record of namespace {name} is damaged: {record}");
        Failure::new(Code::Integrity, what).into()
    })
}

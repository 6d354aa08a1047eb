//! `forebay ckpt ls` and `rm`.

use super::catalog::{Catalog, Listed};
use super::{check_name, utc};
use crate::context::Context;
use crate::exit::{Code, Failure};
use crate::output;
use serde_json::{Value, json};

/// Checkpoints in the order of their names.
pub(super) fn ls(prefix: &str, context: &Context) -> anyhow::Result<()> {
    let mut listed = Catalog::connect(context)?.list(prefix)?;
    listed.sort_by(|one, other| one.name.cmp(&other.name));
    let values: Vec<Value> = listed.iter().map(value).collect();
    context.emit(&values, || {
        let heads = ["NAME", "SIZE", "TENSORS", "CHUNKS", "RANKS", "COMMITTED"];
        if listed.is_empty() {
            return String::new();
        }
        output::table(&heads, &listed.iter().map(row).collect::<Vec<_>>())
    })
}

fn row(listed: &Listed) -> Vec<String> {
    let Listed { name, entry } = listed;
    vec![
        name.clone(),
        output::bytes(entry.data_bytes.get()),
        entry.tensors.to_string(),
        entry.chunks.to_string(),
        entry.world.to_string(),
        utc::format(entry.committed_s.get()),
    ]
}

fn value(listed: &Listed) -> Value {
    let Listed { name, entry } = listed;
    json!({
        "name": name,
        "bytes": entry.data_bytes.get(),
        "manifest_bytes": entry.manifest_bytes.get(),
        "tensors": entry.tensors.get(),
        "chunks": entry.chunks.get(),
        "ranks": entry.world.get(),
        "epoch": entry.epoch.get(),
        "session": entry.session.to_string(),
        "committed_s": entry.committed_s.get(),
    })
}

/// Removes each; those that are not there are named at the end.
pub(super) fn rm(names: &[String], context: &Context) -> anyhow::Result<()> {
    names.iter().try_for_each(|name| check_name(name))?;
    let mut catalog = Catalog::connect(context)?;
    let mut absent = Vec::new();
    for name in names {
        if !catalog.delete(name)? {
            absent.push(name.as_str());
        }
    }
    let json = json!({"deleted": names.len() - absent.len(), "absent": absent});
    context.emit(&json, String::new)?;
    if absent.is_empty() {
        return Ok(());
    }
    let noun = if absent.len() == 1 { "no such checkpoint" } else { "no such checkpoints" };
    Err(Failure::new(Code::NotFound, format!("{noun}: {}", absent.join(", "))).into())
}

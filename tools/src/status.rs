//! `forebay status`: what a server is doing, as it counts it.

use crate::admin_socket;
use crate::context::Context;
use crate::output;
use anyhow::Context as _;
use forebay_fabric::client::NamespaceInfo;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Ask the daemon on this machine through its admin socket, instead of the server over the wire
    #[arg(long, value_name = "SOCKET")]
    admin: Option<PathBuf>,
}

pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    if let Some(socket) = args.admin {
        let status = admin_socket::ask(&socket, "status")?;
        return context.emit(&status, || flat_table("daemon", &status));
    }
    let mut client = context.client()?;
    let namespaces = client.namespaces()?;
    let mut reactors = Vec::new();
    for reactor in 0..client.pipeline().reactors() {
        let text = client.stats(reactor)?;
        reactors.push(serde_json::from_str::<Value>(&text).context("the server's statistics")?);
    }
    let json = json!({"server": context.server(), "namespaces": namespaces, "reactors": reactors});
    context.emit(&json, || {
        let mut text = namespace_table(&namespaces);
        for (number, reactor) in reactors.iter().enumerate() {
            text += "\n";
            text += &flat_table(&format!("reactor {number}"), reactor);
        }
        text
    })
}

fn namespace_table(namespaces: &[NamespaceInfo]) -> String {
    let row = |namespace: &NamespaceInfo| {
        vec![
            namespace.name.clone(),
            namespace.class.clone(),
            output::bytes(namespace.used_bytes),
            namespace.quota_bytes.map_or("-".to_owned(), output::bytes),
            namespace.ttl_s.map_or("-".to_owned(), |seconds| format!("{seconds} s")),
        ]
    };
    let rows: Vec<_> = namespaces.iter().map(row).collect();
    output::table(&["namespace", "class", "used", "quota", "ttl"], &rows)
}

/// Every number or word in `value`, by its path.
fn flat_table(title: &str, value: &Value) -> String {
    let mut rows = Vec::new();
    flatten(String::new(), value, &mut rows);
    output::table(&[title, ""], &rows)
}

fn flatten(path: String, value: &Value, rows: &mut Vec<Vec<String>>) {
    let below = |name: &str| match path.as_str() {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| flatten(below(name), value, rows));
        }
        Value::Array(items) => {
            let items = items.iter().enumerate();
            items.for_each(|(index, value)| flatten(below(&index.to_string()), value, rows));
        }
        Value::String(text) => rows.push(vec![path, text.clone()]),
        other => rows.push(vec![path, other.to_string()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_statistics_become_one_line_each() {
        let value = json!({"a": {"b": 1, "c": ["x", true]}});
        let text = flat_table("t", &value);
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines, [vec!["t"], vec!["a.b", "1"], vec!["a.c.0", "x"], vec!["a.c.1", "true"]]);
    }
}

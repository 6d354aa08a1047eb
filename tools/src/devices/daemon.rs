//! What a running daemon tells of the drives that it drives itself, through its admin socket.
//!
//! Nobody else can ask these drives while it holds them. A daemon that is not there, or that knows no
//! such question, tells of none: every field may be missing, and what is not known is left aside.

use crate::admin_socket;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// A drive as its daemon sees it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(super) struct DaemonDrive {
    pub(super) pci: String,
    pub(super) model: Option<String>,
    pub(super) serial: Option<String>,
    pub(super) firmware: Option<String>,
    pub(super) blocks: Option<u64>,
    pub(super) lba_bytes: Option<u32>,
    pub(super) critical_warning: Option<u8>,
    pub(super) temperature_c: Option<i32>,
    pub(super) percentage_used: Option<u8>,
    pub(super) state: Option<String>,
}

/// The drives of the daemon at `socket`; none if it does not tell.
pub(super) fn drives(socket: &Path) -> Vec<DaemonDrive> {
    match admin_socket::ask(socket, "devices") {
        Ok(answer) => parse(&answer),
        Err(error) => {
            log::debug!("no daemon tells of its drives: {error:#}");
            Vec::new()
        }
    }
}

/// A list, or an object that has one under `devices`.
fn parse(answer: &Value) -> Vec<DaemonDrive> {
    let list = answer.get("devices").unwrap_or(answer).as_array();
    let drive = |value: &Value| DaemonDrive::deserialize(value).ok();
    list.into_iter().flatten().filter_map(drive).filter(|drive| !drive.pci.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_is_read_as_far_as_it_goes() {
        let full = json!({
            "pci": "0000:03:00.0", "model": "M", "serial": "S", "firmware": "1", "blocks": 1024,
            "lba_bytes": 4096, "critical_warning": 4, "temperature_c": 40, "percentage_used": 3,
            "state": "ready", "more": [1],
        });
        let drives = parse(&json!([full, {"pci": "0000:04:00.0"}, {"model": "of nowhere"}, 7]));
        assert_eq!(drives.len(), 2);
        assert_eq!((drives[0].critical_warning, drives[0].blocks), (Some(4), Some(1024)));
        assert_eq!(drives[1], DaemonDrive { pci: "0000:04:00.0".into(), ..DaemonDrive::default() });
        assert_eq!(parse(&json!({ "devices": [full] })), drives[..1]);
    }

    #[test]
    fn a_daemon_that_does_not_know_or_is_not_there_tells_of_none() {
        assert!(parse(&json!({"error": "unknown request \"devices\""})).is_empty());
        assert!(drives(Path::new("/nonexistent/admin.sock")).is_empty());
    }
}

//! What the test and the agent in the guest say to each other: one JSON object a line.
//!
//! The test asks with a number, and the agent answers each number once, in any order; unasked, it
//! tells that it is there, and that a process in the background has ended.

use serde_json::{Value, json};

/// What the test asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Run a shell script to its end, but not longer than this.
    Run {
        /// The script.
        script: String,
        /// In milliseconds; then the whole process group is killed.
        timeout_ms: u64,
    },
    /// Start a shell script in the background.
    Spawn {
        /// The script.
        script: String,
        /// Where its output goes, in the guest.
        log: String,
    },
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tell {
    /// The guest is up.
    Ready,
    /// A script has run.
    Ran {
        /// The number of the question.
        id: u64,
        /// The exit status; 128 and the signal's number, as shells have it; 124 if time was up.
        status: i32,
        /// What it wrote to standard output.
        stdout: String,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// A script runs in the background.
    Spawned {
        /// The number of the question.
        id: u64,
        /// Its process, which leads a group of its own.
        pid: u32,
    },
    /// A process in the background has ended.
    Ended {
        /// Which.
        pid: u32,
        /// As in [`Tell::Ran`].
        status: i32,
    },
    /// It could not even be started.
    Failed {
        /// The number of the question.
        id: u64,
        /// Why.
        why: String,
    },
}

impl Ask {
    /// For the line.
    #[must_use]
    pub fn to_json(&self, id: u64) -> Value {
        match self {
            Self::Run { script, timeout_ms } => {
                json!({ "id": id, "run": script, "timeout_ms": timeout_ms })
            }
            Self::Spawn { script, log } => json!({ "id": id, "spawn": script, "log": log }),
        }
    }

    /// From the line; `None` if it makes no sense.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<(u64, Self)> {
        let (id, text) =
            (value["id"].as_u64()?, |key: &str| value[key].as_str().map(str::to_owned));
        let ask = match text("run") {
            Some(script) => Self::Run { script, timeout_ms: value["timeout_ms"].as_u64()? },
            None => Self::Spawn { script: text("spawn")?, log: text("log")? },
        };
        Some((id, ask))
    }
}

impl Tell {
    /// For the line.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Ready => json!({ "tell": "ready" }),
            Self::Ran { id, status, stdout, stderr } => json!({
                "tell": "ran", "id": id, "status": status, "stdout": stdout, "stderr": stderr
            }),
            Self::Spawned { id, pid } => json!({ "tell": "spawned", "id": id, "pid": pid }),
            Self::Ended { pid, status } => json!({ "tell": "ended", "pid": pid, "status": status }),
            Self::Failed { id, why } => json!({ "tell": "failed", "id": id, "why": why }),
        }
    }

    /// From the line; `None` if it makes no sense.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        let id = || value["id"].as_u64();
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let status = || i32::try_from(value["status"].as_i64()?).ok();
        let pid = || u32::try_from(value["pid"].as_u64()?).ok();
        Some(match value["tell"].as_str()? {
            "ready" => Self::Ready,
            "ran" => Self::Ran {
                id: id()?,
                status: status()?,
                stdout: text("stdout")?,
                stderr: text("stderr")?,
            },
            "spawned" => Self::Spawned { id: id()?, pid: pid()? },
            "ended" => Self::Ended { pid: pid()?, status: status()? },
            "failed" => Self::Failed { id: id()?, why: text("why")? },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_and_told_arrives_as_it_was() {
        let script = "echo \"two\nlines\"".to_owned();
        for ask in [
            Ask::Run { script: script.clone(), timeout_ms: 7 },
            Ask::Spawn { script, log: "/vm/log".to_owned() },
        ] {
            assert_eq!(Ask::from_json(&ask.to_json(3)), Some((3, ask)));
        }
        let (stdout, stderr) = ("out\n".to_owned(), "\u{fffd}".to_owned());
        for tell in [
            Tell::Ready,
            Tell::Ran { id: 1, status: 137, stdout, stderr },
            Tell::Spawned { id: 2, pid: 42 },
            Tell::Ended { pid: 42, status: -1 },
            Tell::Failed { id: 3, why: "no sh".to_owned() },
        ] {
            assert_eq!(Tell::from_json(&tell.to_json()), Some(tell));
        }
        assert_eq!(Tell::from_json(&json!({ "tell": "joke" })), None);
        assert_eq!(Ask::from_json(&json!({ "id": 1 })), None);
    }
}

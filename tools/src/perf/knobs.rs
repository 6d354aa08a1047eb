//! What a run is told: options of the command line and keys of a profile are the same thing.

use crate::exit::{Code, Failure};
use anyhow::Context as _;
use clap::ValueEnum;
use forebay_config::units;
use forebay_fabric::pdu::{ITEMS_MAX, QUEUE_DEPTH_MAX};
use serde::Deserialize;
use std::path::Path;
use std::str::FromStr;

/// Every option of a run; what is absent has its default in [`Knobs::plan`].
#[derive(clap::Args, Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Knobs {
    /// What to do [default: retrieve]
    #[arg(long, value_enum)]
    pub(crate) op: Option<Op>,
    /// Bytes of each value, like 4096 or 128KiB [default: 4KiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) value_size: Option<Size>,
    /// How many keys there are [default: 100000]
    #[arg(long)]
    pub(crate) keys: Option<u64>,
    /// Which key is next: sequential, uniform, or zipf:THETA [default: uniform]
    #[arg(long)]
    pub(crate) dist: Option<Dist>,
    /// Commands in flight on each connection [default: 32]
    #[arg(long)]
    pub(crate) depth: Option<u16>,
    /// Client threads, each with its own connection to every reactor [default: 1]
    #[arg(long)]
    pub(crate) connections: Option<u64>,
    /// Seconds before anything is measured [default: 1]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) warmup: Option<f64>,
    /// Seconds that are measured [default: 10]
    #[arg(long, value_name = "SECONDS", conflicts_with = "ops")]
    pub(crate) duration: Option<f64>,
    /// Measure so many operations instead of a time
    #[arg(long)]
    pub(crate) ops: Option<u64>,
    /// Open loop: so many commands are due each second, over all connections
    #[arg(long, value_name = "PER_SECOND")]
    pub(crate) rate: Option<f64>,
    /// Store every key first
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) prefill: Option<bool>,
    /// The namespace [default: default]
    #[arg(long)]
    pub(crate) namespace: Option<String>,
    /// Items in each command [default: 1]
    #[arg(long)]
    pub(crate) batch: Option<usize>,
    /// Values and choices of keys follow from it [default: 1]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Compare every byte that comes back
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) verify: Option<bool>,
    /// Retrieve into memory of this client's own, which RDMA fills without a copy
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) region: Option<bool>,
    /// Mixed: how many of 100 operations retrieve, the others store [default: 50]
    #[arg(long, value_name = "PERCENT")]
    pub(crate) read_percent: Option<u8>,
}

/// What each operation does.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Op {
    Store,
    Retrieve,
    Mixed,
    Exist,
    Delete,
}

impl Op {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Retrieve => "retrieve",
            Self::Mixed => "mixed",
            Self::Exist => "exist",
            Self::Delete => "delete",
        }
    }
}

/// Bytes, written as a number or with a unit.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "NumberOrText")]
pub(crate) struct Size(pub(crate) u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl TryFrom<NumberOrText> for Size {
    type Error = String;
    fn try_from(value: NumberOrText) -> Result<Self, String> {
        match value {
            NumberOrText::Number(bytes) => Ok(Self(bytes)),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = text.parse().ok().or_else(|| units::parse_size(text));
        bytes.map(Self).ok_or_else(|| format!("{text} is no size; write 4096 or 128KiB"))
    }
}

/// How the next key is chosen.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(try_from = "String")]
pub(crate) enum Dist {
    Sequential,
    Uniform,
    Zipf { theta: f64 },
}

impl TryFrom<String> for Dist {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Dist {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let theta = |text: &str| text.parse().ok().filter(|theta| (0.01..=10.0).contains(theta));
        match text {
            "sequential" => Ok(Self::Sequential),
            "uniform" => Ok(Self::Uniform),
            "zipf" => Ok(Self::Zipf { theta: 0.99 }),
            _ => text
                .strip_prefix("zipf:")
                .and_then(theta)
                .map(|theta| Self::Zipf { theta })
                .ok_or_else(|| {
                    format!("{text} is unknown; write sequential, uniform or zipf:THETA (like zipf:0.99)")
                }),
        }
    }
}

impl std::fmt::Display for Dist {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sequential => f.write_str("sequential"),
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf { theta } => write!(f, "zipf:{theta}"),
        }
    }
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    Time { ns: u64 },
    Ops(u64),
}

/// A run, decided and checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) op: Op,
    pub(crate) value_bytes: u32,
    pub(crate) keys: u64,
    pub(crate) dist: Dist,
    pub(crate) depth: u16,
    pub(crate) connections: u64,
    pub(crate) warmup_ns: u64,
    pub(crate) length: Length,
    pub(crate) rate: Option<f64>,
    pub(crate) prefill: bool,
    pub(crate) namespace: String,
    pub(crate) batch: usize,
    pub(crate) seed: u64,
    pub(crate) verify: bool,
    pub(crate) region: bool,
    pub(crate) read_percent: u8,
}

impl Knobs {
    /// Reads a profile.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        toml::from_str(&text)
            .map_err(|error| Failure::new(Code::Usage, format!("{shown}: {error}")).into())
    }

    /// These, and where one is absent that of `below`.
    pub(crate) fn over(self, below: Self) -> Self {
        // Destructured in full, so that a new option cannot be forgotten here.
        let Self { op, value_size, keys, dist, depth, connections, warmup, .. } = self;
        let Self { duration, ops, rate, prefill, namespace, batch, seed, .. } = self;
        let Self { verify, region, read_percent, .. } = self;
        // A time given here replaces a number of operations given below, and the reverse.
        let (below_duration, below_ops) = match (duration, ops) {
            (None, None) => (below.duration, below.ops),
            _ => (None, None),
        };
        Self {
            op: op.or(below.op),
            value_size: value_size.or(below.value_size),
            keys: keys.or(below.keys),
            dist: dist.or(below.dist),
            depth: depth.or(below.depth),
            connections: connections.or(below.connections),
            warmup: warmup.or(below.warmup),
            duration: duration.or(below_duration),
            ops: ops.or(below_ops),
            rate: rate.or(below.rate),
            prefill: prefill.or(below.prefill),
            namespace: namespace.or(below.namespace),
            batch: batch.or(below.batch),
            seed: seed.or(below.seed),
            verify: verify.or(below.verify),
            region: region.or(below.region),
            read_percent: read_percent.or(below.read_percent),
        }
    }

    /// Fills in the defaults and checks that the whole makes sense.
    pub(crate) fn plan(self) -> anyhow::Result<Plan> {
        let within = |name: &str, value: u64, from: u64, to: u64| {
            if (from..=to).contains(&value) {
                return Ok(value);
            }
            let what = format!("{name} is {value}, outside {from} to {to}");
            Err(Failure::new(Code::Usage, what))
        };
        let seconds = |name: &str, value: f64| {
            if (0.0..=86_400.0).contains(&value) {
                return Ok((value * 1e9) as u64);
            }
            Err(Failure::new(Code::Usage, format!("{name} is {value}, outside 0 to 86400 seconds")))
        };
        let rate = self.rate.filter(|rate| *rate != 0.0);
        if rate.is_some_and(|rate| !(0.001..=1e9).contains(&rate)) {
            return Err(Failure::new(Code::Usage, "rate is outside 0.001 to 1e9").into());
        }
        let connections = within("connections", self.connections.unwrap_or(1), 1, 1024)?;
        let keys = within("keys", self.keys.unwrap_or(100_000), connections, 1_000_000_000_000)?;
        let value_bytes = self.value_size.unwrap_or(Size(4096)).0;
        let depth = u64::from(self.depth.unwrap_or(32));
        Ok(Plan {
            op: self.op.unwrap_or(Op::Retrieve),
            value_bytes: within("value-size", value_bytes, 1, 64 << 20)? as u32,
            keys,
            dist: self.dist.unwrap_or(Dist::Uniform),
            depth: within("depth", depth, 1, u64::from(QUEUE_DEPTH_MAX))? as u16,
            connections,
            warmup_ns: seconds("warmup", self.warmup.unwrap_or(1.0))?,
            length: match self.ops {
                Some(ops) => Length::Ops(within("ops", ops, connections, u64::MAX)?),
                None => Length::Time { ns: seconds("duration", self.duration.unwrap_or(10.0))? },
            },
            rate,
            prefill: self.prefill.unwrap_or(false),
            namespace: self.namespace.unwrap_or_else(|| "default".to_owned()),
            batch: within("batch", self.batch.unwrap_or(1) as u64, 1, ITEMS_MAX as u64)? as usize,
            seed: self.seed.unwrap_or(1),
            verify: self.verify.unwrap_or(false),
            region: self.region.unwrap_or(false),
            read_percent: within("read-percent", self.read_percent.unwrap_or(50).into(), 0, 100)?
                as u8,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_over_the_profile_key_by_key() {
        let profile: Knobs = toml::from_str(
            "op = \"store\"\nvalue_size = \"128KiB\"\ndist = \"zipf:1.2\"\nops = 5\nkeys = 7",
        )
        .unwrap();
        let typed = Knobs { keys: Some(9), duration: Some(2.0), ..Knobs::default() };
        let plan = typed.over(profile).plan().unwrap();
        assert_eq!(plan.op, Op::Store);
        assert_eq!(plan.value_bytes, 128 << 10);
        assert_eq!(plan.dist, Dist::Zipf { theta: 1.2 });
        assert_eq!(plan.keys, 9);
        assert_eq!(plan.length, Length::Time { ns: 2_000_000_000 });
        assert_eq!(plan.depth, 32);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_name() {
        for (text, word) in [
            ("connections = 0", "connections"),
            ("connections = 8\nkeys = 7", "keys"),
            ("batch = 65", "batch"),
            ("depth = 0", "depth"),
            ("value_size = 0", "value-size"),
            ("read_percent = 101", "read-percent"),
            ("duration = -1.0", "duration"),
            ("rate = -5.0", "rate"),
        ] {
            let knobs: Knobs = toml::from_str(text).unwrap();
            let error = knobs.plan().unwrap_err();
            assert_eq!(Code::of(&error), Code::Usage);
            assert!(error.to_string().starts_with(word), "{error}");
        }
        for text in ["colour = 1", "dist = \"zipf:-1\"", "value_size = \"4kb\"", "op = \"fly\""] {
            assert!(toml::from_str::<Knobs>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_profile_beside_the_fio_jobs_makes_a_plan() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fio-profiles");
        let mut found = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                Knobs::load(&path).unwrap().plan().unwrap();
                assert!(path.with_extension("fio").exists(), "{} mirrors nothing", path.display());
                found += 1;
            }
        }
        assert!(found >= 6, "{found}");
    }
}

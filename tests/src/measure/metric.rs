//! What was measured, what was hoped for, and how both are shown.

use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// What a value has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
    /// Less than this.
    Below(f64),
    /// It is there for information.
    None,
}

impl Goal {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(goal) => value >= goal,
            Self::AtMost(goal) => value <= goal,
            Self::Below(goal) => value < goal,
            Self::None => true,
        }
    }

    fn number(self) -> Option<f64> {
        match self {
            Self::AtLeast(goal) | Self::AtMost(goal) | Self::Below(goal) => Some(goal),
            Self::None => None,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(goal) => format!(">= {goal}"),
            Self::AtMost(goal) => format!("<= {goal}"),
            Self::Below(goal) => format!("< {goal}"),
            Self::None => String::new(),
        }
    }
}

#[derive(Debug)]
struct Metric {
    name: String,
    value: f64,
    unit: &'static str,
    goal: Goal,
}

/// All that was measured, in the order in which it was.
#[derive(Debug, Default)]
pub struct Metrics(Vec<Metric>);

impl Metrics {
    /// Adds a metric that has a goal.
    pub fn goal(&mut self, name: &str, value: f64, unit: &'static str, goal: Goal) {
        let shown = Metric { name: name.to_owned(), value, unit, goal };
        eprintln!("bench:   {name} = {} {unit}", number(value));
        self.0.push(shown);
    }

    /// Adds a metric that is there for information.
    pub fn note(&mut self, name: &str, value: f64, unit: &'static str) {
        self.goal(name, value, unit, Goal::None);
    }

    /// Adds the rates of `ours` and `theirs`, round by round, and the ratio that has a goal: the median
    /// of the rounds' ratios.
    pub fn ratio(&mut self, name: &str, ours: &Rate, theirs: &Rate, goal: f64) {
        self.note(&ours.name, median(&ours.rounds), ours.unit);
        if self.0.iter().all(|metric| metric.name != theirs.name) {
            self.note(&theirs.name, median(&theirs.rounds), theirs.unit);
        }
        let rounds = ours.rounds.iter().zip(&theirs.rounds);
        let ratios: Vec<f64> = rounds.map(|(ours, theirs)| ours / theirs).collect();
        self.goal(name, median(&ratios), "x", Goal::AtLeast(goal));
    }

    /// No goal was missed.
    #[must_use]
    pub fn all_ok(&self) -> bool {
        self.0.iter().all(|metric| metric.goal.is_met_by(metric.value))
    }

    /// For people: goals first.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        let has_goal = |metric: &&Metric| metric.goal != Goal::None;
        let goals = self.0.iter().filter(has_goal);
        let notes = self.0.iter().filter(|metric| !has_goal(metric));
        for metric in goals.chain(notes) {
            let Metric { name, value, unit, goal } = metric;
            let verdict = match goal {
                Goal::None => "",
                goal if goal.is_met_by(*value) => "ok",
                _ => "MISSED",
            };
            let (value, goal) = (number(*value), goal.text());
            let line = format!("{name:<36} {value:>12} {unit:<6} {goal:<8} {verdict}");
            writeln!(text, "{}", line.trim_end()).expect("a String takes everything");
        }
        text
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> String {
        let entry = |metric: &Metric| {
            let Metric { name, value, unit, goal } = metric;
            let ok = goal.is_met_by(*value);
            let value = json!({"value": value, "goal": goal.number(), "unit": unit, "ok": ok});
            (name.clone(), value)
        };
        let all: Map<String, Value> = self.0.iter().map(entry).collect();
        format!("{:#}\n", Value::Object(all))
    }
}

/// One thing's rate, round by round.
#[derive(Debug)]
pub struct Rate {
    name: String,
    unit: &'static str,
    rounds: Vec<f64>,
}

impl Rate {
    /// No round yet.
    #[must_use]
    pub fn new(name: &str, unit: &'static str) -> Self {
        Self { name: name.to_owned(), unit, rounds: Vec::new() }
    }

    /// The rate of one more round.
    pub fn push(&mut self, rate: f64) {
        self.rounds.push(rate);
    }

    /// Adds its median, which has a goal.
    pub fn goal_in(&self, metrics: &mut Metrics, goal: Goal) {
        metrics.goal(&self.name, median(&self.rounds), self.unit, goal);
    }
}

/// The middle one; the lower of two.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) / 2]
}

/// Enough digits to compare, no more.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 || value.fract() == 0.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_the_rounds() {
        let mut metrics = Metrics::default();
        let (mut ours, mut theirs) = (Rate::new("ours", "1/s"), Rate::new("theirs", "1/s"));
        for (our, their) in [(10.0, 10.0), (90.0, 100.0), (1.0, 10.0)] {
            ours.push(our);
            theirs.push(their);
        }
        metrics.ratio("ours_vs_theirs", &ours, &theirs, 0.8);
        let json: Value = serde_json::from_str(&metrics.json()).unwrap();
        let expected = json!({"value": 0.9, "goal": 0.8, "unit": "x", "ok": true});
        assert_eq!(json["ours_vs_theirs"], expected);
        assert_eq!(json["theirs"]["goal"], Value::Null);
        assert!(metrics.all_ok());
    }

    #[test]
    fn a_missed_goal_shows() {
        let mut metrics = Metrics::default();
        metrics.goal("restart", 1.5, "s", Goal::AtMost(1.0));
        metrics.goal("idle", 1.0, "%", Goal::Below(1.0));
        metrics.note("rate", 123_456.0, "1/s");
        assert!(!metrics.all_ok());
        assert_eq!(metrics.table().matches("MISSED").count(), 2);
        let json: Value = serde_json::from_str(&metrics.json()).unwrap();
        assert_eq!(json["idle"]["ok"], false);
        assert_eq!(json["rate"]["ok"], true);
    }
}

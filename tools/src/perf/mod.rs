//! `forebay perf`: closed and open loops against a server, measured honestly.
//!
//! Guarantees: in an open loop (`--rate`) every operation's latency counts from the moment it was
//! *due*, whether or not the server let it start then, and operations that were still due at the
//! end are counted with the age they had reached: a stalled server cannot hide behind a client
//! that waits for it (coordinated omission). An operation belongs to the measurement if it was sent
//! in the measured time; the rate is their number over the time until the last of them ended.
//! With `--verify` every byte that comes back is compared with what key and seed say it must be.

mod choose;
mod knobs;
mod pace;
mod report;
mod tally;
mod value;
mod worker;
mod zipf;

use crate::clock;
use crate::context::{Context, with_hint};
use crate::exit::{Code, Failure};
use crate::progress::Progress;
use anyhow::Context as _;
use choose::Chooser;
use forebay_fabric::client::{ClientConfig, NamespaceId, Pipeline};
use knobs::{Dist, Knobs, Length, Op, Plan};
use report::{HdrLog, Report};
use std::cell::Cell;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use tally::Tally;
use value::Values;
use worker::{Schedule, Until, Worker};

pub(crate) use value::mix;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Take options from this TOML file (fio-profiles/*.toml); the command line's win
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Write an HdrHistogram interval log, one histogram a second, in nanoseconds
    #[arg(long, value_name = "FILE")]
    hdr_log: Option<PathBuf>,
    #[command(flatten)]
    knobs: Knobs,
}

/// What a worker tells the main thread.
enum Event {
    /// It is connected and waits for its schedule.
    Ready,
    /// What it did since it last told.
    Interval(Box<Tally>),
}

/// The same for all workers of a run.
struct Round<'a> {
    plan: &'a Plan,
    config: &'a ClientConfig,
    namespace: NamespaceId,
    values: &'a Values,
}

pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let Args { profile, hdr_log, knobs } = args;
    let knobs = match profile {
        Some(path) => knobs.over(Knobs::load(&path)?),
        None => knobs,
    };
    let plan = knobs.plan()?;
    let mut client = context.client()?;
    let namespace = client.namespace(&plan.namespace)?;
    drop(client);
    let config = ClientConfig { queue_depth: plan.depth, ..context.client_config()? };
    let values = Values::new(plan.seed, plan.value_bytes as usize);
    let round = Round { plan: &plan, config: &config, namespace, values: &values };
    if plan.prefill {
        prefill(&round)?;
    }
    let mut log = hdr_log.map(|path| HdrLog::create(&path)).transpose()?;
    let (tally, seconds) = measure(&round, log.as_mut())?;
    let report = Report::new(&plan, &tally, seconds);
    context.emit(&report, || report.text())?;
    verdict(&tally)
}

/// Stores every key once.
fn prefill(round: &Round<'_>) -> anyhow::Result<()> {
    let plan = Plan { op: Op::Store, dist: Dist::Sequential, rate: None, ..round.plan.clone() };
    let round = Round { plan: &plan, ..*round };
    let progress = Progress::of_count(plan.keys, "prefill");
    let start = |worker: u64| {
        let share = choose::share(plan.keys, plan.connections, worker);
        let until = Until::Ops(share.end - share.start);
        let now_ns = clock::now_ns();
        Schedule { start_ns: now_ns, measure_from_ns: now_ns, until }
    };
    let mut failed = Tally::new();
    round.work(start, |tally| {
        progress.inc(tally.ops);
        failed.add(tally);
        Ok(())
    })?;
    verdict(&failed).context("prefill")
}

/// The measured round: its tally and how long it took.
fn measure(round: &Round<'_>, mut log: Option<&mut HdrLog>) -> anyhow::Result<(Tally, f64)> {
    let plan = round.plan;
    let total_ms = match plan.length {
        Length::Time { ns } => (ns + plan.warmup_ns) / 1_000_000,
        Length::Ops(_) => 0,
    };
    let progress = match plan.length {
        Length::Time { .. } => Progress::of_count(total_ms, "measuring (ms)"),
        Length::Ops(ops) => Progress::of_count(ops, "measuring"),
    };
    // The clock of the run starts when every worker is connected: with the first schedule.
    let started = Cell::new(clock::now_ns());
    let measure_from_ns = || started.get() + plan.warmup_ns;
    let start = |worker: u64| {
        if worker == 0 {
            started.set(clock::now_ns());
        }
        let until = match plan.length {
            Length::Time { ns } => Until::Time { ns: measure_from_ns() + ns },
            Length::Ops(ops) => {
                let share = choose::share(ops, plan.connections, worker);
                Until::Ops(share.end - share.start)
            }
        };
        Schedule { start_ns: started.get(), measure_from_ns: measure_from_ns(), until }
    };
    let (mut total, mut interval) = (Tally::new(), Tally::new());
    let (mut interval_from_ns, mut arrived) = (0, 0);
    round.work(start, |tally| {
        total.add(tally);
        interval.add(tally);
        arrived += 1;
        let now_ns = clock::now_ns();
        interval_from_ns = measure_from_ns().max(interval_from_ns);
        match plan.length {
            Length::Time { .. } => progress.set((now_ns - started.get()) / 1_000_000),
            Length::Ops(_) => progress.set(total.ops),
        }
        // Workers tell once a second: as many as there are make one line of the log.
        if arrived >= plan.connections && now_ns > interval_from_ns {
            if let Some(log) = log.as_mut().filter(|_| !total.latency_ns.is_empty()) {
                log.write(&interval, interval_from_ns, now_ns)?;
            }
            (interval, interval_from_ns, arrived) = (Tally::new(), now_ns, 0);
        }
        Ok(())
    })?;
    if let Some(log) = log.filter(|_| !interval.latency_ns.is_empty()) {
        let now_ns = clock::now_ns().max(interval_from_ns);
        log.write(&interval, interval_from_ns, now_ns)?;
    }
    let planned_ns = match plan.length {
        Length::Time { ns } => ns,
        Length::Ops(_) => 0,
    };
    let took_ns = total.last_end_ns.saturating_sub(measure_from_ns()).max(planned_ns).max(1);
    Ok((total, took_ns as f64 / 1e9))
}

impl Round<'_> {
    /// Connects all workers, lets them go together, and hands what they tell to `each`.
    fn work(
        &self,
        mut schedule: impl FnMut(u64) -> Schedule,
        mut each: impl FnMut(&Tally) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        std::thread::scope(|scope| {
            let (events, inbox) = channel();
            let mut threads = Vec::new();
            let mut starts = Vec::new();
            for number in 0..self.plan.connections {
                let (start, started) = channel();
                let events = events.clone();
                starts.push(start);
                threads.push(scope.spawn(move || self.worker(number, &events, &started)));
            }
            drop(events);
            let ready =
                inbox.iter().take(starts.len()).filter(|event| matches!(event, Event::Ready));
            if ready.count() == starts.len() {
                for (number, start) in starts.iter().enumerate() {
                    // A worker that is gone already tells why when it is joined.
                    start.send(schedule(number as u64)).unwrap_or_default();
                }
            }
            drop(starts);
            let told = listen(&inbox, &mut each);
            for thread in threads {
                thread.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
            }
            told
        })
    }

    /// One worker's life.
    fn worker(
        &self,
        number: u64,
        events: &Sender<Event>,
        started: &Receiver<Schedule>,
    ) -> anyhow::Result<()> {
        // The seed makes write tokens: no two clients may share one.
        let config = ClientConfig { seed: ClientConfig::default().seed, ..self.config.clone() };
        let pipeline = Pipeline::connect(config).map_err(with_hint)?;
        let chooser = Chooser::new(self.plan, number);
        events.send(Event::Ready).unwrap_or_default();
        // No schedule: another worker could not connect.
        let Ok(schedule) = started.recv() else { return Ok(()) };
        let tell = |tally| events.send(Event::Interval(tally)).unwrap_or_default();
        let worker = Worker::new(
            self.plan,
            pipeline,
            self.namespace,
            self.values.clone(),
            chooser,
            schedule,
        )?;
        worker.run(tell)
    }
}

fn listen(
    inbox: &Receiver<Event>,
    each: &mut impl FnMut(&Tally) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    loop {
        match inbox.recv_timeout(Duration::from_secs(1)) {
            Ok(Event::Interval(tally)) => each(&tally)?,
            Ok(Event::Ready) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// A run that returned wrong bytes or failed operations is no success.
fn verdict(tally: &Tally) -> anyhow::Result<()> {
    if tally.mismatched > 0 {
        let what = format!("{} values are not what was stored", tally.mismatched);
        return Err(Failure::new(Code::Integrity, what).into());
    }
    let errors = tally.errors();
    if errors.is_empty() {
        return Ok(());
    }
    let told: Vec<_> = errors.iter().map(|(status, count)| format!("{count} x {status}")).collect();
    Err(Failure::new(Code::Failure, format!("operations failed: {}", told.join(", "))).into())
}

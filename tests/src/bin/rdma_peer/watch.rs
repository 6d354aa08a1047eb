//! Who was late, and where: a thread that looks at the others when a turn takes long.
//!
//! Guarantees: a turn above [`LONG`] leaves a line that says in which function of the kernel each thread is, or
//! that the machine itself stood still, until this is dropped. What breaks it: a kernel that tells nobody; then the line says only how long.

use forebay_tests::vm::{now, sleep};
use serde_json::{Value, json};
use std::fs::read_to_string;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// A turn that takes longer is worth a line.
const LONG: Duration = Duration::from_millis(400);
/// Lines of a thread's stack in the kernel.
const DEPTH: usize = 8;

/// See the module.
pub(super) struct Watch {
    began: Instant,
    /// When the last turn was, in milliseconds since it began.
    turned_ms: Arc<AtomicU64>,
}

impl Watch {
    /// Turns of which kind may take `patience` longer: they wait so long for something to happen.
    pub(super) fn start(patience: Duration) -> Self {
        let (began, turned_ms) = (now(), Arc::new(AtomicU64::new(0)));
        let watched = Arc::downgrade(&turned_ms);
        std::thread::spawn(move || {
            let mut looked = now();
            let mut before = cores();
            while let Some(turned_ms) = watched.upgrade() {
                sleep(LOOK);
                let stood = looked.elapsed().saturating_sub(LOOK);
                looked = now();
                let old = std::mem::replace(&mut before, cores());
                let turned = Duration::from_millis(turned_ms.load(Ordering::Relaxed));
                let turn = began.elapsed().saturating_sub(turned);
                if stood > LONG || turn > patience + LONG {
                    tell(began.elapsed(), turn, stood, &old);
                }
            }
        });
        Self { began, turned_ms }
    }

    /// A turn has ended.
    pub(super) fn turned(&self) {
        self.turned_ms.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

fn tell(at: Duration, turn: Duration, stood: Duration, before: &[String]) {
    let milliseconds = |time: Duration| time.as_millis() as u64;
    println!(
        "{}",
        json!({
            "is": "late", "at_ms": milliseconds(at), "turn_ms": milliseconds(turn),
            "stood_ms": milliseconds(stood), "threads": threads(), "before": before, "cores": cores(),
        })
    );
}

/// The times of all cores since the boot, in ticks: user, nice, system, idle, waiting, interrupts, soft ones.
fn cores() -> Vec<String> {
    let stat = read_to_string("/proc/stat").unwrap_or_default();
    stat.lines().filter(|line| line.starts_with("cpu")).map(str::to_owned).collect()
}

/// Each thread's name, its state and time, and where in the kernel it is.
fn threads() -> Vec<Value> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .map(|task| {
            let read = |name: &str| read_to_string(task.path().join(name)).unwrap_or_default();
            let stat = read("stat");
            let fields: Vec<&str> = stat.split(' ').collect();
            let field = |index: usize| fields.get(index).copied().unwrap_or_default();
            let stack: Vec<String> = read("stack").lines().take(DEPTH).map(str::to_owned).collect();
            json!({
                "name": read("comm").trim(), "state": field(2),
                "user": field(13), "kernel": field(14), "stack": stack,
            })
        })
        .collect()
}

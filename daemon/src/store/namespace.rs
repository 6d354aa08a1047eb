//! Namespaces as the store knows them: a class, a quota, a time to live, and how much is used.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The most namespaces of a pool.
pub const NAMESPACES_MAX: usize = 1024;
/// The system catalog. All of its keys live in shard 0.
pub const CATALOG: u32 = 0;
/// The chunks of checkpoints.
pub const CHUNKS: u32 = 1;
/// The first number of a user's namespace.
pub const FIRST_USER: u32 = 16;

/// What an acknowledgement means, and what happens when space runs out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// May be acknowledged before the journal; what is lost in a crash is computed again.
    Cache,
    /// Acknowledged means on media; never evicted.
    Durable,
}

/// One namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its class.
    pub class: Class,
    /// The most bytes of values it may hold.
    pub quota_bytes: Option<u64>,
    /// After how many seconds a value ends.
    pub ttl_s: Option<u32>,
}

/// Bytes of values in each namespace, over all reactors. The one thing they share: a quota is a
/// property of the pool. Relaxed: a quota may be overshot by what is in flight on the other cores.
#[derive(Clone, Debug)]
pub struct Usage(Arc<Vec<AtomicU64>>);

impl Default for Usage {
    fn default() -> Self {
        Self(Arc::new((0..NAMESPACES_MAX).map(|_| AtomicU64::new(0)).collect()))
    }
}

impl Usage {
    /// Bytes of values in namespace `number`.
    #[must_use]
    pub fn bytes(&self, number: u16) -> u64 {
        self.0.get(usize::from(number)).map_or(0, |used| used.load(Ordering::Relaxed))
    }

    pub(super) fn add(&self, number: u16, bytes: u32) {
        if let Some(used) = self.0.get(usize::from(number)) {
            used.fetch_add(u64::from(bytes), Ordering::Relaxed);
        }
    }

    pub(super) fn sub(&self, number: u16, bytes: u32) {
        if let Some(used) = self.0.get(usize::from(number)) {
            used.fetch_sub(u64::from(bytes), Ordering::Relaxed);
        }
    }
}

/// One reactor's table of namespaces, by number.
#[derive(Clone, Debug)]
pub struct Namespaces(Rc<RefCell<Vec<Option<Namespace>>>>);

impl Default for Namespaces {
    /// The two that every pool has.
    fn default() -> Self {
        let mut table = vec![None; NAMESPACES_MAX];
        let system = |name: &str| Namespace {
            name: name.to_owned(),
            class: Class::Durable,
            quota_bytes: None,
            ttl_s: None,
        };
        table[CATALOG as usize] = Some(system("catalog"));
        table[CHUNKS as usize] = Some(system("chunks"));
        Self(Rc::new(RefCell::new(table)))
    }
}

impl Namespaces {
    /// Makes `number` mean `namespace`. Numbers of [`NAMESPACES_MAX`] and over are ignored.
    pub fn set(&self, number: u32, namespace: Namespace) {
        if let Some(place) = self.0.borrow_mut().get_mut(number as usize) {
            *place = Some(namespace);
        }
    }

    /// What the data path needs of a namespace: class, quota, time to live.
    #[must_use]
    pub fn rules(&self, number: u32) -> Option<(Class, Option<u64>, Option<u32>)> {
        let table = self.0.borrow();
        let one = table.get(number as usize)?.as_ref()?;
        Some((one.class, one.quota_bytes, one.ttl_s))
    }

    /// Is there such a namespace?
    #[must_use]
    pub fn are(&self, number: u32) -> bool {
        self.0.borrow().get(number as usize).is_some_and(Option::is_some)
    }

    /// Does any namespace let its values expire?
    #[must_use]
    pub fn any_ttl(&self) -> bool {
        self.0.borrow().iter().flatten().any(|one| one.ttl_s.is_some())
    }
}

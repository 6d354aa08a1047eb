//! A host by hand: it builds entries, writes registers, and steps the controller. Nothing of the driver is in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};

use forebay_nvme::arena::DmaWords;
use forebay_nvme::emulated::{
    EmulatedConfig, EmulatedController, EmulatedHardware, EmulatedRegisters,
};
use forebay_nvme::hardware::{Dma, Hardware, Mapping, Registers};
use forebay_nvme::spec::command::{Data, Submission};
use forebay_nvme::spec::completion::Completion;
use forebay_nvme::spec::registers::{
    ACQ, AQA, ASQ, AdminQueueSizes, CAP, CC, CSTS, Capabilities, Configuration, ControllerStatus,
    completion_doorbell, submission_doorbell,
};
use forebay_nvme::{Arena, DmaBuf, Pool};

pub(crate) const ADMIN_ENTRIES: u32 = 16;
/// Nothing that works takes longer.
pub(crate) const PATIENCE_US: u64 = 5_000_000;

/// One queue pair.
pub(crate) struct Pair {
    submission: DmaWords,
    completion: DmaWords,
    entries: u32,
    pub(crate) tail: u32,
    head: u32,
    phase: bool,
    next_cid: u16,
    /// Completions that nobody has asked for yet.
    done: BTreeMap<u16, Completion>,
    /// Everything that came, in order.
    pub(crate) log: Vec<Completion>,
}

pub(crate) struct Host {
    pub(crate) controller: EmulatedController,
    pub(crate) hardware: EmulatedHardware,
    pub(crate) registers: Arc<EmulatedRegisters>,
    pub(crate) pool: Pool,
    pub(crate) mapping: Mapping,
    pub(crate) pairs: BTreeMap<u16, Pair>,
    pub(crate) now_us: u64,
    pub(crate) stride: usize,
    /// Shadow doorbells and event indexes.
    shadows: Option<(DmaWords, DmaWords)>,
}

impl Pair {
    fn new(pool: &Pool, entries: u32) -> Self {
        let memory = |bytes: u32| DmaWords::new(pool.alloc(bytes as usize).expect("room"));
        Self {
            submission: memory(entries * 64),
            completion: memory(entries * 16),
            entries,
            tail: 0,
            head: 0,
            phase: true,
            next_cid: 1,
            done: BTreeMap::new(),
            log: Vec::new(),
        }
    }
}

impl Host {
    /// A controller, and a host that has not touched it yet.
    pub(crate) fn on(controller: EmulatedController) -> Self {
        let hardware = controller.hardware();
        let pool = Arena::on_demand(16 << 20).expect("address space").pool();
        let mapping = hardware.dma().map(&pool.span()).expect("IOVAs");
        let registers = hardware.registers();
        let stride = Capabilities(registers.read64(CAP)).doorbell_stride_bytes();
        let pairs = BTreeMap::new();
        let shadows = None;
        Self { controller, hardware, registers, pool, mapping, pairs, now_us: 0, stride, shadows }
    }

    pub(crate) fn new(config: EmulatedConfig) -> Self {
        Self::on(EmulatedController::new(config))
    }

    /// With its admin queue up.
    pub(crate) fn ready(config: EmulatedConfig) -> Self {
        let mut host = Self::new(config);
        host.enable();
        host
    }

    /// With one pair of I/O queues, too.
    pub(crate) fn with_queue(config: EmulatedConfig, entries: u32) -> Self {
        let mut host = Self::ready(config);
        host.add_pair(1, entries);
        host
    }

    pub(crate) fn iova(&self, address: usize) -> u64 {
        self.mapping.translate(address, 8).expect("an address in the arena")
    }

    pub(crate) fn status(&self) -> ControllerStatus {
        ControllerStatus(self.registers.read32(CSTS))
    }

    /// Steps until `done`, or time is up: `false`.
    pub(crate) fn wait(&mut self, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let deadline_us = self.now_us + PATIENCE_US;
        while self.now_us < deadline_us {
            self.controller.step(self.now_us);
            if done(self) {
                return true;
            }
            let next_us = self.controller.next_event_us().unwrap_or(deadline_us);
            self.now_us = next_us.max(self.now_us + 1);
        }
        false
    }

    /// Lets so much time pass.
    pub(crate) fn pass(&mut self, us: u64) {
        let end_us = self.now_us + us;
        while self.now_us < end_us {
            self.controller.step(self.now_us);
            self.now_us = self.controller.next_event_us().unwrap_or(end_us).max(self.now_us + 1);
        }
        self.now_us = end_us;
        self.controller.step(self.now_us);
    }

    /// Writes the admin queue's registers and CC.EN, and waits for CSTS.RDY.
    pub(crate) fn enable(&mut self) {
        self.start();
        assert!(self.wait(|host| host.status().ready()), "not ready: {:?}", self.status());
    }

    /// As [`Host::enable`], without waiting.
    pub(crate) fn start(&mut self) {
        self.hardware.set_bus_master(true).expect("a device that is there");
        let pair = Pair::new(&self.pool, ADMIN_ENTRIES);
        let (asq, acq) = (pair.submission.address(), pair.completion.address());
        self.registers.write32(AQA, AdminQueueSizes::new(ADMIN_ENTRIES, ADMIN_ENTRIES).0);
        self.registers.write64(ASQ, self.iova(asq));
        self.registers.write64(ACQ, self.iova(acq));
        self.pairs.clear();
        self.pairs.insert(0, pair);
        self.registers.write32(CC, Configuration::enable(4096).0);
    }

    /// Clears CC.EN, and waits for CSTS.RDY to follow.
    pub(crate) fn disable(&mut self) {
        self.registers.write32(CC, Configuration(self.registers.read32(CC)).disable().0);
        assert!(self.wait(|host| !host.status().ready()), "not quiet");
        self.pairs.clear();
    }

    /// Makes I/O queues `id`.
    pub(crate) fn add_pair(&mut self, id: u16, entries: u32) {
        let pair = Pair::new(&self.pool, entries);
        let (sq, cq) = (pair.submission.address(), pair.completion.address());
        let (sq, cq) = (self.iova(sq), self.iova(cq));
        let create = Submission::create_completion_queue(id, entries, cq, None);
        assert!(self.admin(create).status().ok());
        let create = Submission::create_submission_queue(id, entries, sq, id);
        assert!(self.admin(create).status().ok());
        self.pairs.insert(id, pair);
    }

    /// Makes I/O submission queue `id`, which completes to `completion`.
    pub(crate) fn add_submission_queue(&mut self, id: u16, entries: u32, completion: u16) {
        let pair = Pair::new(&self.pool, entries);
        let sq = self.iova(pair.submission.address());
        let create = Submission::create_submission_queue(id, entries, sq, completion);
        assert!(self.admin(create).status().ok());
        self.pairs.insert(id, pair);
    }

    /// Uses shadow doorbells from now on.
    pub(crate) fn use_shadows(&mut self) {
        let page = || DmaWords::new(self.pool.alloc(4096).expect("room"));
        let (shadow, event) = (page(), page());
        let command =
            Submission::doorbell_buffers(self.iova(shadow.address()), self.iova(event.address()));
        assert!(self.admin(command).status().ok());
        self.shadows = Some((shadow, event));
    }

    /// Writes an entry, and does not ring yet.
    pub(crate) fn push(&mut self, queue: u16, command: Submission) -> u16 {
        let pair = self.pairs.get_mut(&queue).expect("a queue that was made");
        let cid = pair.next_cid;
        pair.next_cid = pair.next_cid.wrapping_add(1);
        self.push_as(queue, command.with_cid(cid));
        cid
    }

    /// As [`Host::push`], with the identifier that the command has.
    pub(crate) fn push_as(&mut self, queue: u16, command: Submission) {
        let pair = self.pairs.get_mut(&queue).expect("a queue that was made");
        let at = pair.tail as usize * 8;
        for (slot, word) in pair.submission.words()[at..at + 8].iter().zip(command.words()) {
            slot.store(word, Release);
        }
        pair.tail = (pair.tail + 1) % pair.entries;
    }

    /// Tells the controller of the new tail. `true`: the register was written.
    pub(crate) fn ring(&mut self, queue: u16, old: u32) -> bool {
        let tail = self.pairs[&queue].tail;
        let offset = submission_doorbell(queue, self.stride);
        self.tell(queue, offset, old, tail)
    }

    fn tell(&mut self, queue: u16, offset: usize, old: u32, new: u32) -> bool {
        if let Some((shadow, event)) = self.shadows.as_ref().filter(|_| queue != 0) {
            let (word, half) = ((offset - 0x1000) / 8, (offset - 0x1000) % 8 / 4);
            let held = shadow.words()[word].load(Acquire);
            let mask = 0xffff_ffff_u64 << (32 * half);
            shadow.words()[word].store(held & !mask | u64::from(new) << (32 * half), Release);
            let event = (event.words()[word].load(Acquire) >> (32 * half)) as u16;
            let passed = (new as u16).wrapping_sub(event).wrapping_sub(1);
            if passed >= (new as u16).wrapping_sub(old as u16) {
                return false;
            }
        }
        self.registers.write32(offset, new);
        true
    }

    /// Submits a command.
    pub(crate) fn submit(&mut self, queue: u16, command: Submission) -> u16 {
        let old = self.pairs[&queue].tail;
        let cid = self.push(queue, command);
        self.ring(queue, old);
        cid
    }

    /// Takes what was posted.
    pub(crate) fn reap(&mut self, queue: u16) {
        let Some(pair) = self.pairs.get_mut(&queue) else { return };
        let old = pair.head;
        loop {
            let at = pair.head as usize * 2;
            let last = pair.completion.words()[at + 1].load(Acquire);
            if Completion::phase_of_word(last) != pair.phase {
                break;
            }
            let entry = Completion::from_words([pair.completion.words()[at].load(Acquire), last]);
            pair.log.push(entry);
            pair.done.insert(entry.cid.get(), entry);
            pair.head = (pair.head + 1) % pair.entries;
            pair.phase ^= pair.head == 0;
        }
        let head = pair.head;
        if head != old {
            self.tell(queue, completion_doorbell(queue, self.stride), old, head);
        }
    }

    /// Waits for a command; `None`: it does not come.
    pub(crate) fn try_await(&mut self, queue: u16, cid: u16) -> Option<Completion> {
        let mut found = None;
        self.wait(|host| {
            host.reap(queue);
            found = host.pairs.get_mut(&queue).and_then(|pair| pair.done.remove(&cid));
            found.is_some()
        });
        found
    }

    pub(crate) fn run(&mut self, queue: u16, command: Submission) -> Completion {
        let cid = self.submit(queue, command);
        self.try_await(queue, cid).expect("a completion")
    }

    pub(crate) fn admin(&mut self, command: Submission) -> Completion {
        self.run(0, command)
    }

    /// Has the controller return a page.
    pub(crate) fn ask(&mut self, command: impl FnOnce(Data) -> Submission) -> (Completion, DmaBuf) {
        let mut buffer = self.pool.alloc(4096).expect("room");
        buffer.fill(0xEE);
        let iova = self.iova(buffer.as_ptr().addr());
        let completion = self.admin(command(Data::Prp(iova, 0)));
        (completion, buffer)
    }

    /// A buffer of `blocks` blocks of 4 KiB, each filled with its own byte from `fill` on.
    pub(crate) fn buffer(&self, blocks: usize, fill: u8) -> DmaBuf {
        let mut buffer = self.pool.alloc(blocks * 4096).expect("room");
        for (at, block) in buffer.chunks_mut(4096).enumerate() {
            block.fill(fill.wrapping_add(at as u8));
        }
        buffer
    }

    /// PRPs of a whole buffer, with its list where one is needed.
    pub(crate) fn prps(&self, buffer: &DmaBuf, blocks: usize) -> (Data, Option<DmaWords>) {
        let iova = self.iova(buffer.as_ptr().addr());
        match blocks {
            1 => (Data::Prp(iova, 0), None),
            2 => (Data::Prp(iova, iova + 4096), None),
            _ => {
                let list = DmaWords::new(self.pool.alloc(blocks * 8).expect("room"));
                for (slot, page) in list.words().iter().zip(1..blocks as u64) {
                    slot.store(iova + page * 4096, Release);
                }
                (Data::Prp(iova, self.iova(list.address())), Some(list))
            }
        }
    }

    /// Writes blocks of 4 KiB to namespace 1 with logical blocks of that size.
    pub(crate) fn write(&mut self, lba: u64, blocks: usize, fill: u8, fua: bool) -> Completion {
        let buffer = self.buffer(blocks, fill);
        let (data, _list) = self.prps(&buffer, blocks);
        self.run(1, Submission::write(1, lba, blocks as u32, data, fua))
    }

    /// Reads them.
    pub(crate) fn read(&mut self, lba: u64, blocks: usize) -> (Completion, DmaBuf) {
        let buffer = self.buffer(blocks, 0xEE);
        let (data, _list) = self.prps(&buffer, blocks);
        let completion = self.run(1, Submission::read(1, lba, blocks as u32, data));
        (completion, buffer)
    }

    /// Asserts that the blocks hold what [`Host::write`] with this `fill` has written.
    pub(crate) fn expect(&mut self, lba: u64, blocks: usize, fill: u8) {
        let (completion, buffer) = self.read(lba, blocks);
        assert!(completion.status().ok(), "{:?}", completion.status());
        for (at, block) in buffer.chunks(4096).take(blocks).enumerate() {
            let fill = fill.wrapping_add(at as u8);
            assert!(block.iter().all(|byte| *byte == fill), "block {at} of {lba} is not {fill}");
        }
    }

    /// Nothing was wrong with this host, and with where the controller reached.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.controller.violations(), []);
        assert_eq!(self.controller.iommu_faults(), []);
    }
}

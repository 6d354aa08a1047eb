//! Shared memory beside TCP, and beside memcpy: the same server, service and client, in one process
//! with a core each, that differ in nothing but the transport.
//!
//! The service answers every retrieve from memory, so that what is compared is the fabric: sessions,
//! framing, checksums, and how the bytes move. What the whole daemon makes of it is measured in the
//! part `small`, whose device is the larger share. Both sides poll and never sleep, as a reactor does
//! that has work; another process on these cores takes its time from both alike.

use crate::Effort;
use crate::machine::{Machine, folder_in_memory, free_address, now, on_core};
use anyhow::{Context as _, ensure};
use forebay_fabric::Status;
use forebay_fabric::client::{Address, ClientConfig, NamespaceId, Pipeline, Request};
use forebay_fabric::pdu::{Capsule, Endpoint, crc32c};
use forebay_fabric::server::{Reply, RequestId, Server, ServerConfig, Service};
use forebay_fabric::shm::Shm;
use forebay_fabric::stream::tcp::Tcp;
use forebay_fabric::stream::{Listener, StreamConfig, StreamTransport};
use forebay_fabric::transport::Payload;
use forebay_tests::measure::{Metrics, Rate};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// Of TCP's rate of 4 KiB retrieves.
const SMALL_GOAL: f64 = 3.0;
/// Of memcpy's bandwidth, at 1 MiB.
const LARGE_GOAL: f64 = 0.7;
const SMALL: Load = Load { bytes: 4096, depth: 32 };
const LARGE: Load = Load { bytes: 1 << 20, depth: 8 };

#[derive(Clone, Copy, Debug)]
struct Load {
    bytes: usize,
    depth: u16,
}

pub(crate) fn measure(
    machine: &Machine,
    effort: Effort,
    metrics: &mut Metrics,
) -> anyhow::Result<()> {
    let time = Duration::from_secs(effort.seconds.into());
    let mut rates = ["shm_retrieve_4k_per_s", "tcp_retrieve_4k_per_s"].map(|n| Rate::new(n, "1/s"));
    let mut widths =
        ["shm_retrieve_1m_bytes_per_s", "memcpy_1m_bytes_per_s"].map(|n| Rate::new(n, "B/s"));
    for _ in 0..effort.rounds {
        rates[1].push(over_tcp(machine, SMALL, time)?);
        rates[0].push(over_shm(machine, SMALL, time)?);
        widths[1].push(on_core(machine.server_core, || memcpy_bytes_per_s(LARGE, time))?);
        widths[0].push(over_shm(machine, LARGE, time)? * LARGE.bytes as f64);
    }
    metrics.ratio("shm_retrieve_4k_vs_tcp", &rates[0], &rates[1], SMALL_GOAL);
    metrics.ratio("shm_retrieve_1m_vs_memcpy", &widths[0], &widths[1], LARGE_GOAL);
    Ok(())
}

fn over_tcp(machine: &Machine, load: Load, time: Duration) -> anyhow::Result<f64> {
    let address = free_address()?;
    let listen = || Ok((Tcp::bind(address)?, Endpoint::tcp(0, address)));
    retrieves_per_s(machine, listen, address.into(), load, time)
}

fn over_shm(machine: &Machine, load: Load, time: Duration) -> anyhow::Result<f64> {
    let folder = folder_in_memory(1)?;
    let path = folder.path().join("shm");
    let listen = || Ok((Shm::bind(&path, 0, 0o600)?, Endpoint::shm(0)));
    retrieves_per_s(machine, listen, Address::shm(&path), load, time)
}

/// A server on one core, a client on the other.
fn retrieves_per_s<L: Listener>(
    machine: &Machine,
    listen: impl FnOnce() -> anyhow::Result<(L, Endpoint)> + Send,
    address: Address,
    load: Load,
    time: Duration,
) -> anyhow::Result<f64> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (ready, is_ready) = sync_channel(1);
        let server = scope.spawn(|| {
            on_core(machine.server_core, || {
                let (listener, endpoint) = listen()?;
                ready.send(()).context("nobody waits for the server")?;
                drop(ready);
                serve(listener, endpoint, load, &stop);
                Ok(())
            })
        });
        let measured = on_core(machine.client_core, || {
            is_ready.recv().context("the server does not start")?;
            ask(address, load, time)
        });
        stop.store(true, Ordering::Relaxed);
        match server.join() {
            Ok(ended) => ended.and(measured),
            Err(_) => Err(anyhow::anyhow!("the server panicked")),
        }
    })
}

/// A value that is shared by all who send it.
#[derive(Clone, Debug)]
struct Value(Rc<Vec<u8>>);

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for Value {
    fn as_mut(&mut self) -> &mut [u8] {
        Rc::<Vec<u8>>::make_mut(&mut self.0)
    }
}

/// Answers each command with the next of its values.
struct Memory {
    values: Vec<(Value, u32)>,
    next: usize,
    asked: Vec<RequestId>,
}

impl Service<Value> for Memory {
    fn request(&mut self, id: RequestId, _: &Capsule<'_>, _: u64) {
        self.asked.push(id);
    }

    fn pulled(&mut self, _: RequestId, _: Value, _: bool) {}

    fn abandoned(&mut self, id: RequestId, _: Status) {
        self.asked.push(id);
    }
}

fn values(load: Load) -> Vec<Vec<u8>> {
    (0..load.depth).map(|number| vec![number as u8; load.bytes]).collect()
}

fn serve<L: Listener>(listener: L, endpoint: Endpoint, load: Load, stop: &AtomicBool) {
    let transport = StreamTransport::new(listener, StreamConfig::default());
    let config = ServerConfig {
        queue_depth: 128,
        capsule_bytes: 16 << 10,
        keep_alive_ms: 10_000,
        timeout_max_us: 60_000_000,
        connections_max: 16,
        pool: [1; 16],
        incarnation: [1; 16],
        reactor: 0,
        catalog_reactor: 0,
        shard_map: vec![0],
        reactors: 1,
        endpoints: vec![endpoint],
    };
    let mut server = Server::new(transport, config);
    let with_crc = |value: Vec<u8>| {
        let crc = crc32c(&value);
        (Value(Rc::new(value)), crc)
    };
    let values = values(load).into_iter().map(with_crc).collect();
    let mut memory = Memory { values, next: 0, asked: Vec::new() };
    let (began, mut asked) = (now(), Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let now_us = began.elapsed().as_micros() as u64;
        let busy = server.poll(now_us, &mut memory);
        asked.append(&mut memory.asked);
        for id in asked.drain(..) {
            let (buffer, crc) = memory.values[memory.next].clone();
            memory.next = (memory.next + 1) % memory.values.len();
            let payload = Payload { buffer, range: 0..load.bytes };
            server.reply(id, Reply::data(load.bytes as u64, crc, payload));
        }
        server.flush(now_us);
        if !busy {
            std::hint::spin_loop();
        }
    }
}

/// Keeps as many retrieves in flight as the load says.
fn ask(address: Address, load: Load, time: Duration) -> anyhow::Result<f64> {
    let config = ClientConfig { queue_depth: load.depth, ..ClientConfig::new(vec![address]) };
    let mut client = Pipeline::connect(config)?;
    let (mut done, mut ended) = (Vec::new(), 0_u64);
    let mut run = |client: &mut Pipeline, time: Duration| -> anyhow::Result<f64> {
        let (began, before) = (now(), ended);
        while began.elapsed() < time {
            let key = b"a key of thirty-two bytes, so so";
            while client.in_flight() < usize::from(load.depth)
                && client
                    .submit(Request::retrieve(NamespaceId(16), key, 0, load.bytes as u32))
                    .is_ok()
            {}
            if client.poll(&mut done, 0)? == 0 {
                std::hint::spin_loop();
            }
            for one in done.drain(..) {
                let whole = one.status == Status::Ok && one.data.len() == load.bytes;
                ensure!(whole, "a retrieve has failed: {}", one.status);
                ended += 1;
                client.recycle(one);
            }
        }
        Ok((ended - before) as f64 / began.elapsed().as_secs_f64())
    };
    run(&mut client, time / 4)?;
    run(&mut client, time)
}

/// One core copies between as many buffers as are in flight.
fn memcpy_bytes_per_s(load: Load, time: Duration) -> anyhow::Result<f64> {
    let from = values(load);
    let mut into = values(Load { bytes: load.bytes, depth: load.depth });
    let (began, mut count) = (now(), 0_u64);
    while began.elapsed() < time {
        for (into, from) in into.iter_mut().zip(&from) {
            into.copy_from_slice(std::hint::black_box(from));
            std::hint::black_box(into);
            count += 1;
        }
    }
    Ok((count * load.bytes as u64) as f64 / began.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tiny_run_measures_each_side() {
        let Ok(machine) = Machine::look() else { return };
        let time = Duration::from_millis(20);
        assert!(over_tcp(&machine, SMALL, time).unwrap() > 0.0);
        assert!(over_shm(&machine, SMALL, time).unwrap() > 0.0);
        assert!(over_shm(&machine, LARGE, time).unwrap() > 0.0);
        assert!(memcpy_bytes_per_s(LARGE, time).unwrap() > 0.0);
    }
}

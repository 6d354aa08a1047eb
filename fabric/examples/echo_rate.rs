//! How fast the fabric alone is: a service that answers from memory, and a client that asks as fast
//! as it can, over TCP on loopback in one process, a core each.
//!
//! `cargo run --release -p forebay-fabric --example echo_rate -- get|put BYTES [DEPTH [CONNECTIONS
//! [SECONDS]]]`; prints one line. The same loop as `iperf3 -c` on loopback bounds the large sizes.

use forebay_fabric::Status;
use forebay_fabric::pdu::{
    Auth, Capsule, Command, CommonHeader, Data, Endpoint, Hello, Item, Offer, Opcode, PduType,
    ReadyToTransfer, Response,
};
use forebay_fabric::server::{Reply, RequestId, Server, ServerConfig, Service};
use forebay_fabric::stream::{StreamConfig, StreamTransport, tcp::Tcp};
use forebay_fabric::transport::Payload;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::resource::{UsageWho, getrusage};
use std::cell::RefCell;
use std::io::{IoSlice, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

#[expect(clippy::disallowed_methods, reason = "an example that measures time")]
fn now() -> Instant {
    Instant::now()
}

/// A buffer of a pool, as the daemon's are.
struct Buffer {
    bytes: Vec<u8>,
    pool: Rc<RefCell<Vec<Vec<u8>>>>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.borrow_mut().push(std::mem::take(&mut self.bytes));
    }
}

struct Memory {
    value_bytes: usize,
    pool: Rc<RefCell<Vec<Vec<u8>>>>,
    pulls: Vec<RequestId>,
    replies: Vec<(RequestId, Option<Buffer>)>,
}

impl Memory {
    fn buffer(&self) -> Buffer {
        let bytes = self.pool.borrow_mut().pop().unwrap_or_else(|| vec![7; self.value_bytes]);
        Buffer { bytes, pool: self.pool.clone() }
    }
}

impl Service<Buffer> for Memory {
    fn request(&mut self, id: RequestId, capsule: &Capsule<'_>, _deadline_us: u64) {
        match capsule.opcode {
            Some(Opcode::Store) if !capsule.is_in_capsule() => self.pulls.push(id),
            Some(Opcode::Retrieve) => self.replies.push((id, Some(self.buffer()))),
            _ => self.replies.push((id, None)),
        }
    }

    fn pulled(&mut self, id: RequestId, _buffer: Buffer, _complete: bool) {
        self.replies.push((id, None));
    }

    fn abandoned(&mut self, id: RequestId, _why: Status) {
        self.replies.push((id, None));
    }
}

/// After so many ticks with nothing to do the server sleeps until something comes.
const IDLE_TICKS_MAX: u32 = 100;

/// Processor time of this process so far, in seconds.
fn cpu_s() -> f64 {
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(0.0, |usage| seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// The loop of a reactor that has nothing to do but this.
fn serve(mut server: Server<StreamTransport<Tcp, Buffer>>, value_bytes: usize, stop: &AtomicBool) {
    let pool = Rc::new(RefCell::new(Vec::new()));
    let mut memory = Memory { value_bytes, pool, pulls: Vec::new(), replies: Vec::new() };
    let (mut pulls, mut replies, start) = (Vec::new(), Vec::new(), now());
    let (mut ticks, mut idle) = (0_u64, 0);
    while !stop.load(Ordering::Relaxed) {
        let now_us = start.elapsed().as_micros() as u64;
        let busy = server.poll(now_us, &mut memory);
        ticks += u64::from(busy);
        idle = if busy { 0 } else { idle + 1 };
        if idle > IDLE_TICKS_MAX
            && let Some(fd) = server.wait_fd()
        {
            let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
            if poll(&mut fds, 10_u8).is_err() {
                return;
            }
        }
        pulls.append(&mut memory.pulls);
        for id in pulls.drain(..) {
            server.pull(id, memory.buffer());
        }
        replies.append(&mut memory.replies);
        for (id, buffer) in replies.drain(..) {
            let reply = match buffer {
                Some(buffer) => {
                    Reply::data(value_bytes as u64, 0, Payload { buffer, range: 0..value_bytes })
                }
                None => Reply::status(Status::Ok, 0),
            };
            server.reply(id, reply);
        }
        server.flush(now_us);
    }
    let requests = server.counters().requests;
    eprintln!("{:.1} requests per busy tick", requests as f64 / ticks.max(1) as f64);
}

fn command(opcode: Opcode, cid: u16, value_bytes: usize, in_capsule: &[u8]) -> Vec<u8> {
    let key = b"a key of thirty-two bytes, so so";
    let mut command = Command::new(opcode, cid);
    command.data_length = U32::new(value_bytes as u32);
    command.seal(&[] as &[Item], key, in_capsule);
    [command.as_bytes(), key, in_capsule].concat()
}

fn connect(address: SocketAddr, depth: u16) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let offer = Offer {
        versions: 1..=1,
        features: 0,
        client_id: [0; 16],
        queue_depth: depth,
        capsule_bytes: 16 << 10,
        keep_alive_ms: 0,
    };
    stream.write_all(Hello::new(&offer).as_bytes())?;
    stream.write_all(Auth::none(PduType::Auth).as_bytes())?;
    let mut ack = [0; 96 + 24 + 2 + 4 + 16];
    stream.read_exact(&mut ack)?;
    Ok(stream)
}

/// One connection: keeps `depth` commands in flight until told to stop; counts answers.
fn drive(
    address: SocketAddr,
    put: bool,
    value_bytes: usize,
    depth: u16,
    done: &AtomicU64,
    stop: &AtomicBool,
) -> Result<()> {
    let mut stream = connect(address, depth)?;
    let opcode = if put { Opcode::Store } else { Opcode::Retrieve };
    let value = vec![5; value_bytes];
    let in_capsule = if put && value_bytes <= 8 << 10 { &value[..] } else { &[] };
    let commands: Vec<_> =
        (0..depth).map(|cid| command(opcode, cid, value_bytes, in_capsule)).collect();
    stream.write_all(&commands.concat())?;
    let (mut bytes, mut have, mut skip, mut out) = (vec![0; 1 << 20], 0, 0_usize, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        have += stream.read(&mut bytes[have..])?;
        let mut at = skip.min(have);
        skip -= at;
        let mut answers = 0;
        while skip == 0 {
            let Ok(Some((pdu_type, length))) = CommonHeader::peek(&bytes[at..have]) else { break };
            match pdu_type {
                PduType::Response if have - at >= size_of::<Response>() => {
                    let Ok(outcome) = Response::parse(&bytes[at..]) else { break };
                    assert_eq!(outcome.status, Status::Ok);
                    out.extend_from_slice(&commands[usize::from(outcome.cid)]);
                    answers += 1;
                    let here = length.min(have - at);
                    skip = length - here;
                    at += here;
                }
                PduType::ReadyToTransfer if have - at >= length => {
                    let Ok(transfer) = ReadyToTransfer::parse(&bytes[at..at + length]) else {
                        break;
                    };
                    at += length;
                    send(&mut stream, Data::new(transfer).as_bytes(), &value)?;
                }
                PduType::Response | PduType::ReadyToTransfer => break,
                _ => at += length,
            }
        }
        done.fetch_add(answers, Ordering::Relaxed);
        stream.write_all(&out)?;
        out.clear();
        bytes.copy_within(at..have, 0);
        have -= at;
    }
    Ok(())
}

fn send(stream: &mut TcpStream, head: &[u8], value: &[u8]) -> Result<()> {
    let n = stream.write_vectored(&[IoSlice::new(head), IoSlice::new(value)])?;
    assert!(n >= head.len());
    stream.write_all(&value[n - head.len()..])
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let number = |index: usize, default: u64| {
        args.get(index).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let put = args.get(1).is_some_and(|mode| mode == "put");
    let (value_bytes, depth) = (number(2, 4096) as usize, number(3, 32));
    let (connections, seconds) = (number(4, 2), number(5, 3));
    let per_connection = (depth / connections).max(1) as u16;
    let tcp = Tcp::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address = tcp.local_addr()?;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let server = {
        let stop = stop.clone();
        thread::spawn(move || {
            let transport = StreamTransport::new(tcp, StreamConfig::default());
            let config = ServerConfig {
                queue_depth: per_connection,
                capsule_bytes: 16 << 10,
                keep_alive_ms: 10_000,
                timeout_max_us: 30_000_000,
                connections_max: 1024,
                pool: [0; 16],
                incarnation: [0; 16],
                reactor: 0,
                catalog_reactor: 0,
                shard_map: vec![0],
                reactors: 1,
                endpoints: vec![Endpoint::tcp(0, address)],
            };
            serve(Server::new(transport, config), value_bytes, &stop);
        })
    };
    for _ in 0..connections {
        let (stop, done) = (stop.clone(), done.clone());
        thread::spawn(move || {
            if let Err(error) = drive(address, put, value_bytes, per_connection, &done, &stop) {
                eprintln!("client: {error}");
            }
        });
    }
    #[expect(clippy::disallowed_methods, reason = "an example that measures time")]
    let pause = |ms| thread::sleep(std::time::Duration::from_millis(ms));
    pause(500);
    let (start, before, cpu) = (now(), done.load(Ordering::Relaxed), cpu_s());
    pause(seconds * 1000);
    let count = (done.load(Ordering::Relaxed) - before) as f64;
    let rate = count / start.elapsed().as_secs_f64();
    println!(
        "{} {value_bytes} B, depth {depth}, {connections} connections: {rate:.0}/s, {:.2} GB/s, {:.2} µs of processor time each (both sides)",
        if put { "put" } else { "get" },
        rate * value_bytes as f64 / 1e9,
        (cpu_s() - cpu) * 1e6 / count,
    );
    stop.store(true, Ordering::Relaxed);
    server.join().map_err(|_| std::io::Error::other("the server panicked"))
}

//! Clients that mean harm, or just speak something else.

use crate::daemon::{Place, namespace, value};
use forebay_fabric::pdu::{Auth, Command, Hello, Offer, Opcode, PduType};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use zerocopy::IntoBytes;

/// A connection that has shaken hands.
fn shake_hands(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(Hello::new(&offer()).as_bytes()).unwrap();
    read_pdu(&mut stream).unwrap();
    stream.write_all(Auth::none(PduType::Auth).as_bytes()).unwrap();
    read_pdu(&mut stream).unwrap();
    stream
}

fn offer() -> Offer {
    Offer {
        versions: 1..=1,
        features: u64::MAX,
        client_id: [7; 16],
        queue_depth: 64,
        capsule_bytes: 16 << 10,
        keep_alive_ms: 10_000,
    }
}

fn read_pdu(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut pdu = vec![0; 8];
    stream.read_exact(&mut pdu)?;
    let length = u32::from_le_bytes([pdu[4], pdu[5], pdu[6], pdu[7]]) as usize;
    pdu.resize(length, 0);
    stream.read_exact(&mut pdu[8..])?;
    Ok(pdu)
}

fn retrieve(cid: u16, namespace: u32, key: &[u8]) -> Vec<u8> {
    let mut command = Command::new(Opcode::Retrieve, cid);
    command.namespace = namespace.into();
    command.data_length = (4 << 20).into();
    command.seal(&[], key, &[]);
    [command.as_bytes(), key].concat()
}

/// Asks `times` times for the value of `key` and reads nothing.
pub(crate) fn greedy(address: SocketAddr, namespace: u32, key: &[u8], times: u16) -> TcpStream {
    let mut stream = shake_hands(address);
    for cid in 0..times {
        stream.write_all(&retrieve(cid, namespace, key)).unwrap();
    }
    stream
}

/// One way to be a nuisance; the connection is left open where that hurts more.
fn attack(
    address: SocketAddr,
    namespace: u32,
    rng: &mut fastrand::Rng,
) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    let mut noise = vec![0; rng.usize(1..9000)];
    rng.fill(&mut noise);
    match rng.u32(..10) {
        0 => stream.write_all(&noise)?,
        1 => stream.write_all(b"GET / HTTP/1.1\r\nHost: forebay\r\n\r\n")?,
        2 => stream.write_all(&Hello::new(&offer()).as_bytes()[..rng.usize(1..64)])?,
        3 => {
            let mut hello = Hello::new(&offer());
            hello.as_mut_bytes()[rng.usize(..64)] ^= 1 << rng.u8(..8);
            stream.write_all(hello.as_bytes())?;
        }
        4 => {
            // A length that is not there.
            let header = [PduType::Command as u8, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
            stream.write_all(&header)?;
        }
        5 => {
            stream = shake_hands(address);
            stream.write_all(&noise)?;
        }
        6 => {
            stream = shake_hands(address);
            let mut command = retrieve(rng.u16(..64), namespace, b"good 1");
            let at = rng.usize(..command.len());
            command[at] ^= 1 << rng.u8(..8);
            stream.write_all(&command)?;
        }
        7 => {
            // The same command again and again, under one identifier.
            stream = shake_hands(address);
            let command = retrieve(3, namespace, b"good 1");
            (0..20).try_for_each(|_| stream.write_all(&command))?;
        }
        8 => {
            // A store whose data never comes.
            stream = shake_hands(address);
            let mut command = Command::new(Opcode::Store, 1);
            command.namespace = namespace.into();
            command.data_length = (1 << 20).into();
            command.seal(&[], b"never", &[]);
            stream.write_all(&[command.as_bytes(), b"never"].concat())?;
        }
        _ => return Ok(greedy(address, namespace, b"good large", 8)),
    }
    Ok(stream)
}

#[test]
fn five_hundred_hostile_connections_harm_nobody() {
    let place = Place::new(2);
    let daemon = place.start();
    let mut client = daemon.client();
    let namespace = namespace(&mut client);
    client.store(namespace, b"good large", value(1, 200_000)).unwrap();
    let mut rng = fastrand::Rng::with_seed(5);
    let mut open = Vec::new();
    for n in 0..500u64 {
        // A reset in the middle of an attack is the right answer to it.
        open.extend(attack(daemon.address, namespace.0, &mut rng));
        let key = format!("good {}", n % 50);
        client.store(namespace, key.as_bytes(), value(n, 3000)).unwrap();
        let got = client.retrieve(namespace, key.as_bytes()).unwrap();
        assert!(got == Some(value(n, 3000)), "{key} after {n} attacks");
    }
    assert_eq!(client.retrieve(namespace, b"never").unwrap(), None);
    assert_eq!(
        client.pipeline().counters().connection_errors,
        0,
        "the good client was never cut off"
    );
    drop(open);
    let status = place.admin("\"status\"");
    let errors: u64 = status["reactors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reactor| reactor["listeners"][0]["protocol_errors"].as_u64().unwrap())
        .sum();
    assert!(errors > 100, "{errors} protocol errors were counted");
}

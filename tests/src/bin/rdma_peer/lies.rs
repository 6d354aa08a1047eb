//! Commands that name memory which is not there, or not the client's.

use crate::line::{Heard, Lines, PATIENCE, Peer, lines, outcome};
use anyhow::{Context as _, bail, ensure};
use clap::Args;
use forebay_fabric::Status;
use forebay_fabric::client::{Lent, Memory as _};
use forebay_fabric::pdu::{Opcode, crc32c};
use serde_json::json;
use std::net::SocketAddr;

/// Bytes of the memory that a lie is about: registered to the last byte.
const BYTES: u32 = 64 << 10;
/// Bytes of the value that is asked for.
const VALUE: u32 = 60_000;

#[derive(Args, Debug)]
pub(crate) struct Lie {
    /// Where the server is: IP:PORT
    address: SocketAddr,
}

/// What a command says of the memory that it has.
type Tell = fn(Lent) -> Lent;

const LIES: [(&str, Tell); 9] = [
    ("a key that is nobody's", |lent| Lent { key: lent.key ^ 0x55, ..lent }),
    ("a key of another memory", |lent| Lent { key: lent.key.wrapping_add(0x100), ..lent }),
    ("an address before it", |lent| Lent { address: lent.address - 1, ..lent }),
    ("an odd address, and a byte behind its end", |lent| Lent {
        address: lent.address + u64::from(BYTES - VALUE) + 1,
        ..lent
    }),
    ("an address at its end", |lent| Lent { address: lent.address + u64::from(BYTES), ..lent }),
    ("an address far away", |lent| Lent { address: lent.address ^ (1 << 40), ..lent }),
    ("address 0", |lent| Lent { address: 0, ..lent }),
    ("the last address there is", |lent| Lent { address: u64::MAX - 7, ..lent }),
    ("more than there is", |lent| Lent { address: lent.address + 8192, ..lent }),
];

impl Lie {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let lines = lines(8)?;
        self.honest(&lines, 0)?;
        for (said, lie) in LIES {
            for opcode in [Opcode::Store, Opcode::Retrieve] {
                let died = self.tell(&lines, opcode, lie);
                let died = died.with_context(|| format!("{opcode:?}: {said}"))?;
                println!(
                    "{}",
                    json!({ "is": "lie", "said": said, "op": format!("{opcode:?}"), "died": died })
                );
            }
        }
        // Odd addresses are as good as others, as long as they are the client's.
        for shift in [1, 3, 4095] {
            self.honest(&lines, shift)?;
        }
        println!("{}", json!({ "is": "ended", "lies": 2 * LIES.len() }));
        Ok(())
    }

    fn ready(&self, lines: &Lines) -> anyhow::Result<(Peer, Lent)> {
        let mut peer = Peer::connect(lines, self.address)?;
        peer.shake_hands()?;
        let lent = peer.line.lend(BYTES as usize).context("memory to register")?;
        Ok((peer, lent))
    }

    /// `true`: the queue pair died of it, and no answer came.
    fn tell(&self, lines: &Lines, opcode: Opcode, lie: Tell) -> anyhow::Result<bool> {
        let (mut peer, lent) = self.ready(lines)?;
        let before = vec![7; BYTES as usize];
        peer.line.put(lent, 0, &before);
        // A store names as much as it would be right to; a retrieve has the server write the value.
        peer.command(opcode, key(opcode), lie(Lent { bytes: VALUE, ..lent }), 0)?;
        let heard = peer.hear(PATIENCE)?;
        let mut after = vec![0; BYTES as usize];
        peer.line.get(lent, 0, &mut after);
        if let Heard::Pdu(pdu) = &heard {
            bail!("the server answers: {:?}", outcome(pdu));
        }
        // A write is refused as a whole, or the packets before the bad one have landed: in memory that the
        // command has named. In front of it nothing has changed.
        ensure!(after[..4096] == before[..4096], "memory was written that no command named");
        Ok(matches!(heard, Heard::Closed))
    }

    /// Stores a value and gets it back, both at `shift` bytes in its memory.
    fn honest(&self, lines: &Lines, shift: u32) -> anyhow::Result<()> {
        let (mut peer, lent) = self.ready(lines)?;
        let value: Vec<u8> = (0..VALUE).map(|at| (at * 31 + shift) as u8).collect();
        peer.line.put(lent, shift as usize, &value);
        let named = Lent { address: lent.address + u64::from(shift), bytes: VALUE, ..lent };
        for (opcode, crc) in [(Opcode::Store, crc32c(&value)), (Opcode::Retrieve, 0)] {
            peer.command(opcode, b"honest", named, crc)?;
            let Heard::Pdu(pdu) = peer.hear(PATIENCE)? else { bail!("no answer to {opcode:?}") };
            let outcome = outcome(&pdu).context("a response")?;
            ensure!(outcome.status == Status::Ok, "{opcode:?} ends with {}", outcome.status);
            if opcode == Opcode::Store {
                peer.line.put(lent, 0, &vec![0; BYTES as usize]);
            }
        }
        let mut got = vec![0; VALUE as usize];
        peer.line.get(lent, shift as usize, &mut got);
        ensure!(got == value, "the value that came back is another one");
        Ok(())
    }
}

fn key(opcode: Opcode) -> &'static [u8] {
    if opcode == Opcode::Store { b"never stored" } else { b"honest" }
}

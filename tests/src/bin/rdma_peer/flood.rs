//! A client that has as much in flight as it may, always.

use clap::Args;
use forebay_fabric::client::{Address, ClientConfig, NamespaceId, Pipeline, Request};
use serde_json::json;

/// Operations in flight.
pub(crate) const DEPTH: usize = 64;
/// Values that it stores and retrieves.
const KEYS: u64 = 16;
/// Bytes of each: large, so that the server READs and WRITEs when it is killed.
const LENGTH: usize = 64 << 10;

#[derive(Args, Debug)]
pub(crate) struct Flood {
    /// Where the server is
    address: Address,
}

impl Flood {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let config = ClientConfig {
            queue_depth: DEPTH as u16,
            connect_timeout_ms: 60_000,
            ..ClientConfig::new(vec![self.address])
        };
        let mut client = Pipeline::connect(config)?;
        let (mut next, mut told, mut done) = (0_u64, false, Vec::new());
        loop {
            while client.in_flight() < DEPTH {
                let name = format!("flood/{}", next % KEYS);
                // What was stored first is retrieved then, with stores in between.
                let request = match next >= KEYS && next % 3 > 0 {
                    true => Request::retrieve(NAMESPACE, name.as_bytes(), 0, u32::MAX),
                    false => Request::store(NAMESPACE, name.as_bytes(), vec![1; LENGTH].into()),
                };
                if client.submit(request).is_err() {
                    break;
                }
                next += 1;
            }
            client.poll(&mut done, 1000)?;
            done.drain(..).for_each(|one| client.recycle(one));
            // Ends that came together are replaced in the next round.
            if !told && next >= DEPTH as u64 && client.in_flight() + 8 >= DEPTH {
                told = true;
                println!("{}", json!({ "is": "flooding", "in_flight": client.in_flight() }));
            }
        }
    }
}

/// The first namespace of a configuration.
const NAMESPACE: NamespaceId = NamespaceId(16);

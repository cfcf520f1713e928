//! Free ports that stay free until they are used.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

use anyhow::bail;

/// Below 32768, where Linux by default begins to take ports for outgoing connections
/// (`net.ipv4.ip_local_port_range`): a load of thousands of connections must not take the port of a replica that is
/// still to come.
const FIRST: u16 = 10_000;
/// How many ports from [`FIRST`] on may be given.
const COUNT: u16 = 20_000;

static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A TCP port of 127.0.0.1 on which nothing listens, never the same twice in one process.
///
/// # Errors
/// If none is left.
pub fn free_port() -> anyhow::Result<u16> {
    // Test binaries run side by side: each begins its search somewhere else.
    let start = RandomState::new().hash_one(()) % u64::from(COUNT);
    let mut given = GIVEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for port in
        (FIRST..FIRST + COUNT).cycle().skip(usize::try_from(start)?).take(usize::from(COUNT))
    {
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    bail!("no free port from {FIRST} to {}", FIRST + COUNT - 1)
}

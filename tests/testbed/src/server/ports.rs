//! Free ports that stay free until they are used.

use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, PoisonError};

use anyhow::bail;

/// Below 32768, where Linux by default begins to take ports for outgoing connections
/// (`net.ipv4.ip_local_port_range`): a load of thousands of connections must not take the port of a replica that is
/// still to come.
const FIRST: u16 = 10_000;
/// Ports are given to processes in blocks of so many.
const BLOCK: u16 = 50;
/// So many blocks from [`FIRST`] on.
const BLOCKS: u16 = 400;

static GIVEN: Mutex<Given> = Mutex::new(Given { left: Vec::new(), claims: Vec::new() });

/// What this process has been given.
struct Given {
    /// Of the latest block.
    left: Vec<u16>,
    /// A name for each block in the namespace that its ports are in too; other test binaries that run side by side see them, and
    /// they end with this process.
    claims: Vec<UnixDatagram>,
}

/// A TCP port of 127.0.0.1 on which nothing listens, never the same twice in one process, nor in two that run at a time.
///
/// # Errors
/// If none is left.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(free_listener()?.local_addr()?.port())
}

/// Listens on such a port. Whoever gave it up and took it again would at times find it taken: a process that another thread
/// has just forked holds every socket until it has become its program.
///
/// # Errors
/// If none is left.
pub fn free_listener() -> anyhow::Result<TcpListener> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        while let Some(port) = given.left.pop() {
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                return Ok(listener);
            }
        }
        let start = RandomState::new().hash_one(()) % u64::from(BLOCKS);
        given.take_block(u16::try_from(start)?)?;
    }
}

impl Given {
    /// Takes a block that nobody has. The search begins somewhere else each time: blocks of a process that has ended are free at
    /// once, and what it has left may still be about to listen there.
    fn take_block(&mut self, start: u16) -> anyhow::Result<()> {
        for block in (start..BLOCKS).chain(0..start) {
            let first = FIRST + block * BLOCK;
            let name = SocketAddr::from_abstract_name(format!("testbed-ports-{first}"))?;
            match UnixDatagram::bind_addr(&name) {
                Ok(claim) => {
                    self.claims.push(claim);
                    self.left = (first..first + BLOCK).rev().collect();
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(error.into()),
            }
        }
        bail!(
            "every block of ports from {FIRST} on is taken, {} of them by this process",
            self.claims.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_another_process_has_is_not_given() {
        let mut mine = Given { left: Vec::new(), claims: Vec::new() };
        let mut others = Given { left: Vec::new(), claims: Vec::new() };
        for given in [&mut mine, &mut others] {
            given.take_block(BLOCKS - 1).unwrap();
        }
        assert!(mine.left.iter().all(|port| !others.left.contains(port)), "{:?}", mine.left);
    }
}

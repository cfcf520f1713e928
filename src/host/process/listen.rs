//! The LISTEN sockets on a port.

use std::collections::BTreeSet;
use std::net::IpAddr;

use procfs::net::TcpState;
use rustix::io::Errno;

use super::ProcessError;
use crate::host::sock_diag::{self, States};
use crate::model::ids::{Port, ProcessId};

/// A LISTEN socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listening {
    /// The number that `/proc/PID/fd` names it by.
    pub(super) inode: u64,
    /// User id of its owner.
    pub(super) uid: u32,
    /// Where it is reached; unspecified for every address of a family.
    pub(super) address: IpAddr,
}

/// The LISTEN sockets on a TCP port, IPv4 and IPv6, in no particular order.
pub(super) fn listening(port: Port) -> Result<Vec<Listening>, ProcessError> {
    match asked(port) {
        Ok(found) => Ok(found),
        // A kernel without the module, or a sandbox that knows no netlink.
        Err(_) => read(port),
    }
}

fn asked(port: Port) -> Result<Vec<Listening>, Errno> {
    let sockets = sock_diag::sockets(States::LISTENING)?;
    let on_it = sockets.iter().filter(|socket| socket.local == port);
    let listening = on_it.map(|socket| Listening {
        inode: socket.inode,
        uid: socket.uid,
        address: socket.address,
    });
    Ok(listening.collect())
}

/// The addresses of this machine at which somebody listens on a TCP port; none where that cannot be seen.
pub fn addresses(port: Port) -> BTreeSet<IpAddr> {
    listening(port).unwrap_or_default().into_iter().map(|socket| socket.address).collect()
}

/// Every TCP port of this machine that somebody listens on, as far as the kernel tells.
pub fn ports() -> BTreeSet<Port> {
    let tables = [procfs::net::tcp(), procfs::net::tcp6()];
    let entries = tables.into_iter().flatten().flatten();
    let listening = entries.filter(|entry| entry.state == TcpState::Listen);
    listening.map(|entry| Port(entry.local_address.port())).collect()
}

/// Whether anybody listens on a TCP port in the network of a process: a container's is not this machine's.
pub(in crate::host) fn listens_within(
    process: ProcessId,
    port: Port,
) -> Result<bool, ProcessError> {
    let Ok(process) = procfs::process::Process::new(process.pid) else { return Ok(false) };
    let entries = [process.tcp(), process.tcp6()].into_iter().flatten().flatten();
    let is_wanted = |entry: &procfs::net::TcpNetEntry| {
        entry.state == TcpState::Listen && entry.local_address.port() == port.0
    };
    Ok(entries.into_iter().any(|entry| is_wanted(&entry)))
}

/// The same from the tables of all connections.
fn read(port: Port) -> Result<Vec<Listening>, ProcessError> {
    let mut entries = procfs::net::tcp().map_err(ProcessError::Sockets)?;
    match procfs::net::tcp6() {
        Ok(more) => entries.extend(more),
        // A kernel without IPv6 has no such file.
        Err(procfs::ProcError::NotFound(_)) => {}
        Err(source) => return Err(ProcessError::Sockets(source)),
    }
    entries.retain(|entry| entry.state == TcpState::Listen && entry.local_address.port() == port.0);
    let listening = entries.iter().map(|entry| Listening {
        inode: entry.inode,
        uid: entry.uid,
        address: entry.local_address.ip(),
    });
    Ok(listening.collect())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn both_ways_see_the_same_sockets() {
        let (four, six) = (
            TcpListener::bind("127.0.0.1:0").unwrap(),
            TcpListener::bind("[::1]:0").or_else(|_| TcpListener::bind("127.0.0.1:0")).unwrap(),
        );
        for listener in [four, six] {
            let port = Port(listener.local_addr().unwrap().port());
            let uid = rustix::process::getuid().as_raw();
            let seen = asked(port).unwrap();
            assert!(matches!(seen[..], [Listening { uid: owner, .. }] if owner == uid), "{seen:?}");
            assert_eq!(seen, read(port).unwrap());
            assert_eq!(addresses(port), [listener.local_addr().unwrap().ip()].into());
            drop(listener);
            // A process that another test is just starting has it open until its exec.
            let is_gone = |_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                asked(port).unwrap().is_empty()
            };
            assert!((0..10_000).any(is_gone), "{port} is listened on for ever");
        }
    }

    #[test]
    fn connections_are_no_listeners() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let _client = std::net::TcpStream::connect(to).unwrap();
        let (_server, from) = listener.accept().unwrap();
        assert_eq!(asked(Port(to.port())).unwrap().len(), 1);
        assert_eq!(asked(Port(from.port())).unwrap(), []);
    }
}

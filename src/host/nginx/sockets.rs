//! Which processes talk to which port, as the kernel's table of connections and `/proc/PID/fd` show it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::host::sock_diag::{self, States, TcpSocket};
use crate::model::ids::{Port, ProcessId};

/// Pause between two looks; a connection without keepalive may live for less than a millisecond.
const LOOK_PAUSE: Duration = Duration::from_micros(200);

/// TCP state LISTEN (`include/net/tcp_states.h`).
const LISTEN: u8 = 0x0A;

/// States of a connection that the other end has not accepted: SYN_SENT, SYN_RECV, CLOSE, NEW_SYN_RECV.
const UNACCEPTED: [u8; 4] = [0x02, 0x03, 0x07, 0x0C];

/// TCP connections from a set of processes to two ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// To the first port, accepted there: a firewall that drops them leaves others, which prove nothing.
    pub(super) wanted: usize,
    /// To the second port, accepted or not: requests are on their way there.
    pub(super) unwanted: usize,
}

/// A connection, by what is at its other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Connection {
    port: Port,
    is_accepted: bool,
}

/// Counts the connections that one process holds to a port; none if it has ended.
///
/// # Errors
/// If its descriptors may not be looked at.
pub(super) fn connections(process: ProcessId, port: Port) -> io::Result<usize> {
    let inodes = socket_inodes(process)?;
    // Without descriptors it has ended, and its table is gone with it.
    let remote = if inodes.is_empty() { HashMap::new() } else { remotes(process, &[port])? };
    Ok(remote.keys().filter(|inode| inodes.contains(inode)).count())
}

/// Counts the connections to two ports that these processes hold while the table of connections is read once.
///
/// Reading a table of thousands of connections takes longer than a short request lives. So the processes' descriptors
/// are read again and again beside it; a socket's inode that was seen in both, at whatever time, is a connection.
/// All processes must share one network namespace, as the workers of one nginx do.
pub(super) fn held(processes: &[ProcessId], wanted: Port, unwanted: Port) -> Held {
    let over = AtomicBool::new(false);
    let (inodes, remote) = thread::scope(|scope| {
        let inodes = scope.spawn(|| {
            let mut seen = HashSet::new();
            loop {
                let last = over.load(Ordering::Relaxed);
                seen.extend(
                    processes.iter().filter_map(|process| socket_inodes(*process).ok()).flatten(),
                );
                if last {
                    return seen;
                }
                thread::sleep(LOOK_PAUSE);
            }
        });
        // Any of them may just have ended.
        let table =
            processes.iter().find_map(|process| remotes(*process, &[wanted, unwanted]).ok());
        over.store(true, Ordering::Relaxed);
        (inodes.join().unwrap_or_default(), table.unwrap_or_default())
    });
    let held: Vec<_> = remote.iter().filter(|(inode, _)| inodes.contains(inode)).collect();
    let to = |port: Port| held.iter().filter(move |(_, remote)| remote.port == port);
    Held {
        wanted: to(wanted).filter(|(_, remote)| remote.is_accepted).count(),
        unwanted: to(unwanted).count(),
    }
}

/// The connections to some ports in the network namespace of a process, by socket inode.
fn remotes(process: ProcessId, ports: &[Port]) -> io::Result<HashMap<u64, Connection>> {
    let mut found = match is_in_our_network(process).then(|| sock_diag::sockets(States::CONNECTED))
    {
        Some(Ok(sockets)) => sockets.iter().filter_map(connection).collect(),
        _ => read(process)?,
    };
    found.retain(|_, remote| ports.contains(&remote.port));
    Ok(found)
}

/// Whether the kernel tells us of a process's connections when we ask for our own: one in a container may have others.
fn is_in_our_network(process: ProcessId) -> bool {
    let network = |whose: &str| std::fs::read_link(format!("/proc/{whose}/ns/net"));
    let ours = network("self");
    ours.is_ok_and(|ours| network(&process.pid.to_string()).is_ok_and(|theirs| ours == theirs))
}

fn connection(socket: &TcpSocket) -> Option<(u64, Connection)> {
    let is_accepted = !UNACCEPTED.contains(&socket.state);
    let remote = Connection { port: socket.remote, is_accepted };
    (socket.inode != 0).then_some((socket.inode, remote))
}

/// All of them, from the tables of the process's network.
fn read(process: ProcessId) -> io::Result<HashMap<u64, Connection>> {
    let table = |name: &str| std::fs::read_to_string(format!("/proc/{}/net/{name}", process.pid));
    // A machine without IPv6 has no tcp6.
    let (tcp, tcp6) = (table("tcp")?, table("tcp6").unwrap_or_default());
    let lines = tcp.lines().skip(1).chain(tcp6.lines().skip(1));
    Ok(lines.filter_map(parse_line).collect())
}

/// Inode and other end of a line of `/proc/net/tcp` (proc(5)); a socket that waits for its end belongs to nobody.
fn parse_line(line: &str) -> Option<(u64, Connection)> {
    let mut fields = line.split_ascii_whitespace().skip(2);
    let port = u16::from_str_radix(fields.next()?.rsplit(':').next()?, 16).ok()?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    let remote = Connection { port: Port(port), is_accepted: !UNACCEPTED.contains(&state) };
    (state != LISTEN && inode != 0).then_some((inode, remote))
}

fn socket_inodes(process: ProcessId) -> io::Result<HashSet<u64>> {
    let descriptors = match std::fs::read_dir(format!("/proc/{}/fd", process.pid)) {
        Ok(descriptors) => descriptors,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashSet::new()),
        Err(error) => return Err(error),
    };
    let inode = |descriptor: std::fs::DirEntry| {
        let target = std::fs::read_link(descriptor.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    Ok(descriptors.flatten().filter_map(inode).collect())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn me() -> ProcessId {
        ProcessId { pid: i32::try_from(std::process::id()).unwrap(), start: 0 }
    }

    fn port(listener: &TcpListener) -> Port {
        Port(listener.local_addr().unwrap().port())
    }

    #[test]
    fn own_connections_are_counted_by_port() {
        let (a, b) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let now = || held(&[me()], port(&a), port(&b));
        assert_eq!(now(), Held { wanted: 0, unwanted: 0 }, "a listening socket is no connection");
        let one = TcpStream::connect(a.local_addr().unwrap()).unwrap();
        let _two = [0, 1].map(|_| TcpStream::connect(b.local_addr().unwrap()).unwrap());
        assert_eq!(now(), Held { wanted: 1, unwanted: 2 });
        assert_eq!(connections(me(), port(&b)).unwrap(), 2);
        drop(one);
        assert_eq!(now(), Held { wanted: 0, unwanted: 2 });
    }

    #[test]
    fn connections_over_ipv6_count_as_well() {
        let Ok(listener) = TcpListener::bind("[::1]:0") else { return };
        let _one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(connections(me(), port(&listener)).unwrap(), 1);
    }

    #[test]
    fn a_process_that_has_ended_holds_nothing() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let ended = ProcessId { pid: i32::try_from(child.id()).unwrap(), start: 0 };
        assert_eq!(connections(ended, Port(1)).unwrap(), 0);
    }

    #[test]
    fn both_tables_tell_the_same_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (wanted, to) = (port(&listener), listener.local_addr().unwrap());
        let _connections = [0, 1].map(|_| TcpStream::connect(to).unwrap());
        assert!(is_in_our_network(me()));
        let mut told = read(me()).unwrap();
        told.retain(|_, remote| remote.port == wanted);
        assert_eq!(told.len(), 2);
        assert_eq!(remotes(me(), &[wanted]).unwrap(), told);
    }

    #[test]
    fn a_line_is_read_by_its_fields() {
        let line = "   1: 0100007F:A2C4 0100007F:1F41 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 x 20 4 30 10 -1";
        let seen = |is_accepted| Some((4711, Connection { port: Port(8001), is_accepted }));
        assert_eq!(parse_line(line), seen(true));
        // FIN_WAIT2, and SYN_SENT.
        assert_eq!(parse_line(&line.replace(" 01 ", " 05 ")), seen(true));
        assert_eq!(parse_line(&line.replace(" 01 ", " 02 ")), seen(false));
        assert_eq!(parse_line(&line.replace(" 01 ", " 0A ")), None);
        assert_eq!(parse_line(&line.replace("4711", "0")), None);
        assert_eq!(parse_line("short"), None);
    }
}

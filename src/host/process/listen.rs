//! The LISTEN sockets on a port.
//!
//! The kernel is asked for them alone (`sock_diag(7)`). `/proc/net/tcp` has every connection of the host, and a busy API
//! leaves tens of thousands in TIME_WAIT: reading them all takes a tenth of a second each time.

use std::collections::BTreeSet;
use std::mem::size_of;

use procfs::net::TcpState;
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{recv, sendto, socket_with};

use super::ProcessError;
use crate::model::ids::{Port, ProcessId};

/// A LISTEN socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listening {
    /// The number that `/proc/PID/fd` names it by.
    pub(super) inode: u64,
    /// User id of its owner.
    pub(super) uid: u32,
}

/// The LISTEN sockets on a TCP port, IPv4 and IPv6, in no particular order.
pub(super) fn listening(port: Port) -> Result<Vec<Listening>, ProcessError> {
    match asked(port) {
        Ok(found) => Ok(found),
        // A kernel without the module, or a sandbox that knows no netlink.
        Err(_) => read(port),
    }
}

// Sizes, numbers and offsets: linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x001 | 0x300;
const NLMSG_DONE: u16 = 3;
const IPPROTO_TCP: u8 = 6;
const TCP_LISTEN: u32 = 10;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`, of which all that follows the states may be zero in a dump.
const REQUEST: usize = 56;
/// Offsets in `struct inet_diag_msg`.
const SPORT: usize = 4;
const UID: usize = 64;
const INODE: usize = 68;
/// What the kernel puts into one datagram at most (`NLMSG_GOODSIZE` and more in a dump; netlink(7) advises 8 KiB).
const BUFFER: usize = 32 * 1024;

fn asked(port: Port) -> Result<Vec<Listening>, Errno> {
    let (kind, flags) = (SocketType::DGRAM, SocketFlags::CLOEXEC);
    let socket = socket_with(AddressFamily::NETLINK, kind, flags, Some(netlink::SOCK_DIAG))?;
    let mut found = Vec::new();
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        sendto(&socket, &request(family), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let (length, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
            let answer = buffer.get(..length).unwrap_or_default();
            if take(answer, port, &mut found).ok_or(Errno::BADMSG)? == Dump::Done {
                break;
            }
        }
    }
    Ok(found)
}

fn request(family: AddressFamily) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    // Sequence and port are ours to choose: the socket serves this one question.
    bytes.extend([0; 8]);
    bytes.extend([family.as_raw() as u8, IPPROTO_TCP, 0, 0]);
    bytes.extend((1_u32 << TCP_LISTEN).to_ne_bytes());
    bytes.resize(HEADER + REQUEST, 0);
    bytes
}

#[derive(PartialEq, Eq)]
enum Dump {
    Done,
    More,
}

/// Takes the sockets on a port out of one datagram; `None` for an error, or for what is no answer.
fn take(mut answer: &[u8], port: Port, found: &mut Vec<Listening>) -> Option<Dump> {
    while !answer.is_empty() {
        let length = usize::try_from(number(answer, 0)?).ok()?;
        let kind = u16::from_ne_bytes(bytes(answer, size_of::<u32>())?);
        match kind {
            NLMSG_DONE => return Some(Dump::Done),
            SOCK_DIAG_BY_FAMILY => {
                let socket = answer.get(HEADER..length)?;
                if u16::from_be_bytes(bytes(socket, SPORT)?) == port.0 {
                    let (uid, inode) = (number(socket, UID)?, number(socket, INODE)?);
                    found.push(Listening { inode: inode.into(), uid });
                }
            }
            _ => return None,
        }
        // Each message begins at a multiple of four bytes (`NLMSG_ALIGN`).
        answer = answer.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Dump::More)
}

fn number(from: &[u8], at: usize) -> Option<u32> {
    bytes(from, at).map(u32::from_ne_bytes)
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at + N)?.try_into().ok()
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
    Ok(entries.iter().map(|entry| Listening { inode: entry.inode, uid: entry.uid }).collect())
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

    #[test]
    fn an_error_or_a_torn_answer_is_none() {
        let error: Vec<u8> =
            [36_u32.to_ne_bytes().as_slice(), &2_u16.to_ne_bytes(), &[0; 30]].concat();
        assert!(take(&error, Port(1), &mut Vec::new()).is_none());
        assert!(take(&request(AddressFamily::INET)[..40], Port(1), &mut Vec::new()).is_none());
    }
}

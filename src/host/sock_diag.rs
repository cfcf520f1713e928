//! The TCP sockets of this machine, as the kernel itself tells them (`sock_diag(7)`).
//!
//! `/proc/net/tcp` has every connection as a line of text, and a busy API leaves tens of thousands in TIME_WAIT: reading them
//! all takes a tenth of a second each time. Here the kernel is asked for the states that matter, and tells them as numbers.

use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{recv, sendto, socket_with};

use crate::model::ids::Port;

/// A TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TcpSocket {
    /// A number of `include/net/tcp_states.h`.
    pub(super) state: u8,
    /// Its address here.
    pub(super) address: IpAddr,
    /// Its port here.
    pub(super) local: Port,
    /// The port at its other end; 0 where it has none.
    pub(super) remote: Port,
    /// The number that `/proc/PID/fd` names it by; 0 where no process has it.
    pub(super) inode: u64,
    /// User id of its owner.
    pub(super) uid: u32,
}

/// States of TCP sockets: bits by the numbers of `include/net/tcp_states.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct States(u32);

const TCP_TIME_WAIT: u8 = 6;
const TCP_LISTEN: u8 = 10;
const TCP_NEW_SYN_RECV: u8 = 12;

impl States {
    /// LISTEN alone.
    pub(super) const LISTENING: Self = Self(1 << TCP_LISTEN);
    /// Of connections that a process may have: TIME_WAIT and NEW_SYN_RECV are nobody's.
    pub(super) const CONNECTED: Self =
        Self(((1 << TCP_NEW_SYN_RECV) - 2) & !(1 << TCP_LISTEN) & !(1 << TCP_TIME_WAIT));
}

// Sizes, numbers and offsets: linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x001 | 0x300;
const NLMSG_DONE: u16 = 3;
const IPPROTO_TCP: u8 = 6;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`, of which all that follows the states may be zero in a dump.
const REQUEST: usize = 56;
/// Offsets in `struct inet_diag_msg`.
const FAMILY: usize = 0;
const STATE: usize = 1;
const SPORT: usize = 4;
const DPORT: usize = 6;
const SOURCE: usize = 8;
const UID: usize = 64;
const INODE: usize = 68;
/// What the kernel puts into one datagram at most (`NLMSG_GOODSIZE` and more in a dump; netlink(7) advises 8 KiB).
const BUFFER: usize = 32 * 1024;

/// The sockets in this process's network that are in one of some states, IPv4 and IPv6, in no particular order.
///
/// # Errors
/// On a kernel without the module, and in a sandbox that knows no netlink: `/proc/net/tcp` tells then.
pub(super) fn sockets(states: States) -> Result<Vec<TcpSocket>, Errno> {
    let (kind, flags) = (SocketType::DGRAM, SocketFlags::CLOEXEC);
    let socket = socket_with(AddressFamily::NETLINK, kind, flags, Some(netlink::SOCK_DIAG))?;
    let mut found = Vec::new();
    let mut buffer = vec![0; BUFFER];
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        let request = request(family, states);
        sendto(&socket, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        loop {
            let (length, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
            let answer = buffer.get(..length).unwrap_or_default();
            if take(answer, &mut found).ok_or(Errno::BADMSG)? == Dump::Done {
                break;
            }
        }
    }
    Ok(found)
}

fn request(family: AddressFamily, states: States) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    // Sequence and port are ours to choose: the socket serves these questions alone.
    bytes.extend([0; 8]);
    bytes.extend([family.as_raw() as u8, IPPROTO_TCP, 0, 0]);
    bytes.extend(states.0.to_ne_bytes());
    bytes.resize(HEADER + REQUEST, 0);
    bytes
}

#[derive(PartialEq, Eq)]
enum Dump {
    Done,
    More,
}

/// Takes the sockets out of one datagram; `None` for an error, or for what is no answer.
fn take(mut answer: &[u8], found: &mut Vec<TcpSocket>) -> Option<Dump> {
    while !answer.is_empty() {
        let length = usize::try_from(number(answer, 0)?).ok()?;
        let kind = u16::from_ne_bytes(bytes(answer, size_of::<u32>())?);
        match kind {
            // A dump that the kernel refuses, for want of `tcp_diag` say, ends with a negative errno in place of an error message.
            NLMSG_DONE => {
                return (bytes(answer, HEADER).map_or(0, i32::from_ne_bytes) >= 0)
                    .then_some(Dump::Done);
            }
            SOCK_DIAG_BY_FAMILY => found.push(parse(answer.get(HEADER..length)?)?),
            _ => return None,
        }
        // Each message begins at a multiple of four bytes (`NLMSG_ALIGN`).
        answer = answer.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Dump::More)
}

fn parse(message: &[u8]) -> Option<TcpSocket> {
    let port = |at| Some(Port(u16::from_be_bytes(bytes(message, at)?)));
    let is_four = u16::from(*message.get(FAMILY)?) == AddressFamily::INET.as_raw();
    let address = match is_four {
        true => Ipv4Addr::from(bytes::<4>(message, SOURCE)?).into(),
        false => Ipv6Addr::from(bytes::<16>(message, SOURCE)?).into(),
    };
    Some(TcpSocket {
        state: *message.get(STATE)?,
        address,
        local: port(SPORT)?,
        remote: port(DPORT)?,
        inode: number(message, INODE)?.into(),
        uid: number(message, UID)?,
    })
}

fn number(from: &[u8], at: usize) -> Option<u32> {
    bytes(from, at).map(u32::from_ne_bytes)
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_is_told_with_both_its_ends_and_a_listener_is_none() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = Port(listener.local_addr().unwrap().port());
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let from = Port(client.local_addr().unwrap().port());
        let connected = sockets(States::CONNECTED).unwrap();
        let found: Vec<_> = connected.iter().filter(|socket| socket.remote == to).collect();
        let uid = rustix::process::getuid().as_raw();
        assert!(
            matches!(found[..], [TcpSocket { state: 1, local, uid: owner, inode: 1.., .. }] if *local == from && *owner == uid),
            "{found:?}"
        );
        assert!(connected.iter().all(|socket| socket.state != TCP_LISTEN));
        let listening = sockets(States::LISTENING).unwrap();
        assert!(listening.iter().any(|socket| socket.local == to));
        assert!(listening.iter().all(|socket| socket.state == TCP_LISTEN && socket.remote.0 == 0));
    }

    #[test]
    fn an_error_or_a_torn_answer_is_none() {
        let error: Vec<u8> =
            [36_u32.to_ne_bytes().as_slice(), &2_u16.to_ne_bytes(), &[0; 30]].concat();
        assert!(take(&error, &mut Vec::new()).is_none());
        let ends = |with: i32| -> Vec<u8> {
            [20_u32.to_ne_bytes().as_slice(), &3_u16.to_ne_bytes(), &[0; 10], &with.to_ne_bytes()]
                .concat()
        };
        assert!(take(&ends(0), &mut Vec::new()) == Some(Dump::Done));
        assert!(take(&ends(-Errno::NOENT.raw_os_error()), &mut Vec::new()).is_none());
        let torn = &request(AddressFamily::INET, States::LISTENING)[..40];
        assert!(take(torn, &mut Vec::new()).is_none());
    }
}

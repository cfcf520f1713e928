//! The way from nginx to what its `server` line names: a replica that answers here need not answer there, as where nginx is
//! in a container, or a firewall lets pass the one port and not the other.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use super::error::NginxError;
use super::process::Master;
use crate::model::ids::ProcessId;
use crate::swap::nginx_conf::{host_of, port_of};

/// Bound on the lookup of a name: nginx looked it up for its own last test.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// Where names are looked up first (hosts(5)).
const HOSTS: &str = "/etc/hosts";

/// Where a new model listens at least, and where it is asked from here.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The way to what a `server` line names.
#[derive(Debug)]
pub struct Way {
    /// Every address of it, as nginx finds them.
    pub addresses: Vec<SocketAddr>,
    /// nginx's network, where that is not this process's.
    network: Option<File>,
}

impl Way {
    /// The way of a running nginx. `None` if it is the one that replicas are asked by anyway, or if nobody can tell from here:
    /// what a container asks for names only it knows.
    ///
    /// # Errors
    /// If the line names nothing that has a port, or the master is gone.
    pub async fn of(master: ProcessId, server: &str) -> Result<Option<Self>, NginxError> {
        let found = Master::of_pid(master.pid)?.filter(|found| found.process == master);
        let found = found.ok_or(NginxError::MasterGone { master: master.pid })?;
        let (host, port) = (host_of(server)?, port_of(server)?.0);
        let Ok(network) = network_of(master) else { return Ok(None) };
        let mut hosts = known_addresses(&found, &host);
        if hosts.is_empty() && !found.is_contained() {
            let lookup = tokio::net::lookup_host((host.as_str(), port));
            let found = tokio::time::timeout(LOOKUP_LIMIT, lookup).await;
            hosts.extend(found.into_iter().flatten().flatten().map(|address| address.ip()));
        }
        if hosts.is_empty() || (network.is_none() && hosts.contains(&LOOPBACK)) {
            return Ok(None);
        }
        let addresses = hosts.into_iter().map(|host| SocketAddr::new(host, port)).collect();
        Ok(Some(Self { addresses, network }))
    }

    /// Asks there, in nginx's network. `None` if this process may not enter that.
    pub async fn ask<T, F>(
        self,
        question: impl FnOnce(Vec<SocketAddr>) -> F + Send + 'static,
    ) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let Some(network) = self.network else { return Some(question(self.addresses).await) };
        let (tell, told) = oneshot::channel();
        // A thread of its own: what enters a network does not come back.
        let inside = move || -> io::Result<T> {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(question(self.addresses)))
        };
        let thread = std::thread::Builder::new().name("nginx's network".to_owned());
        thread.spawn(move || tell.send(inside()).ok()).ok()?;
        told.await.ok()?.ok()
    }
}

/// An address of this machine that a line names beside 127.0.0.1: what listens there alone nginx does not reach. `None` if it
/// names 127.0.0.1 as well, or if nobody can tell.
pub(super) fn beside_loopback(master: &Master, server: &str) -> Option<IpAddr> {
    let addresses = known_addresses(master, &host_of(server).ok()?);
    let is_here = |address: &IpAddr| UdpSocket::bind((*address, 0)).is_ok();
    let all_here = addresses.iter().all(is_here) && !addresses.contains(&LOOPBACK);
    // In a network of its own, `127.0.0.1` and `::1` are nginx's, and who listens there nobody knows.
    let other =
        addresses.into_iter().find(|address| !(address.is_loopback() && master.is_contained()));
    other.filter(|_| all_here)
}

/// The addresses of a host that need no lookup of its name.
fn known_addresses(master: &Master, host: &str) -> Vec<IpAddr> {
    if let Ok(address) = host.parse::<IpAddr>() {
        // What is no address means this machine (ip(7)).
        return vec![if address.is_unspecified() { LOOPBACK } else { address.to_canonical() }];
    }
    let text = std::fs::read_to_string(master.sees(Path::new(HOSTS))).unwrap_or_default();
    addresses_in(&text, host)
}

fn addresses_in(hosts: &str, name: &str) -> Vec<IpAddr> {
    let entry = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    };
    hosts.lines().filter_map(entry).collect()
}

/// The network of a process; `None` if it is this thread's.
fn network_of(process: ProcessId) -> io::Result<Option<File>> {
    let path = format!("/proc/{process}/ns/net");
    let is_own = std::fs::read_link(&path)? == std::fs::read_link("/proc/thread-self/ns/net")?;
    if is_own { Ok(None) } else { File::open(path).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_the_addresses_that_the_file_of_hosts_gives_it() {
        let hosts = "127.0.0.1 localhost\n::1\tlocalhost ip6-localhost # localhost\n172.17.0.1 host.docker.internal\nbroken gpu\n";
        let of = |name| addresses_in(hosts, name).iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(of("localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(of("Host.docker.internal"), ["172.17.0.1"]);
        assert!(of("gpu").is_empty());
    }
}

//! A network of a test's own: the machine's interfaces, addresses and rules are neither used nor changed.
//!
//! The thread of the test moves into it, and so does whatever it starts: a runner, its ssh, a load. A thread that is
//! there is as a machine of its own in the guests' network.

use std::cell::Cell;
use std::fs::File;
use std::marker::PhantomData;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::server::programs;

/// The network of every lab. Two labs never meet.
const NETWORK: [u8; 3] = [10, 83, 0];
/// Host part of the test's own address; guests follow.
const OWN: u8 = 1;

/// A network with this thread in it, until it is dropped.
pub struct Lab {
    own: File,
    origin: File,
    taken: Cell<u8>,
    /// It is about the thread that made it.
    _thread: PhantomData<*const ()>,
}

/// A machine's end of the network, which lasts as long as this value or a process in it.
pub(super) struct Port {
    namespace: File,
    pub(super) address: Ipv4Addr,
}

impl Lab {
    /// Makes a network and moves this thread into it. Only root can.
    ///
    /// # Errors
    /// If a program is missing or the kernel refuses.
    pub fn enter() -> Result<Self> {
        let origin = File::open("/proc/thread-self/ns/net")?;
        let name = fresh_name("lab");
        ip(&["netns", "add", &name])?;
        let own = opened(&name).and_then(|own| {
            let address = format!("{}/24", address(OWN));
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            ip(&["-n", &name, "link", "add", "guests", "type", "bridge"])?;
            ip(&["-n", &name, "address", "add", &address, "dev", "guests"])?;
            ip(&["-n", &name, "link", "set", "guests", "up"])?;
            Ok(own)
        });
        // Without its name it goes when its last user goes, however that ends.
        ip(&["netns", "delete", &name])?;
        let own = own?;
        enter(&own)?;
        Ok(Self { own, origin, taken: Cell::new(OWN), _thread: PhantomData })
    }

    /// The address of this thread in the network.
    pub fn address(&self) -> Ipv4Addr {
        address(OWN)
    }

    /// Adds a machine's end to the network.
    pub(super) fn attach(&self) -> Result<Port> {
        enter(&self.own)?;
        let host = self.taken.get() + 1;
        self.taken.set(host);
        let address = address(host);
        let (name, link) = (fresh_name("guest"), format!("guest{host}"));
        ip(&["netns", "add", &name])?;
        let namespace = opened(&name).and_then(|namespace| {
            let cidr = format!("{address}/24");
            ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
            ip(&["link", "set", &link, "master", "guests", "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            ip(&["-n", &name, "address", "add", &cidr, "dev", "eth0"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
            Ok(namespace)
        });
        ip(&["netns", "delete", &name])?;
        Ok(Port { namespace: namespace?, address })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The thread may run another test; that it cannot go back is that test's to find out.
        let _ = enter(&self.origin);
    }
}

impl Port {
    /// Where other programs of this machine find it, as long as this value lives.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd()).into()
    }
}

fn enter(namespace: &File) -> Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .context("this thread cannot change its network namespace")
}

fn opened(name: &str) -> Result<File> {
    let path = format!("/run/netns/{name}");
    File::open(&path).with_context(|| format!("{path} cannot be opened"))
}

fn address(host: u8) -> Ipv4Addr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, host)
}

/// The names of network namespaces are the machine's.
fn fresh_name(kind: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("testbed-{kind}-{}-{number}", std::process::id())
}

fn ip(args: &[&str]) -> Result<()> {
    programs::run(&programs::find("ip")?, args).map(drop)
}

//! A second service behind the same nginx: its upstream stands in the same file, and its slots are its own.

use anyhow::Result;

use crate::server::{Ports, default_upstream_file, free_port};
use crate::service::NAME;

/// Where a second service is. Nothing listens behind its upstream before a test starts something there.
#[derive(Debug, Clone, Copy)]
pub struct Second {
    /// The port on which nginx listens for it.
    pub nginx: u16,
    /// The port of its slot a.
    pub a: u16,
    /// The port of its slot b.
    pub b: u16,
}

impl Second {
    /// One on ports that nobody has.
    ///
    /// # Errors
    /// If none are left.
    pub fn on_free_ports() -> Result<Self> {
        Ok(Self { nginx: free_port()?, a: free_port()?, b: free_port()? })
    }

    /// The text of nginx's file for both services.
    pub fn upstreams(self) -> impl Fn(Ports) -> String + Send {
        move |ports| {
            let one = default_upstream_file(ports);
            let other = one
                .replace("upstream llm", "upstream code")
                .replace("http://llm", "http://code")
                .replace(&format!("127.0.0.1:{};", ports.a), &format!("127.0.0.1:{};", self.a))
                .replace(
                    &format!("127.0.0.1:{};", ports.nginx),
                    &format!("127.0.0.1:{};", self.nginx),
                );
            one + &other
        }
    }

    /// The configuration of the first service made its own.
    pub fn config(self, first: &str, ports: Ports) -> String {
        let Self { nginx, a, b } = self;
        first
            .replace(&format!("service: {NAME}\n"), "service: code\n")
            .replace("upstream: llm", "upstream: code")
            .replace(&format!("port: {},", ports.a), &format!("port: {a},"))
            .replace(&format!("port: {},", ports.b), &format!("port: {b},"))
            .replace(&format!("127.0.0.1:{}/", ports.nginx), &format!("127.0.0.1:{nginx}/"))
    }
}

//! What nginx does not reach: it is seen before it is told to go there, and never taken for a proof.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};

use super::support::{Backend, Master, Scratch, is_root};
use crate::host::nginx::{Expectation, Identity, NginxError, Way};
use crate::model::ids::Port;

/// Listens, and takes no connection any more: what is sent there gets no answer, as where a firewall drops it.
struct Silent {
    port: Port,
    _queue: Vec<TcpStream>,
    _listener: TcpListener,
}

impl Silent {
    fn start() -> Self {
        let bound = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&bound, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        listen(&bound, 0).unwrap();
        let at = SocketAddr::try_from(getsockname(&bound).unwrap()).unwrap();
        let wait = Duration::from_millis(500);
        let queue = std::iter::from_fn(|| TcpStream::connect_timeout(&at, wait).ok()).collect();
        Self { port: Port(at.port()), _queue: queue, _listener: bound.into() }
    }
}

#[tokio::test]
async fn a_connection_that_nobody_takes_proves_nothing() {
    let (a, b) = (Backend::named("A"), Silent::start());
    let scratch = Scratch::start(a.port);
    let mut nginx = scratch.nginx();
    nginx.proof_limit = Duration::from_secs(3);
    let image = nginx.image(&nginx.view().await.unwrap(), b.port).unwrap();
    let reloaded = nginx.load(&image).await.unwrap();
    for identity in [None, Some(Identity::Root("B".to_owned()))] {
        let expect = Expectation { candidate: b.port, incumbent: a.port, identity };
        let error = nginx.prove(&expect, &reloaded).await.unwrap_err();
        assert!(matches!(error, NginxError::Unproven { .. }), "{error}");
    }
}

/// Whether a connection to what a line names is taken, from where nginx is; `None` if nobody can tell.
async fn is_taken(scratch: &Scratch, server: &str) -> Option<bool> {
    let way = Way::of(scratch.master().unwrap().process, server).await.unwrap()?;
    way.ask(|at| async move { TcpStream::connect(&at[..]).is_ok() }).await
}

#[tokio::test]
async fn the_way_is_that_of_an_nginx_in_a_network_of_its_own() {
    let a = Backend::named("A");
    let scratch = Scratch::start_as(Master::Apart, &Scratch::upstream(a.port));
    // Nobody else may enter it.
    let seen = |taken: bool| is_root().then_some(taken);
    scratch.until("nginx listens", || scratch.master().is_some());
    let own = format!("server 127.0.0.1:{}", scratch.port);
    assert_eq!(is_taken(&scratch, &own).await, seen(true));
    assert_eq!(is_taken(&scratch, &format!("server 127.0.0.1:{}", a.port)).await, seen(false));
    assert!(TcpStream::connect(("127.0.0.1", a.port.0)).is_ok(), "this thread is where it was");
}

#[tokio::test]
async fn the_way_to_another_address_of_this_machine_is_asked_and_named() {
    let a = Backend::named("A");
    let scratch = Scratch::start(a.port);
    let is_taken = async |host| is_taken(&scratch, &format!("server {host}:{}", a.port)).await;
    assert_eq!(is_taken("127.0.0.1").await, None, "it is asked there anyway");
    assert_eq!(is_taken("127.0.0.2").await, Some(false));
    for (host, beside) in [
        ("127.0.0.1", None),
        ("0.0.0.0", None),
        ("localhost", None),
        ("127.0.0.2", Some("127.0.0.2")),
        // TEST-NET-1 (RFC 5737): no machine's own.
        ("192.0.2.1", None),
    ] {
        let server = format!("server {host}:{}", a.port);
        let text = format!("upstream llm {{ {server}; }}\n");
        std::fs::write(scratch.path("conf.d/llm.conf"), text).unwrap();
        let view = scratch.nginx().view().await.unwrap();
        assert_eq!(view.beside_loopback, beside.map(|it| it.parse().unwrap()), "{server}");
    }
}

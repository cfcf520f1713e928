//! The way to what is outside: GitHub, and the service as its customers call it. Where the environment names a proxy it leads
//! through that, as on a self-hosted runner that reaches nothing else.
//!
//! The runner copies its own proxies into the container of an action (actions/runner, `ContainerInfo.UpdateWebProxyEnv`).
//! Names, rules and precedence are curl's.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::TryFutureExt;
use hyper::body::{Body, Incoming};
use hyper::header::PROXY_AUTHORIZATION;
use hyper::http::uri::Scheme;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tower_service::Service;

type BoxError = Box<dyn Error + Send + Sync>;

/// The proxies that an environment names, and who is asked without one.
#[derive(Debug, Clone)]
pub struct Proxies(Arc<Matcher>);

impl Proxies {
    /// By `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, or the same in lower case; an empty one counts as not given.
    pub fn from_env(env: &BTreeMap<String, String>) -> Self {
        let get = |name: &str| {
            let given = |name: &str| env.get(name).filter(|value| !value.is_empty()).cloned();
            given(name).or_else(|| given(&name.to_lowercase())).unwrap_or_default()
        };
        let no = get("NO_PROXY");
        let mut named = Matcher::builder();
        // The matcher takes a star for names alone, and not for addresses.
        if no.trim() != "*" {
            named = named.all(get("ALL_PROXY")).http(get("HTTP_PROXY")).https(get("HTTPS_PROXY"));
        }
        let named = named.no(no);
        Self(Arc::new(named.build()))
    }
}

/// A client for what is outside; knows the machine's authorities (`SSL_CERT_FILE`, else the system's).
#[derive(Clone)]
pub struct Outside<B> {
    client: Client<HttpsConnector<Road>, B>,
    proxies: Proxies,
}

impl<B: Body<Data: Send> + Send> Outside<B> {
    /// A client; asks nobody yet.
    ///
    /// # Errors
    /// If the machine has no CA certificates.
    pub fn new(proxies: &Proxies) -> io::Result<Self> {
        let with_tls = || -> io::Result<_> {
            Ok(HttpsConnectorBuilder::new().with_native_roots()?.https_or_http().enable_http1())
        };
        let mut direct = HttpConnector::new();
        // What is asked without a proxy may be https: the layer above speaks that.
        direct.enforce_http(false);
        let to_proxy = with_tls()?.build();
        let road = Road { direct, to_proxy, proxies: proxies.clone() };
        let client = Client::builder(TokioExecutor::new()).build(with_tls()?.wrap_connector(road));
        Ok(Self { client, proxies: proxies.clone() })
    }
}

impl<B> Service<Request<B>> for Outside<B>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Response = Response<Incoming>;
    type Error = hyper_util::client::legacy::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // In a tunnel the proxy sees no request: it is told with CONNECT who asks.
        if request.uri().scheme() == Some(&Scheme::HTTP)
            && let Some(proxy) = self.proxies.0.intercept(request.uri())
            && let Some(who) = proxy.basic_auth()
        {
            request.headers_mut().insert(PROXY_AUTHORIZATION, who.clone());
        }
        self.client.request(request)
    }
}

/// Connects to a destination, or to the proxy on the way there.
#[derive(Clone)]
struct Road {
    direct: HttpConnector,
    to_proxy: HttpsConnector<HttpConnector>,
    proxies: Proxies,
}

impl Service<Uri> for Road {
    type Response = Link;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Link, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Some(proxy) = self.proxies.0.intercept(&to) else {
            let connecting = self.direct.call(to);
            return Box::pin(async {
                let io = MaybeHttpsStream::Http(connecting.await?);
                Ok(Link { io, is_forwarded: false })
            });
        };
        let at = proxy.uri().clone();
        let is_forwarded = to.scheme() == Some(&Scheme::HTTP);
        let connecting = match is_forwarded {
            true => self.to_proxy.call(at.clone()),
            false => Box::pin(tunnel(&proxy, self.to_proxy.clone()).call(to).err_into()),
        };
        Box::pin(async move {
            let io = connecting.await.map_err(|source| ProxyError { proxy: at, source })?;
            Ok(Link { io, is_forwarded })
        })
    }
}

/// What asks a proxy to connect to a destination, and leaves the connection to the two.
fn tunnel<C>(proxy: &Intercept, to_proxy: C) -> Tunnel<C> {
    let tunnel = Tunnel::new(proxy.uri().clone(), to_proxy);
    match proxy.basic_auth() {
        Some(who) => tunnel.with_auth(who.clone()),
        None => tunnel,
    }
}

/// The proxy cannot be reached, or refuses. Its address is shown without user and password.
#[derive(Debug, thiserror::Error)]
#[error("no way through the proxy {proxy} that the environment names")]
struct ProxyError {
    proxy: Uri,
    source: BoxError,
}

/// A connection that knows whether each request on it names its host, for a proxy that forwards it.
struct Link {
    io: MaybeHttpsStream<TokioIo<TcpStream>>,
    is_forwarded: bool,
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.is_forwarded)
    }
}

impl Read for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl Write for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;

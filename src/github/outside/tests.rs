use http_body_util::{BodyExt, Empty};
use testbed::github::FakeGitHub;
use testbed::proxy::Proxy;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::*;

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The status and the length of the answer, or every reason why there is none.
async fn get(url: &str, pairs: &[(&str, &str)]) -> Result<(u16, usize), String> {
    let mut client = Outside::new(&Proxies::from_env(&env(pairs))).unwrap();
    let request = Request::get(url).body(Empty::<hyper::body::Bytes>::new()).unwrap();
    match client.call(request).await {
        Ok(answer) => {
            let status = answer.status().as_u16();
            Ok((status, answer.into_body().collect().await.unwrap().to_bytes().len()))
        }
        Err(error) => {
            let mut causes = vec![error.to_string()];
            let mut cause = error.source();
            while let Some(error) = cause {
                causes.push(error.to_string());
                cause = error.source();
            }
            Err(causes.join(": "))
        }
    }
}

fn address(github: &FakeGitHub) -> std::net::SocketAddr {
    github.url().trim_start_matches("http://").parse().unwrap()
}

#[tokio::test]
async fn what_is_asked_over_http_is_forwarded_and_the_proxy_is_told_who_asks() {
    let github = FakeGitHub::start().unwrap();
    let proxy = Proxy::start(address(&github)).await.unwrap();
    let named = format!("http://ann:secret@{}", proxy.address());
    // Nobody knows this name: who answers was asked by the proxy.
    let url = "http://ghe.invalid/repos/acme/serving/deployments";
    let (status, length) = get(url, &[("HTTP_PROXY", &named)]).await.unwrap();
    assert!(status == 401 && length > 0, "the fake knows no caller without a token: {status}");
    let heads = proxy.heads();
    let [head] = &*heads else { panic!("{heads:?}") };
    assert!(head.starts_with(&format!("GET {url} HTTP/1.1\r\n")), "{head}");
    // "ann:secret"
    assert!(head.contains("proxy-authorization: Basic YW5uOnNlY3JldA==\r\n"), "{head}");
}

#[tokio::test]
async fn what_is_asked_over_https_goes_through_a_tunnel_that_the_proxy_cannot_read() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(server.local_addr().unwrap()).await.unwrap();
    let named = format!("http://ann:secret@{}", proxy.address());
    let greeted = tokio::spawn(async move {
        let (mut connection, _) = server.accept().await.unwrap();
        let mut greeting = vec![0; 512];
        let length = connection.read(&mut greeting).await.unwrap();
        greeting.truncate(length);
        greeting
    });
    // In lower case, as most programs write it.
    let env = [("https_proxy", &*named), ("HTTP_PROXY", "http://127.0.0.1:1")];
    get("https://api.github.invalid/meta", &env).await.unwrap_err();
    let heads = proxy.heads();
    let [head] = &*heads else { panic!("{heads:?}") };
    assert!(head.starts_with("CONNECT api.github.invalid:443 HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains("proxy-authorization: "), "{head}");
    let greeting = greeted.await.unwrap();
    // A handshake of TLS, for this name.
    assert_eq!(greeting.first(), Some(&0x16), "{greeting:?}");
    let name = b"api.github.invalid";
    assert!(greeting.windows(name.len()).any(|bytes| bytes == name), "{greeting:?}");
}

#[tokio::test]
async fn who_is_to_be_asked_without_a_proxy_is() {
    let github = FakeGitHub::start().unwrap();
    let proxy = Proxy::start(address(&github)).await.unwrap();
    let named = format!("http://{}", proxy.address());
    let url = format!("{}/repos/acme/serving/deployments", github.url());
    let asked = async |no: &str| {
        get(&url, &[("HTTP_PROXY", &named), ("NO_PROXY", no)]).await.unwrap();
        proxy.heads().len()
    };
    assert_eq!(asked("example.com,127.0.0.0/8").await, 0);
    assert_eq!(asked("*").await, 0);
    assert_eq!(asked("example.com").await, 1);
    get(&url, &[("HTTPS_PROXY", &named), ("HTTP_PROXY", "")]).await.unwrap();
    assert_eq!(proxy.heads().len(), 1, "that is the proxy of https alone");
}

#[tokio::test]
async fn a_proxy_that_leads_nowhere_is_named_without_its_password() {
    let port = testbed::server::free_port().unwrap();
    let named = format!("http://ann:secret@127.0.0.1:{port}");
    for (variable, url) in
        [("HTTP_PROXY", "http://a.invalid"), ("HTTPS_PROXY", "https://a.invalid")]
    {
        let why = get(url, &[(variable, &named)]).await.unwrap_err();
        let place =
            format!("no way through the proxy http://127.0.0.1:{port}/ that the environment");
        assert!(why.contains(&place) && !why.contains("secret"), "{why}");
    }
}

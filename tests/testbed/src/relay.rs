//! A TCP relay that is as far away as a server in another city: every byte takes half a round trip.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Largest piece that is passed on at once, in bytes.
const PIECE: usize = 64 * 1024;
/// Pieces under way in one direction: far more than a round trip holds, so that bandwidth is not throttled.
const PIECES_UNDER_WAY: usize = 1024;

/// A relay on a free port of 127.0.0.1. Dropping it ends it and all its connections.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    cut: Arc<Notify>,
    hole: Arc<Mutex<Hole>>,
    door: Arc<Door>,
    accepting: JoinHandle<()>,
}

/// Where new connections come in.
#[derive(Debug, Default)]
struct Door {
    shut: AtomicBool,
    turned_away: AtomicUsize,
}

/// Whether what connections carry vanishes; those that are made after a hole opened have another one.
type Hole = Arc<AtomicBool>;

impl Relay {
    /// Relays to `target`: connecting takes one round trip more, every byte half of one in either direction.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn start(target: SocketAddr, round_trip: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let cut = Arc::new(Notify::new());
        let hole = Arc::new(Mutex::new(Hole::default()));
        let door = Arc::new(Door::default());
        let faults = (cut.clone(), hole.clone(), door.clone());
        let accepting = tokio::spawn(accept(listener, (target, round_trip), faults));
        Ok(Self { address, cut, hole, door, accepting })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Drops every connection, and with them all bytes under way. New connections are taken as before.
    pub fn cut(&self) {
        self.cut.notify_one();
    }

    /// Lets every byte of every connection vanish from now on, its end as well, and closes none: neither side is told.
    /// New connections are taken as before.
    pub fn swallow(&self) {
        let mut hole = self.hole.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *hole).store(true, Ordering::Relaxed);
    }

    /// Closes new connections at once, as an sshd does that has too many, until it is opened again.
    pub fn shut(&self) {
        self.door.shut.store(true, Ordering::Relaxed);
    }

    /// Takes new connections again.
    pub fn open(&self) {
        self.door.shut.store(false, Ordering::Relaxed);
    }

    /// How many connections were closed at once so far.
    pub fn turned_away(&self) -> usize {
        self.door.turned_away.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // The task owns the listener and all connections.
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    (target, round_trip): (SocketAddr, Duration),
    (cut, hole, door): (Arc<Notify>, Arc<Mutex<Hole>>, Arc<Door>),
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if door.shut.load(Ordering::Relaxed) {
                    door.turned_away.fetch_add(1, Ordering::Relaxed);
                } else if let Ok((client, _)) = accepted {
                    let hole = hole.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    connections.spawn(relay(client, target, round_trip, hole));
                }
            }
            () = cut.notified() => connections.abort_all(),
            // Forgets connections that have ended.
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, until both directions have ended or either has failed.
async fn relay(
    client: TcpStream,
    target: SocketAddr,
    round_trip: Duration,
    hole: Hole,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    tokio::time::sleep(round_trip).await;
    let server = TcpStream::connect(target).await?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let delay = round_trip / 2;
    tokio::try_join!(
        carry(from_client, to_server, delay, &hole),
        carry(from_server, to_client, delay, &hole)
    )?;
    Ok(())
}

/// One direction: reads at once, writes each piece, and the end, `delay` later.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    delay: Duration,
    hole: &AtomicBool,
) -> io::Result<()> {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_UNDER_WAY);
    let reading = async move {
        let mut buffer = vec![0; PIECE];
        loop {
            let length = from.read(&mut buffer).await?;
            let piece = (Instant::now() + delay, buffer[..length].to_vec());
            // A receiver that is gone has failed to write, and says so itself.
            if sender.send(piece).await.is_err() || length == 0 {
                return io::Result::Ok(());
            }
        }
    };
    let writing = async move {
        while let Some((due, piece)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if hole.load(Ordering::Relaxed) {
                if piece.is_empty() {
                    // Kept open for good: nobody learns of the end.
                    std::future::pending::<()>().await;
                }
                continue;
            }
            if piece.is_empty() {
                return to.shutdown().await;
            }
            to.write_all(&piece).await?;
        }
        Ok(())
    };
    tokio::try_join!(reading, writing)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND_TRIP: Duration = Duration::from_millis(40);

    /// A server that sends back what it gets, one connection after the other.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let (mut reader, mut writer) = connection.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn carries_everything_in_order_and_ends_when_the_client_does() {
        let relay = Relay::start(echo().await, ROUND_TRIP).await.unwrap();
        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|number| (number % 251) as u8).collect();
        let (mut reader, mut writer) = client.split();
        let writing = async {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (_, length) = tokio::join!(writing, reader.read_to_end(&mut received));
        assert_eq!(length.unwrap(), sent.len());
        assert!(received == sent);
    }

    #[tokio::test]
    async fn an_echo_takes_no_less_than_the_distance() {
        let relay = Relay::start(echo().await, ROUND_TRIP).await.unwrap();
        let began = Instant::now();
        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        client.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        // One round trip to connect, one for the byte; the upper bound is the machine's business.
        assert!(began.elapsed() >= 2 * ROUND_TRIP, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn what_is_swallowed_comes_nowhere_and_nothing_is_closed() {
        let relay = Relay::start(echo().await, Duration::ZERO).await.unwrap();
        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        client.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        relay.swallow();
        client.write_all(b"y").await.unwrap();
        let silence = tokio::time::timeout(ROUND_TRIP * 5, client.read(&mut [0])).await;
        assert!(silence.is_err(), "{silence:?}");
        client.shutdown().await.unwrap();
        let silence = tokio::time::timeout(ROUND_TRIP * 5, client.read(&mut [0])).await;
        assert!(silence.is_err(), "the end came through: {silence:?}");
    }

    #[tokio::test]
    async fn a_cut_ends_every_connection_and_lets_new_ones_in() {
        let relay = Relay::start(echo().await, ROUND_TRIP).await.unwrap();
        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        client.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        relay.cut();
        assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));

        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        client.write_all(b"y").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
    }
}

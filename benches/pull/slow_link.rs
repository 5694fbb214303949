//! A network that takes time, between the programs and the registry: a process that passes connections on.
//!
//! Each byte arrives half of [`ROUND_TRIP`] later, in both directions, and all connections together carry a [`Rate`]. A connection
//! takes one round trip until it is there. TCP's slow start is missing, which would hold up whoever opens more connections.

use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::support::Res;

pub(crate) const ROUND_TRIP: Duration = Duration::from_millis(20);

/// Mbit/s in each direction.
pub(crate) type Rate = u32;

/// The most that is passed on at once.
const PIECE: usize = 64 * 1024;

/// Pieces of one connection that are under way: more than the link carries in a round trip.
const UNDER_WAY: usize = 64;

/// The argument with which the benchmark is the link.
pub(crate) const ARGUMENT: &str = "slow-link";

/// The running link. Ends when it is dropped.
pub(crate) struct SlowLink {
    child: Child,
    pub(crate) address: String,
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        // It has nothing to lose.
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

impl SlowLink {
    /// One to the registry at this address.
    pub(crate) fn start(registry: &str, rate: Rate) -> Res<Self> {
        let address = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .to_string();
        let child = Command::new(std::env::current_exe()?)
            .args([ARGUMENT, &address, registry, &rate.to_string()])
            .stdin(Stdio::null())
            .spawn()?;
        let link = Self { child, address };
        for _ in 0..500 {
            if std::net::TcpStream::connect(&link.address).is_ok() {
                return Ok(link);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err("the link does not listen".into())
    }
}

/// The times at which one direction of the link is free again.
type Free = Arc<Mutex<Instant>>;

/// Is the link, for ever.
pub(crate) fn run(address: &str, registry: &str, rate: Rate) -> Res<()> {
    let bytes_in_second = f64::from(rate) * 125e3;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        let free: [Free; 2] = std::array::from_fn(|_| Arc::new(Mutex::new(Instant::now())));
        loop {
            let (near, _) = listener.accept().await?;
            let (free, registry) = (free.clone(), registry.to_owned());
            tokio::spawn(async move {
                tokio::time::sleep(ROUND_TRIP).await;
                let Ok(far) = TcpStream::connect(registry).await else {
                    return;
                };
                near.set_nodelay(true).and(far.set_nodelay(true)).ok();
                let (near, far) = (near.into_split(), far.into_split());
                let [up, down] = free;
                tokio::join!(
                    pass(near.0, far.1, up, bytes_in_second),
                    pass(far.0, near.1, down, bytes_in_second)
                );
            });
        }
    })
}

/// Passes one direction of a connection on, so many bytes in a second.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, free: Free, rate: f64) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let read = async move {
        loop {
            let mut piece = vec![0; PIECE];
            let Ok(count @ 1..) = from.read(&mut piece).await else {
                break;
            };
            piece.truncate(count);
            let sent = {
                let mut free = free.lock().unwrap_or_else(PoisonError::into_inner);
                *free = (*free).max(Instant::now()) + Duration::from_secs_f64(count as f64 / rate);
                *free
            };
            if sender.send((sent + ROUND_TRIP / 2, piece)).await.is_err() {
                break;
            }
        }
    };
    let write = async move {
        while let Some((arrives, piece)) = receiver.recv().await {
            tokio::time::sleep_until(arrives.into()).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        to.shutdown().await.ok();
    };
    tokio::join!(read, write);
}

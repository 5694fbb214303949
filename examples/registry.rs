//! Serves the images of a store, read-only, as a registry: manifests, configs, and layers as streams with ranges.
//!
//! ```text
//! cargo run --release --example registry -- GRAPH_ROOT RUN_ROOT 127.0.0.1:5000
//! skopeo copy --src-tls-verify=false docker://127.0.0.1:5000/app:1 dir:app
//! ```
//!
//! `app:1` is the image that the store calls `localhost/app:1`. Nothing is copied beforehand: a layer is made from its
//! files while it is sent, and a slow client costs no thread. There is no access control and no TLS.

#![expect(clippy::print_stdout, reason = "it is a program")]

use std::error::Error;

use graphroot::{DiffOptions, Digest, Image, ImageManifest, Store, StoreOptions};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

type Res<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What a request gets.
struct Answer {
    media_type: String,
    digest: Digest,
    /// Size of the whole document or blob.
    size: u64,
    /// Its bytes, from the offset that was asked for.
    body: Box<dyn AsyncRead + Send + Unpin>,
}

#[tokio::main]
async fn main() -> Res<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [graph_root, run_root, address] = &arguments[..] else {
        return Err("usage: registry GRAPH_ROOT RUN_ROOT ADDRESS:PORT".into());
    };
    let store = Store::open(StoreOptions::new(graph_root, run_root)).await?;
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    serve(store, listener).await
}

/// Answers until it is dropped.
pub(crate) async fn serve(store: Store, listener: TcpListener) -> Res<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let store = store.clone();
        tokio::spawn(async move {
            if let Err(error) = connection(&store, stream).await {
                println!("{error}");
            }
        });
    }
}

async fn connection(store: &Store, stream: TcpStream) -> Res<()> {
    let mut stream = BufReader::new(stream);
    loop {
        // A head of 16 KiB is enough for every client, and keeps others from filling the memory.
        let mut head = (&mut stream).take(16 * 1024);
        let mut request = String::new();
        head.read_line(&mut request).await?;
        let mut offset = None;
        loop {
            let mut header = String::new();
            if head.read_line(&mut header).await? == 0 {
                return Ok(()); // closed, or too long
            }
            let Some((name, value)) = header.split_once(':') else {
                break;
            };
            if name.eq_ignore_ascii_case("range") {
                offset = range_start(value);
            }
        }
        let mut words = request.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut answer = match (method, path) {
            ("GET" | "HEAD", "/v2/") => Ok(None),
            ("GET" | "HEAD", _) => find(store, path, offset.unwrap_or(0)).await.map(Some),
            _ => Err("read-only".into()),
        };
        let (status, more) = match &answer {
            Ok(None) => ("200 OK", "Content-Length: 0\r\n".to_owned()),
            Ok(Some(answer)) => head_of(answer, offset),
            Err(error) => {
                println!("{path}: {error}");
                ("404 Not Found", "Content-Length: 0\r\n".to_owned())
            }
        };
        stream
            .write_all(format!("HTTP/1.1 {status}\r\n{more}\r\n").as_bytes())
            .await?;
        if let (Ok(Some(answer)), "GET") = (&mut answer, method) {
            tokio::io::copy(&mut answer.body, &mut stream).await?;
        }
        stream.flush().await?;
    }
}

/// The first byte that a header `Range: bytes=FIRST-` asks for; of ranges with an end the rest is sent as well.
fn range_start(value: &str) -> Option<u64> {
    value
        .trim()
        .strip_prefix("bytes=")?
        .strip_suffix('-')?
        .parse()
        .ok()
}

fn head_of(answer: &Answer, offset: Option<u64>) -> (&'static str, String) {
    let Answer {
        media_type,
        digest,
        size,
        ..
    } = answer;
    let more = format!("Content-Type: {media_type}\r\nDocker-Content-Digest: {digest}\r\n");
    match offset {
        None => ("200 OK", format!("{more}Content-Length: {size}\r\n")),
        Some(first) if first < *size => {
            let (last, length) = (size - 1, size - first);
            let range = format!("Content-Range: bytes {first}-{last}/{size}\r\n");
            (
                "206 Partial Content",
                format!("{more}{range}Content-Length: {length}\r\n"),
            )
        }
        Some(_) => (
            "416 Range Not Satisfiable",
            format!("Content-Range: bytes */{size}\r\nContent-Length: 0\r\n"),
        ),
    }
}

/// Finds `/v2/NAME/manifests/TAG-OR-DIGEST` and `/v2/NAME/blobs/DIGEST`.
async fn find(store: &Store, path: &str, offset: u64) -> Res<Answer> {
    let path = path.strip_prefix("/v2/").ok_or("no path of the API")?;
    if let Some((name, reference)) = path.rsplit_once("/manifests/") {
        let manifest = manifest(store, name, reference).await?;
        let (media_type, digest) = (manifest.media_type, manifest.digest);
        return Ok(document(media_type, digest, &manifest.bytes, offset));
    }
    let (_name, digest) = path.rsplit_once("/blobs/").ok_or("no path of the API")?;
    let digest: Digest = digest.parse()?;
    // Image programs name images by their config's digest.
    if let Some(image) = store.image_by_id(digest.encoded()).await? {
        let config = store.image_config(image.id()).await?;
        let media_type = "application/octet-stream".to_owned();
        return Ok(document(media_type, digest, &config.bytes, offset));
    }
    let layers = store.layers_by_uncompressed_digest(&digest).await?;
    let layer = layers.first().ok_or("no such blob")?;
    let options = DiffOptions::uncompressed().offset(offset);
    let size = layer.uncompressed_size().ok_or("a layer of unknown size")?;
    Ok(Answer {
        media_type: "application/octet-stream".to_owned(),
        digest,
        size,
        body: Box::new(store.diff(None, layer.id(), options).await?),
    })
}

fn document(media_type: String, digest: Digest, bytes: &[u8], offset: u64) -> Answer {
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| bytes.get(offset..));
    Answer {
        media_type,
        digest,
        size: bytes.len() as u64,
        body: Box::new(std::io::Cursor::new(rest.unwrap_or_default().to_vec())),
    }
}

async fn manifest(store: &Store, name: &str, reference: &str) -> Res<ImageManifest> {
    let repository = format!("localhost/{name}");
    let Ok(digest) = reference.parse::<Digest>() else {
        let image = store.image_by_name(&format!("{repository}:{reference}")).await?;
        let image = image.ok_or("no such tag")?;
        return Ok(store.image_manifest_uncompressed(image.id()).await?);
    };
    let of_repository = |image: &Image| {
        let mut names = image.names().iter();
        names.any(|name| {
            name.rsplit_once(':')
                .is_some_and(|(name, _tag)| name == repository)
        })
    };
    for image in store.images().await?.iter().filter(|image| of_repository(image)) {
        let manifest = store.image_manifest_uncompressed(image.id()).await?;
        if manifest.digest == digest {
            return Ok(manifest);
        }
    }
    Err("no such manifest".into())
}

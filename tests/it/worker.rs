//! What child processes of the tests do.

use std::collections::BTreeSet;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use graphroot::{LayerOptions, Store, StoreOptions};
use tokio::io::{AsyncRead, ReadBuf};

use crate::support::store::{put_bytes, put_file};
use crate::support::tar::{BLOCK, Header, Tar};
use crate::support::worker::{
    assignment, own_memory, reset_peak_memory, store_location, tell, wait_for_parent,
};

/// The entry of a child process; see `support/worker.rs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the entry of child processes"]
async fn entry() {
    let Some((work, arguments)) = assignment() else {
        return;
    };
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match (work.as_str(), &arguments[..]) {
        ("open", []) => drop(open().await),
        ("open-with", [option]) => drop(open_with(option).await),
        ("compare", [option, layer]) => {
            crate::private_mounts::compare_in_child(open_with(option).await, layer).await;
        }
        ("put", [source, id]) => put(Path::new(source), id).await,
        ("additional-layer", [work, option, id]) => crate::additional_layers::work(work, option, id).await,
        ("auto-userns", [image, seed]) => crate::auto_userns::work(image, seed.parse().unwrap()).await,
        ("staged-layer", [what, dir]) => crate::staged_kills::work(what, dir),
        ("copy-to", [source, driver]) => crate::copied_stores::work(source, driver),
        ("heal", [source]) => crate::heal_kills::work(source),
        ("repair", [what]) => crate::repair_kills::work(what),
        ("delete", [id]) => delete(id).await,
        ("create-and-delete", [prefix, count]) => create_and_delete(prefix, count.parse().unwrap()).await,
        ("rootless-without-mounts", []) => crate::rootless::work_without_mounts().await,
        ("rootless", [way]) => crate::rootless::work(way).await,
        ("memory", [source, size]) => memory(source, size.parse().unwrap()).await,
        ("write-everything", [images, durability]) => {
            crate::sync_order::write_everything(images, durability).await;
        }
        ("write-to-large-records", [durability]) => {
            crate::large_records::write_to_large_records(durability).await;
        }
        ("streams-unread", [flavor, pool]) => on_own_runtime(crate::streams::unread, flavor, pool),
        ("streams-dropped", [flavor, pool]) => on_own_runtime(crate::streams::dropped, flavor, pool),
        _ => panic!("no such work: {work} {arguments:?}"),
    }
}

/// Work that makes a runtime of its own.
fn on_own_runtime(work: fn(&str, usize), flavor: &str, pool: &str) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| work(flavor, pool.parse().unwrap()));
        thread.join().unwrap();
    });
}

fn options() -> StoreOptions {
    let (graph, run, driver) = store_location();
    StoreOptions::new(graph, run).driver(driver)
}

async fn open_with(option: &str) -> Store {
    Store::open(options().driver_option(option)).await.unwrap()
}

pub(crate) async fn open() -> Store {
    Store::open(options())
        .await
        .unwrap_or_else(|error| panic!("opening the store: {error:?}"))
}

/// Puts a layer; tells when it begins and when it is done.
async fn put(source: &Path, id: &str) {
    let store = open().await;
    tell("begin");
    put_file(&store, None, LayerOptions::default().id(id), source)
        .await
        .unwrap();
    tell("done");
}

/// Deletes a layer; tells when it is done.
async fn delete(id: &str) {
    open().await.delete_layer(id).await.unwrap();
    tell("done");
}

/// Creates `count` layers and deletes every second one, and tells which are kept.
async fn create_and_delete(prefix: &str, count: usize) {
    let store = open().await;
    tell("ready");
    wait_for_parent();
    let mut kept = BTreeSet::new();
    for index in 0..count {
        let id = format!("{prefix}{index}");
        let options = LayerOptions::default().id(&id).name(format!("name of {id}"));
        // Some with content, some empty, some on top of others.
        let parent = (index % 4 == 3).then(|| format!("{prefix}{}", index - 3));
        let layer = if index % 3 == 0 {
            store.create_layer(parent.as_deref(), options).await.unwrap()
        } else {
            let tar = Tar::new().dir("d/").file("d/file", &id).build();
            put_bytes(&store, parent.as_deref(), options, tar).await.unwrap()
        };
        assert_eq!(layer.id(), id);
        kept.insert(id.clone());
        if index % 2 == 1 && parent.is_none() {
            store.delete_layer(&id).await.unwrap();
            kept.remove(&id);
        }
    }
    for id in kept {
        tell(&format!("kept {id}"));
    }
}

/// Puts a large layer and tells the resident memory before and the peak while doing so, in KiB.
async fn memory(source: &str, size: u64) {
    let store = open().await;
    // Whatever is set up at the first use is not a matter of the layer's size.
    put_bytes(
        &store,
        None,
        LayerOptions::default(),
        Tar::new().file("small", "x").build(),
    )
    .await
    .unwrap();
    reset_peak_memory();
    let idle = own_memory("VmRSS");
    let options = LayerOptions::default().id("large");
    let put = if source == "generated" {
        store.put_layer(None, options, LargeTar::new(size)).await
    } else {
        store
            .put_layer(None, options, tokio::fs::File::open(source).await.unwrap())
            .await
    };
    let peak = own_memory("VmHWM");
    let layer = put.unwrap().layer;
    assert!(layer.uncompressed_size().unwrap() > size);
    tell(&format!("idle {idle}"));
    tell(&format!("peak {peak}"));
}

/// A tar stream made while it is read: files of 16 MiB with content that does not repeat.
pub(crate) struct LargeTar {
    files: u64,
    /// What is left of the current file's content.
    left: u64,
    state: u64,
    /// Bytes ready to be read, from `at` on.
    ready: Vec<u8>,
    at: usize,
    ended: bool,
}

const FILE_SIZE: u64 = 16 << 20;

impl LargeTar {
    /// With `size` bytes of content.
    pub(crate) fn new(size: u64) -> Self {
        Self {
            files: size / FILE_SIZE,
            left: 0,
            state: 0x9e37_79b9_7f4a_7c15,
            ready: Vec::new(),
            at: 0,
            ended: false,
        }
    }

    fn refill(&mut self) {
        self.at = 0;
        self.ready.clear();
        if self.left > 0 {
            for _ in 0..(64 * 1024 / 8) {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                self.ready.extend(self.state.to_le_bytes());
            }
            self.left -= 64 * 1024;
        } else if self.files > 0 {
            self.files -= 1;
            self.left = FILE_SIZE;
            self.ready.extend(
                Header::new(b'0', format!("file-{}", self.files))
                    .size(FILE_SIZE)
                    .header(),
            );
        } else if !self.ended {
            self.ended = true;
            self.ready.extend([0; 2 * BLOCK]);
        }
    }
}

impl AsyncRead for LargeTar {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.at == self.ready.len() {
            self.refill();
        }
        let count = buffer.remaining().min(self.ready.len() - self.at);
        buffer.put_slice(&self.ready[self.at..self.at + count]);
        self.at += count;
        Poll::Ready(Ok(()))
    }
}

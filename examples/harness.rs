//! A test harness: each test gets the root file system of a container of its own, and is asked what it changed.
//!
//! ```text
//! cargo run --features test-util --example harness
//! ```
//!
//! Works for root and for ordinary users. Nothing is left behind, whatever the tests do.

#![expect(clippy::print_stdout, reason = "it is a program")]

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use graphroot::test_util::{TarBuilder, TarEntry, TempStore};
use graphroot::{Change, ContainerOptions, ImageBuilder, MountOptions};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A store with one image, shared by all tests.
struct Harness {
    store: TempStore,
    image: String,
}

/// What a test came to.
struct Outcome<T> {
    /// What the test returned.
    value: T,
    /// What it changed in its container.
    changes: Vec<Change>,
}

impl Harness {
    async fn new() -> Result<Self, Error> {
        let store = TempStore::new().await?;
        // Ordinary users may write into directories of the image only where its modes let them.
        let tree = TarBuilder::new()
            .entry(TarEntry::dir("./").mode(0o755))
            .dir("etc")
            .file("etc/hostname", "fresh\n")
            .dir("var");
        let layer = store.put_image_layer(None, Cursor::new(tree.build())).await?;
        let image = ImageBuilder::new()
            .top_layer(layer.id())
            .name("localhost/fixture:1")
            .build(&store)
            .await?;
        Ok(Self {
            image: image.id().to_owned(),
            store,
        })
    }

    /// Runs a test in a new container, which is deleted afterwards.
    async fn run<T>(&self, name: &str, test: impl AsyncFnOnce(&Path) -> T) -> Result<Outcome<T>, Error> {
        let options = ContainerOptions::default().name(name);
        let container = self.store.create_container(Some(&self.image), options).await?;
        // Dropped by a panic of the test, it is unmounted as well.
        let root = self
            .store
            .mount_guard(container.id(), MountOptions::default())
            .await?;
        let value = test(&root).await;
        let changes = self.store.changes(None, container.layer_id()).await?;
        root.unmount().await?;
        self.store.delete_container(container.id()).await?;
        Ok(Outcome { value, changes })
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let harness = Arc::new(Harness::new().await?);
    let mut tests = tokio::task::JoinSet::new();
    for number in 0..8 {
        let harness = Arc::clone(&harness);
        tests.spawn(async move {
            let name = format!("test-{number}");
            let outcome = harness
                .run(&name, async |root: &Path| -> Result<String, Error> {
                    let hostname = root.join("etc/hostname");
                    let before = tokio::fs::read_to_string(&hostname).await?;
                    tokio::fs::write(&hostname, format!("{number}\n")).await?;
                    tokio::fs::write(root.join("var/log"), "").await?;
                    Ok(before)
                })
                .await?;
            Ok::<_, Error>((name, outcome))
        });
    }
    while let Some(joined) = tests.join_next().await {
        let (name, outcome) = joined??;
        // No test sees what another one wrote.
        assert_eq!(outcome.value?, "fresh\n");
        let changes: Vec<String> = outcome.changes.iter().map(ToString::to_string).collect();
        println!("{name}: {}", changes.join(", "));
    }
    assert!(harness.store.containers().await?.is_empty());
    println!("driver: {}", harness.store.graph_driver_name());
    match Arc::into_inner(harness) {
        Some(harness) => Ok(harness.store.close().await?),
        None => Ok(()),
    }
}

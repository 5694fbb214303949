//! Pulls images into a store and prints what happens.
//!
//! ```text
//! cargo run --release --features pull --example pull -- STORE IMAGE …
//! ```
//!
//! `STORE` is a directory; images are named as in `docker://localhost:5000/app:1`, `oci:layout`, `docker-archive:a.tar`.
//! A download that was interrupted is resumed when the command is run again. Layers that can be are pulled in parts: of those
//! that have a table of contents, as `graphroot push --compression zstd:chunked` writes them, only the files are fetched
//! that the store does not have. `policy.json` and `registries.conf` are not read: a program that shares the machine with Podman
//! adds `.policy(Policy::load().await?)` and `.registry(RegistryOptions::default_for_user().await?)` to its options.

#![expect(clippy::print_stdout, reason = "it is a program")]

use std::error::Error;

use graphroot::oci::{BlobState, Event, ImageRef, Progress, PullOptions, Puller};
use graphroot::{PartialPullOptions, Store, StoreOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let home = std::path::PathBuf::from(
        arguments
            .next()
            .ok_or("name a directory for the store, and images")?,
    );
    let images = arguments
        .map(|image| image.parse())
        .collect::<Result<Vec<ImageRef>, _>>()?;
    let parts = PartialPullOptions::default().enable_partial_images(true);
    let options = StoreOptions::new(home.join("graph"), home.join("run")).partial_pulls(parts);
    let store = Store::open(options).await?;

    let (progress, mut events) = Progress::channel();
    let printer = tokio::spawn(async move {
        while let Some(event) = events.next().await {
            let Event::Blob { digest, state } = event else {
                continue;
            };
            match state {
                BlobState::Started { total, kept } => {
                    println!("{digest}: {total} bytes, {kept} kept from before");
                }
                BlobState::Retrying { reason, .. } => println!("{digest}: {reason}"),
                BlobState::Reused { .. } => println!("{digest}: reused"),
                BlobState::PartlyReused { bytes } => println!("{digest}: {bytes} bytes are in other layers"),
                BlobState::Committed { .. } => println!("{digest}: done"),
                _ => {}
            }
        }
    });
    let puller = Puller::new(
        &store,
        PullOptions::default().keep_partial(true).progress(progress),
    );
    let results = puller.pull_all(&images).await;
    drop(puller);
    printer.await?;
    for pulled in results {
        let pulled = pulled?;
        println!("{} {}", pulled.image.id(), pulled.image.names().join(" "));
    }
    Ok(())
}

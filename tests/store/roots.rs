//! The directories of a store that have to be different ones.

use std::path::{Path, PathBuf};
use std::time::Duration;

use graphroot::{Durability, Error, ErrorKind, LayerOptions, Result, Store, StoreOptions};

/// Another path of a directory.
#[derive(Clone, Copy, Debug)]
enum Alias {
    Same,
    Uncleaned,
    Link,
    Bind,
}

const ALIASES: [Alias; 4] = [Alias::Same, Alias::Uncleaned, Alias::Link, Alias::Bind];

/// A temporary directory in which nothing is mounted when it is removed.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("graph")).unwrap();
        Self(dir)
    }

    /// `None` where only root can make it.
    fn alias(&self, of: &str, alias: Alias) -> Option<PathBuf> {
        let (dir, other) = (self.0.path().join(of), self.0.path().join("other"));
        std::fs::create_dir_all(&dir).unwrap();
        match alias {
            Alias::Same => Some(dir),
            Alias::Uncleaned => Some(self.0.path().join(format!("x/.././/{of}/./"))),
            Alias::Link => {
                std::os::unix::fs::symlink(&dir, &other).unwrap();
                Some(other)
            }
            Alias::Bind => {
                std::fs::create_dir(&other).unwrap();
                rustix::mount::mount_bind(&dir, &other).ok()?;
                Some(other)
            }
        }
    }

    fn options(&self) -> StoreOptions {
        StoreOptions::new(self.0.path().join("graph"), self.0.path().join("run"))
            .driver("vfs")
            .durability(Durability::None)
            .driver_option("vfs.ignore_chown_errors=true")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let other = self.0.path().join("other");
        rustix::mount::unmount(&other, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

/// Opens a store and writes to it; what waits for ever is told by a panic.
async fn used(options: StoreOptions) -> Result<()> {
    let using = async {
        let store = Store::open(options).await?;
        let layer = store.create_layer(None, LayerOptions::default()).await?;
        store.image_size("none").await.unwrap_err();
        store.delete_layer(layer.id()).await?;
        store.free();
        Ok(())
    };
    let used = tokio::time::timeout(Duration::from_secs(60), using).await;
    used.unwrap_or_else(|_late| panic!("it waits for its own lock"))
}

fn assert_refused(refused: &Error, names: [&str; 2], what: &dyn std::fmt::Debug) {
    let text = refused.chain();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{what:?}: {text}");
    assert!(
        names.iter().all(|name| text.contains(name)) && text.contains("are one directory"),
        "{what:?}: {text}"
    );
}

#[tokio::test]
async fn two_roots_that_are_one_directory_are_refused() {
    for alias in ALIASES {
        let place = Place::new();
        let Some(graph) = place.alias("graph", alias) else {
            continue;
        };
        let option = |path: &Path| format!("vfs.imagestore={}", path.display());
        let mut run = place.options();
        run.run_root.clone_from(&graph);
        let images = place.options().image_store(&graph);
        let additional = place.options().driver_option(option(&graph));
        let images_run = place.options().image_store(place.0.path().join("run"));
        for (options, names) in [
            (images, ["graph root", "image store"]),
            (run, ["graph root", "run root"]),
            (images_run, ["run root", "image store"]),
            (additional, ["graph root", "additional image store"]),
        ] {
            assert_refused(&used(options).await.unwrap_err(), names, &alias);
        }
        let place = Place::new();
        let Some(images) = place.alias("images", alias) else {
            continue;
        };
        let options = place
            .options()
            .image_store(place.0.path().join("images"))
            .driver_option(option(&images));
        let names = ["image store", "additional image store"];
        assert_refused(&used(options).await.unwrap_err(), names, &alias);
        // Nothing of it stays in the way.
        used(place.options()).await.unwrap();
    }
}

#[tokio::test]
async fn records_that_are_one_directory_are_refused() {
    let place = Place::new();
    used(place.options()).await.unwrap();
    let images = place.0.path().join("images");
    for kind in ["layers", "images"] {
        std::fs::create_dir_all(&images).unwrap();
        let name = format!("vfs-{kind}");
        std::os::unix::fs::symlink(place.0.path().join("graph").join(&name), images.join(&name)).unwrap();
        for options in [
            place.options().image_store(&images),
            place
                .options()
                .driver_option(format!("vfs.imagestore={}", images.display())),
        ] {
            let refused = used(options).await.unwrap_err();
            let records = format!("{} records", kind.trim_end_matches('s'));
            assert_refused(&refused, [&records, "graph"], &kind);
        }
        std::fs::remove_dir_all(&images).unwrap();
    }
    used(place.options()).await.unwrap();
}

#[tokio::test]
async fn an_additional_store_that_is_named_twice_is_used_once() {
    let place = Place::new();
    let additional = place.0.path().join("additional");
    let mut first = place.options();
    first.graph_root.clone_from(&additional);
    let store = Store::open(first).await.unwrap();
    store
        .create_layer(None, LayerOptions::default().id("below"))
        .await
        .unwrap();
    store.free();
    let link = place.0.path().join("link");
    std::os::unix::fs::symlink(&additional, &link).unwrap();
    let options = place
        .options()
        .driver_option(format!("vfs.imagestore={}", additional.display()))
        .driver_option(format!("vfs.imagestore={}", link.display()));
    let store = Store::open(options).await.unwrap();
    let ids: Vec<String> = store
        .layers()
        .await
        .unwrap()
        .iter()
        .map(|layer| layer.id().to_owned())
        .collect();
    assert_eq!(ids, ["below"]);
}

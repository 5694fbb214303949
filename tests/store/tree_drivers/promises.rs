//! The tests that the library offers to authors of drivers.

use std::path::Path;
use std::sync::Arc;

use graphroot::test_util::{BrokenPromise, TreePromise, check_tree_driver};
use graphroot::{ContainerOptions, ErrorKind, MountOptions, Store, TreeDriver};

use crate::support::skip;
use crate::tree_drivers::doubles::{Broken, Copies, InMemory, Mounted, Plain, Volumes, Way};
use crate::tree_drivers::{STEPS, options, step};

async fn check(make: impl Fn() -> Arc<dyn TreeDriver>, below: &Path) -> Vec<BrokenPromise> {
    let broken = check_tree_driver(make, below).await.unwrap();
    assert_eq!(std::fs::read_dir(below).unwrap().count(), 0, "nothing is left");
    broken
}

#[tokio::test]
async fn drivers_that_copy_keep_every_promise() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(check(|| Arc::new(Copies), dir.path()).await, []);
    assert_eq!(check(|| Arc::new(Plain), dir.path()).await, []);
}

#[tokio::test]
async fn a_driver_that_mounts_keeps_every_promise() {
    if !rustix::process::geteuid().is_root() {
        return skip("mounts need root");
    }
    for in_memory in [false, true] {
        let (dir, volumes) = (tempfile::tempdir().unwrap(), Volumes::new());
        let make = || -> Arc<dyn TreeDriver> {
            Arc::new(Mounted {
                volumes: volumes.path().to_owned(),
                in_memory,
            })
        };
        assert_eq!(check(make, dir.path()).await, []);
        // Those of layers that the tests leave behind with their graph root.
        assert!(volumes.count() > 0);
    }
}

#[tokio::test]
async fn volumes_go_with_their_layers() {
    if !rustix::process::geteuid().is_root() {
        return skip("mounts need root");
    }
    let (dir, volumes) = (tempfile::tempdir().unwrap(), Volumes::new());
    let driver = Arc::new(Mounted {
        volumes: volumes.path().to_owned(),
        in_memory: false,
    });
    let store = Store::open(options(dir.path()).tree_driver(driver))
        .await
        .unwrap();
    for number in 0..STEPS {
        step(&store, number).await.unwrap();
        if number == 3 {
            assert_eq!(volumes.count(), 3);
        }
    }
    assert_eq!(volumes.count(), 0);
    store.shutdown().await.unwrap();
}

#[tokio::test]
async fn containers_get_the_limits_of_a_driver_that_has_some() {
    if !rustix::process::geteuid().is_root() {
        return skip("mounts need root");
    }
    let (dir, volumes) = (tempfile::tempdir().unwrap(), Volumes::new());
    let driver = |in_memory| {
        Arc::new(Mounted {
            volumes: volumes.path().to_owned(),
            in_memory,
        })
    };
    let limit = || ContainerOptions::default().storage_opt("size", "16m");
    let store = Store::open(options(dir.path()).tree_driver(driver(true)))
        .await
        .unwrap();
    assert!(store.graph_driver().capabilities().quota);
    store.create_container(None, limit().name("box")).await.unwrap();
    let root = store.mount("box", MountOptions::default()).await.unwrap();
    std::fs::write(root.join("small"), vec![7; 1 << 20]).unwrap();
    let error = std::fs::write(root.join("large"), vec![7; 20 << 20]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    let inodes = ContainerOptions::default().storage_opt("inodes", "7");
    let error = store.create_container(None, inodes).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    store.unmount("box").await.unwrap();
    store.delete_container("box").await.unwrap();
    store.shutdown().await.unwrap();
    store.free();

    let store = Store::open(options(dir.path()).tree_driver(driver(false)))
        .await
        .unwrap();
    let error = store.create_container(None, limit()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported, "{error}");
    assert!(
        error
            .chain()
            .ends_with("--storage-opt is not supported for mounted"),
        "{error}"
    );
}

#[tokio::test]
async fn broken_promises_are_told() {
    let dir = tempfile::tempdir().unwrap();
    for (way, promise, reason) in [
        (Way::Links, TreePromise::SeparateFiles, "of another tree"),
        (Way::SymbolicLink, TreePromise::SameContent, "no directory is at"),
        (Way::WithoutAttributes, TreePromise::SameAttributes, "modified"),
        (Way::WithoutLinks, TreePromise::SameHardLinks, "d/short"),
        (Way::OfNothing, TreePromise::MissingSource, "a clone of nothing"),
        (
            Way::DeletesOnce,
            TreePromise::RepeatedDeletion,
            "what is not there",
        ),
        (Way::Panics, TreePromise::LongChains, "cannot clone"),
        (Way::WholePaths, TreePromise::SameContent, "File name too long"),
        (Way::Cached, TreePromise::SameContent, "is missing"),
        (
            Way::Cached,
            TreePromise::ExchangedTrees,
            "a clone of one is what the other was",
        ),
        (Way::LinksLarge, TreePromise::SeparateFiles, "of another tree"),
        (
            Way::WithoutDefaultLists,
            TreePromise::SameAttributes,
            "posix_acl_default",
        ),
        (Way::WithoutOldTimes, TreePromise::SameAttributes, "modified -"),
        (Way::FirstThousand, TreePromise::SameContent, "is missing"),
        (
            Way::SeparateSymbolicLinks,
            TreePromise::SameHardLinks,
            "to a long path",
        ),
        (
            Way::FollowsForModes,
            TreePromise::StaysInside,
            "after a clone: \"\" should",
        ),
        (
            Way::FollowsToDelete,
            TreePromise::StaysInside,
            "after the deletion of a clone",
        ),
        (Way::Shared, TreePromise::ParallelCalls, "should"),
        (
            Way::ByName,
            TreePromise::AdditionalStores,
            "cloning a tree of an additional store",
        ),
        (Way::LeavesOpen, TreePromise::NothingOpen, "is open"),
    ] {
        let broken = check(|| Arc::new(Broken(way)), dir.path()).await;
        let found = broken.iter().find(|broken| broken.promise == promise);
        let found = found.unwrap_or_else(|| panic!("{way:?}: {broken:?}"));
        assert!(found.reason.contains(reason), "{way:?}: {found}");
        assert!(found.to_string().starts_with(promise.name()), "{found}");
    }
}

#[tokio::test]
async fn a_driver_that_knows_its_trees_in_memory_only_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let broken = check(|| Arc::new(InMemory::default()), dir.path()).await;
    let promises: Vec<TreePromise> = broken.iter().map(|broken| broken.promise).collect();
    let expected = [TreePromise::SeveralProcesses, TreePromise::AdditionalStores];
    assert_eq!(promises, expected, "{broken:?}");
    for broken in broken {
        assert!(broken.reason.contains("not one of my trees"), "{broken:?}");
    }
}

/// The page that tells authors of drivers what they promise, and the tests of that, name the same.
#[test]
fn every_promise_is_on_the_page() {
    let page = include_str!("../../../src/tree_drivers.md");
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let named: Vec<&str> = rows
        .filter(|name| name.contains('-') || ["syncing", "limits"].contains(name))
        .collect();
    let tested: Vec<&str> = TreePromise::ALL.iter().map(|promise| promise.name()).collect();
    assert_eq!(named, tested);
}

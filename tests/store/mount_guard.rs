//! Mounts that last as long as a value.

use std::path::Path;
use std::time::Duration;

use graphroot::{ContainerOptions, ErrorKind, ImageOptions, Mount, MountOptions, Store};

use crate::futures::poll_some;
use crate::support::{Layout, TestStore, kind};

async fn container(store: &TestStore) {
    store.put(None, "base", &[("file", "content")]).await;
    store
        .create_image(Some("base"), ImageOptions::default().name("image"))
        .await
        .unwrap();
    store
        .create_container(Some("image"), ContainerOptions::default().name("box"))
        .await
        .unwrap();
}

async fn guard(store: &Store) -> Mount {
    store.mount_guard("box", MountOptions::default()).await.unwrap()
}

/// Waits until what runs in the background has unmounted it.
async fn unmounted(store: &Store) {
    let wait = async {
        while store.mounted("box").await.unwrap() > 0 {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
    assert!(waited.is_ok(), "it stays mounted");
}

each_driver! {
    async fn a_guard_is_a_path_and_one_mount(store) {
        container(&store).await;
        let mount = guard(&store).await;
        assert_eq!(std::fs::read_to_string(mount.join("file")).unwrap(), "content");
        assert_eq!(std::fs::read_dir(&mount).unwrap().count(), 1);
        let (path, as_ref): (&Path, &Path) = (mount.path(), mount.as_ref());
        assert_eq!(path, as_ref);
        assert_eq!(store.mounted("box").await.unwrap(), 1);
        let second = guard(&store).await;
        assert_eq!(second.path(), mount.path());
        assert_eq!(store.mounted("box").await.unwrap(), 2);
        second.unmount().await.unwrap();
        assert_eq!(store.mounted("box").await.unwrap(), 1);
        mount.unmount().await.unwrap();
        assert_eq!(store.mounted("box").await.unwrap(), 0);
        assert_eq!(kind(store.mount_guard("nobody", MountOptions::default()).await), ErrorKind::LayerUnknown);
    }

    async fn a_dropped_guard_unmounts_once(store) {
        container(&store).await;
        let kept = guard(&store).await.keep();
        drop(guard(&store).await);
        let wait = async {
            while store.mounted("box").await.unwrap() > 1 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
        assert_eq!(std::fs::read_to_string(kept.join("file")).unwrap(), "content");
        assert_eq!(store.unmount("box").await.unwrap(), 0);
    }

    async fn a_guard_of_an_image_is_read_only(store) {
        container(&store).await;
        let mount = store.mount_image_guard("image", MountOptions::default()).await.unwrap();
        assert_eq!(std::fs::read_to_string(mount.join("file")).unwrap(), "content");
        assert_eq!(store.mounted("base").await.unwrap(), 1);
        mount.unmount().await.unwrap();
        assert_eq!(store.mounted("base").await.unwrap(), 0);
        let refused = store.mount_image_guard("image", MountOptions::default().option("rw")).await;
        assert_eq!(kind(refused), ErrorKind::NotSupported);
    }

    async fn a_guard_whose_layer_is_deleted_says_so(store) {
        container(&store).await;
        let (one, two) = (guard(&store).await, guard(&store).await);
        store.delete_container("box").await.unwrap();
        drop(one);
        assert_eq!(kind(two.unmount().await), ErrorKind::LayerUnknown);
    }

    async fn a_panic_unmounts(store) {
        container(&store).await;
        let mount = guard(&store).await;
        let task = tokio::spawn(async move {
            let _mount = mount;
            panic!("on purpose");
        });
        assert!(task.await.unwrap_err().is_panic());
        unmounted(&store).await;
    }

    async fn a_guard_that_nobody_waits_for_leaves_nothing_mounted(store) {
        container(&store).await;
        let mut finished = false;
        for polls in 0..400 {
            let mounting = store.mount_guard("box", MountOptions::default());
            finished = poll_some(mounting, polls).await.is_some();
            // A step that has begun holds the lock, so that this waits for it.
            store.set_metadata("box", format!("{polls}")).await.unwrap();
            unmounted(&store).await;
            if finished {
                break;
            }
        }
        assert!(finished, "400 polls are enough");
    }

    async fn an_unmount_that_nobody_waits_for_goes_on(store) {
        container(&store).await;
        let mut finished = false;
        for polls in 0..400 {
            let mount = guard(&store).await;
            finished = poll_some(mount.unmount(), polls).await.is_some();
            unmounted(&store).await;
            if finished {
                break;
            }
        }
        assert!(finished, "400 polls are enough");
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn a_guard_outlives_its_runtime_and_unmounts_when_dropped() {
    let (outer, inner) = (runtime(), runtime());
    let store = outer.block_on(async {
        let store = TestStore::open("vfs", Layout::Plain).await.unwrap();
        container(&store).await;
        store
    });
    let mount = inner.block_on(guard(&store));
    drop(inner);
    assert_eq!(outer.block_on(store.mounted("box")).unwrap(), 1);
    drop(mount);
    // Without waiting: the runtime runs no tasks in the background.
    assert_eq!(outer.block_on(store.mounted("box")).unwrap(), 0);
}

#[test]
fn guards_in_tasks_of_a_runtime_that_shuts_down_unmount() {
    let (outer, inner) = (runtime(), runtime());
    let store = outer.block_on(async {
        let store = TestStore::open("vfs", Layout::Plain).await.unwrap();
        container(&store).await;
        store
    });
    for _ in 0..10 {
        let mount = inner.block_on(guard(&store));
        drop(inner.spawn(async move {
            let _mount = mount;
            std::future::pending::<()>().await;
        }));
    }
    assert_eq!(outer.block_on(store.mounted("box")).unwrap(), 10);
    drop(inner);
    assert_eq!(outer.block_on(store.mounted("box")).unwrap(), 0);
}

#[test]
fn a_guard_dropped_at_the_end_of_a_current_thread_runtime_unmounts() {
    let outer = runtime();
    let store = outer.block_on(async {
        let store = TestStore::open("vfs", Layout::Plain).await.unwrap();
        container(&store).await;
        store
    });
    let single = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    single.block_on(async { drop(guard(&store).await) });
    drop(single);
    assert_eq!(outer.block_on(store.mounted("box")).unwrap(), 0);
}

//! Many callers at the same time: each gets what it would get alone, before or after the others.

use futures::future::join_all;
use graphroot::{ContainerOptions, ErrorKind, ImageOptions, LayerOptions, MountOptions, Store};

use crate::support::{TestStore, tar};

/// Callers that start together.
const CALLERS: usize = 12;

/// Returns how many layers there are then.
async fn image(store: &Store) -> usize {
    let stream = std::io::Cursor::new(tar(&[("file", "content")]));
    let layer = LayerOptions::default().name("base");
    store.put_layer(None, layer, stream).await.unwrap();
    let options = ImageOptions::default().id("image");
    store.create_image(Some("base"), options).await.unwrap();
    store.layers().await.unwrap().len()
}

/// Nothing but the image is left, and nothing is mounted or half made.
async fn only_the_image_is_left(store: &TestStore, layers: usize) {
    assert_eq!(store.containers().await.unwrap().len(), 0);
    assert_eq!(store.layers().await.unwrap().len(), layers);
    let again = store.reopen().await;
    assert_eq!(again.layers().await.unwrap().len(), layers);
    assert_eq!(again.mounted("base").await.unwrap(), 0);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = store.path().to_str().unwrap();
    let merged = mounts
        .lines()
        .filter(|line| line.contains(path) && line.contains("/merged "));
    assert_eq!(merged.count(), 0, "{mounts}");
}

each_driver! {
    async fn containers_come_and_go(store) {
        let layers = image(&store).await;
        let round = async |number: usize| {
            for round in 0..4 {
                let name = format!("box-{number}-{round}");
                let options = ContainerOptions::default().name(&name).big_data("item", name.clone());
                let container = store.create_container(Some("image"), options).await.unwrap();
                let path = store.mount(&name, MountOptions::default()).await.unwrap();
                assert_eq!(std::fs::read(path.join("file")).unwrap(), b"content");
                assert_eq!(store.mount(container.layer_id(), MountOptions::default()).await.unwrap(), path);
                store.add_names(container.id(), [format!("other-{name}")]).await.unwrap();
                store.set_container_big_data(&name, "second", "2").await.unwrap();
                assert_eq!(store.unmount(&name).await.unwrap(), 1);
                assert_eq!(store.container_big_data(&name, "item").await.unwrap(), name);
                if round % 2 == 0 {
                    assert_eq!(store.unmount(&name).await.unwrap(), 0);
                }
                store.delete_container(&name).await.unwrap();
            }
        };
        join_all((0..CALLERS).map(round)).await;
        only_the_image_is_left(&store, layers).await;
    }

    async fn one_of_those_that_want_a_name_or_an_id_gets_it(store) {
        let layers = image(&store).await;
        for round in 0..4 {
            let create = async |number: usize| {
                let options = ContainerOptions::default().big_data("item", number.to_string());
                let options = match round % 2 {
                    0 => options.name("box"),
                    _ => options.id("box"),
                };
                store.create_container(Some("image"), options).await.map(|_made| number)
            };
            let (made, failed): (Vec<_>, Vec<_>) =
                join_all((0..CALLERS).map(create)).await.into_iter().partition(Result::is_ok);
            let kinds: Vec<_> = failed.into_iter().map(|error| error.unwrap_err().kind()).collect();
            let expected = match round % 2 {
                0 => ErrorKind::DuplicateName,
                _ => ErrorKind::DuplicateId,
            };
            assert_eq!(kinds, vec![expected; CALLERS - 1]);
            let [winner] = made.try_into().unwrap();
            let number: usize = winner.unwrap();
            assert_eq!(store.container_big_data("box", "item").await.unwrap(), number.to_string());
            let delete = async |_number| store.delete_container("box").await;
            let (deleted, failed): (Vec<_>, Vec<_>) =
                join_all((0..CALLERS).map(delete)).await.into_iter().partition(Result::is_ok);
            assert_eq!(deleted.len(), 1);
            for error in failed {
                assert_eq!(error.unwrap_err().kind(), ErrorKind::NotAContainer);
            }
        }
        only_the_image_is_left(&store, layers).await;
    }

    async fn a_container_is_mounted_whole_or_not_at_all(store) {
        let layers = image(&store).await;
        for _ in 0..4 {
            let options = ContainerOptions::default().id("box");
            let create = async {
                store.create_container(Some("image"), options).await.unwrap();
            };
            let mount = async |_number| match store.mount("box", MountOptions::default()).await {
                Ok(path) => assert!(path.ends_with("merged") || store.graph_driver_name() != "overlay"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::LayerUnknown, "{error:?}"),
            };
            futures::join!(create, join_all((0..4).map(mount)));
            let delete = async { store.delete_container("box").await.unwrap() };
            futures::join!(delete, join_all((0..4).map(mount)));
        }
        only_the_image_is_left(&store, layers).await;
    }

    async fn a_layer_gets_no_child_while_it_is_deleted(store) {
        for round in 0..6 {
            let base = store.create_layer(None, LayerOptions::default()).await.unwrap();
            let child = async |_number| store.create_layer(Some(base.id()), LayerOptions::default()).await;
            let image = async {
                store.create_image(Some(base.id()), ImageOptions::default()).await
            };
            let delete = async {
                if round % 2 == 1 {
                    tokio::task::yield_now().await;
                }
                store.delete_layer(base.id()).await
            };
            let (deleted, children, image) = futures::join!(delete, join_all((0..3).map(child)), image);
            let there = store.layer(base.id()).await.is_ok();
            assert_eq!(there, deleted.is_err());
            for made in &children {
                assert!(!(made.is_ok() && deleted.is_ok()), "{made:?}");
            }
            assert!(!(image.is_ok() && deleted.is_ok()), "{image:?}");
        }
    }
}

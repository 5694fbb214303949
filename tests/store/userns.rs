//! Automatic user namespaces: how many IDs a container gets, and which.

use std::io::Cursor;

use graphroot::{AutoUserNs, ContainerOptions, ErrorKind, IdMap, ImageOptions, LayerOptions, Result};

use crate::support::{TestStore, kind};

use graphroot::test_util::{TarBuilder as Tar, TarEntry as Header};

fn auto(auto: AutoUserNs) -> ContainerOptions {
    ContainerOptions::default().auto_userns(auto)
}

/// How many IDs a container asks for. Most machines have not so many for it; then the error says how many.
fn asked(created: Result<graphroot::Container>) -> u64 {
    match created {
        Ok(container) => container.uid_map().iter().map(|map| u64::from(map.size)).sum(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NoAvailableIds, "{}", error.chain());
            let chain = error.chain();
            let (_, rest) = chain.split_once("choosing ").unwrap();
            rest.split_once(' ').unwrap().0.parse().unwrap()
        }
    }
}

/// An image of one layer.
async fn image(store: &TestStore, tar: Tar) -> String {
    let layer = store
        .put_layer(None, LayerOptions::default(), Cursor::new(tar.build()))
        .await
        .unwrap()
        .layer;
    let image = store
        .create_image(Some(layer.id()), ImageOptions::default())
        .await
        .unwrap();
    image.id().to_owned()
}

each_driver! {
    async fn additional_ranges_are_taken_as_they_are(store) {
        let options = AutoUserNs::default()
            .size(3)
            .additional_uid_mappings([IdMap::new(0, 1000, 3), IdMap::new(7, 2000, 1)])
            .additional_gid_mapping(IdMap::new(0, 3000, 3));
        let container = store.create_container(None, auto(options.clone())).await.unwrap();
        assert_eq!(container.uid_map(), [IdMap::new(0, 1000, 3), IdMap::new(7, 2000, 1)]);
        assert_eq!(container.gid_map(), [IdMap::new(0, 3000, 3)]);
        let overlapping = options.additional_uid_mapping(IdMap::new(2, 5000, 1));
        assert_eq!(kind(store.create_container(None, auto(overlapping)).await), ErrorKind::InvalidMappings);
        assert_eq!(store.containers().await.unwrap().len(), 1);
    }

    async fn no_more_ids_are_given_than_there_are(store) {
        let before = store.own_layers().await.len();
        let error = store.create_container(None, auto(AutoUserNs::default().size(u32::MAX))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoAvailableIds);
        assert!(error.chain().contains("not enough unused IDs in user namespace"), "{}", error.chain());
        assert_eq!(store.own_layers().await.len(), before);
    }

    async fn an_image_says_how_many_ids_it_needs(store) {
        let passwd = "root:x:0:0::/:\nuser:x:5000:100::/:\nnobody:x:65534:65534::/:\n";
        let of_users = image(&store, Tar::new().file("etc/passwd", passwd).file("etc/group", "g:x:6000:\n")).await;
        let of_owners = image(&store, Tar::new().entry(Header::file("file", "").owner(2000, 3000))).await;
        let of_links = Tar::new().symlink("etc/passwd", "/real").file("real", passwd).symlink("etc/group", "../../../../../../etc/group");
        let of_links = image(&store, of_links).await;
        let file = store.path().join("passwd");
        std::fs::write(&file, "one:x:9000:1:\n").unwrap();
        let plain = AutoUserNs::default;
        for (image, options, expected) in [
            (None, plain(), 1024),
            (None, plain().initial_size(2000), 2000),
            (None, plain().size(10), 10),
            (Some(&of_users), plain(), 6001),
            (Some(&of_users), plain().size(10), 10),
            (Some(&of_owners), plain(), 3001),
            (Some(&of_links), plain(), 5001),
            (Some(&of_owners), plain().passwd_file(&file), 9001),
            (Some(&of_owners), plain().passwd_file(store.path().join("nosuch")), 3001),
        ] {
            let created = store.create_container(image.map(String::as_str), auto(options.clone())).await;
            assert_eq!(asked(created), expected, "{image:?} {options:?}");
        }
        let large = image(&store, Tar::new().file("etc/group", "g:x:65536:\n")).await;
        let error = store.create_container(Some(&large), auto(plain())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidMappings);
        let text = "the container needs a user namespace with size 65537 that is bigger than the maximum value allowed with userns=auto 65536";
        assert!(error.chain().contains(text), "{}", error.chain());
    }

    async fn what_is_no_file_with_users_is_refused_at_once(store) {
        let plain = AutoUserNs::default;
        let fifo = image(&store, Tar::new().entry(Header::fifo("etc/passwd"))).await;
        let to_device = image(&store, Tar::new().symlink("etc/group", "/d").entry(Header::fifo("d"))).await;
        let good = image(&store, Tar::new().file("file", "")).await;
        let huge = store.path().join("huge");
        std::fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
        for (image, options) in [
            (&fifo, plain()),
            (&to_device, plain()),
            (&good, plain().passwd_file("/dev/zero")),
            (&good, plain().group_file(store.path())),
            (&good, plain().group_file(&huge)),
        ] {
            let error = store.create_container(Some(image), auto(options)).await.unwrap_err();
            let chain = error.chain();
            assert!(chain.contains("not a regular file") || chain.contains("too many for a file with users"), "{chain}");
        }
        assert_eq!(store.containers().await.unwrap().len(), 0);
    }
}

//! Stores that consist of several roots; these cases make their own benches.

use super::*;

pub(super) fn additional_stores_are_read(variant: Variant) {
    let mut other = None;
    let bench = Bench::new(variant, |config, tmp| {
        let root = tmp.join("additional");
        let first = DriverConfig {
            root: root.clone(),
            ..config.clone()
        };
        let driver = open_driver(&first).unwrap();
        for (id, parent) in [("base", None), ("image", Some("base"))] {
            let staged = Arc::clone(&driver)
                .stage(parent, &CreateOptions::default())
                .unwrap();
            write(&path_of(&*staged), id, "");
            staged.commit(id, parent, &CreateOptions::default()).unwrap();
        }
        config
            .options
            .push(format!("{}.imagestore={}", driver.name(), root.display()));
        other = Some(root);
    });
    let (Some(bench), Some(other)) = (bench, other) else {
        return;
    };
    assert_eq!(
        bench.driver.additional_image_stores(),
        std::slice::from_ref(&other)
    );
    assert!(bench.driver.exists("image"));
    assert_eq!(bench.driver.list_layers().unwrap(), [""; 0]);
    bench.create("container", Some("image"));
    let root = bench.mount("container", &[]);
    write(&root, "new", "");
    assert_eq!(listing(&root).len(), 3);
    bench.driver.unmount("container").unwrap();
    let root = bench.mount("image", &[]);
    assert_eq!(listing(&root).len(), 2);
    if bench.is_overlay() {
        assert!(root.starts_with(&bench.config.run_root), "{}", root.display());
        assert!(
            fs::write(root.join("x"), "").is_err(),
            "there is no lock for writing there"
        );
        assert!(
            bench.driver.metadata("container").unwrap()["LowerDir"]
                .contains("/additional/overlay/image/diff:")
        );
        bench.driver.unmount("image").unwrap();
        assert!(!bench.config.run_root.join("overlay/image").exists());
    }
    // A layer of the same ID is made in the own home, whatever the other store has.
    bench.layer("image", None, |tree| write(tree, "own", ""));
    assert_eq!(bench.seen("image"), pairs(&[("own", "")]));
    drop(bench.driver.defer_remove("image").unwrap().unwrap());
    assert_eq!(bench.seen("image").len(), 2);
    assert!(
        bench.driver.defer_remove("image").unwrap().is_none(),
        "not ours to remove"
    );
    assert!(bench.driver.exists("image"));
    let error = bench
        .driver
        .update_id_map("image", &IdMappings::default(), &maps(1, 1), "")
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreIsReadOnly);
}

pub(super) fn images_can_lie_in_a_store_of_their_own(variant: Variant) {
    let bench = Bench::new(variant, |config, tmp| {
        config.image_store = Some(tmp.join("images"));
    });
    let Some(bench) = bench else { return };
    let images = bench.config.image_store.clone().unwrap().join(variant.driver);
    let read_write = CreateOptions {
        read_write: true,
        ..CreateOptions::default()
    };
    bench.layer("image", None, |tree| {
        assert!(tree.starts_with(&images), "{}", tree.display());
        write(tree, "image", "");
    });
    bench
        .driver
        .create("container", Some("image"), &read_write)
        .unwrap();
    let staged = Arc::clone(&bench.driver)
        .stage(Some("image"), &read_write)
        .unwrap();
    assert!(
        path_of(&*staged).starts_with(bench.driver.home()),
        "{}",
        path_of(&*staged).display()
    );
    staged.commit("staged", Some("image"), &read_write).unwrap();
    let in_images = |id: &str| {
        images
            .join(if bench.is_overlay() { "" } else { "dir" })
            .join(id)
            .exists()
    };
    assert!(in_images("image") && !in_images("container") && !in_images("staged"));
    assert_eq!(bench.seen("container"), pairs(&[("image", "")]));
    assert_eq!(bench.seen("image"), pairs(&[("image", "")]));
    bench.create("mapped", Some("image"));
    if privilege::is_root() {
        bench
            .driver
            .update_id_map("mapped", &IdMappings::default(), &maps(100, 100), "")
            .unwrap();
        let root = bench.mount("mapped", &["ro"]);
        assert_eq!(owner(&root.join("image")), (100, 100));
        bench.driver.unmount("mapped").unwrap();
    }
    drop(bench.driver.defer_remove("image").unwrap().unwrap());
    assert!(!bench.driver.exists("image"));
    if bench.is_overlay() {
        assert_eq!(
            fs::read_dir(images.join("l")).unwrap().count(),
            1,
            "the link ID is gone too"
        );
    }
    assert_eq!(bench.temp_dirs().len(), 3);
    bench.nothing_temporary();
}

//! Stores that consist of several roots; these cases make their own setups.

use super::*;

pub(super) fn additional_stores_are_read(variant: Variant) {
    // As in Go, there are none: a dataset has the layers of one graph root.
    if variant.driver == "zfs" {
        return;
    }
    let mut other = None;
    let setup = Setup::new(variant, |config, tmp| {
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
    let (Some(setup), Some(other)) = (setup, other) else {
        return;
    };
    assert_eq!(
        setup.driver.additional_image_stores(),
        std::slice::from_ref(&other)
    );
    assert!(setup.driver.exists("image").unwrap());
    assert_eq!(setup.driver.list_layers().unwrap(), [""; 0]);
    setup.create("container", Some("image"));
    let root = setup.mount("container", &[]);
    write(&root, "new", "");
    assert_eq!(listing(&root).len(), 3);
    setup.driver.unmount("container").unwrap();
    let root = setup.mount("image", &[]);
    assert_eq!(listing(&root).len(), 2);
    if setup.is_overlay() {
        assert!(root.starts_with(&setup.config.run_root), "{}", root.display());
        assert!(
            fs::write(root.join("x"), "").is_err(),
            "there is no lock for writing there"
        );
        assert!(
            setup.driver.metadata("container").unwrap()["LowerDir"]
                .contains("/additional/overlay/image/diff:")
        );
        setup.driver.unmount("image").unwrap();
        assert!(!setup.config.run_root.join("overlay/image").exists());
    }
    // A layer of the same ID is made in the home, also if another store has one.
    setup.layer("image", None, |tree| write(tree, "own", ""));
    assert_eq!(setup.seen("image"), pairs(&[("own", "")]));
    drop(setup.driver.defer_remove("image").unwrap().unwrap());
    assert_eq!(setup.seen("image").len(), 2);
    assert!(
        setup.driver.defer_remove("image").unwrap().is_none(),
        "not ours to remove"
    );
    assert!(setup.driver.exists("image").unwrap());
}

pub(super) fn images_can_lie_in_a_store_of_their_own(variant: Variant) {
    let setup = Setup::new(variant, |config, tmp| {
        config.image_store = Some(tmp.join("images"));
    });
    let Some(setup) = setup else { return };
    // As in Go, subvolumes and datasets are in one place, whatever has their records.
    let is_apart = !matches!(variant.driver, "btrfs" | "zfs" | TREE);
    let images = match is_apart {
        true => setup.config.image_store.clone().unwrap().join(variant.driver),
        false => setup.driver.home().to_owned(),
    };
    let read_write = CreateOptions {
        read_write: true,
        ..CreateOptions::default()
    };
    setup.layer("image", None, |tree| {
        assert!(tree.starts_with(&images), "{}", tree.display());
        write(tree, "image", "");
    });
    setup
        .driver
        .create("container", Some("image"), &read_write)
        .unwrap();
    let staged = Arc::clone(&setup.driver)
        .stage(Some("image"), &read_write)
        .unwrap();
    assert!(
        path_of(&*staged).starts_with(setup.driver.home()),
        "{}",
        path_of(&*staged).display()
    );
    staged.commit("staged", Some("image"), &read_write).unwrap();
    let in_images = |id: &str| {
        images
            .join(if setup.is_overlay() { "" } else { "dir" })
            .join(id)
            .exists()
    };
    if is_apart {
        assert!(in_images("image") && !in_images("container") && !in_images("staged"));
    } else {
        assert!(
            !setup
                .config
                .image_store
                .clone()
                .unwrap()
                .join(variant.driver)
                .exists()
        );
    }
    assert_eq!(setup.seen("container"), pairs(&[("image", "")]));
    assert_eq!(setup.seen("image"), pairs(&[("image", "")]));
    if !privilege::is_root() {
        setup.create("mapped", Some("image"));
    } else {
        let mapped = CreateOptions {
            mappings: maps(100, 100),
            parent_mappings: Some(IdMappings::default()),
            ..CreateOptions::default()
        };
        setup.driver.create("mapped", Some("image"), &mapped).unwrap();
        let root = setup.mount("mapped", &["ro"]);
        assert_eq!(owner(&root.join("image")), (100, 100));
        setup.driver.unmount("mapped").unwrap();
    }
    drop(setup.driver.defer_remove("image").unwrap().unwrap());
    assert!(!setup.driver.exists("image").unwrap());
    if setup.is_overlay() {
        assert_eq!(
            fs::read_dir(images.join("l")).unwrap().count(),
            1,
            "the link ID is gone too"
        );
    }
    assert_eq!(setup.temp_dirs().len(), 3);
    setup.nothing_temporary();
}

use std::time::{Duration, UNIX_EPOCH};

use graphroot::{Digest, ErrorKind, Flag, ImageOptions};

use crate::support::kind;

each_driver! {
    async fn an_image_is_created_found_and_listed(store) {
        let layer = store.put(None, "base", &[("file", "1")]).await;
        let mut options = ImageOptions::default().id("an-image").name("one").name("one").name("two");
        options.metadata = "meta".into();
        options.creation_date = Some(UNIX_EPOCH + Duration::new(1_600_000_000, 123_000_000));
        options.flags.insert("list".into(), Flag::from(vec!["a".to_owned()]));
        options = options.big_data("manifest", "{}").big_data("sha256:config", "config");
        let image = store.create_image(Some("base"), options).await.unwrap();
        assert_eq!(image.names(), ["one", "two"]);
        let again = store.reopen().await.image("two").await.unwrap();
        assert_eq!((again.id(), again.top_layer(), again.metadata()), ("an-image", Some(layer.id()), "meta"));
        assert_eq!(again.created(), UNIX_EPOCH + Duration::new(1_600_000_000, 123_000_000));
        assert_eq!(again.digest(), Some(Digest::sha256("{}")));
        assert_eq!(again.big_data_size("sha256:config"), Some(6));
        assert_eq!(again.big_data_digest("sha256:config"), Some(Digest::sha256("config")));
        assert_eq!(again.flags().get("list"), Some(&Flag::List(vec!["a".into()])));
        assert_eq!(store.images_by_digest(&Digest::sha256("{}")).await.unwrap().len(), 1);
        assert_eq!(store.images_by_digest(&Digest::sha256("config")).await.unwrap().len(), 0);
        assert_eq!(store.images_by_top_layer("base").await.unwrap().len(), 1);
        assert_eq!(kind(store.images_by_top_layer("nobody").await), ErrorKind::LayerUnknown);
        assert_eq!(store.own_images().await.len(), 1);
        assert_eq!(kind(store.image("nobody").await), ErrorKind::ImageUnknown);
    }

    async fn what_cannot_be_is_refused(store) {
        store.create_image(None, ImageOptions::default().id("i").name("n")).await.unwrap();
        let create = |options| store.create_image(None, options);
        assert_eq!(kind(create(ImageOptions::default().id("i")).await), ErrorKind::DuplicateId);
        assert_eq!(kind(create(ImageOptions::default().name("n")).await), ErrorKind::DuplicateName);
        assert_eq!(kind(create(ImageOptions::default().big_data("", "x")).await), ErrorKind::InvalidBigDataName);
        assert_eq!(kind(create(ImageOptions::default().id("../x")).await), ErrorKind::UnsafePath);
        assert_eq!(kind(store.create_image(Some("nobody"), ImageOptions::default()).await), ErrorKind::LayerUnknown);
        assert_eq!(store.own_images().await.len(), 1);
    }

    async fn directories_are_made_for_what_exists(store) {
        store.create_image(None, ImageOptions::default().id("i").name("n")).await.unwrap();
        for dir in [store.image_directory("n").await.unwrap(), store.image_run_directory("n").await.unwrap()] {
            assert!(dir.is_dir() && dir.ends_with("i/userdata"), "{}", dir.display());
        }
        assert_eq!(kind(store.image_directory("nobody").await), ErrorKind::ImageUnknown);
        store.delete_image("i").await.unwrap();
        assert!(!store.records("images").join("i").exists());
    }
}

use graphroot::{ContainerOptions, ErrorKind, ImageOptions};

use crate::support::kind;

each_driver! {
    async fn names_are_set_added_removed_and_stolen(store) {
        let a = store.put(None, "a-name", &[("f", "1")]).await.id().to_owned();
        let b = store.put(None, "b-name", &[("f", "2")]).await.id().to_owned();
        store.set_names(&a, ["x", "y", "x"]).await.unwrap();
        assert_eq!(store.names(&a).await.unwrap(), ["x", "y"]);
        store.add_names(&a, ["z"]).await.unwrap();
        assert_eq!(store.names(&a).await.unwrap(), ["z", "x", "y"]);
        store.remove_names(&a, ["x", "nobody"]).await.unwrap();
        assert_eq!(store.names(&a).await.unwrap(), ["z", "y"]);
        store.add_names(&b, ["z"]).await.unwrap();
        assert_eq!(store.names(&b).await.unwrap(), ["z", "b-name"]);
        assert_eq!(store.reopen().await.names(&a).await.unwrap(), ["y"]);
        assert_eq!(store.lookup("z").await.unwrap(), b);
    }

    async fn every_kind_has_names_of_its_own(store) {
        let layer = store.put(None, "shared", &[("f", "1")]).await.id().to_owned();
        let image = store.create_image(Some(&layer), ImageOptions::default().name("shared")).await.unwrap();
        let container = store.create_container(None, ContainerOptions::default().name("shared")).await.unwrap();
        for id in [image.id(), container.id()] {
            store.set_names(id, ["new", "other"]).await.unwrap();
            assert_eq!(store.names(id).await.unwrap(), ["new", "other"]);
        }
        assert_eq!(store.lookup("shared").await.unwrap(), layer);
        assert_eq!(store.lookup("new").await.unwrap(), image.id());
        store.add_names(image.id(), ["third"]).await.unwrap();
        assert_eq!(store.image(image.id()).await.unwrap().names_history(), ["other", "new", "third"]);
        for result in [store.names("nobody").await.map(drop), store.set_names("nobody", ["n"]).await] {
            assert_eq!(kind(result), ErrorKind::LayerUnknown);
        }
    }
}

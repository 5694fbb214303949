//! Exact lookups beside those that also take the beginning of an ID; queries by digest.

use graphroot::{ContainerOptions, Digest, ErrorKind, ImageOptions, LayerOptions};

use crate::support::{Layout, TestStore, kind};

each_driver! {
    async fn an_exact_lookup_finds_what_is_named_or_nothing(store) {
        let [layer, image, container, own] = ["a", "b", "c", "d"].map(|letter| letter.repeat(64));
        store.create_layer(None, LayerOptions::default().id(&layer).name("the-layer")).await.unwrap();
        store.create_image(Some(&layer), ImageOptions::default().id(&image).name("the-image")).await.unwrap();
        let options = ContainerOptions::default().id(&container).name("the-container").layer_id(&own);
        store.create_container(Some(&image), options).await.unwrap();

        assert_eq!(store.layer_by_id(&layer).await.unwrap().unwrap().names(), ["the-layer"]);
        assert_eq!(store.layer_by_name("the-layer").await.unwrap().unwrap().id(), layer);
        assert_eq!(store.image_by_id(&image).await.unwrap().unwrap().names(), ["the-image"]);
        assert_eq!(store.image_by_name("the-image").await.unwrap().unwrap().id(), image);
        assert_eq!(store.container_by_id(&container).await.unwrap().unwrap().names(), ["the-container"]);
        assert_eq!(store.container_by_name("the-container").await.unwrap().unwrap().id(), container);

        // What people may type finds them, but is neither an ID nor a name.
        assert_eq!(store.layer(&layer[..7]).await.unwrap().id(), layer);
        assert_eq!(store.image(&image[..7]).await.unwrap().id(), image);
        assert_eq!(store.container(&container[..7]).await.unwrap().id(), container);
        assert_eq!(store.container(&own).await.unwrap().id(), container);
        for id in ["", &layer[..7], &layer[..63], "the-layer", &image, "nobody"] {
            assert!(store.layer_by_id(id).await.unwrap().is_none(), "{id}");
        }
        for name in ["", "the-laye", &layer, "the-image", "nobody"] {
            assert!(store.layer_by_name(name).await.unwrap().is_none(), "{name}");
        }
        for id in ["", &image[..7], &image[..63], "the-image", &layer, "nobody"] {
            assert!(store.image_by_id(id).await.unwrap().is_none(), "{id}");
        }
        for name in ["", "the-imag", "the-image:latest", &image, "nobody"] {
            assert!(store.image_by_name(name).await.unwrap().is_none(), "{name}");
        }
        for id in ["", &container[..7], &own, "the-container", "nobody"] {
            assert!(store.container_by_id(id).await.unwrap().is_none(), "{id}");
        }
        for name in ["", "the-containe", &container, &own, "nobody"] {
            assert!(store.container_by_name(name).await.unwrap().is_none(), "{name}");
        }
        store.delete_container(&container).await.unwrap();
        assert!(store.container_by_id(&container).await.unwrap().is_none());
    }

    async fn a_name_that_is_the_id_of_another_is_only_a_name(store) {
        let one = "1".repeat(64);
        store.create_layer(None, LayerOptions::default().id(&one)).await.unwrap();
        let two = store.create_layer(None, LayerOptions::default().name(&one)).await.unwrap();
        assert_eq!(store.layer_by_id(&one).await.unwrap().unwrap().id(), one);
        assert_eq!(store.layer_by_name(&one).await.unwrap().unwrap().id(), two.id());
    }

    async fn a_digest_that_nothing_has_is_an_empty_list(store) {
        let nobody = Digest::sha256("nobody");
        assert!(store.layers_by_compressed_digest(&nobody).await.unwrap().is_empty());
        assert!(store.layers_by_uncompressed_digest(&nobody).await.unwrap().is_empty());
        assert!(store.layers_by_toc_digest(&nobody).await.unwrap().is_empty());
        assert!(store.images_by_digest(&nobody).await.unwrap().is_empty());
        assert_eq!(kind(store.images_by_top_layer("nobody").await), ErrorKind::LayerUnknown);
    }
}

#[tokio::test]
async fn exact_lookups_search_additional_stores() {
    let Some(store) = TestStore::open("vfs", Layout::Additional).await else {
        return;
    };
    let layer = store.layer_by_name("additional-layer").await.unwrap().unwrap();
    assert!(layer.read_only());
    assert_eq!(
        store.layer_by_id(layer.id()).await.unwrap().unwrap().names(),
        ["additional-layer"]
    );
    let image = store.image_by_name("additional-image").await.unwrap().unwrap();
    assert!(image.read_only());
    assert!(store.image_by_id(image.id()).await.unwrap().unwrap().read_only());

    // Changing its names copies the record here; the original keeps a name that is not found any more.
    store.set_names(image.id(), ["here"]).await.unwrap();
    assert!(!store.image_by_name("here").await.unwrap().unwrap().read_only());
    assert!(!store.image_by_id(image.id()).await.unwrap().unwrap().read_only());
    assert!(store.image_by_name("additional-image").await.unwrap().is_none());
}

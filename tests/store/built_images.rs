//! Images as a whole: built from layers, committed from containers, read as layers, manifest and config.

use std::time::{Duration, UNIX_EPOCH};

use graphroot::{
    CommitOptions, ContainerOptions, DiffOptions, Digest, ErrorKind, History, ImageBuilder, ImageOptions,
    LayerOptions, MountOptions,
};

use crate::support::{kind, read_all, tar, writable};

fn moment() -> std::time::SystemTime {
    UNIX_EPOCH + Duration::new(1_700_000_000, 5_000)
}

each_driver! {
    async fn an_image_is_built_from_layers_and_read_back(store) {
        let base = store.put(None, "base", &[("file", "1")]).await;
        let top = store.put(Some("base"), "top", &[("other", "2")]).await;
        let build = || ImageBuilder::new()
            .top_layer("top")
            .name("localhost/app:1")
            .platform("linux", "arm64", "v8")
            .env("A", "1").env("B", "2").env("A", "3")
            .entrypoint(["/bin/app"]).cmd(["--serve"])
            .user("1:2").working_dir("/srv").stop_signal("SIGINT")
            .label("k", "v").expose("80/tcp").volume("/data").author("somebody")
            .history(History::new("COPY base")).history(History::new("ENV").empty_layer())
            .created(moment())
            .build(&store);
        let image = build().await.unwrap();
        assert_eq!(image.names(), ["localhost/app:1"]);
        assert_eq!((image.created(), image.top_layer()), (moment(), Some(top.id())));
        let layers = store.image_layers("localhost/app:1").await.unwrap();
        assert_eq!(layers.iter().map(|layer| layer.id()).collect::<Vec<_>>(), [base.id(), top.id()]);

        let manifest = store.image_manifest(image.id()).await.unwrap();
        assert_eq!(manifest.digest, Digest::sha256(&manifest.bytes));
        assert_eq!(image.digest(), Some(manifest.digest.clone()));
        assert_eq!(manifest.media_type, "application/vnd.oci.image.manifest.v1+json");
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.uncompressed_digest().unwrap()).collect();
        assert_eq!(manifest.layers.iter().map(|blob| blob.digest.clone()).collect::<Vec<_>>(), diff_ids);
        assert_eq!(manifest.layers.iter().map(|blob| blob.size).collect::<Vec<_>>(), [2048; 2]);

        let config = store.image_config(image.id()).await.unwrap();
        assert_eq!((config.digest.encoded(), &config.digest), (image.id(), &manifest.config.digest));
        assert_eq!(config.diff_ids, diff_ids);
        assert_eq!((config.os.as_str(), config.architecture.as_str(), config.variant.as_str()), ("linux", "arm64", "v8"));
        assert_eq!(config.run.env, ["A=3", "B=2"]);
        assert_eq!(config.run.command(), ["/bin/app", "--serve"]);
        assert_eq!((config.run.user.as_str(), config.run.working_dir.as_str()), ("1:2", "/srv"));
        assert_eq!((config.author.as_str(), config.run.stop_signal.as_str()), ("somebody", "SIGINT"));
        assert!(config.run.exposed_ports.contains("80/tcp") && config.run.volumes.contains("/data"));
        assert_eq!(config.run.labels.get("k").map(String::as_str), Some("v"));
        let steps: Vec<_> = config.history.iter().map(|step| (step.created_by.as_str(), step.empty_layer)).collect();
        assert_eq!(steps, [("COPY base", false), ("ENV", true), ("", false)]);
        assert!(config.history.iter().all(|step| step.created == Some(moment())));

        // The same again is the same image.
        assert_eq!(build().await.unwrap().id(), image.id());
        assert_eq!(store.own_images().await.len(), 1);
    }

    async fn an_image_is_built_on_another(store) {
        store.put(None, "base", &[("file", "1")]).await;
        let base = ImageBuilder::new().top_layer("base").name("localhost/base:1").env("A", "1").cmd(["old"]);
        let base = base.build(&store).await.unwrap();
        // Another config only.
        let again = ImageBuilder::new().base("localhost/base:1").env("B", "2").build(&store).await.unwrap();
        assert_eq!((again.top_layer(), again.names().len()), (base.top_layer(), 0));
        let config = store.image_config(again.id()).await.unwrap();
        assert_eq!((config.run.env.join(" "), config.run.cmd.join(" ")), ("A=1 B=2".into(), "old".into()));
        assert_eq!(config.history.iter().map(|step| step.empty_layer).collect::<Vec<_>>(), [false, true]);
        // Another layer as well; the name moves.
        let top = store.put(Some("base"), "top", &[("other", "2")]).await;
        let onto = ImageBuilder::new().base(base.id()).top_layer("top").name("localhost/base:1").build(&store).await.unwrap();
        assert_eq!((onto.top_layer(), onto.names()), (Some(top.id()), &["localhost/base:1".to_owned()][..]));
        assert!(store.image(base.id()).await.unwrap().names().is_empty());
        assert_eq!(store.image_config(onto.id()).await.unwrap().history.len(), 2);

        store.put(None, "elsewhere", &[("x", "3")]).await;
        let before = store.own_images().await.len();
        let wrong = ImageBuilder::new().base(base.id()).top_layer("elsewhere");
        assert_eq!(kind(wrong.build(&store).await), ErrorKind::InvalidInput);
        let wrong = ImageBuilder::new().base(base.id()).history(History::new("a layer that is not there"));
        assert_eq!(kind(wrong.build(&store).await), ErrorKind::InvalidInput);
        assert_eq!(kind(ImageBuilder::new().base("nobody").build(&store).await), ErrorKind::ImageUnknown);
        assert_eq!(kind(ImageBuilder::new().top_layer("nobody").build(&store).await), ErrorKind::LayerUnknown);
        assert_eq!(store.own_images().await.len(), before);
    }

    async fn a_layer_of_an_image_has_an_id_that_follows_from_its_content(store) {
        let put = async |parent: Option<&str>, name| {
            store.put_image_layer(parent, std::io::Cursor::new(tar(&[(name, "1")]))).await
        };
        let lower = put(None, "a").await.unwrap();
        assert_eq!(lower.id(), lower.uncompressed_digest().unwrap().encoded());
        let upper = put(Some(&lower.id()[..12]), "b").await.unwrap();
        let chain = format!("{}+{}", lower.id(), upper.uncompressed_digest().unwrap().encoded());
        assert_eq!((upper.id(), upper.parent()), (Digest::sha256(chain).encoded(), Some(lower.id())));
        assert_eq!(put(None, "a").await.unwrap().id(), lower.id());
        assert_eq!(put(Some(lower.id()), "b").await.unwrap().id(), upper.id());
        assert_eq!(store.own_layers().await.len(), 2);
        assert_eq!(kind(put(Some("nobody"), "c").await), ErrorKind::LayerUnknown);
        // The ID is that of something else.
        store.delete_layer(upper.id()).await.unwrap();
        store.create_layer(None, LayerOptions::default().id(upper.id())).await.unwrap();
        assert_eq!(kind(put(Some(lower.id()), "b").await), ErrorKind::DuplicateId);
    }

    async fn a_container_is_committed(store) {
        store.put(None, "base", &[("file", "1"), ("gone", "2")]).await;
        let image = ImageBuilder::new().top_layer("base").name("localhost/base:1").env("A", "1").cmd(["run"]);
        let image = image.build(&store).await.unwrap();
        let container = store.create_container(Some(image.id()), ContainerOptions::default().name("c")).await.unwrap();
        let root = writable(store.mount("c", MountOptions::default()).await.unwrap());
        std::fs::write(root.join("new"), "3").unwrap();
        std::fs::remove_file(root.join("gone")).unwrap();
        store.unmount("c").await.unwrap();

        let options = || CommitOptions::new().name("localhost/app:1").created(moment()).env("B", "2").created_by("touch new");
        let committed = store.commit("c", options()).await.unwrap();
        let layers = store.image_layers("localhost/app:1").await.unwrap();
        assert_eq!(layers.len(), 2);
        assert_eq!((layers[0].id(), Some(layers[1].id())), (image.top_layer().unwrap(), committed.top_layer()));
        let diff_id = layers[1].uncompressed_digest().unwrap();
        let chain = format!("{}+{}", layers[0].id(), diff_id.encoded());
        assert_eq!(layers[1].id(), Digest::sha256(chain).encoded());
        let config = store.image_config(committed.id()).await.unwrap();
        assert_eq!((config.run.env.join(" "), config.run.cmd.join(" ")), ("A=1 B=2".into(), "run".into()));
        let last = config.history.last().unwrap();
        assert_eq!((last.created_by.as_str(), last.comment.as_str()), ("touch new", "FROM localhost/base:1"));

        let mounted = store.mount_image(committed.id(), MountOptions::default()).await.unwrap();
        assert_eq!(std::fs::read_to_string(mounted.join("new")).unwrap(), "3");
        assert_eq!(std::fs::read_to_string(mounted.join("file")).unwrap(), "1");
        assert!(!mounted.join("gone").exists());
        store.unmount_image(committed.id()).await.unwrap();

        // Again: the same image. With another command: the same layer.
        assert_eq!(store.commit(container.id(), options()).await.unwrap().id(), committed.id());
        let other = store.commit("c", CommitOptions::new().cmd(["other"])).await.unwrap();
        assert_eq!((other.top_layer(), other.id() == committed.id()), (committed.top_layer(), false));
        assert_eq!(kind(store.commit("nobody", CommitOptions::new()).await), ErrorKind::ContainerUnknown);
    }

    async fn a_container_without_an_image_is_committed_from_nothing(store) {
        store.create_container(None, ContainerOptions::default().name("c")).await.unwrap();
        let root = writable(store.mount("c", MountOptions::default()).await.unwrap());
        std::fs::write(root.join("only"), "1").unwrap();
        store.unmount("c").await.unwrap();
        let image = store.commit("c", CommitOptions::new()).await.unwrap();
        let layers = store.image_layers(image.id()).await.unwrap();
        assert_eq!((layers.len(), layers[0].parent()), (1, None));
        assert_eq!(layers[0].id(), layers[0].uncompressed_digest().unwrap().encoded());
        assert_eq!(store.image_config(image.id()).await.unwrap().os, "linux");
    }

    async fn a_commit_that_fails_leaves_nothing(store) {
        store.put(None, "base", &[("file", "1")]).await;
        let image = ImageBuilder::new().top_layer("base").build(&store).await.unwrap();
        store.create_container(Some(image.id()), ContainerOptions::default().name("c")).await.unwrap();
        // A config that the image's manifest does not name.
        let config = store.image_manifest(image.id()).await.unwrap().config.digest;
        store.set_image_big_data(image.id(), config.as_str(), "{}", None).await.unwrap();
        let (layers, images) = (store.own_layers().await.len(), store.own_images().await.len());
        assert_eq!(kind(store.commit("c", CommitOptions::new()).await), ErrorKind::DigestMismatch);
        assert_eq!((store.own_layers().await.len(), store.own_images().await.len()), (layers, images));
        assert_eq!(kind(store.image_config(image.id()).await), ErrorKind::DigestMismatch);
    }

    async fn a_name_that_image_programs_cannot_read_is_refused(store) {
        store.put(None, "base", &[("file", "1")]).await;
        let container = store.create_container(None, ContainerOptions::default()).await.unwrap();
        let layers = store.own_layers().await.len();
        for name in ["", "../app", "localhost/App:1", "<none>:<none>"] {
            let built = ImageBuilder::new().top_layer("base").name(name).build(&store).await;
            assert_eq!(kind(built), ErrorKind::InvalidInput, "{name:?}");
            let committed = store.commit(container.id(), CommitOptions::new().name(name)).await;
            assert_eq!(kind(committed), ErrorKind::InvalidInput, "{name:?}");
        }
        assert!(store.own_images().await.is_empty());
        assert_eq!(store.own_layers().await.len(), layers);
    }

    /// Another commit or pull may have found the layer meanwhile, and be about to make an image on it.
    async fn a_commit_whose_image_cannot_be_recorded_leaves_its_layer_to_others(store) {
        store.put(None, "base", &[("file", "1")]).await;
        let image = ImageBuilder::new().top_layer("base").build(&store).await.unwrap();
        store.create_container(Some(image.id()), ContainerOptions::default().name("c")).await.unwrap();
        let options = || CommitOptions::new().created(moment());
        let id = store.commit("c", options()).await.unwrap().id().to_owned();
        store.delete_image(&id).await.unwrap();
        // The ID that it will have is that of an image with other layers.
        store.create_image(None, ImageOptions::default().id(&id)).await.unwrap();
        let layers = store.own_layers().await.len();
        assert_eq!(kind(store.commit("c", options()).await), ErrorKind::DuplicateId);
        assert_eq!(store.own_layers().await.len(), layers + 1);
        assert!(store.image(&id).await.unwrap().big_data_names().is_empty());
        store.commit("c", CommitOptions::new().cmd(["other"])).await.unwrap();
        assert_eq!(store.own_layers().await.len(), layers + 1);
    }

    async fn an_image_says_what_the_store_can_give_of_it(store) {
        let plain = store.put(None, "base", &[("file", "1")]).await;
        let mut gzip = Vec::new();
        let compressed = DiffOptions::compressed(graphroot::Compression::Gzip);
        gzip.extend(read_all(store.diff(None, plain.id(), compressed).await.unwrap()).await);
        let blob = Digest::sha256(&gzip);
        let size = gzip.len();
        let layer = store.put_layer(None, LayerOptions::default(), std::io::Cursor::new(gzip)).await.unwrap().layer;
        let config = format!(r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#, layer.uncompressed_digest().unwrap());
        let config_digest = Digest::sha256(&config);
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{{"mediaType":"application/vnd.docker.container.image.v1+json","size":{},"digest":"{config_digest}"}},"layers":[{{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","size":{size},"digest":"{blob}"}}]}}"#,
            config.len()
        );
        let options = ImageOptions::default()
            .id(config_digest.encoded())
            .big_data("manifest", manifest.clone())
            .big_data(config_digest.as_str(), config);
        let image = store.create_image(Some(layer.id()), options).await.unwrap();
        let stored = store.image_manifest(image.id()).await.unwrap();
        assert_eq!((&stored.bytes[..], &stored.layers[0].digest), (manifest.as_bytes(), &blob));
        let given = store.image_manifest_uncompressed(image.id()).await.unwrap();
        assert_eq!((&given.config, &given.media_type), (&stored.config, &stored.media_type));
        let stream = store.diff(None, layer.id(), DiffOptions::uncompressed()).await.unwrap();
        let bytes = read_all(stream).await;
        assert_eq!((given.layers[0].digest.clone(), given.layers[0].size), (Digest::sha256(&bytes), bytes.len() as u64));
        assert_eq!(given.layers[0].media_type, "application/vnd.docker.image.rootfs.diff.tar");

        let bare = store.create_image(Some(layer.id()), ImageOptions::default()).await.unwrap();
        assert_eq!(kind(store.image_manifest(bare.id()).await), ErrorKind::NotFound);
        assert_eq!(kind(store.image_config(bare.id()).await), ErrorKind::NotFound);
        assert_eq!(store.image_layers(bare.id()).await.unwrap().len(), 1);
        assert_eq!(kind(store.image_layers("nobody").await), ErrorKind::ImageUnknown);
        let none = store.create_image(None, ImageOptions::default()).await.unwrap();
        assert!(store.image_layers(none.id()).await.unwrap().is_empty());
    }
}

use graphroot::test_util::{TarBuilder, TarEntry};
use graphroot::{DiffOptions, Digest, ErrorKind, Flag, LayerOptions};

use crate::support::{kind, read_all, tar};

each_driver! {
    async fn a_layer_is_created_found_and_listed(store) {
        let base = store.create_layer(None, LayerOptions::default().name("base").name("second")).await.unwrap();
        assert_eq!(base.id().len(), 64);
        assert_eq!(base.short_id(), &base.id()[..12]);
        assert_eq!(base.parent(), None);
        assert_eq!(base.names(), ["base", "second"]);
        let mut options = LayerOptions::default().id("my-own_ID");
        options.metadata = "meta".into();
        options.flags.insert("mine".into(), Flag::from(true));
        options = options.big_data("Key", "data");
        let child = store.create_layer(Some("base"), options).await.unwrap();
        assert_eq!((child.id(), child.short_id()), ("my-own_ID", "my-own_ID"));
        assert_eq!(child.parent(), Some(base.id()));
        for key in ["second", base.id(), &base.id()[..20]] {
            assert_eq!(store.layer(key).await.unwrap().id(), base.id(), "{key}");
            assert_eq!(store.lookup(key).await.unwrap(), base.id());
        }
        let again = store.reopen().await;
        let mut listed = again.layers().await.unwrap();
        listed.retain(|layer| !layer.read_only());
        assert_eq!(listed.iter().map(|layer| layer.id()).collect::<Vec<_>>(), [base.id(), "my-own_ID"]);
        let child = again.layer("my-own_ID").await.unwrap();
        assert_eq!((child.metadata(), child.flags().get("mine")), ("meta", Some(&Flag::Bool(true))));
        assert_eq!(child.big_data_names(), ["Key"]);
        assert!(!child.read_only() && child.mount_count() == 0 && child.mount_point().is_none());
        assert!(store.exists("my-own_ID").await.unwrap());
        assert!(!store.exists("nobody").await.unwrap());
    }

    async fn a_put_layer_records_what_came_in(store) {
        let plain = tar(&[("dir/", ""), ("dir/file", "content"), ("link", "-> dir/file")]);
        let gzip = compress(&plain);
        for (blob, is_plain) in [(&plain, true), (&gzip, false)] {
            let put = store.put_layer(None, LayerOptions::default(), std::io::Cursor::new(blob.clone())).await.unwrap();
            let layer = &put.layer;
            assert_eq!(layer.uncompressed_digest(), Some(Digest::sha256(&plain)));
            assert_eq!(layer.uncompressed_size(), Some(plain.len() as u64));
            assert_eq!(layer.compressed_digest(), Some(Digest::sha256(blob)));
            assert_eq!(layer.compressed_size(), Some(blob.len() as u64));
            assert_eq!(layer.compression() == graphroot::Compression::None, is_plain);
            assert_eq!((layer.uids(), layer.gids()), (&[0][..], &[0][..]));
        }
        let digest = Digest::sha256(&plain);
        assert_eq!(store.layers_by_uncompressed_digest(&digest).await.unwrap().len(), 2);
        assert_eq!(store.layers_by_compressed_digest(&digest).await.unwrap().len(), 1);
        assert!(store.layers_by_toc_digest(&digest).await.unwrap().is_empty());
        assert!(store.layers_by_compressed_digest(&Digest::sha256("other")).await.unwrap().is_empty());
    }

    /// As `/etc/shadow` of some distributions; whoever is no root is bound by such modes.
    async fn what_its_owner_may_not_read_is_exported_and_copied(store) {
        let base = TarBuilder::new()
            .entry(TarEntry::dir("./").mode(0o755))
            .entry(TarEntry::file("shadow", "secret").mode(0))
            .entry(TarEntry::file("run", "#!").mode(0o4111).xattr("user.note", "1"))
            .entry(TarEntry::file("read", "only").mode(0o444).xattr("user.note", "1"))
            .entry(TarEntry::dir("closed").mode(0o300).xattr("user.note", "1"))
            .entry(TarEntry::file("closed/f", "inside"))
            .entry(TarEntry::dir("none").mode(0))
            .build();
        let base_layer = store.put_layer(None, LayerOptions::default(), base.as_slice()).await.unwrap().layer;
        let top = TarBuilder::new().file("new", "1").whiteout("closed/f").build();
        let layer = store.put_layer(Some(base_layer.id()), LayerOptions::default(), top.as_slice()).await.unwrap().layer;
        for (id, expected) in [(base_layer.id(), &base), (layer.id(), &top)] {
            let diff = store.diff(None, id, DiffOptions::uncompressed()).await.unwrap();
            assert_eq!(&read_all(diff).await, expected);
            store.changes(None, id).await.unwrap();
            store.diff_size(None, id).await.unwrap();
        }
        let image = store.create_image(Some(layer.id()), Default::default()).await.unwrap();
        let container = store.create_container(Some(image.id()), Default::default()).await.unwrap();
        let root = store.mount_guard(container.id(), Default::default()).await.unwrap();
        assert_eq!(std::fs::read_to_string(root.join("shadow")).unwrap(), "secret");
        std::fs::write(root.join("other"), "").unwrap();
        root.unmount().await.unwrap();
        let diff = store.diff(None, container.layer_id(), DiffOptions::uncompressed()).await.unwrap();
        assert!(!read_all(diff).await.is_empty());
    }

    /// The digests and sizes are those that containers-storage records for an empty file.
    async fn an_empty_stream_is_a_layer_without_content(store) {
        let nothing = Digest::sha256("");
        let put = store.put_layer(None, LayerOptions::default(), std::io::Cursor::new(Vec::new())).await.unwrap();
        assert_eq!((put.size, put.layer.uncompressed_size(), put.layer.compressed_size()), (0, Some(0), Some(0)));
        assert_eq!(put.layer.uncompressed_digest(), Some(nothing.clone()));
        assert_eq!(put.layer.compressed_digest(), Some(nothing.clone()));
        let diff = store.diff(None, put.layer.id(), graphroot::DiffOptions::default()).await.unwrap();
        assert_eq!(crate::support::read_all(diff).await, b"");
        let verified = LayerOptions::default().verify_original_digest(Digest::sha256("something"));
        assert_eq!(kind(store.put_layer(None, verified, std::io::Cursor::new(Vec::new())).await), ErrorKind::DigestMismatch);
        let one = store.put_layer(None, LayerOptions::default(), std::io::Cursor::new(b"x".to_vec())).await;
        assert_eq!(kind(one), ErrorKind::InvalidArchive);
        let applied = store.create_layer(None, LayerOptions::default()).await.unwrap();
        assert_eq!(store.apply_diff(applied.id(), std::io::Cursor::new(Vec::new())).await.unwrap(), 0);
        assert_eq!(store.layer(applied.id()).await.unwrap().uncompressed_digest(), Some(nothing));
    }

    /// The streams of `pzstd` begin with a frame that tells a size and has no content.
    async fn a_stream_of_pzstd_is_zstd(store) {
        let plain = tar(&[("file", &"content".repeat(10_000))]);
        let file = store.path().join("stream");
        std::fs::write(&file, &plain).unwrap();
        let Ok(made) = std::process::Command::new("pzstd").args(["-q", "-c", "-p", "2"]).arg(&file).output() else {
            return crate::support::skip("pzstd is not installed");
        };
        assert!(made.stdout.starts_with(b"\x50\x2a\x4d\x18"), "{made:?}");
        let put = store.put_layer(None, LayerOptions::default(), std::io::Cursor::new(made.stdout)).await.unwrap();
        assert_eq!(put.layer.compression(), graphroot::Compression::Zstd);
        assert_eq!(put.layer.uncompressed_digest(), Some(Digest::sha256(&plain)));
        assert_eq!(put.size, 70_000);
    }

    async fn a_refused_stream_leaves_nothing(store) {
        let good = tar(&[("file", "content")]);
        let mut cut = good.clone();
        cut.truncate(515);
        for bad in [cut, vec![7; 2048]] {
            let options = LayerOptions::default().name("bad");
            assert_eq!(kind(store.put_layer(None, options, std::io::Cursor::new(bad)).await), ErrorKind::InvalidArchive);
        }
        let wrong = LayerOptions::default().verify_uncompressed_digest(Digest::sha256("something else"));
        let refused = [
            store.put_layer(None, wrong.clone(), std::io::Cursor::new(good.clone())).await.unwrap_err(),
            store.put_image_layer_with(None, wrong, std::io::Cursor::new(good.clone())).await.unwrap_err(),
        ];
        for error in refused {
            assert_eq!(error.kind(), ErrorKind::DigestMismatch);
            for digest in [Digest::sha256("something else"), Digest::sha256(&good)] {
                assert!(error.chain().contains(digest.as_str()), "{error:?}");
            }
        }
        let packed = compress(&good);
        // The digest of the tar is not that of the blob.
        let blob = || LayerOptions::default().verify_original_digest(Digest::sha256(&good));
        let error = store.put_image_layer_with(None, blob(), std::io::Cursor::new(packed.clone())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DigestMismatch);
        assert!(error.chain().contains(Digest::sha256(&packed).as_str()), "{error:?}");
        let both = blob().verify_uncompressed_digest(Digest::sha256("something else"));
        assert_eq!(kind(store.put_image_layer_with(None, both, std::io::Cursor::new(good.clone())).await), ErrorKind::DigestMismatch);
        let named = LayerOptions::default().id("mine");
        assert_eq!(kind(store.put_image_layer_with(None, named, std::io::Cursor::new(good.clone())).await), ErrorKind::InvalidInput);
        let failing = tokio::io::AsyncReadExt::chain(std::io::Cursor::new(good[..600].to_vec()), Failing);
        assert_eq!(kind(store.put_layer(None, LayerOptions::default(), failing).await), ErrorKind::Io);
        assert!(store.own_layers().await.is_empty());
        assert!(!store.exists("bad").await.unwrap());
        let tmp = store.records("layers").join("tmp");
        assert_eq!(std::fs::read_dir(tmp).map_or(0, Iterator::count), 0);
        let right = LayerOptions::default().verify_original_digest(Digest::sha256(&packed)).verify_uncompressed_digest(Digest::sha256(&good));
        let layer = store.put_image_layer_with(None, right.clone().name("image-layer"), std::io::Cursor::new(packed.clone())).await.unwrap();
        assert_eq!(layer.names(), ["image-layer"]);
        // It is there already; what is sent for it is verified all the same.
        let again = store.put_image_layer_with(None, right, std::io::Cursor::new(packed.clone())).await.unwrap();
        assert_eq!(again.id(), layer.id());
        let wrong = LayerOptions::default().verify_original_digest(Digest::sha256("something else"));
        assert_eq!(kind(store.put_image_layer_with(None, wrong, std::io::Cursor::new(packed)).await), ErrorKind::DigestMismatch);
        let right = LayerOptions::default().verify_uncompressed_digest(Digest::sha256(&good));
        store.put_layer(None, right, std::io::Cursor::new(good)).await.unwrap();
    }

    async fn ids_names_and_parents_are_checked(store) {
        let base = store.put(None, "base", &[("file", "1")]).await;
        let create = |options| store.create_layer(None, options);
        assert_eq!(kind(create(LayerOptions::default().id(base.id())).await), ErrorKind::DuplicateId);
        assert_eq!(kind(create(LayerOptions::default().name("base")).await), ErrorKind::DuplicateName);
        // With overlay three more are directories beside the layers.
        let overlay = store.graph_driver_name() == "overlay";
        let beside: &[&str] = if overlay { &["l", "staging", "tempdirs"] } else { &[] };
        for bad in ["..", ".", "a/b", "tmp", "a\0b"].iter().chain(beside) {
            assert_eq!(kind(create(LayerOptions::default().id(*bad)).await), ErrorKind::UnsafePath, "{bad:?}");
        }
        if beside.is_empty() {
            assert_eq!(create(LayerOptions::default().id("l")).await.unwrap().id(), "l");
            store.delete_layer("l").await.unwrap();
        }
        assert_eq!(kind(store.create_layer(Some("nobody"), LayerOptions::default()).await), ErrorKind::LayerUnknown);
        let image = store.create_image(Some("base"), Default::default()).await.unwrap();
        let container = store.create_container(Some(image.id()), Default::default()).await.unwrap();
        let on_container = store.create_layer(Some(container.layer_id()), LayerOptions::default()).await;
        assert_eq!(kind(on_container), ErrorKind::ParentIsContainer);
        let again = LayerOptions::default().id(base.id());
        assert_eq!(kind(store.put_layer(None, again, std::io::Cursor::new(tar(&[]))).await), ErrorKind::DuplicateId);
    }

    async fn several_layers_are_stacked_in_order(store) {
        let mut inputs: Vec<(LayerOptions, graphroot::BoxReader)> = Vec::new();
        for index in 0..5 {
            let tar = tar(&[("shared", &format!("version {index}")), (&format!("own-{index}"), "x")]);
            inputs.push((LayerOptions::default().name(format!("layer-{index}")), Box::pin(std::io::Cursor::new(tar))));
        }
        let put = store.put_layers(None, inputs).await.unwrap();
        for (index, pair) in put.windows(2).enumerate() {
            assert_eq!(pair[1].layer.parent(), Some(pair[0].layer.id()), "{index}");
        }
        let top = store.create_layer(Some("layer-4"), LayerOptions::default().writeable(true)).await.unwrap();
        let mounted = store.mount(top.id(), Default::default()).await.unwrap();
        assert_eq!(std::fs::read_to_string(mounted.join("shared")).unwrap(), "version 4");
        for index in 0..5 {
            assert!(mounted.join(format!("own-{index}")).exists());
        }
        store.unmount(top.id()).await.unwrap();
    }

    async fn metadata_is_kept_for_every_kind(store) {
        let layer = store.put(None, "base", &[("f", "1")]).await;
        let image = store.create_image(Some("base"), Default::default()).await.unwrap();
        let container = store.create_container(Some(image.id()), Default::default()).await.unwrap();
        for id in [layer.id(), image.id(), container.id()] {
            assert_eq!(store.metadata(id).await.unwrap(), "");
            store.set_metadata(id, format!("<{id}> & \"more\"\n")).await.unwrap();
        }
        let again = store.reopen().await;
        for id in [layer.id(), image.id(), container.id()] {
            assert_eq!(again.metadata(id).await.unwrap(), format!("<{id}> & \"more\"\n"));
        }
        assert_eq!(kind(store.metadata("nobody").await), ErrorKind::NotAnId);
        assert_eq!(kind(store.set_metadata("nobody", "x").await), ErrorKind::NotAnId);
    }

    async fn a_template_gives_its_content(store) {
        let base = store.put(None, "base", &[("file", "1")]).await;
        let mut options = LayerOptions::default().name("copy");
        options.template = Some(base.id().into());
        let copy = store.create_layer(None, options).await.unwrap();
        assert_eq!(copy.uncompressed_digest(), base.uncompressed_digest());
        let mounted = store.mount("copy", Default::default()).await.unwrap();
        assert_eq!(std::fs::read_to_string(mounted.join("file")).unwrap(), "1");
        store.unmount("copy").await.unwrap();
        let diff = store.diff(None, "copy", graphroot::DiffOptions::uncompressed()).await.unwrap();
        assert_eq!(Some(Digest::sha256(crate::support::read_all(diff).await)), base.uncompressed_digest());
    }
}

fn compress(plain: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// A reader that fails at once.
struct Failing;

impl tokio::io::AsyncRead for Failing {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
        _buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)))
    }
}

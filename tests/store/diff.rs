use graphroot::{
    ChangeKind, Compression, ContainerOptions, DiffOptions, Digest, ErrorKind, ImageOptions, LayerOptions,
};

use futures::TryStreamExt as _;

use crate::support::{kind, read_all, tar};

/// The first bytes of a stream, and then its chunks.
async fn read_half(stream: &mut graphroot::DiffStream, first: usize) -> (Vec<u8>, Vec<u8>) {
    let mut start = vec![0; first];
    tokio::io::AsyncReadExt::read_exact(stream, &mut start)
        .await
        .unwrap();
    (start, stream.try_collect::<Vec<_>>().await.unwrap().concat())
}

each_driver! {
    async fn what_is_left_of_a_deleted_layer_is_no_diff_of_it(store) {
        let options = || ContainerOptions::default().name("box");
        for chunks in [false, true] {
            let container = store.create_container(None, options()).await.unwrap();
            let mounted = crate::support::writable(store.mount("box", Default::default()).await.unwrap());
            std::fs::write(mounted.join("file"), "content").unwrap();
            store.unmount("box").await.unwrap();
            let diff = store.diff(None, container.layer_id(), DiffOptions::uncompressed()).await.unwrap();
            store.delete_container("box").await.unwrap();
            let mut diff = std::pin::pin!(diff);
            let error = match chunks {
                true => diff.try_collect::<Vec<_>>().await.map(drop).unwrap_err(),
                false => tokio::io::AsyncReadExt::read_to_end(&mut diff, &mut Vec::new()).await.map(drop).unwrap_err(),
            };
            let error = graphroot::Error::try_from_io(error).unwrap();
            assert_eq!(error.kind(), ErrorKind::LayerUnknown);
        }
    }

    async fn a_layer_comes_out_as_it_came_in(store) {
        let mut plain = tar(&[("d/", ""), ("d/f", "content"), ("d/l", "-> f"), ("empty", "")]);
        plain.extend_from_slice(&[0; 4096]);
        let layer = store.put_layer(None, LayerOptions::default(), std::io::Cursor::new(plain.clone())).await.unwrap().layer;
        let diff = store.diff(None, layer.id(), DiffOptions::uncompressed()).await.unwrap();
        assert_eq!(read_all(diff).await, plain);
        let ways = [
            (Compression::Gzip, Compression::Gzip),
            (Compression::Zstd, Compression::Zstd),
            (Compression::ZstdChunked, Compression::Zstd),
        ];
        for (wanted, compression) in ways {
            let mut diff = store.diff(None, layer.id(), DiffOptions::compressed(wanted).level(1)).await.unwrap();
            assert_eq!(diff.compression(), wanted);
            let mut blob = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut diff, &mut blob).await.unwrap();
            assert_eq!(diff.annotations().len(), if wanted == compression { 0 } else { 3 });
            let again = store.put_layer(None, LayerOptions::default(), std::io::Cursor::new(blob)).await.unwrap().layer;
            assert_eq!(again.uncompressed_digest(), layer.uncompressed_digest());
            assert_eq!(again.compression(), compression);
            let own = store.diff(None, again.id(), DiffOptions::default()).await.unwrap();
            assert_eq!(own.compression(), compression);
        }
        let bzip2 = store.diff(None, layer.id(), DiffOptions::compressed(Compression::Bzip2)).await.unwrap_err();
        assert_eq!(bzip2.kind(), ErrorKind::NotSupported);
        let advice = "making a diff with bzip2; DiffOptions can ask for gzip, zstd, zstd:chunked or none: ";
        assert_eq!(bzip2.chain(), format!("{advice}unsupported compression format tar.bz2"));
        for (compression, level) in [(Compression::Gzip, 10), (Compression::Zstd, 0), (Compression::ZstdChunked, 23)] {
            let options = DiffOptions::compressed(compression).level(level);
            assert_eq!(kind(store.diff(None, layer.id(), options).await), ErrorKind::InvalidInput);
        }
        assert_eq!(kind(store.diff(None, "nobody", DiffOptions::default()).await), ErrorKind::LayerUnknown);
    }

    async fn a_layer_without_a_parent_has_nothing_to_fall_back_on(store) {
        store.put(None, "base", &[("file", "1")]).await;
        let unknown = Some("nobody");
        assert_eq!(kind(store.changes(unknown, "base").await), ErrorKind::LayerUnknown);
        assert_eq!(kind(store.diff_size(unknown, "base").await), ErrorKind::LayerUnknown);
        assert_eq!(kind(store.diff(unknown, "base", DiffOptions::default()).await), ErrorKind::LayerUnknown);
        // "Nothing" is still a reference.
        assert_eq!(store.changes(Some(""), "base").await.unwrap().len(), 1);
    }

    async fn changes_are_told_and_exported(store) {
        store.put(None, "base", &[("keep", "1"), ("change", "1"), ("gone", "1"), ("d/", ""), ("d/inner", "1")]).await;
        store.create_image(Some("base"), ImageOptions::default().name("image")).await.unwrap();
        let container = store.create_container(Some("image"), ContainerOptions::default()).await.unwrap();
        let path = crate::support::writable(store.mount(container.id(), Default::default()).await.unwrap());
        std::fs::write(path.join("change"), "longer than before").unwrap();
        std::fs::remove_file(path.join("gone")).unwrap();
        std::fs::write(path.join("new"), "new").unwrap();
        std::fs::remove_dir_all(path.join("d")).unwrap();
        let layer = container.layer_id();
        let changes = store.changes(None, layer).await.unwrap();
        let told: Vec<(String, ChangeKind)> =
            changes.iter().map(|change| (change.path.display().to_string(), change.kind)).collect();
        let expected = [
            ("/change", ChangeKind::Modify),
            ("/d", ChangeKind::Delete),
            ("/gone", ChangeKind::Delete),
            ("/new", ChangeKind::Add),
        ];
        assert_eq!(told, expected.map(|(path, kind)| (path.to_owned(), kind)));
        assert_eq!(store.diff_size(None, layer).await.unwrap(), 18 + 3);
        // The exported diff put on the same base gives the same tree.
        let diff = read_all(store.diff(None, layer, DiffOptions::uncompressed()).await.unwrap()).await;
        let second = read_all(store.diff(None, layer, DiffOptions::uncompressed()).await.unwrap()).await;
        assert_eq!(Digest::sha256(&diff), Digest::sha256(&second));
        store.unmount(container.id()).await.unwrap();
        let options = LayerOptions::default().name("again");
        store.put_layer(Some("base"), options, std::io::Cursor::new(diff)).await.unwrap();
        let path = store.mount("again", Default::default()).await.unwrap();
        assert_eq!(std::fs::read_to_string(path.join("change")).unwrap(), "longer than before");
        assert_eq!(std::fs::read_to_string(path.join("keep")).unwrap(), "1");
        assert!(path.join("new").exists() && !path.join("gone").exists() && !path.join("d").exists());
        store.unmount("again").await.unwrap();
    }

    async fn layers_that_are_not_neighbours_are_compared(store) {
        store.put(None, "one", &[("a", "1"), ("b", "1")]).await;
        store.put(Some("one"), "two", &[("c", "1")]).await;
        store.put(Some("two"), "three", &[(".wh.a", ""), ("d", "1")]).await;
        let told = |changes: Vec<graphroot::Change>| {
            changes.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(told(store.changes(Some("one"), "three").await.unwrap()), ["D /a", "A /c", "A /d"]);
        assert_eq!(told(store.changes(None, "three").await.unwrap()), ["D /a", "A /d"]);
        // An unknown layer to compare with means the parent, as in the Go library.
        assert_eq!(told(store.changes(Some("nobody"), "three").await.unwrap()), ["D /a", "A /d"]);
        let diff = read_all(store.diff(Some("one"), "three", DiffOptions::uncompressed()).await.unwrap()).await;
        store.put_layer(Some("one"), LayerOptions::default().name("x"), std::io::Cursor::new(diff)).await.unwrap();
        let path = store.mount("x", Default::default()).await.unwrap();
        assert!(!path.join("a").exists() && path.join("b").exists() && path.join("c").exists() && path.join("d").exists());
        store.unmount("x").await.unwrap();
    }

    async fn a_diff_begins_where_it_is_asked_to(store) {
        store.put(None, "base", &[("a", &"1".repeat(3000)), ("b", "2"), ("d/", "")]).await;
        store.create_image(Some("base"), ImageOptions::default().name("image")).await.unwrap();
        let container = store.create_container(Some("image"), ContainerOptions::default()).await.unwrap();
        let kinds = [DiffOptions::uncompressed(), DiffOptions::compressed(Compression::Gzip), DiffOptions::compressed(Compression::Zstd)];
        for layer in ["base", container.layer_id()] {
            for options in &kinds {
                let diff = store.diff(None, layer, options.clone()).await.unwrap();
                let size = diff.size();
                let whole = read_all(diff).await;
                let recorded = layer == "base" && options.compression == Some(Compression::None);
                assert_eq!(size, recorded.then_some(whole.len() as u64));
                for offset in [1, 513, 1500, whole.len() / 2, whole.len()] {
                    let offset = offset.min(whole.len());
                    let rest = store.diff(None, layer, options.clone().offset(offset as u64)).await.unwrap();
                    assert_eq!(rest.size(), size);
                    assert_eq!(rest.remaining(), recorded.then(|| (whole.len() - offset) as u64));
                    assert!(read_all(rest).await == whole[offset..], "{layer} {options:?} {offset}");
                }
                let end = whole.len() as u64;
                for range in [0..0, 0..1, 5..600, end / 2..end, 3..end + 5, end..end + 1] {
                    let [start, stop] = [range.start, range.end.min(end)].map(|at| usize::try_from(at).unwrap());
                    let expected = &whole[start..stop];
                    let mut part = store.diff(None, layer, options.clone().range(range.clone())).await.unwrap();
                    assert_eq!(part.remaining(), recorded.then_some(expected.len() as u64));
                    assert_eq!(part.size(), size);
                    let (start, chunks) = read_half(&mut part, expected.len() / 2).await;
                    assert_eq!(part.remaining(), recorded.then_some(0));
                    assert!([start, chunks].concat() == expected, "{layer} {options:?} {range:?}");
                }
                let beyond = options.clone().offset(whole.len() as u64 + 1);
                let error = match store.diff(None, layer, beyond).await {
                    Err(error) => error,
                    Ok(mut rest) => {
                        assert!(!recorded);
                        let read = tokio::io::AsyncReadExt::read_to_end(&mut rest, &mut Vec::new()).await;
                        graphroot::Error::try_from_io(read.unwrap_err()).unwrap()
                    }
                };
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
            }
        }
    }

    async fn a_diff_is_applied_to_a_layer_that_is_there(store) {
        let layer = store.create_layer(None, LayerOptions::default()).await.unwrap();
        let plain = tar(&[("f", "content")]);
        let size = store.apply_diff(layer.id(), std::io::Cursor::new(plain.clone())).await.unwrap();
        assert_eq!(size, 7);
        let layer = store.layer(layer.id()).await.unwrap();
        assert_eq!(layer.uncompressed_digest(), Some(Digest::sha256(&plain)));
        let diff = store.diff(None, layer.id(), DiffOptions::uncompressed()).await.unwrap();
        assert_eq!(read_all(diff).await, plain);
        let damaged = std::io::Cursor::new(vec![1; 1024]);
        assert_eq!(kind(store.apply_diff(layer.id(), damaged).await), ErrorKind::InvalidArchive);
        assert_eq!(store.layer(layer.id()).await.unwrap().uncompressed_digest(), Some(Digest::sha256(&plain)));
        assert_eq!(kind(store.apply_diff("nobody", std::io::Cursor::new(plain)).await), ErrorKind::LayerUnknown);
    }

    async fn a_stream_holds_no_lock_and_fails_when_its_layer_goes(store) {
        let big: Vec<(String, String)> = (0..64).map(|i| (format!("f{i}"), "x".repeat(100_000))).collect();
        let files: Vec<(&str, &str)> = big.iter().map(|(name, content)| (name.as_str(), content.as_str())).collect();
        store.put(None, "big", &files).await;
        let mut parked = store.diff(None, "big", DiffOptions::uncompressed()).await.unwrap();
        // Writers are not held up by a stream that is not read.
        store.create_layer(None, LayerOptions::default()).await.unwrap();
        store.delete_layer("big").await.unwrap();
        let mut bytes = Vec::new();
        let end = tokio::io::AsyncReadExt::read_to_end(&mut parked, &mut bytes).await;
        if store.graph_driver_name() == "zfs" {
            // A dataset is not destroyed while a file in it is open.
            end.unwrap();
            return;
        }
        let error = graphroot::Error::try_from_io(end.unwrap_err()).unwrap();
        assert!(error.kind() == ErrorKind::LayerUnknown && error.is_not_found(), "{error:?}");
    }

    async fn a_diff_of_a_container_or_as_chunks_says_that_its_layer_is_gone(store) {
        let big: Vec<(String, String)> = (0..64).map(|i| (format!("f{i}"), "x".repeat(100_000))).collect();
        let files: Vec<(&str, &str)> = big.iter().map(|(name, content)| (name.as_str(), content.as_str())).collect();
        store.put(None, "big", &files).await;
        store.create_image(Some("big"), ImageOptions::default().name("image")).await.unwrap();
        let container = store.create_container(Some("image"), ContainerOptions::default()).await.unwrap();
        let path = crate::support::writable(store.mount(container.id(), Default::default()).await.unwrap());
        for (name, content) in &big {
            std::fs::write(path.join(format!("new-{name}")), content).unwrap();
        }
        store.unmount(container.id()).await.unwrap();
        let mut streams = Vec::new();
        for options in [DiffOptions::uncompressed(), DiffOptions::compressed(Compression::Gzip)] {
            streams.push(store.diff(None, container.layer_id(), options).await.unwrap());
        }
        store.delete_container(container.id()).await.unwrap();
        for stream in streams {
            let error = stream.try_collect::<Vec<_>>().await.unwrap_err();
            let error = graphroot::Error::try_from_io(error).unwrap();
            assert!(error.is_not_found(), "{error:?}");
        }
    }
}

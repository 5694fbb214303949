//! Where content comes from: sources that lie, that write, that are stuck, and the store itself.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use graphroot::{
    BoxReader, CheckOptions, ErrorKind, HealOptions, HealSource, HealedHow, NotHealed, Result, Store,
    WantedContent, WantedDocument,
};

use super::{
    MIDDLE, assert_as_before, files, fill, heal, healthy_like, layers, open_tree, overwrite, place_of, state,
};
use crate::manifest::assert_same;
use crate::support::{assert_clean, assert_nothing_temporary, tree_of};

/// Gives this stream, whatever it is asked for.
#[derive(Debug)]
pub(crate) struct Liar(pub(crate) Vec<u8>);

impl HealSource for Liar {
    fn name(&self) -> String {
        "a liar".into()
    }

    fn layer_stream<'a>(
        &'a self,
        _wanted: &'a WantedContent,
        attempt: usize,
    ) -> BoxFuture<'a, Result<Option<BoxReader>>> {
        let stream = std::io::Cursor::new(self.0.clone());
        std::future::ready(Ok((attempt == 0).then(|| Box::pin(stream) as BoxReader))).boxed()
    }

    fn document<'a>(&'a self, _wanted: &'a WantedDocument) -> BoxFuture<'a, Result<Option<Bytes>>> {
        std::future::ready(Ok(Some(Bytes::from_static(b"{}")))).boxed()
    }
}

/// Writes to the store that is being healed before it gives what another one has.
#[derive(Debug)]
struct Writing {
    healed: Store,
    source: Store,
}

impl HealSource for Writing {
    fn name(&self) -> String {
        "one that writes".into()
    }

    fn layer_stream<'a>(
        &'a self,
        wanted: &'a WantedContent,
        attempt: usize,
    ) -> BoxFuture<'a, Result<Option<BoxReader>>> {
        async move {
            self.healed.create_layer(None, Default::default()).await?;
            self.source.layer_stream(wanted, attempt).await
        }
        .boxed()
    }

    fn document<'a>(&'a self, wanted: &'a WantedDocument) -> BoxFuture<'a, Result<Option<Bytes>>> {
        self.source.document(wanted)
    }
}

/// A stream that never goes on.
#[derive(Debug)]
struct Stuck(Arc<tokio::sync::Notify>);

impl HealSource for Stuck {
    fn name(&self) -> String {
        "one that is stuck".into()
    }

    fn layer_stream<'a>(
        &'a self,
        _wanted: &'a WantedContent,
        _attempt: usize,
    ) -> BoxFuture<'a, Result<Option<BoxReader>>> {
        let (sender, receiver) = tokio::io::duplex(64);
        // As long as it is there the stream does not end.
        std::mem::forget(sender);
        self.0.notify_one();
        std::future::ready(Ok(Some(Box::pin(receiver) as BoxReader))).boxed()
    }

    fn document<'a>(&'a self, _wanted: &'a WantedDocument) -> BoxFuture<'a, Result<Option<Bytes>>> {
        std::future::ready(Ok(None)).boxed()
    }
}

each_driver! {
    /// What a source gives is compared with the record before anything changes.
    async fn a_source_that_lies_changes_nothing(store) {
        let five = fill(&store).await;
        let id = &five.layers[MIDDLE];
        overwrite(&tree_of(&store, id).join("dir/one"), b"eno");
        std::fs::remove_file(tree_of(&store, id).join("dir/empty")).unwrap();
        let manifest_file = store.records("images").join(five.image.id()).join("manifest");
        std::fs::remove_file(&manifest_file).unwrap();
        let before = files(&tree_of(&store, id));
        let found = store.check(CheckOptions::everything()).await.unwrap();
        let right = layers()[MIDDLE].clone();
        let mut longer = right.clone();
        longer.extend([0; 512]);
        let lies = [
            ("another layer", layers()[1].clone()),
            ("nothing", Vec::new()),
            ("no archive", vec![b'x'; 2000]),
            ("one that is cut off", right[..right.len() / 2].to_vec()),
            ("one that is cut off between entries", right[..1024].to_vec()),
            ("one that goes on", longer),
        ];
        for (name, stream) in lies {
            let healed = heal(&store, Liar(stream)).await;
            assert!(healed.healed.iter().all(|healed| healed.item.id != *id), "{name}: {healed:#?}");
            let failure = healed.failures.iter().find(|failure| failure.item.id == *id).unwrap();
            let NotHealed::NoSource { failed } = &failure.reason else {
                panic!("{name}: {failure}");
            };
            assert_eq!(failed.len(), 1, "{name}: {failure}");
            assert_same("before", &before, name, &files(&tree_of(&store, id)));
            assert_nothing_temporary(&store).await;
        }
        // The manifest was taken from where the image has it once more.
        assert!(manifest_file.exists());
        let now = store.check(CheckOptions::everything()).await.unwrap();
        let of_layers = |report: &graphroot::CheckReport| {
            let findings = report.findings.iter().filter(|finding| finding.item.id == *id);
            findings.cloned().collect::<Vec<_>>()
        };
        assert_eq!(of_layers(&now), of_layers(&found));
        let healed = heal(&store, Liar(right)).await;
        assert!(healed.is_success(), "{healed:#?}");
        assert_clean(&store, "healed").await;
    }

    /// What is asked for is healed and nothing else; the store itself is a source.
    async fn what_was_asked_for_is_healed(store) {
        let five = fill(&store).await;
        let (one, two) = (&five.layers[1], &five.layers[MIDDLE]);
        for id in [one, two] {
            std::fs::remove_dir_all(open_tree(&store, id).join(if id == one { "shared" } else { "sub" })).unwrap();
        }
        let unknown = store.heal(HealOptions::default().item("nosuch")).await;
        assert_eq!(unknown.unwrap_err().kind(), ErrorKind::LayerUnknown);
        let nothing = store.heal(HealOptions::default().item(&five.layers[0])).await.unwrap();
        assert!(nothing.is_success() && nothing.healed.is_empty(), "{nothing:#?}");
        let without = store.heal(HealOptions::default().item(one)).await.unwrap();
        assert!(!without.is_success() && without.failures.len() == 1, "{without:#?}");
        assert!(!without.left.is_empty() && without.left.iter().all(|left| left.item.id == *one));
        assert_eq!(without.failures[0].to_string(), format!("layer {one}: no source has it"));
        // The same content on another layer.
        let again = store.put_image_layer(None, std::io::Cursor::new(layers()[1].clone())).await.unwrap();
        store.create_image(Some(again.id()), Default::default()).await.unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&events);
        let options = HealOptions::default().item(one).progress(move |event| told.lock().unwrap().push(event));
        let healed = store.heal(options).await.unwrap();
        assert!(healed.is_success() && healed.healed.len() == 1, "{healed:#?}");
        let (HealedHow::Layer { source, .. } | HealedHow::Files { source, .. }) = &healed.healed[0].how else {
            panic!("{healed:#?}");
        };
        assert!(source.contains(again.id()), "{healed:#?}");
        let events = std::mem::take(&mut *events.lock().unwrap());
        let is_read = |event: &graphroot::HealEvent| match event {
            graphroot::HealEvent::Read { layer, bytes } if layer == one => *bytes,
            _ => 0,
        };
        let size = layers()[1].len() as u64;
        assert_eq!(events.iter().map(is_read).sum::<u64>(), size, "{events:?}");
        assert!(events.contains(&graphroot::HealEvent::Healed { layer: one.clone() }), "{events:?}");
        let left = store.check(CheckOptions::everything()).await.unwrap();
        assert!(left.findings.iter().any(|finding| finding.item.id == *two), "{left:#?}");
        // What a check has found is enough to go by.
        let options = HealOptions::default().found(left).source(Liar(layers()[MIDDLE].clone()));
        let healed = store.heal(options).await.unwrap();
        assert!(healed.is_success() && healed.healed.len() == 1, "{healed:#?}");
        assert_clean(&store, "all").await;
        let none = store.heal(HealOptions::default()).await.unwrap();
        assert!(none.is_success() && none.healed.is_empty(), "{none:#?}");
    }

    /// Nothing is locked while a source is read, and a call that is dropped leaves what there was.
    async fn sources_are_read_without_a_lock(store) {
        let five = fill(&store).await;
        let before = state(&store, &five).await;
        let source = healthy_like(&store).await;
        let id = &five.layers[MIDDLE];
        store.lose(id);
        let is_read = Arc::new(tokio::sync::Notify::new());
        let options = HealOptions::default().source(Stuck(Arc::clone(&is_read)));
        tokio::select! {
            healed = store.heal(options) => panic!("{healed:?}"),
            () = is_read.notified() => {}
        }
        assert!(!place_of(&store, id).exists());
        assert_nothing_temporary(&store).await;
        let writing = Writing { healed: store.store.clone(), source: source.store.clone() };
        let healed = tokio::time::timeout(crate::support::PATIENCE, heal(&store, writing)).await.unwrap();
        assert!(healed.is_success(), "{healed:#?}");
        assert_as_before("written to", &before, &state(&store, &five).await);
    }
}

//! Hard links of diffs to files that the layer had before.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use graphroot::test_util::{TarBuilder, TarEntry};
use graphroot::{DiffOptions, ErrorKind, Layer, LayerOptions};

use crate::support::{TestStore, read_all, tar, tree_of, writable};

/// What a name shows: the content of a file, `-> X`, or the type; and how many names it has.
type Shown = (&'static str, &'static str, u64);

/// A diff, and what the names it is about show afterwards; nothing if it is refused.
type Case = (&'static str, Vec<TarEntry>, &'static [Shown]);

fn link(name: &str, target: &str) -> TarEntry {
    TarEntry::hard_link(name, target).mode(0o644).mtime(1000)
}

fn changed(name: &str, target: &str) -> TarEntry {
    link(name, target).mode(0o600).mtime(5000)
}

fn file(name: &str, content: &str) -> TarEntry {
    TarEntry::file(name, content).mode(0o644).mtime(1000)
}

/// A layer that has `low`, and one on it with the rest.
async fn layer(store: &TestStore) -> Layer {
    let low = match store.layer("low").await {
        Ok(low) => low,
        Err(_) => store.put(None, "low", &[("low", "low"), ("hidden", "low")]).await,
    };
    let tar = TarBuilder::from_iter([
        file("f", "base"),
        file("t", "twice"),
        link("t2", "t"),
        TarEntry::dir("d/").mode(0o755).mtime(1000),
        file("d/f", "inner"),
        TarEntry::symlink("l", "d").mtime(1000),
        TarEntry::symlink("loop", "loop").mtime(1000),
        TarEntry::symlink("out", "../../../../low").mtime(1000),
        TarEntry::symlink("lf", "/f").mtime(1000),
        TarEntry::fifo("p").mode(0o644).mtime(1000),
        TarEntry::dir("dd/").mode(0o755).mtime(1000),
        file("dd/x", "x"),
        TarEntry::whiteout("hidden"),
    ]);
    let options = LayerOptions::default();
    let put = store.put_layer(Some(low.id()), options, Cursor::new(tar.build()));
    put.await.unwrap().layer
}

fn cases() -> Vec<Case> {
    vec![
        (
            "plain",
            vec![link("g", "f")],
            &[("f", "base", 2), ("g", "base", 2)],
        ),
        (
            "absolute",
            vec![link("g", "/f")],
            &[("f", "base", 2), ("g", "base", 2)],
        ),
        (
            "above the root",
            vec![link("g", "../../f")],
            &[("f", "base", 2), ("g", "base", 2)],
        ),
        (
            "to a link",
            vec![link("g", "f"), link("k", "g")],
            &[("f", "base", 3), ("g", "base", 3), ("k", "base", 3)],
        ),
        (
            "twice to one",
            vec![link("g", "t")],
            &[("t", "twice", 3), ("t2", "twice", 3), ("g", "twice", 3)],
        ),
        (
            "replaced before",
            vec![file("f", "new"), link("g", "f")],
            &[("f", "new", 2), ("g", "new", 2)],
        ),
        (
            "replaced after",
            vec![link("g", "f"), file("f", "new")],
            &[("f", "new", 1), ("g", "base", 1)],
        ),
        (
            "deleted before",
            vec![TarEntry::whiteout("f"), link("g", "f")],
            &[],
        ),
        (
            "deleted after",
            vec![link("g", "f"), TarEntry::whiteout("f")],
            &[("f", "nothing", 0), ("g", "base", 1)],
        ),
        (
            "deleted above",
            vec![TarEntry::whiteout("d"), link("g", "d/f")],
            &[],
        ),
        (
            "opaque before",
            vec![TarEntry::opaque("d"), link("g", "d/f")],
            &[("d/f", "nothing", 0), ("g", "inner", 1)],
        ),
        (
            "opaque after",
            vec![link("d/g", "d/f"), TarEntry::opaque("d")],
            &[("d/f", "nothing", 0), ("d/g", "inner", 1)],
        ),
        (
            "through a link",
            vec![link("g", "l/f")],
            &[("d/f", "inner", 2), ("g", "inner", 2)],
        ),
        (
            "through a new link",
            vec![TarEntry::symlink("s", "/l"), link("g", "s/../d/f")],
            &[("d/f", "inner", 2), ("g", "inner", 2)],
        ),
        (
            "through a link to what is new",
            vec![
                TarEntry::dir("d/").mode(0o755),
                file("d/new", "new"),
                link("g", "l/new"),
            ],
            &[("d/new", "new", 2), ("g", "new", 2), ("d/f", "inner", 1)],
        ),
        (
            "to a symbolic link",
            vec![link("g", "lf")],
            &[("lf", "-> /f", 2), ("g", "-> /f", 2)],
        ),
        (
            "to a FIFO",
            vec![link("g", "p")],
            &[("p", "FIFO", 2), ("g", "FIFO", 2)],
        ),
        (
            "in place of a directory",
            vec![link("d", "f")],
            &[("d", "base", 2), ("f", "base", 2)],
        ),
        ("to itself", vec![changed("f", "f")], &[("f", "base", 1)]),
        ("in the place above", vec![link("dd", "dd/x")], &[]),
        ("to a directory", vec![link("g", "d")], &[]),
        ("to the root", vec![link("g", "/")], &[]),
        (
            "in a directory that is a file now",
            vec![file("d", "file"), link("g", "d/f")],
            &[],
        ),
        ("in a file", vec![link("g", "f/x")], &[]),
        (
            "in a directory that is a file later",
            vec![link("g", "d/f"), file("d", "file")],
            &[("d", "file", 1), ("g", "inner", 1)],
        ),
        ("through a loop", vec![link("g", "loop/f")], &[]),
        ("outside", vec![link("g", "out/f")], &[]),
        ("to a layer below", vec![link("g", "low")], &[]),
        ("to a whiteout", vec![link("g", "hidden")], &[]),
        ("to the name of a whiteout", vec![link("g", ".wh.hidden")], &[]),
        ("to nothing", vec![link("g", "none")], &[]),
        (
            "with another mode",
            vec![changed("g", "t"), link("h", "d/f")],
            &[
                ("t", "twice", 3),
                ("t2", "twice", 3),
                ("g", "twice", 3),
                ("h", "inner", 2),
            ],
        ),
        (
            "with another mode, then replaced",
            vec![
                link("g", "t"),
                changed("k", "g"),
                file("t", "new"),
                file("k", "new"),
            ],
            &[
                ("t", "new", 1),
                ("k", "new", 1),
                ("t2", "twice", 2),
                ("g", "twice", 2),
            ],
        ),
        (
            "other types with another mode",
            vec![changed("g", "p"), changed("h", "lf")],
            &[
                ("p", "FIFO", 2),
                ("g", "FIFO", 2),
                ("lf", "-> /f", 2),
                ("h", "-> /f", 2),
            ],
        ),
    ]
}

fn shown(path: &Path) -> (String, u64) {
    let Ok(stat) = path.symlink_metadata() else {
        return ("nothing".into(), 0);
    };
    let what = match () {
        () if stat.is_symlink() => format!("-> {}", std::fs::read_link(path).unwrap().display()),
        () if stat.file_type().is_fifo() => "FIFO".into(),
        () if stat.file_type().is_char_device() => return ("nothing".into(), 0),
        () if stat.is_dir() => "directory".into(),
        () => std::fs::read_to_string(path).unwrap(),
    };
    (what, stat.nlink())
}

async fn check(store: &TestStore, mounted: bool) {
    for (name, diff, expected) in cases() {
        let layer = layer(store).await;
        let tree = tree_of(store, layer.id());
        let old = layer.uncompressed_digest();
        let mount = match mounted {
            true => Some(store.mount(layer.id(), Default::default()).await.unwrap()),
            false => None,
        };
        let has_changes = name.starts_with("with another mode");
        let inode = |name: &str| tree.join(name).symlink_metadata().map_or(0, |stat| stat.ino());
        let before = inode("f");
        let bytes = TarBuilder::from_iter(diff).build();
        let applied = store.apply_diff(layer.id(), Cursor::new(bytes.clone())).await;
        let now = store.layer(layer.id()).await.unwrap().uncompressed_digest();
        // Another dataset may be to be mounted there.
        tree_of(store, layer.id());
        if expected.is_empty() {
            let error = applied.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArchive, "{name}: {error:?}");
            assert!(
                error.chain().contains("hard link to"),
                "{name}: {}",
                error.chain()
            );
            assert_eq!((now, inode("f")), (old, before), "{name}");
            assert_eq!(shown(&tree.join("g")), ("nothing".into(), 0), "{name}");
        } else {
            applied.unwrap_or_else(|error| panic!("{name}: {}", error.chain()));
            assert_eq!(now, Some(graphroot::Digest::sha256(&bytes)), "{name}");
            let mut inodes = std::collections::BTreeMap::<_, BTreeSet<u64>>::new();
            for (path, what, names) in expected {
                assert_eq!(
                    shown(&tree.join(path)),
                    ((*what).to_owned(), *names),
                    "{name}: {path}"
                );
                inodes.entry((what, names)).or_default().insert(inode(path));
            }
            for ((what, names), inodes) in inodes {
                assert!(*names < 2 || inodes.len() == 1, "{name}: {what:?} is {inodes:?}");
            }
            if expected.contains(&("f", "base", 2)) {
                assert_eq!(inode("f"), before, "{name}");
            }
            if has_changes {
                let linked: Vec<_> = ["t2", "g"].iter().map(|name| tree.join(name)).collect();
                for path in linked.iter().filter(|path| path.is_file()) {
                    let stat = path.metadata().unwrap();
                    assert_eq!(
                        (stat.mode() & 0o7777, stat.mtime()),
                        (0o600, 5000),
                        "{name}: {path:?}"
                    );
                }
            }
            let diff = store
                .diff(None, layer.id(), DiffOptions::uncompressed())
                .await
                .unwrap();
            assert!(read_all(diff).await == bytes, "{name}");
        }
        if mount.is_some() {
            store.unmount(layer.id()).await.unwrap();
        }
        let mounted = store.mount(layer.id(), Default::default()).await.unwrap();
        for (path, what, _) in expected {
            assert_eq!(shown(&mounted.join(path)).0, *what, "{name}: {path} in the mount");
        }
        store.unmount(layer.id()).await.unwrap();
        store.delete_layer(layer.id()).await.unwrap();
    }
    assert_eq!(
        std::fs::read_dir(tree_of(store, store.layer("low").await.unwrap().id()))
            .unwrap()
            .count(),
        2
    );
}

each_driver! {
    async fn links_lead_to_files_that_the_layer_had(store) {
        check(&store, false).await;
    }

    async fn links_lead_to_files_of_a_mounted_layer(store) {
        check(&store, true).await;
    }

    async fn names_do_not_lead_up_and_down_without_end(store) {
        let deep = "a/".repeat(500);
        let tar = TarBuilder::from_iter([
            TarEntry::dir(format!("{deep}/")).mode(0o755),
            file(&format!("{deep}f"), "deep"),
            TarEntry::symlink("up-and-down", [&deep, "../a/".repeat(500).as_str()].concat()),
            TarEntry::symlink("down", deep.clone()),
        ]);
        let put = store.put_layer(None, LayerOptions::default(), Cursor::new(tar.build()));
        let layer = put.await.unwrap().layer;
        let apply = |target| {
            let diff = TarBuilder::from_iter([link("g", target)]).build();
            store.apply_diff(layer.id(), Cursor::new(diff))
        };
        let error = apply("up-and-down/f").await.unwrap_err();
        assert!(error.chain().contains("oo many"), "{}", error.chain());
        apply("down/f").await.unwrap();
    }

    async fn the_old_tree_stays_until_the_diff_is_there(store) {
        let layer = layer(&store).await;
        let tree = tree_of(&store, layer.id());
        let state = |name: &str| {
            let stat = tree.join(name).metadata().unwrap();
            (stat.ino(), stat.mode(), stat.mtime())
        };
        let before = ["t", "t2", "f"].map(state);
        let mut diff = TarBuilder::from_iter([changed("g", "t"), changed("k", "f"), file("last", "x")]).build();
        diff.truncate(1300);
        store.apply_diff(layer.id(), Cursor::new(diff)).await.unwrap_err();
        assert_eq!(["t", "t2", "f"].map(state), before);
        assert_eq!(tree.join("t").metadata().unwrap().nlink(), 2);
    }

    async fn a_file_that_is_the_same_below_is_not_the_layers(store) {
        let low = store.put(None, "below", &[("same", "1"), ("other", "1")]).await;
        let layer = store.put(Some(low.id()), "above", &[("other", "22"), ("own", "3")]).await;
        for target in ["other", "own"] {
            let diff = TarBuilder::from_iter([link(&format!("to-{target}"), target)]).build();
            store.apply_diff(layer.id(), Cursor::new(diff)).await.unwrap();
        }
        let diff = TarBuilder::from_iter([link("to-same", "same")]).build();
        let error = store.apply_diff(layer.id(), Cursor::new(diff)).await.unwrap_err();
        assert!(error.chain().contains("no such file or directory"), "{}", error.chain());
    }

    async fn a_file_whose_content_is_below_is_not_the_layers(store) {
        let own = store.put(None, "own", &[("file", "1")]).await;
        let path = tree_of(&store, own.id()).join("file");
        let value = rustix::fs::XattrFlags::empty();
        if rustix::fs::setxattr(path, "trusted.overlay.metacopy", b"", value).is_err() {
            return;
        }
        let diff = TarBuilder::from_iter([link("g", "file")]).build();
        let applied = store.apply_diff(own.id(), Cursor::new(diff)).await;
        let kernel = store.graph_driver_name() == "overlay" && store.layout() != crate::support::Layout::Program;
        assert_eq!(applied.is_err(), kernel);
    }

    async fn files_that_are_replaced_while_a_diff_arrives_are_not_linked_to(store) {
        use tokio::io::AsyncWriteExt as _;
        let layer = layer(&store).await;
        let names = || tree_of(&store, layer.id()).join("f").metadata().unwrap().nlink();
        // Between subvolumes there are no links: a copy stands for the file. So it does between datasets, which are mounted
        // and unmounted meanwhile, so that nobody can look: fewer of the bytes that follow are waiting than were taken.
        let is_zfs = store.graph_driver_name() == "zfs";
        let has_arrived = |link: &str| {
            let temporary = tree_of(&store, layer.id()).join("../../tempdirs");
            let dirs = std::fs::read_dir(temporary).into_iter().flatten().flatten();
            let staged = dirs.filter_map(|dir| std::fs::read_dir(dir.path()).ok()).flatten();
            staged.flatten().any(|staged| staged.path().join(link).exists())
        };
        for (link, change, busy) in [("g", ("other", "1"), false), ("never", ("f", "new"), true)] {
            let (mut feed, stream) = tokio::io::duplex(64 * 1024);
            let late = store.apply_diff(layer.id(), stream);
            let first = async {
                let (before, diff) = (if is_zfs { 0 } else { names() }, TarBuilder::from_iter([self::link(link, "f")]).file("x", vec![0; 8 << 20]));
                let diff = diff.build();
                let (start, rest) = diff.split_at(4 << 20);
                feed.write_all(start).await.unwrap();
                while !is_zfs && names() == before && !has_arrived(link) {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
                store.apply_diff(layer.id(), Cursor::new(tar(&[change]))).await.unwrap();
                // Nobody may be there to read it.
                feed.write_all(rest).await.ok();
                drop(feed);
            };
            let (late, ()) = tokio::join!(late, first);
            assert_eq!(late.as_ref().is_err_and(graphroot::Error::is_busy), busy, "{late:?}");
            assert_eq!(late.is_ok(), !busy);
        }
        let tree = tree_of(&store, layer.id());
        assert_eq!(shown(&tree.join("f")), ("new".into(), 1));
        assert_eq!(shown(&tree.join("g")), ("base".into(), 1));
        let mounted = writable(store.mount(layer.id(), Default::default()).await.unwrap());
        assert_eq!(std::fs::read_to_string(mounted.join("g")).unwrap(), "base");
        store.unmount(layer.id()).await.unwrap();
    }
}

//! What a check finds in the files of layers, images and containers, and what a repair does about it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use graphroot::test_util::{TarBuilder, TarEntry};
use graphroot::{
    CheckOptions, CheckReport, ContainerOptions, ErrorKind, ImageOptions, ItemKind, LayerOptions,
    RepairOptions,
};

use crate::support::{PATIENCE, TestStore, tree_of, writable};

/// A layer with something of every kind.
fn base() -> Vec<u8> {
    TarBuilder::new()
        .entry(TarEntry::dir("dir/").mode(0o2750))
        .file("dir/one", "one")
        .file("dir/two", "two")
        .file("dir/empty", "")
        .file("hidden", "hidden")
        .entry(TarEntry::dir("emptied/"))
        .file("emptied/inside", "inside")
        .symlink("link", "dir/one")
        .hard_link("hard", "dir/two")
        .entry(TarEntry::fifo("fifo").mode(0o600))
        .entry(TarEntry::file("set-id", "x").mode(0o4755))
        .file("deep/in/a/tree/without/entries", "x")
        .entry(sparse())
        .entry(TarEntry::dir("again/"))
        .file("again/old", "old")
        .build()
}

/// A file of 200,000 bytes with five of them in the middle.
fn sparse() -> TarEntry {
    TarEntry::file("GNUSparseFile.0/sparse", "inner")
        .pax("GNU.sparse.size", "200000")
        .pax("GNU.sparse.numblocks", "2")
        .pax("GNU.sparse.map", "100000,5,200000,0")
        .pax("GNU.sparse.name", "sparse")
}

/// One that deletes, replaces and adds.
fn top() -> Vec<u8> {
    TarBuilder::new()
        .entry(TarEntry::whiteout("hidden"))
        .entry(TarEntry::dir("emptied/"))
        .entry(TarEntry::opaque("emptied"))
        .file("emptied/new", "new")
        .entry(TarEntry::dir("dir/").mode(0o750))
        .file("dir/one", "another one")
        .entry(TarEntry::whiteout("again"))
        .entry(TarEntry::dir("again/"))
        .file("again/new", "new")
        .build()
}

pub(crate) struct Ids {
    pub(crate) base: String,
    pub(crate) top: String,
    pub(crate) image: String,
    pub(crate) container: String,
}

/// An image of two layers with a container, and another image of the lower one.
pub(crate) async fn fill(store: &TestStore) -> Ids {
    let put = async |parent: Option<&str>, tar: Vec<u8>| {
        let put = store
            .put_layer(parent, LayerOptions::default(), std::io::Cursor::new(tar))
            .await;
        put.unwrap().layer.id().to_owned()
    };
    let base = put(None, base()).await;
    let top = put(Some(&base), top()).await;
    let options = ImageOptions::default()
        .name("image")
        .big_data("manifest", "{\"a\":1}")
        .big_data("config", "{}");
    let image = store.create_image(Some(&top), options).await.unwrap();
    store
        .create_image(Some(&base), ImageOptions::default().name("healthy"))
        .await
        .unwrap();
    let data = ContainerOptions::default()
        .name("box")
        .big_data("state", "running");
    let container = store.create_container(Some("image"), data).await.unwrap();
    Ids {
        base,
        top,
        image: image.id().to_owned(),
        container: container.id().to_owned(),
    }
}

pub(crate) async fn check(store: &TestStore) -> CheckReport {
    store.check(CheckOptions::everything()).await.unwrap()
}

/// The lines about an item, without the item itself.
pub(crate) fn lines(report: &CheckReport, kind: ItemKind, id: &str) -> Vec<String> {
    let damaged = report.damaged(kind, false);
    let findings = damaged.get(id).map(Vec::as_slice).unwrap_or_default();
    let text = |finding: &&graphroot::Finding| {
        let text = finding.to_string();
        let prefix = format!("{}: ", finding.item);
        text.strip_prefix(&prefix).unwrap_or(&text).to_owned()
    };
    findings.iter().map(text).collect()
}

fn set_mtime(path: &Path, seconds: i64) {
    let time = rustix::fs::Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let times = rustix::fs::Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(
        rustix::fs::CWD,
        path,
        &times,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
}

/// Changes the content of a file and nothing else.
fn overwrite(path: &Path, content: &str) {
    let before = std::fs::metadata(path).unwrap();
    std::fs::write(path, content).unwrap();
    set_mtime(path, std::os::unix::fs::MetadataExt::mtime(&before));
}

/// Changes some bytes of a file and nothing else.
fn overwrite_at(path: &Path, offset: u64, content: &[u8]) {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let mtime = file.metadata().unwrap().mtime();
    file.write_all_at(content, offset).unwrap();
    set_mtime(path, mtime);
}

/// A way to damage the tree of a layer, and the lines that tell of it. `whole` where the driver keeps complete trees.
struct Damage {
    name: &'static str,
    /// In the layer above the other one.
    in_top: bool,
    damage: fn(&Path),
    expected: &'static [&'static str],
}

fn damages() -> Vec<Damage> {
    let of = |name, damage, expected| Damage {
        name,
        in_top: false,
        damage,
        expected,
    };
    vec![
        of(
            "a file is missing",
            |root| std::fs::remove_file(root.join("dir/one")).unwrap(),
            &[
                "restoring entry \"dir/one\": it is missing",
                "-/dir/one, layer content modified",
            ],
        ),
        of(
            "an empty file is missing",
            |root| std::fs::remove_file(root.join("dir/empty")).unwrap(),
            &["-/dir/empty, layer content modified"],
        ),
        of(
            "a directory is missing",
            |root| std::fs::remove_dir_all(root.join("emptied")).unwrap(),
            &[
                "restoring entry \"emptied/inside\": it is missing",
                "-/emptied/, layer content modified",
                "-/emptied/inside, layer content modified",
            ],
        ),
        of(
            "a file is longer",
            |root| overwrite(&root.join("dir/one"), "one more"),
            &[
                "restoring entry \"dir/one\": it has 8 bytes, 3 were recorded",
                "/dir/one(size:3\u{ffeb}8), layer content modified",
            ],
        ),
        of(
            "a file has other content of the same size",
            |root| overwrite(&root.join("dir/one"), "eno"),
            &["file integrity checksum failed for \"dir/one\""],
        ),
        of(
            "a file was added",
            |root| std::fs::write(root.join("dir/new"), "x").unwrap(),
            &["+/dir/new, layer content modified"],
        ),
        of(
            "a directory was added",
            |root| std::fs::create_dir_all(root.join("new/sub")).unwrap(),
            &[
                "+/new/, layer content modified",
                "+/new/sub/, layer content modified",
            ],
        ),
        of(
            "a file has another mode",
            |root| std::fs::set_permissions(root.join("dir/one"), PermissionsExt::from_mode(0o600)).unwrap(),
            &["/dir/one(mode:0644\u{ffeb}0600), layer content modified"],
        ),
        of(
            "a set-ID bit is gone",
            |root| std::fs::set_permissions(root.join("set-id"), PermissionsExt::from_mode(0o755)).unwrap(),
            &["/set-id(mode:4755\u{ffeb}0755), layer content modified"],
        ),
        of(
            "a directory has another mode",
            |root| std::fs::set_permissions(root.join("dir"), PermissionsExt::from_mode(0o700)).unwrap(),
            &["/dir(mode:2750\u{ffeb}0700), layer content modified"],
        ),
        of(
            "a file has another time",
            |root| set_mtime(&root.join("dir/one"), 255),
            &["/dir/one(mtime:0x6553f100\u{ffeb}0xff), layer content modified"],
        ),
        of(
            "a link leads elsewhere",
            |root| {
                std::fs::remove_file(root.join("link")).unwrap();
                std::os::unix::fs::symlink("dir/two", root.join("link")).unwrap();
                set_mtime(&root.join("link"), 1_700_000_000);
            },
            &["/link(link target), layer content modified"],
        ),
        of(
            "a file is a directory",
            |root| {
                std::fs::remove_file(root.join("set-id")).unwrap();
                std::fs::create_dir(root.join("set-id")).unwrap();
            },
            &[
                "restoring entry \"set-id\": it is not a regular file",
                "/set-id(filetype:48\u{ffeb}53), layer content modified",
            ],
        ),
        of(
            "a file is a link",
            |root| {
                std::fs::remove_file(root.join("set-id")).unwrap();
                std::os::unix::fs::symlink("/etc/passwd", root.join("set-id")).unwrap();
            },
            &[
                "restoring entry \"set-id\": it is not a regular file",
                "/set-id(filetype:48\u{ffeb}50), layer content modified",
            ],
        ),
        of(
            "a sparse file has other data",
            |root| overwrite_at(&root.join("sparse"), 100_001, b"N"),
            &["/sparse(content), layer content modified"],
        ),
        of(
            "a sparse file has data in a hole",
            |root| overwrite_at(&root.join("sparse"), 3, b"x"),
            &["/sparse(content), layer content modified"],
        ),
        of(
            "a directory without an entry has another mode",
            |root| std::fs::set_permissions(root.join("deep/in"), PermissionsExt::from_mode(0o4711)).unwrap(),
            &["/deep/in(mode:0755\u{ffeb}4711), layer content modified"],
        ),
        Damage {
            name: "what was deleted and brought again has another mode",
            in_top: true,
            damage: |root| {
                std::fs::set_permissions(root.join("again/new"), PermissionsExt::from_mode(0o600)).unwrap();
            },
            expected: &["/again/new(mode:0644\u{ffeb}0600), layer content modified"],
        },
        Damage {
            name: "something was added to what was deleted and brought again",
            in_top: true,
            damage: |root| std::fs::write(root.join("again/added"), "x").unwrap(),
            expected: &["+/again/added, layer content modified"],
        },
        Damage {
            name: "what was replaced is another one",
            in_top: true,
            damage: |root| overwrite(&root.join("dir/one"), "another 0ne"),
            expected: &["file integrity checksum failed for \"dir/one\""],
        },
    ]
}

fn matches(found: &[String], expected: &[&str]) -> bool {
    let is = |(line, part): (&String, &&str)| line.contains(*part);
    found.len() == expected.len() && found.iter().zip(expected).all(is)
}

fn uses_program(store: &TestStore) -> bool {
    store.layout() == crate::support::Layout::Program
}

each_driver! {
    /// Nothing is found in a store in which nothing is wrong, mounted or not, however often it is asked.
    async fn a_healthy_store_has_no_findings(store) {
        let ids = fill(&store).await;
        store.mount(&ids.container, graphroot::MountOptions::default()).await.unwrap();
        for options in [CheckOptions::everything(), CheckOptions::most(), CheckOptions::records()] {
            let report = store.check(options).await.unwrap();
            assert!(report.is_clean() && report.strays.is_empty(), "{report:#?}");
        }
        assert!(store.unmount(&ids.container).await.is_ok());
        let again = store.reopen().await;
        assert!(again.check(CheckOptions::default()).await.unwrap().is_clean());
    }

    /// Every change of a layer's tree is found once, in the layer, in its images, and in their containers; the repair
    /// leaves everything else.
    async fn damaged_trees_are_found_and_told_of(store) {
        for case in damages() {
            let ids = fill(&store).await;
            let layer = if case.in_top { &ids.top } else { &ids.base };
            (case.damage)(&writable(tree_of(&store, layer)));
            let report = check(&store).await;
            let found = lines(&report, ItemKind::Layer, layer);
            let whole = format!("{}: {report:#?}", case.name);
            // A mount program shows no times of its own for what was changed below it.
            if !uses_program(&store) {
                assert!(matches(&found, case.expected), "{}: {found:#?}", case.name);
            }
            assert!(!found.is_empty(), "{whole}");
            let is_about_content = |finding: &graphroot::Finding| finding.kind() == ErrorKind::LayerContentModified;
            assert!(report.findings.iter().all(is_about_content), "{whole}");
            for (kind, id) in [(ItemKind::Image, &ids.image), (ItemKind::Container, &ids.container)] {
                assert_eq!(lines(&report, kind, id).len(), found.len(), "{whole}");
            }
            let healthy = store.image("healthy").await.unwrap().id().to_owned();
            assert_eq!(lines(&report, ItemKind::Image, &healthy).is_empty(), case.in_top, "{whole}");
            let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
            assert!(repaired.is_success(), "{}: {repaired:#?}", case.name);
            assert_eq!(store.exists("healthy").await.unwrap(), case.in_top, "{whole}");
            assert!(!store.exists("image").await.unwrap() && !store.exists("box").await.unwrap());
            let after = check(&store).await;
            assert!(after.is_clean(), "{}: {after:#?}", case.name);
            for image in store.own_images().await {
                store.delete_image(image.id()).await.unwrap();
            }
            assert!(store.own_layers().await.is_empty());
        }
    }

    /// A repair that keeps containers keeps all that they stand on, and one that only looks changes nothing.
    async fn containers_stay_unless_they_are_asked_for(store) {
        let ids = fill(&store).await;
        overwrite(&tree_of(&store, &ids.base).join("dir/one"), "eno");
        let report = check(&store).await;
        let looked = store.repair(&report, RepairOptions::everything().dry_run(true)).await.unwrap();
        assert!(looked.is_success() && looked.removed.len() >= 4, "{looked:#?}");
        assert_eq!(check(&store).await, report);
        let repaired = store.repair(&report, RepairOptions::keeping_containers()).await.unwrap();
        assert!(repaired.is_success(), "{repaired:#?}");
        let removed: Vec<ItemKind> = repaired.removed.iter().map(|item| item.kind).collect();
        assert_eq!(removed, [ItemKind::Image], "only the other image of the layer");
        assert!(store.exists("image").await.unwrap() && store.exists("box").await.unwrap());
        assert!(store.exists(&ids.base).await.unwrap());
        let report = check(&store).await;
        let looked = store.repair(&report, RepairOptions::everything().dry_run(true)).await.unwrap();
        let repaired = store.repair(&report, RepairOptions::everything()).await.unwrap();
        assert!(repaired.is_success(), "{repaired:#?}");
        assert_eq!(looked.removed, repaired.removed);
        assert!(store.own_layers().await.is_empty() && check(&store).await.is_clean());
    }

    async fn data_is_compared_with_the_record(store) {
        let ids = fill(&store).await;
        store.set_layer_big_data(&ids.top, "item", std::io::Cursor::new(b"data".to_vec())).await.unwrap();
        let image = store.records("images").join(&ids.image).join("manifest");
        let container = store.records("containers").join(&ids.container).join("state");
        let layer = store.records("layers").join(&ids.top).join("item");
        let (of_image, of_container, of_layer) = (
            (ItemKind::Image, &ids.image),
            (ItemKind::Container, &ids.container),
            (ItemKind::Layer, &ids.top),
        );
        let cases = [
            (&image, None, of_image, ErrorKind::ImageDataMissing, "data item \"manifest\": image data item is missing"),
            (&image, Some("{}"), of_image, ErrorKind::ImageDataIncorrectSize,
                "data item \"manifest\": 2 bytes instead of 7 bytes: image data item has incorrect size"),
            (&image, Some("{\"b\":1}"), of_image, ErrorKind::DigestMismatch, "data item \"manifest\": digest "),
            (&container, Some("stopped"), of_container, ErrorKind::DigestMismatch, "data item \"state\": digest "),
            (&container, Some("gone"), of_container, ErrorKind::ContainerDataIncorrectSize,
                "data item \"state\": 4 bytes instead of 7 bytes: container data item has incorrect size"),
            (&container, None, of_container, ErrorKind::ContainerDataMissing,
                "data item \"state\": container data item is missing"),
            (&layer, None, of_layer, ErrorKind::LayerDataMissing, "data item \"item\": layer data item is missing"),
        ];
        for (path, content, (kind, id), error, expected) in cases {
            let before = std::fs::read(path).unwrap();
            match content {
                Some(content) => std::fs::write(path, content).unwrap(),
                None => std::fs::remove_file(path).unwrap(),
            }
            let report = check(&store).await;
            let found = lines(&report, kind, id);
            assert!(found.len() == 1 && found[0].contains(expected), "{}: {report:#?}", path.display());
            assert_eq!(report.findings[0].kind(), error);
            std::fs::write(path, before).unwrap();
            assert!(check(&store).await.is_clean());
        }
    }

    /// The driver's files that say what a layer stands on are made anew, and nothing is lost.
    async fn wrong_files_of_the_driver_are_mended(store) {
        if store.graph_driver_name() != "overlay" {
            return;
        }
        let ids = fill(&store).await;
        let other = store.put(None, "other", &[("a", "1")]).await.id().to_owned();
        let (dir, other) = (tree_of(&store, &ids.top), tree_of(&store, &other));
        let (dir, other) = (dir.parent().unwrap(), other.parent().unwrap());
        let link = std::fs::read_to_string(dir.join("link")).unwrap();
        let links = dir.parent().unwrap().join("l");
        let foreign = format!("l/{}", std::fs::read_to_string(other.join("link")).unwrap());
        let victim = store.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        let cases: [(&str, &dyn Fn()); 8] = [
            ("another layer", &|| std::fs::write(dir.join("lower"), &foreign).unwrap()),
            ("no layer", &|| std::fs::write(dir.join("lower"), "l/NOSUCHLAYER").unwrap()),
            ("nothing", &|| std::fs::write(dir.join("lower"), "").unwrap()),
            ("out of the store", &|| std::fs::write(dir.join("lower"), "l/../../../victim").unwrap()),
            ("more layers", &|| {
                let lower = std::fs::read_to_string(dir.join("lower")).unwrap();
                std::fs::write(dir.join("lower"), format!("{lower}:{foreign}")).unwrap();
            }),
            ("a link out of the store", &|| std::fs::write(dir.join("link"), "../../../victim").unwrap()),
            ("a link of another layer", &|| {
                std::fs::remove_file(links.join(&link)).unwrap();
                std::os::unix::fs::symlink("../../../victim", links.join(&link)).unwrap();
            }),
            ("other IDs", &|| std::fs::write(dir.join("lower-layers"), other.file_name().unwrap().as_encoded_bytes()).unwrap()),
        ];
        for (name, damage) in cases {
            damage();
            store.free();
            let again = store.reopen().await;
            let report = again.check(CheckOptions::everything()).await.unwrap();
            let found = lines(&report, ItemKind::Layer, &ids.top);
            let told = found.iter().any(|line| line.starts_with("lower") || line.starts_with("link"));
            assert!(told, "{name}: {report:#?}");
            let repaired = again.repair(&report, RepairOptions::everything()).await.unwrap();
            assert!(repaired.is_success() && repaired.removed.is_empty(), "{name}: {repaired:#?}");
            assert_eq!(repaired.mended.len(), 1, "{name}: {repaired:#?}");
            let report = again.check(CheckOptions::everything()).await.unwrap();
            assert!(report.is_clean(), "{name}: {report:#?}");
            assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
            again.free();
        }
    }

    /// What a layer in the middle hides needs no whiteout above.
    async fn nothing_is_found_in_layers_that_delete_what_is_deleted(store) {
        let layers = [
            TarBuilder::new().entry(TarEntry::dir("d/")).file("d/a", "1").build(),
            TarBuilder::new().entry(TarEntry::whiteout("d")).build(),
            TarBuilder::new().entry(TarEntry::dir("d/")).file("d/n", "1").build(),
            TarBuilder::new().entry(TarEntry::dir("d/")).entry(TarEntry::whiteout("d/a")).build(),
        ];
        let mut parent: Option<String> = None;
        for layer in layers {
            let reader = std::io::Cursor::new(layer);
            let put = store.put_layer(parent.as_deref(), LayerOptions::default(), reader).await;
            parent = Some(put.unwrap().layer.id().to_owned());
        }
        let report = check(&store).await;
        assert!(report.is_clean(), "{report:#?}");
    }

    /// Attributes that make overlayfs show something else.
    async fn attributes_of_overlayfs_are_found(store) {
        if store.graph_driver_name() != "overlay" || uses_program(&store) {
            return;
        }
        let ids = fill(&store).await;
        let tree = tree_of(&store, &ids.base);
        // In a user namespace the other ones cannot be set, and are not read.
        let probe = tree.join("dir/one");
        let flags = rustix::fs::XattrFlags::empty();
        let prefix = match rustix::fs::lsetxattr(&probe, "trusted.overlay.redirect", b"x", flags) {
            Ok(()) => "trusted.overlay.",
            Err(_not_permitted) => "user.overlay.",
        };
        rustix::fs::lremovexattr(&probe, "trusted.overlay.redirect").ok();
        for (path, name, value) in [
            ("emptied", "redirect", "/dir"),
            ("dir/one", "metacopy", ""),
            ("dir/empty", "whiteout", "y"),
            ("dir", "opaque", "x"),
            ("deep", "redirect", "/dir"),
        ] {
            let (path, attribute) = (tree.join(path), format!("{prefix}{name}"));
            rustix::fs::lsetxattr(&path, &attribute, value.as_bytes(), flags).unwrap();
            let found = lines(&check(&store).await, ItemKind::Layer, &ids.base);
            assert!(found.len() == 1 && found[0].contains(&attribute), "{}: {found:#?}", path.display());
            rustix::fs::lremovexattr(&path, &attribute).unwrap();
        }
        assert!(check(&store).await.is_clean());
    }

    /// A pipe in the place of a layer's tar-split file keeps nobody waiting.
    async fn pipes_are_no_files(store) {
        let ids = fill(&store).await;
        let path = store.records("layers").join(format!("{}.tar-split.gz", ids.base));
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        let checked = tokio::time::timeout(PATIENCE, check(&store)).await;
        assert!(!checked.unwrap().is_clean());
    }
}

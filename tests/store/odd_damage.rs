//! Damage that could keep a check or a heal busy for ever: sizes that no file has, and things that are no files.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use graphroot::{CheckOptions, CheckReport, HealOptions, ItemKind, RepairOptions};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::check::{Ids, check, fill, lines};
use crate::support::{PATIENCE, TestStore, options, tree_of, writable};

fn tar_split(store: &TestStore, ids: &Ids) -> PathBuf {
    store.records("layers").join(format!("{}.tar-split.gz", ids.base))
}

fn compressed(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// Entries of these sizes, all of the same file.
fn entries(name: &str, sizes: &[u64]) -> String {
    let line = |size: &u64| {
        format!(
            "{{\"type\":1,\"name\":\"{name}\",\"size\":{size},\"payload\":\"AAAAAAAAAAA=\",\"position\":0}}\n"
        )
    };
    sizes.iter().map(line).collect()
}

async fn patiently<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.unwrap()
}

#[track_caller]
fn assert_found(name: &str, report: &CheckReport, ids: &Ids) {
    let found = lines(report, ItemKind::Layer, &ids.base);
    assert!(!found.is_empty(), "{name}: {report:#?}");
}

/// Something in the place of a file that keeps whoever reads it waiting, or never ends.
fn obstruct(path: &Path, kind: &str) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{}: {error}", path.display()),
        _ => {}
    }
    let mode = Mode::RUSR | Mode::WUSR;
    match kind {
        "a pipe" => mknodat(CWD, path, FileType::Fifo, mode, 0).unwrap(),
        "a device" => std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
        _ => std::fs::File::create(path).unwrap().set_len(1 << 40).unwrap(),
    }
}

const OBSTACLES: [&str; 3] = ["a pipe", "a device", "a file without end"];

each_driver! {
    /// What the tar-split data say of sizes costs no time.
    async fn sizes_that_no_file_has_are_found_at_once(store) {
        const MOST: u64 = i64::MAX as u64;
        let ids = fill(&store).await;
        let path = tar_split(&store, &ids);
        let whole = std::fs::read(&path).unwrap();
        for (name, sizes) in [
            ("nosuch", &[1 << 40][..]),
            ("nosuch", &[MOST]),
            ("nosuch", &[MOST, MOST, MOST]),
            ("dir/one", &[1 << 62]),
            ("dir", &[MOST - 1, 1]),
        ] {
            std::fs::write(&path, compressed(&entries(name, sizes))).unwrap();
            let report = patiently(check(&store)).await;
            assert_found(name, &report, &ids);
            let healed = patiently(store.heal(HealOptions::default())).await.unwrap();
            assert!(!healed.is_success(), "{name}: {healed:#?}");
        }
        std::fs::write(&path, whole).unwrap();
        assert!(check(&store).await.is_clean());
    }

    /// A file may have any size and no content: beyond the size of the layer nothing is read.
    async fn sizes_that_no_layer_has_are_found_at_once(store) {
        const SIZE: u64 = 1 << 40;
        let ids = fill(&store).await;
        let file = writable(tree_of(&store, &ids.base)).join("dir/one");
        std::fs::File::create(&file).unwrap().set_len(SIZE).unwrap();
        let path = tar_split(&store, &ids);
        std::fs::write(&path, compressed(&entries("dir/one", &[SIZE]))).unwrap();
        let report = patiently(check(&store)).await;
        let found = lines(&report, ItemKind::Layer, &ids.base);
        let size = format!("read {SIZE} bytes instead of ");
        assert!(found.iter().any(|line| line.starts_with(&size)), "{found:#?}");
        let repaired = patiently(store.repair(&report, RepairOptions::default())).await.unwrap();
        assert!(!repaired.removed.is_empty(), "{repaired:#?}");
    }

    /// What is no file of an item, or far too large for one, is found.
    async fn items_that_cannot_be_read_are_found(store) {
        let ids = fill(&store).await;
        let data = std::io::Cursor::new(b"data".to_vec());
        store.set_layer_big_data(&ids.base, "item", data).await.unwrap();
        for (kind, id, key) in [
            ("images", &ids.image, "manifest"),
            ("containers", &ids.container, "state"),
            ("layers", &ids.base, "item"),
        ] {
            let path = store.records(kind).join(id).join(key);
            let before = std::fs::read(&path).unwrap();
            for obstacle in OBSTACLES {
                if kind == "layers" && obstacle == OBSTACLES[2] {
                    // Any size may be that of an item of a layer.
                    continue;
                }
                obstruct(&path, obstacle);
                let report = patiently(check(&store)).await;
                let told = report.findings.iter().any(|finding| finding.to_string().contains(&format!("data item {key:?}")));
                assert!(told, "{kind}, {obstacle}: {report:#?}");
                std::fs::remove_file(&path).unwrap();
                std::fs::write(&path, &before).unwrap();
            }
            assert!(check(&store).await.is_clean());
        }
    }

    /// Of records the error names the file.
    async fn records_that_cannot_be_read_are_an_error(store) {
        fill(&store).await;
        for (kind, name) in [("images", "images.json"), ("containers", "containers.json"), ("layers", "layers.json")] {
            let path = store.records(kind).join(name);
            let before = std::fs::read(&path).ok();
            for obstacle in OBSTACLES {
                obstruct(&path, obstacle);
                let opened = patiently(async {
                    let again = store.reopen().await;
                    let read = match kind {
                        "images" => again.images().await.map(drop),
                        "containers" => again.containers().await.map(drop),
                        _ => again.layers().await.map(drop),
                    };
                    again.free();
                    read
                });
                let error = opened.await.unwrap_err().chain().to_string();
                assert!(error.contains(name), "{obstacle}: {error}");
                std::fs::remove_file(&path).unwrap();
                if let Some(before) = &before {
                    std::fs::write(&path, before).unwrap();
                }
            }
        }
    }

    /// What a program has noted in a file is found out again.
    async fn notes_that_cannot_be_read_are_made_again(store) {
        fill(&store).await;
        let run = store.path().join("run").join(store.graph_driver_name());
        let noted = std::fs::read_dir(run).into_iter().flatten().map(|entry| entry.unwrap().path());
        let mut notes: Vec<PathBuf> = noted.filter(|path| path.is_file()).collect();
        let mark = store.path().join("graph/overlay/.has-mount-program");
        notes.extend(Some(mark).filter(|mark| mark.exists()));
        for note in notes {
            for obstacle in OBSTACLES {
                obstruct(&note, obstacle);
                let report = patiently(async {
                    let again = store.reopen().await;
                    let report = again.check(CheckOptions::everything()).await.unwrap();
                    again.free();
                    report
                });
                let report = report.await;
                assert!(report.is_clean(), "{}: {obstacle}: {report:#?}", note.display());
            }
        }
    }

    /// Nothing is written through a link in the place of an item's directory or of a lock.
    async fn links_out_of_the_store_are_not_followed(store) {
        let ids = fill(&store).await;
        let victim = store.path().join("victim");
        let file = victim.join(".tmp-precious1");
        std::fs::create_dir(&victim).unwrap();
        std::fs::write(&file, "precious").unwrap();
        for (kind, id) in [("images", &ids.image), ("containers", &ids.container), ("layers", &ids.base)] {
            let dir = store.records(kind).join(id);
            let aside = store.path().join("aside");
            let was_there = std::fs::rename(&dir, &aside).is_ok();
            std::os::unix::fs::symlink(&victim, &dir).unwrap();
            let set = match kind {
                "images" => store.set_image_big_data(id, "manifest", "{}", None).await,
                "containers" => store.set_container_big_data(id, "state", "x").await,
                _ => store.set_layer_big_data(id, "item", std::io::Cursor::new(b"x".to_vec())).await,
            };
            assert!(set.is_err(), "{kind}");
            let healed = store.heal(HealOptions::default()).await.unwrap();
            assert!(healed.is_success() == (kind == "layers"), "{kind}: {healed:#?}");
            store.garbage_collect().await.unwrap();
            let names: Vec<_> = std::fs::read_dir(&victim).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert_eq!(names, std::slice::from_ref(&file), "{kind}");
            std::fs::remove_file(&dir).unwrap();
            if was_there {
                std::fs::rename(&aside, &dir).unwrap();
            }
        }
        assert!(check(&store).await.is_clean());
        store.free();
        let lock = store.records("layers").join("layers.lock");
        std::fs::remove_file(&lock).unwrap();
        std::os::unix::fs::symlink(&file, &lock).unwrap();
        let options = options(store.path(), store.graph_driver_name(), store.layout());
        let opened = graphroot::Store::open(options).await;
        let error = match opened {
            Err(error) => error,
            Ok(store) => store.create_layer(None, Default::default()).await.unwrap_err(),
        };
        assert!(error.chain().to_string().contains("layers.lock"), "{}", error.chain());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    }
}

//! The Go library reads what we write and the other way round, on one store, with its own command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;

use bytes::Bytes;
use tempfile::TempDir;

use crate::json;
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::mount_point::MountPoints;
use crate::record::names::NameOperation;
use crate::record::record_trait::Record;
use crate::record::table::Table;
use crate::record::{Location, Records, RecordsConfig, big_data};
use crate::sys::name_sync::NameSync;

/// A store of the vfs driver that the Go library's command line works on.
struct Go {
    tmp: TempDir,
}

impl Go {
    /// `None`, said loudly, where the command is not installed.
    fn new() -> Option<Self> {
        if let Err(error) = Command::new("containers-storage").arg("version").output() {
            crate::skip::skip(&format!("containers-storage cannot be run: {error}"));
            return None;
        }
        Some(Self {
            tmp: tempfile::tempdir().unwrap(),
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("containers-storage");
        // Before the verb: there it leaves the system's own options aside.
        command
            .arg("--graph")
            .arg(self.tmp.path().join("graph"))
            .arg("--run")
            .arg(self.tmp.path().join("run"));
        command.args(["--storage-driver", "vfs"]).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text.trim_end().to_owned()
    }

    fn dir(&self, kind: &str) -> PathBuf {
        self.tmp.path().join(format!("graph/vfs-{kind}"))
    }

    fn records<R: Record>(&self, kind: &str) -> Records<R> {
        let dir = self.dir(kind);
        let location = |name: String| Location {
            path: dir.join(name),
            sync: false,
            items: None,
        };
        Records::open(RecordsConfig {
            lock_files: vec![dir.join(format!("{kind}.lock"))],
            locations: vec![
                location(format!("{kind}.json")),
                location(format!("volatile-{kind}.json")),
            ],
            check_mtimes: kind == "layers",
            lock_timeout: None,
            names: NameSync::Off,
        })
        .unwrap()
    }

    fn file(&self, kind: &str) -> String {
        fs::read_to_string(self.dir(kind).join(format!("{kind}.json"))).unwrap()
    }

    /// Layers, images and containers with everything odd that the command line can make.
    fn fill(&self) {
        let odd = [
            "plain",
            "odd <&> \"q\" \\ /",
            "line\nbreak\ttab\u{1}\u{7f}\u{8}\u{c}",
            "é☃\u{2028}\u{2029}𝄞",
            "bad\u{fffd}",
        ];
        let metadata = self.tmp.path().join("metadata");
        fs::write(&metadata, b"{\"raw\": \"<\xff\xfe>\"}\r\n\0").unwrap();
        let metadata = metadata.to_str().unwrap();
        let mut parent = String::new();
        for (number, name) in odd.iter().enumerate() {
            let id = format!("{number:064}");
            let mut arguments = vec!["create-layer", "--id", &id, "--name", name, "--label", "a:b:c<d"];
            let second = format!("{name}-second");
            arguments.extend(["--name", &second]);
            if !parent.is_empty() {
                arguments.push(&parent);
            }
            self.run(&arguments);
            parent = id;
        }
        self.run(&[
            "create-layer",
            "--id",
            "mapped",
            "--uidmap",
            "0:100000:65536",
            "--gidmap",
            "0:200000:1000",
        ]);
        self.run(&["create-layer", "--id", "has space", "--readonly"]);
        self.run(&["set-metadata", "--metadata-file", metadata, "mapped"]);
        let tar = self.tmp.path().join("tar");
        fs::write(&tar, [0; 1024]).unwrap();
        self.run(&[
            "import-layer",
            "--id",
            "imported",
            "--file",
            tar.to_str().unwrap(),
        ]);
        self.run(&["set-layer-data", "--file", metadata, "imported", "some Key"]);

        for (number, name) in odd.iter().enumerate() {
            let id = format!("image-{number}");
            self.run(&[
                "create-image",
                "--id",
                &id,
                "--name",
                name,
                "--metadata",
                name,
                &parent,
            ]);
            self.run(&["set-image-data", "--file", metadata, &id, "manifest"]);
            self.run(&["set-image-data", "--file", metadata, &id, "sha256:<x>"]);
            self.run(&["add-names", "--name", &format!("{name}-added"), &id]);
        }
        self.run(&["create-image", "--id", "bare", "imported"]);
        for (number, name) in odd.iter().enumerate() {
            let id = format!("container-{number}");
            let mut arguments = vec![
                "create-container",
                "--id",
                &id,
                "--name",
                name,
                "--metadata-file",
                metadata,
            ];
            if number == 1 {
                arguments.extend(["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"]);
            }
            if number == 2 {
                arguments.push("--volatile");
            }
            arguments.push("image-1");
            self.run(&arguments);
            self.run(&["set-container-data", "--file", metadata, &id, "Data <1>"]);
        }
    }

    fn listing(&self) -> Vec<String> {
        let mut listing: Vec<String> = ["layers", "images", "containers"]
            .iter()
            .map(|verb| self.run(&[verb, "--json"]))
            .collect();
        for id in ["mapped", "imported", "image-1", "container-2"] {
            listing.push(self.run(&["metadata", "--json", id]));
            listing.push(self.run(&["get-names", "--json", id]));
        }
        listing
    }
}

fn encoded<R: Record>(row: &R) -> Bytes {
    json::to_bytes(row).unwrap().into()
}

/// Encodes every row anew, compares with the file that Go wrote, then saves all of it.
fn rewrite<R: Record>(go: &Go, kind: &str) {
    let before = go.file(kind);
    let mut guard = go.records::<R>(kind).write_blocking().unwrap();
    assert!(!guard.needs_save() && guard.incomplete().is_empty());
    let texts: Vec<Bytes> = guard.rows().map(|row| encoded(&**row)).collect();
    assert_eq!(
        String::from_utf8(json::join(texts.iter())).unwrap(),
        before,
        "{kind}"
    );
    guard.table_mut().set_dirty(0);
    guard.table_mut().set_dirty(1);
    guard.save().unwrap();
    assert_eq!(go.file(kind), before, "{kind}");
}

#[test]
fn a_store_written_by_go_is_rewritten_to_the_byte() {
    let Some(go) = Go::new() else { return };
    go.fill();
    let before = go.listing();
    rewrite::<LayerRow>(&go, "layers");
    rewrite::<ImageRow>(&go, "images");
    rewrite::<ContainerRow>(&go, "containers");
    assert_eq!(go.listing(), before);
    // Go goes on with it.
    go.run(&["delete-container", "container-0"]);
    go.run(&["add-names", "--name", "later", "image-0"]);
    assert!(
        go.records::<ContainerRow>("containers")
            .read_blocking()
            .unwrap()
            .get("container-0")
            .is_none()
    );
    let images = go.records::<ImageRow>("images");
    assert_eq!(
        images.read_blocking().unwrap().find("later").unwrap().id,
        "image-0"
    );
}

#[test]
fn changes_are_seen_on_both_sides_at_once() {
    let Some(go) = Go::new() else { return };
    go.fill();
    let layers = go.records::<LayerRow>("layers");
    let images = go.records::<ImageRow>("images");
    // The handle stays open while Go changes the store.
    for round in 0..3 {
        let name = format!("round-{round}");
        go.run(&["add-names", "--name", &name, "mapped"]);
        assert_eq!(layers.read_blocking().unwrap().find(&name).unwrap().id, "mapped");
        let mut guard = layers.write_blocking().unwrap();
        guard
            .table_mut()
            .apply_names("imported", NameOperation::Add, std::slice::from_ref(&name))
            .unwrap();
        guard.save().unwrap();
        drop(guard);
        let names = go.run(&["get-names", "imported"]);
        assert!(names.lines().any(|line| line == name), "{names}");
        assert!(!go.run(&["get-names", "mapped"]).contains(&name));

        let mut guard = images.write_blocking().unwrap();
        let row = ImageRow {
            id: format!("ours-{round}").into(),
            names: vec![format!("ours:{round} <é>")],
            layer: "imported".into(),
            created: crate::time::Time::now(),
            ..ImageRow::default()
        };
        guard.table_mut().insert(row, 0).unwrap();
        guard.save().unwrap();
        drop(guard);
        let name = format!("ours:{round} <é>");
        assert_eq!(go.run(&["exists", "--image", &name]), format!("{name}: true"));
    }
    let name = "sha256:<x>";
    let item = big_data::read(&go.dir("images").join("image-0"), name, None)
        .unwrap()
        .unwrap();
    assert_eq!(item, fs::read(go.tmp.path().join("metadata")).unwrap());
    big_data::write_bytes(
        &go.dir("images").join("image-0"),
        "Some <Key>",
        b"our content",
        false,
    )
    .unwrap();
    assert_eq!(
        go.run(&["get-image-data", "image-0", "Some <Key>"]),
        "our content"
    );
}

#[test]
fn unknown_fields_survive_our_rewrite_and_go_reads_past_them() {
    let Some(go) = Go::new() else { return };
    go.run(&["create-layer", "--id", "known", "--name", "n"]);
    let text = go.file("layers");
    let path = go.dir("layers").join("layers.json");
    fs::write(
        &path,
        text.replace(
            "}]",
            ",\"new-field\":{\"b\":[1,null],\"a\":\"<\"},\"a-field\":1.5}]",
        ),
    )
    .unwrap();
    let layers = go.records::<LayerRow>("layers");
    let mut guard = layers.write_blocking().unwrap();
    guard
        .table_mut()
        .update("known", |row| row.metadata = "changed".into())
        .unwrap();
    guard.save().unwrap();
    drop(guard);
    let ending = "\"a-field\":1.5,\"new-field\":{\"a\":\"\\u003c\",\"b\":[1,null]}}]";
    assert!(go.file("layers").ends_with(ending), "{}", go.file("layers"));
    assert_eq!(go.run(&["metadata", "known"]), "known: changed");
}

#[test]
fn go_waits_for_our_locks() {
    let Some(go) = Go::new() else { return };
    go.run(&["create-layer", "--id", "a"]);
    let layers = go.records::<LayerRow>("layers");
    let mut guard = layers.write_blocking().unwrap();
    let mut command = go.command(&["get-names", "a"]);
    let (sender, receiver) = mpsc::channel();
    let waiting = std::thread::spawn(move || {
        let output = command.output().unwrap();
        // What it saw was there before we let go, or it did not wait.
        sender.send(()).unwrap();
        String::from_utf8(output.stdout).unwrap()
    });
    let waited = receiver.recv_timeout(std::time::Duration::from_millis(300));
    assert!(waited.is_err(), "Go went past an exclusive lock");
    guard
        .table_mut()
        .apply_names("a", NameOperation::Set, &["late".to_owned()])
        .unwrap();
    guard.save().unwrap();
    drop(guard);
    assert!(waiting.join().unwrap().contains("late"));
}

#[test]
fn mount_counts_are_shared() {
    let Some(go) = Go::new() else { return };
    for id in ["a", "b", "c"] {
        go.run(&["create-layer", "--id", id]);
    }
    let run: &Path = &go.tmp.path().join("run/vfs-layers");
    let mounts = MountPoints::open(run, None).unwrap();
    for id in ["c", "a", "a"] {
        go.run(&["mount", id]);
    }
    let text = || fs::read_to_string(run.join("mountpoints.json")).unwrap();
    let written = text();
    let table = mounts.read_blocking().unwrap();
    assert_eq!(
        (table.get("a").unwrap().count, table.get("c").unwrap().count),
        (2, 1)
    );
    assert!(table.get("b").is_none());
    let mut layers = Table::<LayerRow>::empty(1);
    for id in ["a", "b", "c"] {
        let row = LayerRow {
            id: id.into(),
            ..LayerRow::default()
        };
        layers.insert(row, 0).unwrap();
    }
    let mut guard = mounts.lock_blocking().unwrap();
    guard.save(&layers).unwrap();
    assert_eq!(text(), written, "the same as Go to the byte");
    guard.set("b", "/some/where", 1);
    guard.set("c", "", 0);
    guard.save(&layers).unwrap();
    drop(guard);
    let listed = go.run(&["mounted", "a", "b", "c"]);
    assert!(
        listed.contains("a mounted") && listed.contains("b mounted") && !listed.contains("c mounted"),
        "{listed}"
    );
}

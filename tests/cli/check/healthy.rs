//! Healthy stores, made once for each test and copied for each damage.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use graphroot::test_util::{TarBuilder, TarEntry};
use serde_json::Value;

use crate::program::{Answer, Program};
use crate::support::manifest::{Manifest, manifest};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;

/// How a store is spread over directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Everything is in one place.
    Plain,
    /// Images are in a place of their own.
    Split,
    /// Images are in a store that is only read, and more above them in one that is written.
    Additional,
}

/// A store with the items that the module's tests name.
///
/// Image `I1` has the layers `L1` and `L2`, image `I2` has `L1` alone, and container `C1` stands on `I1`. In an additional store
/// `I1` and `I2` are read-only; then layer `P1` of the image `IP` stands on `L2`, and `C1` on that. Nothing damages the layers
/// `H1` and `H2`, their image `I3` and its container `C3`.
pub(crate) struct Damaged {
    pub(crate) root: TestRoot,
    pub(crate) layout: Layout,
}

/// File capabilities.
pub(crate) const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn base() -> Vec<u8> {
    TarBuilder::new()
        .entry(TarEntry::dir("dir/"))
        .entry(TarEntry::file("dir/file", "content").xattr("user.kept", "1"))
        .file("dir/empty", "")
        .entry(TarEntry::file("dir/set-id", "x").mode(0o4755))
        .entry(
            TarEntry::file("dir/able", "x")
                .mode(0o755)
                .xattr("security.capability", CAPABILITY),
        )
        .symlink("dir/link", "file")
        .entry(TarEntry::dir("dir/sticky/").mode(0o1777))
        .entry(TarEntry::fifo("dir/pipe"))
        .entry(TarEntry::char_device("dir/null", 1, 3))
        .entry(TarEntry::dir("hidden/"))
        .file("hidden/file", "x")
        .file("deleted", "x")
        .hard_link("dir/hard", "dir/file")
        .build()
}

fn top() -> Vec<u8> {
    TarBuilder::new()
        .entry(TarEntry::dir("dir/"))
        .file("dir/new", "new")
        .entry(TarEntry::dir("hidden/"))
        .entry(TarEntry::opaque("hidden"))
        .file("hidden/other", "x")
        .entry(TarEntry::whiteout("deleted"))
        .build()
}

fn other() -> Vec<u8> {
    TarBuilder::new()
        .entry(TarEntry::dir("d/"))
        .file("d/f", "healthy")
        .build()
}

impl Damaged {
    /// Makes a healthy store below `parent`.
    pub(crate) fn healthy(parent: &Path, driver: &'static str, layout: Layout) -> Self {
        let store = Self {
            root: TestRoot::in_dir(parent, driver).of(PeerSet::Forky),
            layout,
        };
        let path = |name: &str| store.root.path().join(name).display().to_string();
        for (name, tar) in [("base.tar", base()), ("top.tar", top()), ("other.tar", other())] {
            fs::write(store.root.path().join(name), tar).unwrap();
        }
        fs::write(store.root.path().join("manifest"), "{\"x\": 1}").unwrap();
        // In an additional layout these are made where they are only read later.
        for line in [
            format!("import-layer -i L1 -f {}", path("base.tar")),
            format!("import-layer -i L2 -f {} L1", path("top.tar")),
            format!("set-layer-data -f {} L2 item", path("manifest")),
            "create-image -i I1 -n img L2".to_owned(),
            "create-image -i I2 L1".to_owned(),
            format!("set-image-data -f {} I1 manifest", path("manifest")),
            format!("import-layer -i H1 -f {}", path("other.tar")),
            format!("import-layer -i H2 -f {} H1", path("top.tar")),
            "create-image -i I3 -n healthy H2".to_owned(),
            format!("set-image-data -f {} I3 manifest", path("manifest")),
        ] {
            store.make(&line, layout == Layout::Additional);
        }
        if layout == Layout::Additional {
            store.make(&format!("import-layer -i P1 -f {} L2", path("other.tar")), false);
            store.make("create-image -i IP P1", false);
        }
        let image = if layout == Layout::Additional { "IP" } else { "I1" };
        store.make(&format!("create-container -i C1 -n web {image}"), false);
        store.make(
            &format!("set-container-data -f {} C1 config", path("manifest")),
            false,
        );
        store.make("create-container -i C3 -n healthy-container I3", false);
        store
    }

    /// A copy of it.
    pub(crate) fn copy(&self, parent: &Path) -> Self {
        let copy = Self {
            root: TestRoot::in_dir(parent, self.root.driver()).of(PeerSet::Forky),
            layout: self.layout,
        };
        for name in ["graph", "images", "base"] {
            let from = self.root.path().join(name);
            if from.exists() {
                let command = copy.root.program("cp");
                command
                    .words("-a --reflink=auto")
                    .arg(from)
                    .arg(copy.root.path())
                    .run();
            }
        }
        copy
    }

    fn make(&self, line: &str, in_base: bool) {
        let answer: Answer = match in_base {
            true => {
                let mut command = self.root.program(env!("CARGO_BIN_EXE_graphroot"));
                let driver = ["--storage-driver", self.root.driver()];
                command
                    .arg("--graph")
                    .arg(self.base())
                    .arg("--run")
                    .arg(self.root.run())
                    .args(driver);
                command.words(line).output().unwrap().into()
            }
            false => self.run(Program::Ours, line),
        };
        assert_eq!(answer.code, 0, "{line}: {answer:?}");
    }

    /// The additional store.
    pub(crate) fn base(&self) -> PathBuf {
        self.root.path().join("base")
    }

    /// Runs a program on the store, which gets little time: the other one hangs sometimes.
    pub(crate) fn run(&self, program: Program, line: &str) -> Answer {
        let command = program.on(&self.root);
        let mut limited = self.root.program("timeout");
        limited
            .arg("20")
            .arg(command.get_program())
            .args(command.get_args());
        match self.layout {
            Layout::Plain => {}
            Layout::Split => {
                limited.arg("--image-store").arg(self.root.path().join("images"));
            }
            Layout::Additional => {
                let option = format!("{}.imagestore={}", self.root.driver(), self.base().display());
                limited.args(["--storage-opt", &option]);
            }
        }
        limited.words(line).output().unwrap().into()
    }

    /// Where something of the store may be, by its name below the graph root.
    fn places(&self, name: &str) -> [PathBuf; 3] {
        ["graph", "images", "base"].map(|place| self.root.path().join(place).join(name))
    }

    /// The directory in which something of the store is, by its name below the graph root.
    pub(crate) fn find(&self, name: &str) -> PathBuf {
        let places = self.places(name);
        let found = places.iter().find(|path| fs::symlink_metadata(path).is_ok());
        found.unwrap_or_else(|| panic!("{name} is nowhere")).clone()
    }

    /// The directory that the driver has for a layer.
    pub(crate) fn layer(&self, id: &str) -> PathBuf {
        match self.root.driver() {
            "vfs" => self.find(&format!("vfs/dir/{id}")),
            driver => self.find(&format!("{driver}/{id}")),
        }
    }

    /// The tree of a layer.
    pub(crate) fn tree(&self, id: &str) -> PathBuf {
        match self.root.driver() {
            "vfs" => self.layer(id),
            _ => self.layer(id).join("diff"),
        }
    }

    /// A file of the layer `L1`.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        self.tree("L1").join(path)
    }

    /// What belongs to records of a kind, by its name.
    pub(crate) fn data(&self, kind: &str, name: &str) -> PathBuf {
        self.find(&format!("{}-{kind}/{name}", self.root.driver()))
    }

    /// Where the records of a kind may be.
    fn record_files(&self, kind: &str) -> [PathBuf; 3] {
        self.places(&format!("{}-{kind}/{kind}.json", self.root.driver()))
    }

    /// Changes the row of an item in its file of records.
    pub(crate) fn edit(&self, kind: &str, id: &str, edit: impl FnOnce(&mut Value)) {
        for path in self.record_files(kind) {
            let Ok(text) = fs::read(&path) else { continue };
            let mut rows: Value = serde_json::from_slice(&text).unwrap();
            let mut all = rows.as_array_mut().unwrap().iter_mut();
            if let Some(row) = all.find(|row| row["id"] == id) {
                edit(row);
                fs::write(path, serde_json::to_vec(&rows).unwrap()).unwrap();
                return;
            }
        }
        panic!("there is no record of {id}");
    }

    /// Everything below the store's directory that no program changes by opening it.
    pub(crate) fn everything(&self) -> Manifest {
        let mut all = Manifest::new();
        for place in ["graph", "images", "base"] {
            let dir = self.root.path().join(place);
            if dir.exists() {
                let files = manifest(&dir).into_iter();
                all.extend(files.map(|(path, entry)| (Path::new(place).join(path), entry)));
            }
        }
        // Who opens a store tidies up, and reserves space for its records.
        let is_of_opening = |path: &Path| {
            let mut parts = path
                .components()
                .map(|part| part.as_os_str().to_string_lossy().into_owned());
            parts.any(|part| part == "tempdirs" || part.starts_with(".reserve-"))
        };
        all.retain(|path, _| !is_of_opening(path));
        all
    }

    /// What nothing may have touched: trees and records of the healthy items.
    pub(crate) fn untouched(&self) -> (BTreeMap<&'static str, Manifest>, Vec<Value>) {
        let trees = ["H1", "H2"].map(|id| (id, manifest(&self.tree(id))));
        let mut rows = Vec::new();
        for (kind, ids) in [
            ("layers", &["H1", "H2"][..]),
            ("images", &["I3"]),
            ("containers", &["C3"]),
        ] {
            for path in self.record_files(kind) {
                let Ok(text) = fs::read(path) else { continue };
                let all: Value = serde_json::from_slice(&text).unwrap_or_default();
                let all = all.as_array().cloned().unwrap_or_default();
                rows.extend(
                    all.into_iter()
                        .filter(|row| ids.iter().any(|id| row["id"] == **id)),
                );
            }
        }
        (trees.into(), rows)
    }

    /// The items that there are.
    pub(crate) fn items(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (command, kind) in [
            ("layers -j", "layer"),
            ("images -j", "image"),
            ("containers -j", "container"),
        ] {
            let answer = self.run(Program::Ours, command);
            let rows: Value = serde_json::from_str(&answer.out).unwrap_or_default();
            for row in rows.as_array().into_iter().flatten() {
                let id = row["id"].as_str().unwrap();
                // The layers of containers have random IDs.
                if id.len() < 64 {
                    found.push(format!("{kind} {id}"));
                }
            }
        }
        found.sort();
        found
    }
}

/// Sets the permissions of a file.
pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

/// Gives a file other content and its own times.
pub(crate) fn overwrite(path: &Path, content: &str) {
    let before = fs::metadata(path).unwrap();
    fs::write(path, content).unwrap();
    let times = fs::FileTimes::new().set_modified(before.modified().unwrap());
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_times(times).unwrap();
}

/// Gives a file an extended attribute.
pub(crate) fn attribute(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

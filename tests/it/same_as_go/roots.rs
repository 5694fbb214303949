//! Every file of a root, in a form that can be compared with that of another root.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::names::Names;
use crate::support::manifest::{Entry, Manifest, manifest};
use crate::support::root::{TestRoot, mounts_below};

/// How one side's files are brought to a common form. See [`super::accepted`].
pub(super) struct Normaliser<'a> {
    root: &'a TestRoot,
    names: &'a Names,
    /// Nothing in an archive or a script is as young.
    started: Timestamp,
    /// Short links of the overlay driver and the layers that they lead to.
    links: BTreeMap<String, String>,
}

/// The time that stands for the moment of the operation.
const NOW: (i64, i64) = (i64::MAX, 0);

impl<'a> Normaliser<'a> {
    pub(super) fn new(root: &'a TestRoot, names: &'a Names, started: Timestamp) -> Self {
        let mut links = BTreeMap::new();
        let dir = root.graph().join("overlay/l");
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let entry = entry.unwrap();
            let target = fs::read_link(entry.path()).unwrap();
            let layer = target.iter().nth(1).and_then(OsStr::to_str).unwrap_or("nowhere");
            let link = entry.file_name().into_string().unwrap();
            links.insert(link, format!("short-link-of-{}", names.named(layer)));
        }
        Self {
            root,
            names,
            started,
            links,
        }
    }

    /// Accepted: `random-ids`, `roots`, `short-links`.
    pub(super) fn text(&self, text: &str) -> String {
        let mut text = self.names.named(text);
        for (link, name) in &self.links {
            if text.contains(link.as_str()) {
                text = text.replace(link, name);
            }
        }
        // The link of a parent that was deleted without checks.
        if let Some(link) = text.strip_prefix("l/").filter(|link| link.len() == 26) {
            text = text.replace(link, "(nowhere)");
        }
        for (dir, name) in [(self.root.graph(), "<graph>"), (self.root.run(), "<run>")] {
            text = text.replace(dir.to_str().unwrap(), name);
        }
        text
    }

    /// Records and answers. Accepted: `creation-times`.
    pub(super) fn json(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.text(text).into(),
            Value::Array(rows) => rows.iter().map(|row| self.json(row)).collect(),
            Value::Object(fields) => fields
                .iter()
                .map(|(key, value)| match (key.as_str(), value) {
                    ("created", Value::String(time)) if self.is_now(time) => (key.clone(), "now".into()),
                    _ => (key.clone(), self.json(value)),
                })
                .collect(),
            other => other.clone(),
        }
    }

    fn is_now(&self, time: &str) -> bool {
        let time: Timestamp = time.parse().unwrap();
        self.started <= time && time <= Timestamp::now()
    }

    /// What is mounted below the root. Accepted: `private-home`.
    pub(super) fn mounts(&self) -> Vec<String> {
        let mounts = mounts_below(self.root.path());
        let mut shown: Vec<String> = mounts
            .iter()
            .map(|path| self.text(path.to_str().unwrap()))
            .filter(|path| !["<graph>/overlay", "<graph>/btrfs"].contains(&path.as_str()))
            .collect();
        shown.sort();
        shown
    }

    /// Every file of graph root and run root.
    pub(super) fn files(&self) -> Manifest {
        let mut files = Manifest::new();
        for (dir, name) in [(self.root.graph(), "graph"), (self.root.run(), "run")] {
            for (path, entry) in manifest(&dir) {
                let entry = self.entry(&dir.join(&path), entry);
                files.insert(self.path(&Path::new(name).join(path)), entry);
            }
        }
        files
    }

    fn path(&self, path: &Path) -> PathBuf {
        let component = |part: &OsStr| -> OsString {
            match part.to_str() {
                // What overlayfs is about to put in place of a deleted file.
                Some(text) if text.starts_with('#') => "#(number)".into(),
                Some(text) => self.text(text).into(),
                None => part.to_owned(),
            }
        };
        path.iter().map(component).collect()
    }

    fn entry(&self, path: &Path, mut entry: Entry) -> Entry {
        if entry.mtime.0 >= self.started.as_second() {
            entry.mtime = NOW;
        }
        entry.linked_with = entry.linked_with.map(|path| self.path(&path));
        entry.link_target = entry.link_target.map(|path| self.path(&path));
        for (name, value) in &mut entry.xattrs {
            if name.ends_with("overlay.origin") || name.ends_with("overlay.uuid") {
                *value = b"(the kernel's)".to_vec();
            }
        }
        if entry.kind == "file"
            && let Some(meaning) = self.meaning(path)
        {
            entry.size = None;
            entry.content = Some(meaning);
        }
        entry
    }

    /// What a file of the store itself says; `None` for files that have to be equal byte by byte.
    fn meaning(&self, path: &Path) -> Option<String> {
        let inside = path.strip_prefix(self.root.path()).unwrap();
        let name = path.file_name().unwrap().to_str()?;

        let depth = inside.iter().count();
        // ROOT/DRIVER-layers/layers.json and the like.
        if depth == 3 && name.ends_with(".json") {
            return Some("(records)".into());
        }
        if name.ends_with(".lock") && depth <= 3 {
            let length = fs::metadata(path).unwrap().len();
            return Some(format!("(lock file, {length} bytes)"));
        }
        if depth == 3 && name.ends_with(".tar-split.gz") {
            return Some(tar_split(path));
        }
        // ROOT/overlay/LAYER/link, lower and lower-layers.
        let names = ["link", "lower", "lower-layers"];
        if depth == 4 && inside.iter().nth(1)? == "overlay" && names.contains(&name) {
            return Some(self.text(&fs::read_to_string(path).unwrap()));
        }

        None
    }
}

/// A tar-split file by meaning. Accepted: `tar-split-cuts`.
fn tar_split(path: &Path) -> String {
    let mut text = String::new();
    let file = fs::File::open(path).unwrap();
    flate2::read::MultiGzDecoder::new(file)
        .read_to_string(&mut text)
        .unwrap();
    let mut entries: Vec<Value> = Vec::new();
    let mut raw: Vec<u8> = Vec::new();
    let flush = |raw: &mut Vec<u8>, entries: &mut Vec<Value>| {
        if !raw.is_empty() {
            entries.push(json!({"raw": raw.escape_ascii().to_string()}));
            raw.clear();
        }
    };
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["type"] == 2 {
            raw.extend(base64(line["payload"].as_str().unwrap_or_default()));
        } else {
            flush(&mut raw, &mut entries);
            entries.push(json!({
                "name": line["name"], "name_raw": line["name_raw"],
                "size": line["size"], "crc": line["payload"],
            }));
        }
    }
    flush(&mut raw, &mut entries);
    Value::from(entries).to_string()
}

fn base64(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

//! What a store may have on disk: what its records name, and nothing else.

use std::collections::BTreeSet;
use std::path::Path;

use crate::model::{Common, Model};
use crate::support::root::{TestRoot, mounts_below};
use crate::support::store::names_in;

/// Collects what is wrong.
struct Findings {
    all: Vec<String>,
    /// Whether processes were killed.
    kills: bool,
}

impl Findings {
    fn compare(&mut self, what: &str, found: BTreeSet<String>, expected: BTreeSet<String>) {
        for name in found.difference(&expected) {
            self.all.push(format!("{what}: {name:?} belongs to nothing"));
        }
        for name in expected.difference(&found) {
            self.all.push(format!("{what}: {name:?} is missing"));
        }
    }
}

/// Differences between what lies on disk and what the model's items need there; the driver has these `found` layers.
///
/// After `kills`, and after garbage was collected, some more is allowed: files of big data that were written and not
/// recorded (they go with their item), and layers whose mounts were made or undone and not counted.
pub(crate) fn differences(
    root: &TestRoot,
    found: BTreeSet<String>,
    model: &Model,
    kills: bool,
) -> Vec<String> {
    let mut findings = Findings {
        all: Vec::new(),
        kills,
    };
    let layers: BTreeSet<String> = model.layers.ids().map(str::to_owned).collect();
    findings.compare("driver", found, layers.clone());
    if root.driver() == "overlay" {
        findings.compare("short links", link_targets(root), layers);
        let home = root.graph().join("overlay");
        let mounted: BTreeSet<String> = mounts_below(&home)
            .iter()
            .filter_map(|path| Some(path.strip_prefix(&home).unwrap().parent()?.to_str()?.to_owned()))
            .collect();
        let counted = model.layers.0.iter().filter(|layer| layer.mounts > 0);
        let counted: BTreeSet<String> = counted.map(|layer| layer.common.id.clone()).collect();
        if kills && !model.layers.0.is_empty() {
            // Those of layers that are gone are gone too, however they came about.
            let there = mounted.iter().filter(|id| model.layers.get(id).is_none());
            findings.compare("mounts", there.cloned().collect(), BTreeSet::new());
        } else {
            findings.compare("mounts", mounted, counted);
        }
    }

    let mut expected = dirs_of(model.layers.0.iter().map(|layer| &layer.common));
    let put = model.layers.0.iter().filter(|layer| layer.diff.is_some());
    expected.extend(put.map(|layer| format!("{}.tar-split.gz", layer.common.id)));
    compare_store(
        &mut findings,
        &root.metadata_dir("layers"),
        expected,
        model.layers.ids(),
    );
    for layer in &model.layers.0 {
        compare_items(&mut findings, &root.metadata_dir("layers"), &layer.common, false);
    }

    let expected = dirs_of(model.images.0.iter().map(|image| &image.common));
    compare_store(
        &mut findings,
        &root.metadata_dir("images"),
        expected,
        model.images.ids(),
    );
    for image in &model.images.0 {
        compare_items(&mut findings, &root.metadata_dir("images"), &image.common, false);
    }

    let mut expected = dirs_of(model.containers.0.iter().map(|container| &container.common));
    let with_directory = model
        .containers
        .0
        .iter()
        .filter(|container| container.has_directory);
    expected.extend(with_directory.map(|container| container.common.id.clone()));
    let dir = root.metadata_dir("containers");
    compare_store(&mut findings, &dir, expected, model.containers.ids());
    for container in &model.containers.0 {
        compare_items(&mut findings, &dir, &container.common, container.has_directory);
    }

    for what in ["layers", "images", "containers"] {
        let dir = root.run().join(format!("{}-{what}", root.driver()));
        compare_store(&mut findings, &dir, BTreeSet::new(), std::iter::empty());
    }
    findings.compare(
        "temporary",
        root.temporary_files().into_iter().collect(),
        BTreeSet::new(),
    );
    findings.all
}

/// The layers that short links lead to, each as often as one does.
fn link_targets(root: &TestRoot) -> BTreeSet<String> {
    let dir = root.graph().join("overlay/l");
    let mut targets = BTreeSet::new();
    for link in root.short_links() {
        let target = std::fs::read_link(dir.join(&link)).unwrap();
        let id = target.strip_prefix("..").unwrap().parent().unwrap();
        let id = id.to_str().unwrap().to_owned();
        if !targets.insert(id.clone()) {
            targets.insert(format!("{id} once more by {link}"));
        }
    }
    targets
}

/// The directories in which these items have big data.
fn dirs_of<'a>(items: impl Iterator<Item = &'a Common>) -> BTreeSet<String> {
    items
        .filter(|common| !common.items.is_empty())
        .map(|common| common.id.clone())
        .collect()
}

/// A directory of records, where record files and locks may lie too. `with_data` are items that have no directory in
/// there, unless a writer of big data was killed.
fn compare_store<'a>(
    findings: &mut Findings,
    dir: &Path,
    expected: BTreeSet<String>,
    with_data: impl Iterator<Item = &'a str>,
) {
    let mut found = names_in(dir);
    found.retain(|name| {
        let record = !name.starts_with('.') && (name.ends_with(".json") || name.ends_with(".lock"));
        !record && name != "tmp" && !name.starts_with(".reserve-")
    });
    if findings.kills {
        for id in with_data.filter(|id| !expected.contains(*id)) {
            found.remove(id);
        }
    }
    findings.compare(&dir.display().to_string(), found, expected);
}

/// The directory of one item's big data.
fn compare_items(findings: &mut Findings, dir: &Path, common: &Common, has_directory: bool) {
    let dir = dir.join(&common.id);
    let mut found = names_in(&dir);
    if has_directory && !found.remove("userdata") {
        findings.all.push(format!("{}: no userdata", dir.display()));
    }
    let count = common.items.len();
    let temporary = found
        .iter()
        .any(|name| name.starts_with(".tmp-") || name.starts_with(".new-"));
    if found.len() < count || temporary || found.len() > count && !findings.kills {
        let what = dir.display();
        findings.all.push(format!("{what}: {found:?} for {count} items"));
    }
}

//! Both programs run the same steps, each on its own store, and their answers are compared.

use std::fs;

use crate::program::{Answer, Normalizer, Program};
use crate::script::{Alike, STEPS};
use crate::support::peers::PeerSet;
use crate::support::root::TestRoot;
use crate::support::{each_set, require_driver};

/// A program with its store.
struct Side {
    program: Program,
    root: TestRoot,
    normalizer: Normalizer,
}

impl Side {
    fn new(program: Program, driver: &'static str, set: PeerSet) -> Self {
        let root = match driver {
            "btrfs" => TestRoot::of_driver(driver),
            _ => TestRoot::in_dir(&std::env::temp_dir(), driver),
        };
        let root = root.of(set);
        small_layer(&root);
        fs::write(root.path().join("text"), "some text\n").unwrap();
        Self {
            program,
            root,
            normalizer: Normalizer::default(),
        }
    }

    fn step(&mut self, line: &str) -> Answer {
        let at = |name: &str| self.root.path().join(name).display().to_string();
        let line = line
            .replace("LAYER", &at("layer.tar"))
            .replace("TEXT", &at("text"))
            .replace("OUT", &at("written"));
        let answer = self.program.run(&self.root, &line);
        self.normalizer.answer(&self.root, &answer)
    }
}

/// Makes a layer whose bytes are the same in every run.
fn small_layer(root: &TestRoot) {
    let dir = root.path().join("content");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("file"), "content").unwrap();
    fs::write(dir.join("sub/\"quoted\" \u{e4}"), "more").unwrap();
    let made = root
        .program("tar")
        .args([
            "--sort=name",
            "--mtime=@1000000000",
            "--owner=3:3",
            "--group=4:4",
            "-cf",
        ])
        .arg(root.path().join("layer.tar"))
        .arg("-C")
        .arg(&dir)
        .arg(".")
        .status()
        .unwrap();
    assert!(made.success());
}

/// Why two answers differ more than allowed.
fn objection(alike: Alike, theirs: &Answer, ours: &Answer) -> Option<String> {
    if theirs.code != ours.code {
        return Some("the exit codes differ".into());
    }
    if matches!(alike, Alike::Code(_)) {
        return None;
    }
    if theirs.out != ours.out {
        return Some("the outputs differ".into());
    }
    let one_line = ours.err.ends_with('\n') && ours.err.lines().count() == 1;
    match alike {
        _ if theirs.err == ours.err => None,
        Alike::Fully | Alike::Newer => Some("the errors differ".into()),
        Alike::Contains if !one_line || !contains(&ours.err, &theirs.err) => {
            Some("our error lacks a part of theirs".into())
        }
        Alike::Fails if !one_line || theirs.err.is_empty() => Some("not one line of error each".into()),
        _ => None,
    }
}

/// Whether a line contains the parts of an error, which colons separate, in their order.
fn contains(line: &str, parts: &str) -> bool {
    let mut rest = line;
    parts.trim_end().split(": ").all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

/// The items of a list (lines, or elements of a JSON array), sorted.
fn in_order(text: &str) -> String {
    let list: Option<Vec<serde_json::Value>> = serde_json::from_str(text).ok();
    let mut items: Vec<String> = match &list {
        Some(list) => list.iter().map(ToString::to_string).collect(),
        None => text.lines().map(str::to_owned).collect(),
    };
    items.sort();
    items.join("\n")
}

fn compare(driver: &'static str, set: PeerSet) {
    let mut theirs = Side::new(Program::Theirs, driver, set);
    let mut ours = Side::new(Program::Ours, driver, set);
    let mut objections = Vec::new();
    for (alike, line) in STEPS {
        let (mut their, mut our) = (theirs.step(line), ours.step(line));
        if line.starts_with("changes") {
            // containers-storage lists changes in the random order of its maps.
            their.out = in_order(&their.out);
            our.out = in_order(&our.out);
        }
        if *alike == Alike::Newer && set == PeerSet::Installed {
            assert_eq!((our.code, our.err.as_str()), (0, ""), "{line}: {our:?}");
            continue;
        }
        if set == PeerSet::Trixie && their.err.contains("driver does not support mount options") {
            // The drivers vfs and btrfs of 1.57 refuse the option `ro`, which mounting an image implies.
            assert_eq!(
                (their.code, our.code, our.err.as_str()),
                (1, 0, ""),
                "{line}: {our:?}"
            );
            continue;
        }
        if let Some(why) = objection(*alike, &their, &our) {
            objections.push(format!(
                "{line}: {why}\n----- containers-storage: {their:?}\n----- graphroot: {our:?}"
            ));
        }
    }
    let written = |side: &Side| fs::metadata(side.root.path().join("written")).unwrap().len();
    assert!(written(&ours) > 0 && written(&theirs) > 0);
    assert!(
        objections.is_empty(),
        "{} of {} steps:\n\n{}",
        objections.len(),
        STEPS.len(),
        objections.join("\n")
    );
}

fn every_step_answers_alike_with_overlay(set: PeerSet) {
    compare("overlay", set);
}
each_set!(fn every_step_answers_alike_with_overlay: "containers-storage", "tar");

fn every_step_answers_alike_with_vfs(set: PeerSet) {
    compare("vfs", set);
}
each_set!(fn every_step_answers_alike_with_vfs: "containers-storage", "tar");

fn every_step_answers_alike_with_btrfs(set: PeerSet) {
    if require_driver("btrfs") {
        compare("btrfs", set);
    }
}
each_set!(newer fn every_step_answers_alike_with_btrfs: "containers-storage", "tar");

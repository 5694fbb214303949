//! Both programs run commands that fail, each on its own store, and ours has to say what the other one says.
//!
//! Scripts match on the words of the Go program's errors. What is compared is the exit code and the last part of its
//! message, behind what it was doing; paths and IDs differ. `accepted_failures` has every difference that remains.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use crate::accepted_failures::ACCEPTED;
use crate::bad_layers;
use crate::failures::{GROUPS, Given, Group, PREPARED};
use crate::program::{Answer, Normalizer, Program};
use crate::support::accepted::{Age, accepting};
use crate::support::each_set;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::{TestRoot, unmount_below};

/// A program, its store, and a copy of the store as it was prepared.
struct Side {
    program: Program,
    root: TestRoot,
    /// Whether the store is another than the group wants.
    changed: bool,
}

impl Side {
    fn new(program: Program, driver: &'static str, set: PeerSet) -> Self {
        let root = TestRoot::in_dir(std::path::Path::new("/dev/shm"), driver).of(set);
        bad_layers::write(root.path());
        fs::write(root.path().join("text"), "some text\n").unwrap();
        for line in PREPARED {
            let answer = program.run(&root, line);
            assert_eq!(answer.code, 0, "{line}: {answer:?}");
        }
        unmount_below(root.path());
        let side = Self {
            program,
            root,
            changed: true,
        };
        side.shell("mkdir prepared && cp -a graph run prepared");
        side
    }

    /// Runs a line of shell in the directory of the store.
    fn shell(&self, line: &str) {
        let at = |name: &str| match (name, self.root.driver()) {
            ("TREE", "vfs") => "graph/vfs/dir",
            ("TREE", _) => "graph/overlay",
            (_, "vfs") => "graph/vfs/dir/L1",
            _ => "graph/overlay/L1/diff",
        };
        let line = line
            .replace("TREE", at("TREE"))
            .replace("CONTENT", at("CONTENT"))
            .replace("DRIVER", self.root.driver());
        Command::new("sh")
            .args(["-ec", &line])
            .current_dir(self.root.path())
            .run();
    }

    /// Makes the store what the group wants.
    fn prepare(&mut self, group: &Group) {
        unmount_below(self.root.path());
        self.shell("rm -rf graph run other; cp -a prepared/* .");
        for given in group.given {
            match given {
                Given::Do(line) => {
                    let answer = self.program.run(&self.root, line);
                    assert_eq!(answer.code, 0, "{line}: {answer:?}");
                }
                Given::Write(path, text) => self.shell(&format!("printf %s '{text}' > {path}")),
                Given::Remove(path) => self.shell(&format!("rm -r {path}")),
                Given::ReadOnly => self.shell("mv graph other; mkdir graph"),
            }
        }
        self.changed = false;
    }

    fn run(&mut self, line: &str, normalizer: &mut Normalizer) -> Answer {
        let driver = self.root.driver();
        let other = self.root.path().join("other");
        let line = line
            .replace("CLAYER", &self.container_layer())
            .replace("LONG", &"n".repeat(300))
            .replace(
                "ONLY",
                &format!("--storage-opt {driver}.imagestore={}", other.display()),
            );
        let answer = self.program.run(&self.root, &line);
        self.changed = answer.code == 0;
        normalizer.answer(&self.root, &answer)
    }

    /// The layer of the container `C1`.
    fn container_layer(&self) -> String {
        let file = self.root.path().join("prepared").join(format!(
            "graph/{driver}-containers/containers.json",
            driver = self.root.driver()
        ));
        let text = fs::read_to_string(file).unwrap();
        let records: serde_json::Value = serde_json::from_str(&text).unwrap();
        let all = records.as_array().unwrap();
        let found = all.iter().find(|record| record["id"] == "C1").unwrap();
        found["layer"].as_str().unwrap().to_owned()
    }
}

/// The message of a program that failed.
fn message(answer: &Answer) -> String {
    // Lines of the log are no part of it, nor are the usage and the hint to it.
    let is_log = |line: &&str| line.starts_with("time=\"") || line.starts_with("See '");
    let text = if answer.err.lines().all(|line| is_log(&line)) || answer.out.contains("Usage:") {
        answer.out.lines().next().unwrap_or_default().to_owned()
    } else {
        let lines: Vec<&str> = answer.err.lines().filter(|line| !is_log(line)).collect();
        lines.join("\n")
    };
    // The peer unpacks in a process of its own and prints what that one has said.
    let text = text.rsplit("stderr:").next().unwrap_or_default();
    let text = match text.split_once("; output: ") {
        Some((_, said)) => said.split(") exhausting input failed").next().unwrap_or_default(),
        None => text,
    };
    let text = text.trim().trim_end_matches(')');
    let text = text
        .trim_end_matches("exit status 1")
        .trim_end_matches([' ', ':']);
    // Names of packages and functions.
    let mut text = text.to_owned();
    for prefix in [
        "archive/tar: ",
        "flate: ",
        "strconv.ParseBool: ",
        "strconv.ParseInt: ",
        "strconv.ParseUint: ",
    ] {
        text = text.replace(prefix, "");
    }
    text
}

/// The parts of the peer's message.
fn parts(text: &str) -> Vec<&str> {
    text.split(['\n'])
        .flat_map(|line| line.split(": "))
        .filter(|part| !part.is_empty())
        .collect()
}

/// The last part of the peer's message, with the one before it if it is short.
fn core(text: &str) -> Vec<&str> {
    let doing = [" while mounting ", " while unmounting ", " checking if "];
    let end = doing
        .iter()
        .filter_map(|doing| text.find(doing))
        .min()
        .unwrap_or(text.len());
    let all = parts(&text[..end]);
    let mut from = all.len().saturating_sub(1);
    while from > 0 && all[from..].iter().map(|part| part.len()).sum::<usize>() < 12 {
        from -= 1;
    }
    all[from..].to_vec()
}

/// Whether a text contains the parts, in their order.
fn contains(text: &str, parts: &[&str]) -> bool {
    let mut rest = text;
    parts.iter().all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

/// How many failures were compared, and how.
#[derive(Debug, Default)]
struct Count {
    compared: usize,
    /// Every part of the peer's message is in ours.
    identical: usize,
    /// The last part is.
    fixed_text: usize,
    differences: BTreeMap<&'static str, usize>,
}

/// In what two answers differ, `None` if ours says what the peer's says.
fn difference(line: &str, theirs: &Answer, ours: &Answer, count: &mut Count) -> Option<String> {
    count.compared += 1;
    let (their_text, our_text) = (message(theirs), message(ours));
    let short = |text: &str| text.replace('\n', " ");
    match (theirs.code, ours.code) {
        (0, 0) => return Some(format!("{line}: nothing fails")),
        (0, _) => return Some(format!("{line}: accepted / refused: {}", short(&our_text))),
        (_, 0) => return Some(format!("{line}: refused: {} / accepted", short(&their_text))),
        (a, b) if a != b => return Some(format!("{line}: exit code {a} / {b}")),
        _ => {}
    }
    if contains(&our_text, &parts(&their_text)) {
        count.identical += 1;
        return None;
    }
    if contains(&our_text, &core(&their_text)) {
        count.fixed_text += 1;
        return None;
    }
    Some(format!("{line}: {} / {}", short(&their_text), short(&our_text)))
}

fn compare(driver: &'static str, set: PeerSet) {
    let age = set.age();
    let mut sides = [Program::Theirs, Program::Ours].map(|program| Side::new(program, driver, set));
    let (mut count, mut found) = (Count::default(), Vec::new());
    for group in GROUPS.iter().filter(|group| driver == "vfs" || group.overlay) {
        for side in &mut sides {
            side.changed |= !group.given.is_empty();
        }
        for line in group.lines {
            if sides.iter().any(|side| side.changed) {
                for side in &mut sides {
                    side.prepare(group);
                }
            }
            let mut normalizer = Normalizer::default();
            let [mut theirs, ours] = sides.each_mut().map(|side| side.run(line, &mut normalizer));
            // The Go program has crashed, as it does now and then: that is no answer.
            for _ in 0..3 {
                if !theirs.err.contains("goroutine ") {
                    break;
                }
                theirs = sides[0].run(line, &mut normalizer);
            }
            if theirs.out.contains("unrecognized command") && age != Age::New && *line != "nosuch" {
                continue;
            }
            let Some(line) = difference(line, &theirs, &ours, &mut count) else {
                continue;
            };
            match accepting(ACCEPTED, &line, None, driver, age) {
                Some(row) => *count.differences.entry(row.key).or_default() += 1,
                None => found.push(format!("{}: {line}", group.what)),
            }
        }
        for side in &mut sides {
            side.changed |= !group.given.is_empty();
        }
    }
    eprintln!("{driver}, {set:?}: {count:?}");
    assert!(
        found.is_empty(),
        "{} differences:\n{}",
        found.len(),
        found.join("\n")
    );
    let shown: BTreeSet<&str> = count.differences.keys().copied().collect();
    if driver != "vfs" {
        // Only some of the groups have run.
        return;
    }
    let gone = ACCEPTED
        .iter()
        .filter(|row| row.is_due(driver, age) && !shown.contains(row.key));
    let gone: Vec<&str> = gone.map(|row| row.key).collect();
    assert!(gone.is_empty(), "differences that are gone: {gone:?}");
}

fn failures_read_alike_with_vfs(set: PeerSet) {
    compare("vfs", set);
}
// An older program never ends after `shutdown -f`.
each_set!(newer fn failures_read_alike_with_vfs: "containers-storage", "gzip", "bzip2", "xz", "zstd");

fn failures_read_alike_with_overlay(set: PeerSet) {
    compare("overlay", set);
}
each_set!(newer fn failures_read_alike_with_overlay: "containers-storage", "gzip", "bzip2", "xz", "zstd");

#[test]
fn the_last_part_of_a_message_is_what_counts() {
    let core = |text| core(text).join(": ");
    assert_eq!(
        core("locating item \"k\": file does not exist"),
        "file does not exist"
    );
    assert_eq!(core("layer not known while mounting x: y"), "layer not known");
    assert_eq!(core("error initializing: invalid size: 'x'"), "invalid size: 'x'");
    let answer = |err: &str| Answer {
        code: 1,
        out: String::new(),
        err: err.to_owned(),
    };
    let unpacked = "time=\"now\" level=error msg=\"x\"\nApplyLayer stdout: {}\n stderr:  unexpected EOF\n";
    assert_eq!(message(&answer(unpacked)), "unexpected EOF");
    let unpacked = "unpacking failed (error: exit status 1; output: unexpected EOF) exhausting input failed (error: \
                    unexpected EOF)\n";
    assert_eq!(message(&answer(unpacked)), "unexpected EOF");
    let unpacked = "ApplyLayer stdout:  stderr: archive/tar: invalid tar header exit status 1\n";
    assert_eq!(message(&answer(unpacked)), "invalid tar header");
}

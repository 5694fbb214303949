//! Checks of damaged stores by both programs: which items each of them reports, and where the other one is wrong.

mod odd_layers;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::program::{Answer, Program, good, ours};
use crate::support::manifest::manifest;
use crate::support::peers::PeerSet;
use crate::support::root::TestRoot;

/// What the newest Go program does with a damage.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Theirs {
    /// It reports the same items.
    Same,
    /// It reports nothing.
    Misses,
    /// It reports other items, for this reason.
    Differs(&'static str),
}

struct Case {
    name: &'static str,
    damage: fn(&Damaged<'_>),
    /// The items that are damaged.
    items: &'static [&'static str],
    theirs: Theirs,
}

/// A store that is being damaged.
struct Damaged<'a> {
    root: &'a TestRoot,
}

impl Damaged<'_> {
    /// A file of the layer `id`.
    fn file(&self, id: &str, path: &str) -> PathBuf {
        let home = self.root.graph().join(self.root.driver());
        match self.root.driver() {
            "vfs" => home.join("dir").join(id).join(path),
            _ => home.join(id).join("diff").join(path),
        }
    }

    fn data(&self, kind: &str, path: &str) -> PathBuf {
        self.root.metadata_dir(kind).join(path)
    }
}

const LAYER: &[&str] = &["layer L1", "image I1", "image I2", "container C1"];
const TOP: &[&str] = &["layer L2", "image I1", "container C1"];

fn case(
    name: &'static str,
    items: &'static [&'static str],
    theirs: Theirs,
    damage: fn(&Damaged<'_>),
) -> Case {
    Case {
        name,
        damage,
        items,
        theirs,
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// Gives a file other content and its own times.
fn overwrite(path: &Path, content: &str) {
    let before = fs::metadata(path).unwrap();
    fs::write(path, content).unwrap();
    let times = fs::FileTimes::new().set_modified(before.modified().unwrap());
    fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_times(times)
        .unwrap();
}

fn attribute(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

fn cases() -> Vec<Case> {
    use Theirs::{Differs, Misses, Same};
    vec![
        case("nothing", &[], Same, |_| {}),
        case("a file is missing", LAYER, Same, |s| {
            fs::remove_file(s.file("L1", "dir/file")).unwrap();
        }),
        case("an empty file is missing", LAYER, Same, |s| {
            fs::remove_file(s.file("L1", "dir/empty")).unwrap();
        }),
        case("a file is shorter", LAYER, Same, |s| {
            overwrite(&s.file("L1", "dir/file"), "cont");
        }),
        case("a file has other content", LAYER, Same, |s| {
            overwrite(&s.file("L1", "dir/file"), "CONTENT");
        }),
        case("a file of the top layer has other content", TOP, Same, |s| {
            overwrite(&s.file("L2", "dir/new"), "NEW");
        }),
        case("a file was added", LAYER, Same, |s| {
            fs::write(s.file("L1", "dir/added"), "").unwrap();
        }),
        case("a directory was added", LAYER, Same, |s| {
            fs::create_dir(s.file("L1", "added")).unwrap();
        }),
        case("a file has another mode", LAYER, Same, |s| {
            set_mode(&s.file("L1", "dir/file"), 0o600);
        }),
        case("a set-ID bit is gone", LAYER, Misses, |s| {
            set_mode(&s.file("L1", "dir/set-id"), 0o755);
        }),
        case("a set-ID bit was added", LAYER, Misses, |s| {
            set_mode(&s.file("L1", "dir/file"), 0o4644);
        }),
        case("a file has another owner", LAYER, Same, |s| {
            std::os::unix::fs::lchown(s.file("L1", "dir/file"), Some(1), None).unwrap();
        }),
        case("a file has another time", LAYER, Same, |s| {
            let file = fs::File::options()
                .write(true)
                .open(s.file("L1", "dir/file"))
                .unwrap();
            file.set_times(fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH))
                .unwrap();
        }),
        case(
            "a link leads elsewhere",
            LAYER,
            Differs("it compares the time of the link alone"),
            |s| {
                fs::remove_file(s.file("L1", "dir/link")).unwrap();
                std::os::unix::fs::symlink("empty", s.file("L1", "dir/link")).unwrap();
            },
        ),
        case("a file has capabilities", LAYER, Misses, |s| {
            attribute(
                &s.file("L1", "dir/file"),
                "security.capability",
                b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            );
        }),
        case("a file has another attribute", LAYER, Misses, |s| {
            attribute(&s.file("L1", "dir/file"), "user.x", b"1");
        }),
        case("a file is a directory", LAYER, Same, |s| {
            fs::remove_file(s.file("L1", "dir/file")).unwrap();
            fs::create_dir(s.file("L1", "dir/file")).unwrap();
        }),
        case("the tar-split file is missing", LAYER, Same, |s| {
            fs::remove_file(s.data("layers", "L1.tar-split.gz")).unwrap();
        }),
        case("the tar-split file is cut off", LAYER, Same, |s| {
            let path = s.data("layers", "L1.tar-split.gz");
            let content = fs::read(&path).unwrap();
            fs::write(path, &content[..content.len() / 2]).unwrap();
        }),
        case(
            "the data of an image is missing",
            &["image I1", "container C1"],
            Same,
            |s| {
                fs::remove_file(s.data("images", "I1/manifest")).unwrap();
            },
        ),
        case(
            "the data of an image is longer",
            &["image I1", "container C1"],
            Same,
            |s| {
                fs::write(s.data("images", "I1/manifest"), "{\"x\": 12}").unwrap();
            },
        ),
        case(
            "the data of an image is another one",
            &["image I1", "container C1"],
            Misses,
            |s| {
                fs::write(s.data("images", "I1/manifest"), "{\"x\": 2}").unwrap();
            },
        ),
        case(
            "the data of a container is missing",
            &["container C1"],
            Same,
            |s| {
                fs::remove_file(s.data("containers", "C1/config")).unwrap();
            },
        ),
        case(
            "the data of a container is another one",
            &["container C1"],
            Misses,
            |s| {
                fs::write(s.data("containers", "C1/config"), "{\"x\": 2}").unwrap();
            },
        ),
        case("the data of a layer is missing", TOP, Same, |s| {
            fs::remove_file(s.data("layers", "L2/item")).unwrap();
        }),
        case("a layer without a record", &["layer S1"], Same, |s| {
            good(s.root, "create-storage-layer -i S1");
        }),
    ]
}

fn filled(driver: &'static str) -> TestRoot {
    let root = TestRoot::in_dir(&std::env::temp_dir(), driver).of(PeerSet::Forky);
    let dir = root.path().join("content");
    fs::create_dir_all(dir.join("dir")).unwrap();
    let tar = |name: &str| {
        let made = root
            .program("tar")
            .args([
                "--sort=name",
                "--mtime=@1000000000",
                "--owner=0:0",
                "--group=0:0",
                "-cf",
            ])
            .arg(root.path().join(name))
            .args(["-C".as_ref(), dir.as_os_str(), "dir".as_ref()])
            .status()
            .unwrap();
        assert!(made.success());
    };
    fs::write(dir.join("dir/file"), "content").unwrap();
    fs::write(dir.join("dir/empty"), "").unwrap();
    fs::write(dir.join("dir/set-id"), "x").unwrap();
    set_mode(&dir.join("dir/set-id"), 0o4755);
    std::os::unix::fs::symlink("file", dir.join("dir/link")).unwrap();
    tar("base.tar");
    fs::remove_dir_all(dir.join("dir")).unwrap();
    fs::create_dir(dir.join("dir")).unwrap();
    fs::write(dir.join("dir/new"), "new").unwrap();
    tar("top.tar");
    fs::write(root.path().join("manifest"), "{\"x\": 1}").unwrap();
    let path = |name: &str| root.path().join(name).display().to_string();
    for line in [
        format!("import-layer -i L1 -f {}", path("base.tar")),
        format!("import-layer -i L2 -f {} L1", path("top.tar")),
        format!("set-layer-data -f {} L2 item", path("manifest")),
        "create-image -i I1 -n img L2".to_owned(),
        "create-image -i I2 L1".to_owned(),
        format!("set-image-data -f {} I1 manifest", path("manifest")),
        "create-container -i C1 -n web I1".to_owned(),
        format!("set-container-data -f {} C1 config", path("manifest")),
    ] {
        good(&root, &line);
    }
    root
}

/// The items that a report names.
fn items(answer: &Answer) -> BTreeSet<String> {
    let heads = answer.out.lines().filter(|line| !line.starts_with(' '));
    heads
        .filter_map(|line| line.strip_suffix(':'))
        .map(str::to_owned)
        .collect()
}

fn compare(driver: &'static str) {
    if !PeerSet::Forky.is_ready(&["containers-storage"]) {
        return;
    }
    let mut wrong = Vec::new();
    for case in cases() {
        let root = filled(driver);
        (case.damage)(&Damaged { root: &root });
        let before = manifest(&root.graph().join(driver));
        let found = ours(&root, "check");
        for (path, entry) in manifest(&root.graph().join(driver)) {
            // Opening a store may tidy up there.
            if !path.starts_with("tempdirs") {
                assert_eq!(
                    before.get(&path),
                    Some(&entry),
                    "{}: {}",
                    case.name,
                    path.display()
                );
            }
        }
        let expected: BTreeSet<String> = case.items.iter().map(|item| (*item).to_owned()).collect();
        if items(&found) != expected || found.code != i32::from(!expected.is_empty()) {
            wrong.push(format!("{}: {found:?}", case.name));
        }
        let theirs = Program::Theirs.run(&root, "check");
        let mut named = items(&theirs);
        // It compares what a layer shows, so that the one above has the same faults.
        let shows_below = expected.contains("layer L1") && named.remove("layer L2");
        let as_expected = match case.theirs {
            Theirs::Same => named == expected && theirs.code == found.code,
            Theirs::Misses => named.is_empty() && theirs.code == 0,
            Theirs::Differs(_why) => true,
        };
        if !as_expected {
            wrong.push(format!("{}: theirs: {theirs:?}", case.name));
        }
        if case.theirs == Theirs::Same && !shows_below {
            // The line with the counts of damaged items.
            assert_eq!(found.err, theirs.err, "{}", case.name);
        }
        // All that is damaged goes, with what stands on it, and nothing else.
        let repaired = ours(&root, "check -f");
        assert_eq!(repaired.code, 0, "{}: {repaired:?}", case.name);
        let after = ours(&root, "check");
        assert_eq!(
            (after.code, after.out.as_str()),
            (0, ""),
            "{}: {after:?}",
            case.name
        );
        let theirs = Program::Theirs.run(&root, "check");
        assert_eq!(
            (theirs.code, theirs.out.as_str()),
            (0, ""),
            "{}: {theirs:?}",
            case.name
        );
        let left: BTreeSet<String> = ["layer L1", "layer L2", "image I1", "image I2", "container C1"]
            .iter()
            .filter(|item| {
                let (kind, id) = item.split_once(' ').unwrap();
                ours(&root, &format!("exists --{kind} {id}")).code == 0
            })
            .map(|item| (*item).to_owned())
            .collect();
        for item in ["layer L1", "image I2"] {
            let healthy = !expected.contains("layer L1");
            assert_eq!(left.contains(item), healthy, "{}: {left:?}", case.name);
        }
        assert_eq!(
            left.contains("image I1"),
            !expected.contains("image I1"),
            "{}: {left:?}",
            case.name
        );
        assert_eq!(
            left.contains("container C1"),
            !expected.contains("container C1"),
            "{}: {left:?}",
            case.name
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn both_find_the_same_damage_over_overlay() {
    compare("overlay");
}

#[test]
fn both_find_the_same_damage_over_vfs() {
    compare("vfs");
}

#[test]
fn a_report_is_json_too() {
    let root = filled("vfs");
    let clean = "{\"Layers\":{},\"ROLayers\":{},\"Images\":{},\"ROImages\":{},\"Containers\":{}}\n";
    assert_eq!(good(&root, "check -j"), clean);
    fs::remove_file(Damaged { root: &root }.file("L2", "dir/new")).unwrap();
    let answer = ours(&root, "check -j");
    assert_eq!(answer.code, 1, "{answer:?}");
    let report: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    let errors = report["Layers"]["L2"].as_array().unwrap();
    assert_eq!(errors.len(), 2, "{report:#}");
    assert!(
        errors[0]["error"].as_str().unwrap().contains("it is missing"),
        "{report:#}"
    );
    assert_eq!(
        report["Containers"]["C1"].as_array().unwrap().len(),
        2,
        "{report:#}"
    );
}

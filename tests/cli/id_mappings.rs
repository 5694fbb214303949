//! Layers and containers with ID mappings: a table over driver, what the kernel may do, and kind of mapping. In each cell
//! both programs do the same, and what they do is what the table says: the mount shifts owners, a copy of the image's top
//! layer is made, or the files get their owners when the container is created.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::program::{Answer, Program, with_input};
use crate::support::manifest::{Entry, manifest};
use crate::support::missing;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::tar::{Header, Tar};

/// The driver, and whether a mount may show other owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Overlay with ID-mapped mounts.
    Overlay,
    /// Overlay without.
    OverlayUnshifted,
    /// Overlay through fuse-overlayfs, which maps where neither side of a mapping has gaps.
    Program,
    Vfs,
}
use Place::{OverlayUnshifted, Vfs};

const MOUNT_PROGRAM: &str = "/usr/bin/fuse-overlayfs";

impl Place {
    /// Whether it can be tested here, beside the newest Go program.
    fn is_ready(self) -> bool {
        if self == Self::Program {
            let is_there = Path::new(MOUNT_PROGRAM).exists() && Path::new("/dev/fuse").exists();
            if !is_there {
                missing("fuse-overlayfs or /dev/fuse");
                return false;
            }
        }
        PeerSet::Forky.is_ready(&["containers-storage"])
    }
}

/// What is done for a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// Nothing: the owners are those of the image.
    Nothing,
    /// The mount shows other owners.
    Shift,
    /// A copy of the image's top layer is recorded in the image.
    Copy,
    /// A copy, and the files of the container's layer have other owners again.
    CopyAndChown,
    /// It is refused.
    Refused,
}

/// The flags of a kind of mapping.
fn flags(kind: &str) -> &'static str {
    match kind {
        "inherited" => "",
        "host" => "--hostuidmap --hostgidmap",
        "first" => "--uidmap 0:100000:65536 --gidmap 0:100000:65536",
        "second" => "--uidmap 0:200000:65536 --gidmap 0:300000:65536",
        "users" => "--uidmap 0:100000:65536",
        "groups" => "--gidmap 0:100000:65536",
        "host users" => "--hostuidmap --gidmap 0:100000:65536",
        "host groups" => "--hostgidmap --uidmap 0:100000:65536",
        "only host users" => "--hostuidmap",
        "only host groups" => "--hostgidmap",
        "single" => "--uidmap 0:1000:1 --gidmap 0:1000:1",
        "single without root" => "--uidmap 5:1000:1 --gidmap 6:1000:1",
        "few" => "--uidmap 0:100000:8 --gidmap 0:100000:8",
        "without root" => "--uidmap 1:100000:1000 --gidmap 1:100000:1000",
        "identity" => "--uidmap 0:0:65536 --gidmap 0:0:65536",
        "parts" => "--uidmap 0:100000:3:3:5000:1000 --gidmap 0:100000:3:3:7000:1000",
        "root stays" => "--uidmap 0:0:1:1:100000:65535 --gidmap 0:0:1:1:100000:65535",
        _ => panic!("no such kind: {kind}"),
    }
}

/// A store of one of the programs.
struct Side {
    root: TestRoot,
    program: Program,
    place: Place,
}

impl Side {
    fn new(program: Program, place: Place, set: PeerSet) -> Self {
        let driver = if place == Vfs { "vfs" } else { "overlay" };
        Self {
            root: TestRoot::in_dir(Path::new("/dev/shm"), driver).of(set),
            program,
            place,
        }
    }

    fn run_with(&self, line: &str, input: &[u8]) -> Answer {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let option = match self.place {
            Place::Program => format!("--storage-opt overlay.mount_program={MOUNT_PROGRAM}"),
            _ => String::new(),
        };
        let mut command = self
            .program
            .on(&self.root)
            .words(&format!("{verb} {option} {rest}"));
        if self.place == OverlayUnshifted {
            command.env("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes");
        }
        with_input(command, input)
    }

    fn run(&self, line: &str) -> Answer {
        self.run_with(line, b"")
    }

    #[track_caller]
    fn good(&self, line: &str) -> String {
        let answer = self.run(line);
        assert_eq!(answer.code, 0, "{:?} {line}: {answer:?}", self.program);
        answer.out.trim_end().to_owned()
    }

    #[track_caller]
    fn import(&self, id: &str, flags: &str, parent: &str, tar: &[u8]) {
        let answer = self.run_with(&format!("import-layer -r -i {id} {flags} {parent}"), tar);
        assert_eq!(answer.code, 0, "{:?} {id}: {answer:?}", self.program);
    }

    fn records(&self, what: &str) -> Vec<Value> {
        let file = self.root.metadata_dir(what).join(format!("{what}.json"));
        match fs::read(file) {
            Ok(text) => serde_json::from_slice(&text).unwrap(),
            Err(_missing) => Vec::new(),
        }
    }

    /// The trees of a layer on disk, with the names of its generations.
    fn trees(&self, id: &str) -> BTreeMap<String, Owners> {
        let home = self.root.graph().join(self.root.driver());
        if self.root.driver() == "vfs" {
            return BTreeMap::from([(String::new(), owners(&home.join("dir").join(id)))]);
        }
        let trees = (0..9).map(|number| match number {
            0 => "diff".to_owned(),
            number => format!("diff{number}"),
        });
        let there = trees.filter(|name| home.join(id).join(name).exists());
        there
            .map(|name| {
                let owners = owners(&home.join(id).join(&name));
                (name, owners)
            })
            .collect()
    }
}

/// Owner, mode and content of each file.
type Owners = BTreeMap<PathBuf, String>;

fn owners(tree: &Path) -> Owners {
    let describe = |(path, entry): (PathBuf, Entry)| {
        let content = entry.content.as_deref().unwrap_or_default();
        let text = format!(
            "{}:{} {:o} {} {:?} {content}",
            entry.uid, entry.gid, entry.mode, entry.kind, entry.linked_with
        );
        (path, text)
    };
    manifest(tree).into_iter().map(describe).collect()
}

fn base() -> Vec<u8> {
    Tar::new()
        .dir("dir/")
        .file("dir/root", "root")
        .entry(Header::file("dir/user", "user").owner(5, 6))
        .entry(Header::file("dir/set", "set").mode(0o6755).owner(1, 2))
        .entry(Header::symlink("dir/symbolic", "user").owner(5, 6))
        .entry(Header::hard_link("hard", "dir/user").owner(5, 6))
        .entry(Header::fifo("fifo").owner(7, 7))
        .file("gone", "gone")
        .build()
}

fn above() -> Vec<u8> {
    Tar::new()
        .dir("dir/")
        .entry(Header::file("dir/root", "another").owner(3, 3))
        .entry(Header::file("new", "new").owner(4, 4))
        .whiteout("gone")
        .build()
}

/// A mapping of a record, in the order of its IDs: the Go library sorts it in another one where it has looked for gaps.
fn map_of(row: &Value, key: &str) -> Value {
    let mut map = row[key].clone();
    if let Some(ranges) = map.as_array_mut() {
        ranges.sort_by_key(|range| range["container_id"].as_u64());
    }
    map
}

/// Whether a program cannot map by this kind of mapping.
fn has_gaps(kind: &str) -> bool {
    ["parts", "root stays"].contains(&kind)
}

/// What a program has made of a container.
#[derive(Debug)]
struct Outcome {
    done: Done,
    /// Of the container and its layer: the mappings in the records, and the flags.
    records: Vec<Value>,
    /// Exit code of `mount`, and what it shows.
    mounted: (i32, Owners),
    /// What `container-parent-owners` and `layer-parent-owners` print.
    parents: Vec<(i32, String, String)>,
    /// On disk: of the copy of the image's top layer, and of the container's layer.
    trees: Vec<BTreeMap<String, Owners>>,
    diff: Answer,
}

impl Side {
    fn container(&self, kind: &str) -> Outcome {
        self.import("base", "", "", &base());
        self.import("top", "", "base", &above());
        self.good("create-image -i image top");
        let created = self.run(&format!("create-container -i container {} image", flags(kind)));
        let copies: Vec<String> = self.records("images")[0]["mapped-layers"]
            .as_array()
            .map_or_else(Vec::new, |ids| {
                ids.iter().map(|id| id.as_str().unwrap().to_owned()).collect()
            });
        if created.code != 0 {
            assert_eq!(
                self.records("layers").len(),
                2,
                "{:?}: nothing is left",
                self.program
            );
            return Outcome {
                done: Done::Refused,
                records: vec![Value::from(created.err.contains("cannot be mapped to a host ID"))],
                mounted: (0, Owners::new()),
                parents: Vec::new(),
                trees: Vec::new(),
                diff: created,
            };
        }
        let container = self.records("containers").remove(0);
        let id = container["layer"].as_str().unwrap();
        let layer = self
            .records("layers")
            .into_iter()
            .find(|row| row["id"] == id)
            .unwrap();
        let mount = self.run("mount container");
        let shown = match mount.code {
            0 => owners(Path::new(mount.out.trim_end())),
            _ => Owners::new(),
        };
        let parents = [
            "container-parent-owners container",
            &format!("layer-parent-owners {id}"),
        ]
        .map(|line| {
            let answer = self.run(line);
            let reason = answer.err.rsplit(": ").next().unwrap_or_default();
            (answer.code, answer.out.replace(id, "LAYER"), reason.to_owned())
        });
        if mount.code == 0 {
            self.good("unmount container");
        }
        let mut trees: Vec<_> = copies.iter().map(|copy| self.trees(copy)).collect();
        trees.push(self.trees(id));
        let own = trees.last().unwrap();
        let of_host = |trees: &BTreeMap<String, Owners>| {
            trees.values().any(|tree| {
                tree.get(Path::new("new"))
                    .is_some_and(|file| file.starts_with("4:4 "))
            })
        };
        let done = match (copies.len(), layer.get("uidmap").or(layer.get("gidmap"))) {
            (0, None) => Done::Nothing,
            (0, Some(_)) => Done::Shift,
            (1, _) if layer["parent"] != copies[0].as_str() => panic!("{layer:?}"),
            (1, _) if of_host(own) && kind != "identity" => Done::CopyAndChown,
            (1, _) => Done::Copy,
            more => panic!("{more:?}"),
        };
        let maps =
            |row: &Value| serde_json::json!([map_of(row, "uidmap"), map_of(row, "gidmap"), row["flags"]]);
        Outcome {
            done,
            records: vec![maps(&container), maps(&layer)],
            mounted: (mount.code, shown),
            parents: parents.into(),
            trees,
            diff: self.run(&format!("diff -u {id}")),
        }
    }
}

fn compare_containers(place: Place, kind: &str, expected: Done) {
    if !place.is_ready() {
        return;
    }
    let [mut theirs, mut ours] = [Program::Theirs, Program::Ours]
        .map(|program| Side::new(program, place, PeerSet::Forky).container(kind));
    assert_eq!((theirs.done, ours.done), (expected, expected));
    assert_eq!(ours.records, theirs.records);
    if place == Place::Program && expected == Done::Shift && !ours.mounted.1.is_empty() {
        compare_roots(&mut ours, &mut theirs);
    }
    pass_over_faults(place, &mut ours.mounted.1, &mut theirs.mounted.1);
    assert_eq!(ours.mounted, theirs.mounted);
    assert_eq!(ours.parents, theirs.parents);
    if expected == Done::Refused {
        return;
    }
    assert_eq!(ours.diff, theirs.diff);
    for (number, (mine, mut other)) in ours.trees.into_iter().zip(theirs.trees).enumerate() {
        for (name, mut tree) in mine {
            pass_over_faults(place, &mut tree, other.get_mut(&name).unwrap());
            // The Go library links files anew that keep their owner, with copies of them.
            let same = |path: &Path| kind != "identity" || path.as_os_str().is_empty();
            let kept = |tree: &Owners| -> Owners {
                let kept = tree.iter().filter(|(path, _)| name != "diff1" || same(path));
                kept.map(|(path, text)| (path.clone(), text.clone())).collect()
            };
            assert_eq!(kept(&tree), kept(&other[&name]), "{number} {name}");
        }
    }
}

/// The Go library gives the root directory of a container's layer to the host's ID of its root user, and the program, which maps
/// the owners on disk, shows it as nobody's. What is compared then is the rest.
fn compare_roots(ours: &mut Outcome, theirs: &mut Outcome) {
    let root = Path::new("");
    let owner = |text: &str| text.split(' ').next().unwrap().to_owned();
    let theirs_shown = theirs.mounted.1.remove(root).unwrap();
    let shown = ours.mounted.1.remove(root).unwrap();
    if shown != theirs_shown {
        assert!(theirs_shown.starts_with("65534:"), "{theirs_shown}");
        assert_eq!(owner(&shown), owner(&ours.mounted.1[Path::new("dir")]));
    }
    let own = |side: &mut Outcome| {
        side.trees
            .last_mut()
            .unwrap()
            .get_mut("diff")
            .unwrap()
            .remove(root)
    };
    let [ours_own, theirs_own] = [own(ours), own(theirs)].map(Option::unwrap);
    assert!(
        ours_own == theirs_own || ours_own.starts_with("0:0 "),
        "{ours_own}"
    );
}

/// The Go library gives files their owners through the mount of the program, which makes regular files of FIFOs and leaves hard
/// links now and then as they were.
fn pass_over_faults(place: Place, tree: &mut Owners, theirs: &mut Owners) {
    if place != Place::Program {
        return;
    }
    let [fifo, file, link] = ["fifo", "dir/user", "hard"].map(Path::new);
    if theirs.get(fifo).is_some_and(|text| text.contains(" file ")) {
        theirs.remove(fifo);
        let ours = tree.remove(fifo).unwrap();
        assert!(ours.contains(" fifo "), "{ours}");
    }
    let is_left = |path| theirs.get(path).is_some_and(|text| text.starts_with("5:6 "));
    if tree.get(file) != theirs.get(file) && [file, link].into_iter().any(is_left) {
        let ours = [file, link].map(|path| {
            theirs.remove(path);
            tree.remove(path).unwrap()
        });
        assert!(ours[0] == ours[1] && !ours[0].starts_with("5:6 "), "{ours:?}");
    }
}

/// A test for each cell of the table.
macro_rules! containers {
    ($($test:ident $kind:literal: $overlay:ident $unshifted:ident $program:ident $vfs:ident;)*) => {$(
        mod $test {
            use super::{Done, Place, compare_containers};

            #[test]
            fn overlay() {
                compare_containers(Place::Overlay, $kind, Done::$overlay);
            }

            #[test]
            fn overlay_without_mapped_mounts() {
                compare_containers(Place::OverlayUnshifted, $kind, Done::$unshifted);
            }

            #[test]
            fn mount_program() {
                compare_containers(Place::Program, $kind, Done::$program);
            }

            #[test]
            fn vfs() {
                compare_containers(Place::Vfs, $kind, Done::$vfs);
            }
        }
    )*};
}

containers! {
    // what                                       overlay   without mapped mounts, mount program, vfs
    inherited "inherited":                        Nothing   Nothing       Nothing       Nothing;
    host "host":                                  Nothing   Nothing       Nothing       Nothing;
    only_host_users "only host users":            Nothing   Nothing       Nothing       Nothing;
    only_host_groups "only host groups":          Nothing   Nothing       Nothing       Nothing;
    first "first":                                Shift     Copy          Shift         Copy;
    second "second":                              Shift     Copy          Shift         Copy;
    users "users":                                Shift     Copy          Shift         Copy;
    groups "groups":                              Shift     Copy          Shift         Copy;
    host_users "host users":                      Shift     CopyAndChown  Shift         CopyAndChown;
    host_groups "host groups":                    Shift     Copy          Shift         Copy;
    single "single":                              Shift     Copy          Shift         Copy;
    single_without_root "single without root":    Shift     Copy          Shift         Refused;
    few "few":                                    Shift     Copy          Shift         Copy;
    without_root "without root":                  Shift     Refused       Shift         Refused;
    identity "identity":                          Shift     Copy          Shift         Copy;
    parts "parts":                                Shift     Copy          Copy          Copy;
    root_stays "root stays":                      Shift     Copy          Copy          Copy;
}

/// A layer on a parent with another mapping, with a diff of its own or without.
fn compare_layers(place: Place, below: &str, own: &str) {
    if !place.is_ready() {
        return;
    }
    let made = [Program::Theirs, Program::Ours].map(|program| {
        let side = Side::new(program, place, PeerSet::Forky);
        side.import("base", flags(below), "", &base());
        side.import("diff", flags(own), "base", &above());
        side.good(&format!("create-layer -r -i empty {} base", flags(own)));
        let maps = |row: Value| (map_of(&row, "uidmap"), map_of(&row, "gidmap"));
        let records: Vec<_> = side.records("layers").into_iter().map(maps).collect();
        let trees = ["base", "diff", "empty"].map(|id| side.trees(id));
        let diffs = ["base", "diff"].map(|id| side.run(&format!("diff -u {id}")));
        (records, trees, diffs)
    });
    let [(records, trees, diffs), ours] = made;
    assert_eq!(ours.0, records);
    assert_eq!(ours.2, diffs);
    let is_copied = place == OverlayUnshifted || place == Place::Program && has_gaps(own);
    let differ = is_copied && records[0] != records[1];
    for (number, (mine, mut other)) in ours.1.into_iter().zip(trees).enumerate() {
        assert_eq!(mine.contains_key("diff1"), differ && number > 0);
        for (name, mut tree) in mine {
            let mut other = other.remove(&name).unwrap();
            pass_over_faults(place, &mut tree, &mut other);
            if differ && number == 1 && name == "diff" {
                // The Go library leaves the owner of the parent's root directory.
                let _theirs = other.remove(Path::new(""));
                let root = tree.remove(Path::new("")).unwrap();
                let first = |map: &Value| map[0]["host_id"].as_u64().unwrap_or(0);
                let expected = format!("{}:{} ", first(&records[1].0), first(&records[1].1));
                assert!(root.starts_with(&expected), "{root}");
            }
            assert_eq!(tree, other, "{number} {name}");
        }
        assert_eq!(other.len(), 0, "{number}");
    }
}

/// A test for each place and pair of mappings.
macro_rules! layers {
    ($($test:ident $below:literal $own:literal;)*) => {
        mod layers {
            $(
                mod $test {
                    use super::super::{Place, compare_layers};

                    #[test]
                    fn overlay() {
                        compare_layers(Place::Overlay, $below, $own);
                    }

                    #[test]
                    fn overlay_without_mapped_mounts() {
                        compare_layers(Place::OverlayUnshifted, $below, $own);
                    }

                    #[test]
                    fn mount_program() {
                        compare_layers(Place::Program, $below, $own);
                    }

                    #[test]
                    fn vfs() {
                        compare_layers(Place::Vfs, $below, $own);
                    }
                }
            )*
        }
    };
}

layers! {
    none_first "inherited" "first";
    none_parts "inherited" "parts";
    none_users "inherited" "users";
    none_host_users "inherited" "host users";
    first_inherited "first" "inherited";
    first_second "first" "second";
    first_host "first" "host";
    first_users "first" "users";
    first_groups "first" "groups";
    first_host_groups "first" "host groups";
    second_few "second" "few";
    users_groups "users" "groups";
    second_root_stays "second" "root stays";
}

/// Everything in the store's directory of layers, with their owners.
fn all_layers(side: &Side) -> Owners {
    let home = side.root.graph().join(side.root.driver());
    let mut all = owners(&home);
    // Made by the driver for itself.
    all.retain(|path, _| !path.starts_with("tempdirs"));
    all
}

#[test]
fn what_is_refused_leaves_nothing_behind() {
    for place in [OverlayUnshifted, Vfs] {
        let side = Side::new(Program::Ours, place, PeerSet::Installed);
        side.import("layer", flags("few"), "", &base());
        let (before, records) = (all_layers(&side), side.records("layers"));
        let diff = Tar::new()
            .file("before", "1")
            .entry(Header::file("uncovered", "2").owner(9, 9))
            .build();
        for line in [
            "apply-diff layer",
            "import-layer -i other layer",
            "import-layer --uidmap 0:5:1 layer",
        ] {
            let answer = side.run_with(line, &diff);
            assert!(
                answer.code == 1 && answer.err.contains("cannot be mapped"),
                "{place:?} {line}: {answer:?}"
            );
            assert_eq!(all_layers(&side), before, "{place:?} {line}");
            assert_eq!(side.records("layers"), records, "{place:?} {line}");
        }
        assert_eq!(side.root.temporary_files(), Vec::<String>::new());
    }
}

#[test]
fn a_container_exports_the_owners_that_it_sees_and_what_it_has_deleted() {
    for place in [Place::Overlay, OverlayUnshifted, Vfs] {
        let side = Side::new(Program::Ours, place, PeerSet::Installed);
        side.import("layer", "", "", &base());
        side.good("create-image -i image layer");
        side.good(&format!("create-container -i container {} image", flags("first")));
        let mounted = PathBuf::from(side.good("mount container"));
        fs::remove_file(mounted.join("dir/root")).unwrap();
        fs::write(mounted.join("made"), "made").unwrap();
        std::os::unix::fs::chown(mounted.join("made"), Some(100_005), Some(100_006)).unwrap();
        side.good("unmount container");
        let layer = side.records("containers")[0]["layer"]
            .as_str()
            .unwrap()
            .to_owned();
        let file = side.root.path().join("diff.tar");
        side.good(&format!("diff -u -f {} {layer}", file.display()));
        let listed = std::process::Command::new("tar")
            .args(["--list", "--verbose", "--numeric-owner", "--file"])
            .arg(&file)
            .run();
        let found = |words: [&str; 2]| {
            listed
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word)))
        };
        assert!(
            found(["5/6 ", " made"]) && found([" 0/0 ", " dir/.wh.root"]),
            "{place:?}:\n{listed}"
        );
        assert!(!listed.contains("10000"), "{place:?}:\n{listed}");
    }
}

/// A container with other owners on an image of an additional store, which keeps no copies: the container's layer has all files
/// with the container's owners.
fn compare_on_read_only_store(place: Place) {
    if !PeerSet::Forky.is_ready(&["containers-storage"]) {
        return;
    }
    let below = Side::new(Program::Theirs, place, PeerSet::Forky);
    below.import("base", "", "", &base());
    below.import("top", "", "base", &above());
    below.good("create-image -i image top");
    let before = fs::read(below.root.metadata_dir("images").join("images.json")).unwrap();
    let (driver, graph) = (below.root.driver(), below.root.graph());
    let option = format!("--storage-opt {driver}.imagestore={}", graph.display());
    let [theirs, ours] = [Program::Theirs, Program::Ours].map(|program| {
        let side = Side::new(program, place, PeerSet::Forky);
        for id in ["one", "two"] {
            side.good(&format!(
                "create-container {option} -i {id} {} image",
                flags("first")
            ));
        }
        let path = side.good(&format!("mount {option} one"));
        let shown = owners(Path::new(&path));
        side.good(&format!("unmount {option} one"));
        let maps: Vec<Value> = side
            .records("layers")
            .iter()
            .map(|row| row["uidmap"].clone())
            .collect();
        (shown, maps)
    });
    assert_eq!(ours, theirs);
    assert_eq!(ours.1.len(), 2);
    assert!(
        ours.0[Path::new("dir/user")].starts_with("100005:100006 "),
        "{:?}",
        ours.0
    );
    let after = fs::read(below.root.metadata_dir("images").join("images.json")).unwrap();
    assert!(after == before);
}

#[test]
fn images_of_a_read_only_store_on_overlay() {
    compare_on_read_only_store(Place::Overlay);
}

#[test]
fn images_of_a_read_only_store_on_overlay_without_mapped_mounts() {
    compare_on_read_only_store(Place::OverlayUnshifted);
}

#[test]
fn images_of_a_read_only_store_on_vfs() {
    compare_on_read_only_store(Place::Vfs);
}

//! What the numbers of transactions tell about two trees, beside the comparison of everything in them.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps};

use super::*;
use crate::driver::conformance::btrfs::{Btrfs, VARIABLE};
use crate::driver::select::open_driver;
use crate::driver::{CreateOptions, Driver, DriverConfig};
use crate::skip::skip;
use crate::sys::{at, btrfs, xattr};

/// A driver on a file system of its own, so that there is never much to write.
struct Setup {
    driver: Arc<dyn Driver>,
    _file_system: Btrfs,
}

impl Setup {
    fn new() -> Option<Self> {
        if std::env::var_os(VARIABLE).is_some() {
            // In a user namespace, where the trees cannot be searched.
            return None;
        }
        let file_system = Btrfs::new().map_err(skip).ok()?;
        let config = DriverConfig {
            name: Some("btrfs".into()),
            root: file_system.path().join("graph"),
            run_root: file_system.path().join("run"),
            ..DriverConfig::default()
        };
        Some(Self {
            driver: open_driver(&config).unwrap(),
            _file_system: file_system,
        })
    }

    fn create(&self, id: &str, parent: Option<&str>) -> PathBuf {
        self.driver.create(id, parent, &CreateOptions::default()).unwrap();
        self.driver.home().join("subvolumes").join(id)
    }

    fn remove(&self, id: &str) {
        drop(self.driver.defer_remove(id).unwrap());
    }

    fn tree(&self, id: &str) -> Tree {
        Tree {
            dir: self.driver.mount_private(id).unwrap(),
            mappings: IdMappings::default(),
        }
    }

    fn snapshot_changes(&self, new: &Tree, old: &Tree) -> Option<SnapshotChanges> {
        self.driver.snapshot_changes(new.dir.as_fd(), old.dir.as_fd())
    }

    /// Compares two layers both ways. Returns how many changes there were.
    fn check(&self, new: &str, old: &str) -> usize {
        let (new, old) = (self.tree(new), self.tree(old));
        let comparison = || TreeComparison::new(new.compared(), Some(old.compared())).unwrap();
        let mut found = self.snapshot_changes(&new, &old).unwrap();
        while found.step().unwrap() {}
        let mut fast = comparison();
        fast.look_only_at(found.into_inodes());
        while fast.step(100).unwrap() {}
        let mut whole = comparison();
        while whole.step(100).unwrap() {}
        let lines = |comparison: TreeComparison| {
            let changes = comparison.into_changes();
            changes.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let whole = lines(whole);
        assert_eq!(lines(fast), whole);
        whole.len()
    }

    /// From now on every access is recorded, as it is on most systems the first time only.
    fn record_access(&self) {
        let target = self.driver.home().ancestors().nth(2).unwrap();
        let status = Command::new("mount")
            .args(["-o", "remount,strictatime"])
            .arg(target)
            .status();
        assert!(status.unwrap().success());
    }

    /// How many inodes two layers can differ in.
    fn count(&self, new: &str, old: &str) -> usize {
        let mut found = self.search(new, old).unwrap();
        while found.step().unwrap() {}
        found.into_inodes().len()
    }

    fn search(&self, new: &str, old: &str) -> Option<SnapshotChanges> {
        self.snapshot_changes(&self.tree(new), &self.tree(old))
    }
}

/// Numbers that depend on the first one alone.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % limit
    }

    fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

/// Everything below a directory.
fn paths(root: &Path) -> Vec<PathBuf> {
    let mut paths = vec![root.to_owned()];
    let mut next = 0;
    while next < paths.len() {
        if paths[next].symlink_metadata().unwrap().is_dir() {
            let mut below: Vec<_> = fs::read_dir(&paths[next])
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            below.sort();
            paths.extend(below);
        }
        next += 1;
    }
    paths
}

/// Files that are open, some of them without a name.
type Open = Vec<File>;

/// Reads a file, a directory or a link, which changes nothing but the time of its last access.
fn read(path: &Path) {
    let kind = path.symlink_metadata().unwrap().file_type();
    if kind.is_dir() {
        assert!(fs::read_dir(path).unwrap().all(|entry| entry.is_ok()));
    } else if kind.is_symlink() {
        fs::read_link(path).unwrap();
    } else if kind.is_file() {
        fs::read(path).unwrap();
    }
}

/// Changes something below `root`, if that can be: what the file system refuses is no matter.
fn change(root: &Path, random: &mut Random, open: &mut Open) {
    let all = paths(root);
    let dirs: Vec<_> = all
        .iter()
        .filter(|path| path.symlink_metadata().unwrap().is_dir())
        .cloned()
        .collect();
    let one = random.of(&all).clone();
    let name = format!("{}{}", random.of(&["a", "b", "c"]), random.below(8));
    let new = random.of(&dirs).join(name);
    let size = *random.of(&[0, 1, 100, 3000, 20_000]);
    let is_file = one.symlink_metadata().unwrap().is_file();
    let is_root = one == root;
    let write_at = |path: &Path, at: u64| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_at(&vec![1; size], at).unwrap();
        file
    };
    match random.below(28) {
        0 | 1 => {
            fs::create_dir(new).ok();
        }
        2 | 3 => {
            File::create_new(new)
                .and_then(|mut file| file.write_all(&vec![2; size]))
                .ok();
        }
        // In memory only, until the file system writes it.
        4 if is_file => drop(write_at(&one, 0)),
        5 if is_file => drop(write_at(&one, 5000)),
        6 if is_file => open.push(write_at(&one, 1)),
        7 if is_file => OpenOptions::new()
            .append(true)
            .open(one)
            .unwrap()
            .write_all(&[1])
            .unwrap(),
        8 if is_file => OpenOptions::new()
            .write(true)
            .open(one)
            .unwrap()
            .set_len(size as u64)
            .unwrap(),
        9 if is_file => write_at(&one, 7).sync_all().unwrap(),
        10 | 11 if !is_root => {
            fs::rename(one, new).ok();
        }
        12 | 13 if !is_root => {
            let other = random.of(&all);
            if other != root {
                rustix::fs::renameat_with(CWD, &one, CWD, other, RenameFlags::EXCHANGE).ok();
            }
        }
        14 if !is_root => {
            rustix::fs::renameat_with(CWD, &one, CWD, new, RenameFlags::WHITEOUT).ok();
        }
        15 => {
            fs::hard_link(one, new).ok();
        }
        16 => {
            symlink(random.of(&["x", "y/z"]), new).ok();
        }
        17 => {
            let dir = at::open_dir(one.parent().unwrap()).unwrap();
            let (file, name) = (
                one.file_name().unwrap().as_encoded_bytes(),
                *random.of(&["user.a", "user.b"]),
            );
            if random.below(3) == 0 {
                rustix::fs::lremovexattr(&one, name).ok();
            } else {
                xattr::set_at(dir.as_fd(), file, name.as_bytes(), &vec![3; random.below(40)]).ok();
            }
        }
        18 => {
            fs::set_permissions(
                &one,
                fs::Permissions::from_mode(0o700 + 7 * u32::try_from(random.below(8)).unwrap()),
            )
            .ok();
        }
        19 => {
            std::os::unix::fs::lchown(&one, Some(u32::try_from(random.below(3)).unwrap()), None).ok();
        }
        20 => {
            let time = Timespec {
                tv_sec: 1000,
                tv_nsec: 1,
            };
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            rustix::fs::utimensat(CWD, &one, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        21 => {
            let kind = *random.of(&[FileType::Fifo, FileType::CharacterDevice, FileType::Socket]);
            rustix::fs::mknodat(CWD, new, kind, Mode::RWXU, 5).ok();
        }
        22 if !is_root && !is_file => {
            fs::remove_dir_all(&one).or_else(|_| fs::remove_file(&one)).ok();
        }
        23 if is_file => {
            open.push(File::open(&one).unwrap());
            fs::remove_file(one).unwrap();
        }
        24 if is_file => {
            // The same name again, with all that a comparison looks at.
            let meta = one.metadata().unwrap();
            let content = fs::read(&one).unwrap();
            fs::remove_file(&one).unwrap();
            fs::write(&one, content).unwrap();
            File::options()
                .write(true)
                .open(&one)
                .unwrap()
                .set_modified(meta.modified().unwrap())
                .unwrap();
        }
        25 => {
            let unnamed =
                rustix::fs::open(new.parent().unwrap(), OFlags::TMPFILE | OFlags::RDWR, Mode::RWXU).unwrap();
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&unnamed));
            rustix::fs::linkat(CWD, path, CWD, new, AtFlags::SYMLINK_FOLLOW).ok();
        }
        26 => read(&one),
        27 => all.iter().for_each(|path| read(path)),
        _ => {}
    }
}

/// A tree with as many files as fill several blocks.
fn fill(root: &Path, random: &mut Random, open: &mut Open) {
    for dir in ["d", "d/e", "d/e/f", "other", "other/deep"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    for number in 0..120 {
        let dir = *random.of(&["", "d", "d/e", "d/e/f", "other", "other/deep"]);
        fs::write(
            root.join(dir).join(format!("file{number}")),
            vec![4; random.below(300)],
        )
        .unwrap();
    }
    for _ in 0..40 {
        change(root, random, open);
    }
}

#[test]
fn whatever_is_changed_is_found() {
    let Some(setup) = Setup::new() else { return };
    let cases: u64 = std::env::var("GRAPHROOT_TEST_SNAPSHOT_CASES").map_or(30, |text| text.parse().unwrap());
    let mut found = 0;
    for case in 1..=cases {
        let mut random = Random(case.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut open = Open::new();
        if case == cases / 2 {
            setup.record_access();
        }
        let base = setup.create("base", None);
        fill(&base, &mut random, &mut open);
        let above = setup.create("above", Some("base"));
        if case % 3 == 0 {
            // One more layer, which has changes of its own.
            let second = above.join("second");
            fs::create_dir(&second).unwrap();
            fill(&second, &mut random, &mut open);
        }
        let container = setup.create("container", Some("above"));
        for _ in 0..4 {
            for _ in 0..random.below(12) {
                // A layer below is not to be changed, but can be.
                let changed = if case % 5 == 0 && random.below(3) == 0 {
                    &above
                } else {
                    &container
                };
                change(changed, &mut random, &mut open);
            }
            found += setup.check("container", "above");
        }
        if case % 3 == 0 {
            setup.check("above", "base");
        }
        for id in ["container", "above", "base"] {
            setup.remove(id);
        }
    }
    assert!(found > usize::try_from(cases).unwrap() * 20, "{found}");
}

/// Only the time of its last access is another one.
#[test]
fn what_was_only_read_is_not_found() {
    let Some(setup) = Setup::new() else { return };
    setup.record_access();
    let (mut random, mut open) = (Random(5), Open::new());
    let base = setup.create("base", None);
    fill(&base, &mut random, &mut open);
    // More names than one answer has room for.
    let large = base.join("large");
    fs::create_dir(&large).unwrap();
    for number in 0..3000 {
        File::create_new(large.join(format!("file{number}"))).unwrap();
    }
    fs::write(large.join("file2999"), "content").unwrap();
    fs::write(base.join("other/file"), "content").unwrap();
    let container = setup.create("container", Some("base"));
    let read_all = |root: &Path| paths(root).iter().for_each(|path| read(path));
    let accessed = |root: &Path| rustix::fs::stat(root.join("large")).unwrap().st_atime_nsec;
    let before = [&base, &container].map(|root| accessed(root));
    read_all(&container);
    assert_eq!(setup.count("container", "base"), 0);
    read_all(&base);
    assert_eq!(setup.count("container", "base"), 0);
    let after = [&base, &container].map(|root| accessed(root));
    assert!(after[0] != before[0] && after[1] != before[1]);

    // The file, and the directories above it.
    let changed = container.join("other/file");
    File::options()
        .append(true)
        .open(changed)
        .unwrap()
        .write_all(b"more")
        .unwrap();
    read_all(&container);
    assert_eq!(setup.count("container", "base"), 3);
    // The last of many names has another inode now.
    fs::rename(container.join("large/file2999"), container.join("large/file2998")).unwrap();
    assert!(setup.count("container", "base") < 10);
    assert_eq!(setup.check("container", "base"), 5);
}

/// Two changes at one time, after which all numbers and times of the inode are the same in both trees.
#[test]
fn like_changes_in_both_trees_are_found() {
    let Some(setup) = Setup::new() else { return };
    let base = setup.create("base", None);
    let names: Vec<String> = (0..200).map(|number| format!("dir{number:03}")).collect();
    for name in &names {
        fs::create_dir(base.join(name)).unwrap();
        fs::write(base.join(name).join("file"), "content").unwrap();
        fs::write(base.join(name).join("gone"), "content").unwrap();
        fs::write(base.join(name).join("lost"), "content").unwrap();
    }
    let container = setup.create("container", Some("base"));
    let set = |root: &Path, name: &str, value: &[u8]| {
        let dir = at::open_dir(&root.join(name)).unwrap();
        xattr::set_at(dir.as_fd(), b"file", b"user.a", value).unwrap();
    };
    // Half of them have other names now, half other attributes.
    for (number, name) in names.iter().enumerate() {
        if number % 2 == 0 {
            fs::remove_file(base.join(name).join("gone")).unwrap();
            fs::remove_file(container.join(name).join("lost")).unwrap();
        } else {
            set(&base, name, b"1");
            set(&container, name, b"2");
        }
    }
    let same_times = |name: &&String, file: &str| {
        let times = [&base, &container].map(|root| {
            let stat = rustix::fs::stat(root.join(name.as_str()).join(file)).unwrap();
            (stat.st_ctime, stat.st_ctime_nsec)
        });
        times[0] == times[1]
    };
    let count = names
        .iter()
        .step_by(2)
        .filter(|name| same_times(name, ""))
        .count();
    let of_files = names
        .iter()
        .skip(1)
        .step_by(2)
        .filter(|name| same_times(name, "file"))
        .count();
    assert!(count > 0 && of_files > 0, "{count} {of_files}");
    // Each directory with the two names, and the one of the file with the file.
    assert_eq!(setup.check("container", "base"), 100 * 3 + 100 * 2);
}

/// More than an inode's item of names has room for; they are kept elsewhere then.
#[test]
fn all_of_many_names_are_found() {
    let Some(setup) = Setup::new() else { return };
    let base = setup.create("base", None);
    let dirs = ["one", "one/deep", "two"];
    for dir in dirs {
        fs::create_dir(base.join(dir)).unwrap();
    }
    fs::write(base.join("file"), "content").unwrap();
    for number in 0..300 {
        let name = format!("{number:0>200}");
        fs::hard_link(base.join("file"), base.join(dirs[number % 3]).join(name)).unwrap();
    }
    let container = setup.create("container", Some("base"));
    assert_eq!(setup.check("container", "base"), 0);
    File::options()
        .append(true)
        .open(container.join("file"))
        .unwrap()
        .write_all(b"more")
        .unwrap();
    assert_eq!(setup.check("container", "base"), 304);
}

/// Programs for btrfs write blocks anew of which nothing has changed.
#[test]
fn blocks_that_are_moved_change_nothing() {
    let Some(setup) = Setup::new() else { return };
    if Command::new("btrfs").arg("--version").output().is_err() {
        return skip("btrfs-progs are not installed");
    }
    let (mut random, mut open) = (Random(7), Open::new());
    let base = setup.create("base", None);
    fill(&base, &mut random, &mut open);
    let container = setup.create("container", Some("base"));
    let run = |words: &[&str], path: &Path| {
        let output = Command::new("btrfs").args(words).arg(path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    run(&["balance", "start", "--full-balance"], setup.driver.home());
    assert_eq!(setup.check("container", "base"), 0);
    for _ in 0..10 {
        change(&container, &mut random, &mut open);
    }
    run(&["filesystem", "defragment", "-r", "-f"], &container);
    run(&["filesystem", "defragment", "-r", "-f"], &base);
    run(&["balance", "start", "--full-balance"], setup.driver.home());
    setup.check("container", "base");
}

#[test]
fn other_trees_are_compared_as_a_whole() {
    let Some(setup) = Setup::new() else { return };
    let base = setup.create("base", None);
    fs::create_dir(base.join("dir")).unwrap();
    setup.create("child", Some("base"));
    setup.create("grandchild", Some("child"));
    setup.create("sibling", Some("base"));
    assert!(setup.search("child", "base").is_some());
    for (new, old) in [
        ("base", "child"),
        ("grandchild", "base"),
        ("child", "sibling"),
        ("base", "base"),
    ] {
        assert!(setup.search(new, old).is_none(), "{new} {old}");
    }
    // Subvolumes in one of them have trees of their own.
    for with_nested in ["base", "child"] {
        let root = setup.driver.home().join("subvolumes").join(with_nested);
        let dir = at::open_dir(&root.join("dir")).unwrap();
        btrfs::create_subvolume(dir.as_fd(), b"nested").unwrap();
        assert!(setup.search("child", "base").is_none());
        fs::remove_dir(root.join("dir/nested")).unwrap();
        assert!(setup.search("child", "base").is_some());
    }
    // Another subvolume has taken the parent's place.
    fs::rename(&base, base.with_file_name("moved")).unwrap();
    setup.create("base", Some("moved"));
    assert!(setup.search("child", "base").is_none() && setup.search("child", "moved").is_some());
}

/// What would take longer than a comparison is not done.
#[test]
fn much_that_is_not_written_yet_is_left_to_be_written_by_others() {
    let Some(setup) = Setup::new() else { return };
    let base = setup.create("base", None);
    setup.create("child", Some("base"));
    let file = File::create(base.join("large")).unwrap();
    let (child, parent) = (setup.tree("child"), setup.tree("base"));
    // The kernel may write some of it at any time.
    let is_too_much = (0..50).any(|_| {
        (&file).write_all(&vec![1; 20 << 20]).unwrap();
        let mut found = setup.snapshot_changes(&child, &parent).unwrap();
        found.step() == Err(rustix::io::Errno::TOOBIG)
    });
    assert!(is_too_much);
    let search = || {
        TreeSearch::new(
            &child,
            Some(&parent),
            Some(Box::new(setup.snapshot_changes(&child, &parent).unwrap())),
        )
    };
    let mut whole = search().unwrap();
    while whole.step().unwrap() {}
    assert_eq!(whole.into_changes()[0].to_string(), "D /large");
    // With what is reserved for its metadata, which a file's own sync leaves.
    rustix::fs::syncfs(&file).unwrap();
    let mut fast = search().unwrap();
    while fast.step().unwrap() {}
    assert_eq!(fast.into_changes().len(), 1);
    assert_eq!(setup.check("child", "base"), 1);
}

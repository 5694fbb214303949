//! What is on disk before a record says that it is: the system calls of a process, as strace shows them, against a small
//! model of what a power cut may take.
//!
//! In the model content stays in memory until its file or its file system is synced, and a name until its directory or
//! the file system is. A file system that keeps the order of its changes writes every earlier name with each sync.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use graphroot::{
    ContainerOptions, Durability, IdMap, IdMappingOptions, ImageOptions, LayerOptions, Store, StoreOptions,
};

use crate::support::loop_fs::{self, LoopFs};
use crate::support::needs;
use crate::support::peers::Run as _;
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::Tar;
use crate::support::worker::{Worker, store_location, tell};

/// System calls that change files or names, or force them to disk.
pub(crate) const CALLS: &str = "--trace=open,openat,write,writev,pwrite64,pwritev,copy_file_range,sendfile,ftruncate,fallocate,\
    ioctl,mkdir,mkdirat,symlink,symlinkat,link,linkat,rename,renameat,renameat2,unlink,unlinkat,rmdir,fsync,fdatasync,\
    syncfs,sync_file_range";

/// In the worker: everything that writes, each followed by a line. `images`: a separate image store, or `-`.
pub(crate) async fn write_everything(images: &str, durability: &str) {
    let (graph, run, driver) = store_location();
    let mut options = StoreOptions::new(graph, run)
        .driver(driver)
        .durability(durability.parse().unwrap());
    if images != "-" {
        options = options.image_store(images);
    }
    let store = Store::open(options).await.unwrap();
    let id = |id: &str| LayerOptions::default().id(id);
    let few = Tar::new().dir("d/").file("d/a", "1").file("b", "2").build();
    put_bytes(&store, None, id("few"), few).await.unwrap();
    tell("few files");
    let many = (0..40).fold(Tar::new(), |tar, index| {
        tar.file(format!("file{index}"), "content")
    });
    put_bytes(&store, Some("few"), id("many"), many.build())
        .await
        .unwrap();
    tell("many files");
    store
        .create_layer(Some("many"), id("empty").big_data("item", "data"))
        .await
        .unwrap();
    tell("an empty layer");
    store
        .create_layer(Some("few"), id("copy").template("many"))
        .await
        .unwrap();
    tell("a copy");
    let diff = Tar::new().file("applied", "content").build();
    store.apply_diff("empty", &*diff).await.unwrap();
    tell("an applied diff");
    for text in ["one", "two"] {
        store
            .set_layer_big_data("few", "item", text.as_bytes())
            .await
            .unwrap();
        tell("data of a layer");
    }
    let image = ImageOptions::default().id("image").big_data("manifest", "{}");
    store.create_image(Some("many"), image).await.unwrap();
    tell("an image");
    for text in ["one", "two"] {
        store
            .set_image_big_data("image", "item", text, None)
            .await
            .unwrap();
        tell("data of an image");
    }
    if store.graph_driver().capabilities().differ {
        crate::staged_kills::write_staged_layers(&store).await;
    }
    store.add_names("image", ["name"]).await.unwrap();
    tell("a name");
    let container = ContainerOptions::default().id("container").big_data("spec", "{}");
    store.create_container(Some("image"), container).await.unwrap();
    tell("a container");
    for text in ["one", "two"] {
        store
            .set_container_big_data("container", "spec", text)
            .await
            .unwrap();
        tell("data of a container");
    }
    if durability == "full" {
        store
            .set_container_directory_file("container", "sub/file", "content")
            .await
            .unwrap();
        tell("a file of a container");
    }
    let mut mapped = ContainerOptions::default().id("mapped");
    mapped.id_mappings = IdMappingOptions::default();
    mapped.id_mappings.uid_map = vec![IdMap::new(0, 100_000, 65536)];
    mapped.id_mappings.gid_map = vec![IdMap::new(0, 100_000, 65536)];
    store.create_container(Some("image"), mapped).await.unwrap();
    tell("a container with other owners");
    for container in ["mapped", "container"] {
        store.delete_container(container).await.unwrap();
        tell("a deleted container");
    }
    store.delete_layer("copy").await.unwrap();
    tell("a deleted layer");
    store.delete_layer("empty").await.unwrap();
    tell("a deleted layer");
    store.delete_image("image").await.unwrap();
    tell("a deleted image");
}

/// A part of the tree that is one file system.
#[derive(Debug)]
struct FileSystem {
    root: PathBuf,
    in_order: bool,
    /// Files with content that is not on disk.
    content: BTreeSet<PathBuf>,
    /// Directories with names that are not on disk.
    names: BTreeSet<PathBuf>,
    /// Directories with records whose names are not on disk. A record of another file system does not rely on them.
    records: BTreeSet<PathBuf>,
}

/// See the module's head.
#[derive(Debug)]
struct Disk {
    file_systems: Vec<FileSystem>,
    full: bool,
    /// Records that were saved, and operations that were acknowledged.
    saves: usize,
    done: usize,
    /// What a power cut could have broken.
    wrong: Vec<String>,
}

/// What nobody has to find after a power cut: staging directories, lock files, probes, and files on their way.
fn is_passing(path: &Path) -> bool {
    let text = path.to_str().unwrap();
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    text.contains("/tempdirs/")
        || text.ends_with("/tempdirs")
        || text.contains("-layers/tmp")
        || name.ends_with(".lock")
        || name.starts_with(".tmp-")
        || name.starts_with("volatile-")
        || name.starts_with(".has-")
        || name.starts_with(".reserve-")
}

impl Disk {
    fn of(&mut self, path: &Path) -> Option<&mut FileSystem> {
        let found = self
            .file_systems
            .iter_mut()
            .filter(|fs| path.starts_with(&fs.root));
        found.max_by_key(|fs| fs.root.as_os_str().len())
    }

    fn named(&mut self, path: &Path) {
        let (passing, dir) = (is_passing(path), path.parent().unwrap().to_owned());
        if let Some(fs) = self.of(&dir)
            && !passing
        {
            fs.names.insert(dir);
        }
    }

    fn written(&mut self, path: PathBuf) {
        if let Some(fs) = self.of(&path) {
            fs.content.insert(path);
        }
    }

    fn removed(&mut self, path: &Path) {
        self.named(path);
        if let Some(fs) = self.of(path) {
            fs.content.retain(|other| !other.starts_with(path));
            fs.names.retain(|other| !other.starts_with(path));
        }
    }

    fn renamed(&mut self, from: &Path, to: &Path) {
        let name = to.file_name().unwrap().to_str().unwrap();
        let is_record = ["layers.json", "images.json", "containers.json"].contains(&name);
        if is_record {
            self.saves += 1;
            self.check(to);
            let dir = to.parent().unwrap().to_owned();
            self.of(to).unwrap().records.insert(dir);
        }
        let moved = |path: &PathBuf| Some(to.join(path.strip_prefix(from).ok()?));
        if let Some(fs) = self.of(from) {
            for set in [&mut fs.content, &mut fs.names] {
                let new: Vec<PathBuf> = set.iter().filter_map(moved).collect();
                set.retain(|path| !path.starts_with(from));
                set.extend(new.into_iter().map(|path| {
                    // Joined with nothing.
                    path.components().collect::<PathBuf>()
                }));
            }
        }
        self.named(from);
        if !is_record {
            self.named(to);
        }
    }

    fn synced(&mut self, path: &Path, whole: bool) {
        let Some(fs) = self.of(path) else { return };
        fs.content.remove(path);
        fs.names.remove(path);
        fs.records.remove(path);
        if whole {
            fs.content.clear();
        }
        if whole || fs.in_order {
            fs.names.clear();
            fs.records.clear();
        }
    }

    /// A record is about to appear under its name.
    fn check(&mut self, record: &Path) {
        let own = self.of(record).unwrap().root.clone();
        // An image or container is recorded with what it is to be before its layer is complete.
        let kind = record.file_stem().unwrap().to_str().unwrap();
        let belongs = |path: &Path| {
            let mut names = path.iter().map(|name| name.to_str().unwrap());
            names.any(|name| match name {
                "overlay" | "vfs" => kind == "layers",
                name => name.ends_with(&format!("-{kind}")),
            })
        };
        let mut lost = Vec::new();
        for fs in &self.file_systems {
            let names = fs.names.iter().filter(|_| !fs.in_order || fs.root != own);
            let records = fs.records.iter().filter(|_| !fs.in_order);
            let open = fs.content.iter().chain(names).chain(records);
            let open = open.filter(|path| !is_passing(path) && belongs(path));
            lost.extend(open.map(|path| path.display().to_string()));
        }
        if !lost.is_empty() {
            let record = record.display();
            self.wrong
                .push(format!("save {} of {record} relies on {lost:?}", self.saves));
        }
    }

    /// An operation has succeeded.
    fn acknowledged(&mut self, what: &str) {
        self.done += 1;
        if !self.full {
            return;
        }
        let open = self
            .file_systems
            .iter()
            .flat_map(|fs| fs.content.iter().chain(&fs.names).chain(&fs.records));
        let lost: Vec<_> = open.filter(|path| !is_passing(path)).collect();
        if !lost.is_empty() {
            self.wrong.push(format!("{what} could be lost: {lost:?}"));
        }
    }

    /// One line of strace, without the process ID: `call(arguments) = result`.
    fn replay(&mut self, line: &str) {
        let Some((call, arguments, result)) = succeeded(line) else {
            return;
        };
        let paths = paths(arguments);
        let first = || PathBuf::from(&paths[0]);
        let file = || PathBuf::from(descriptor(arguments).unwrap());
        match call {
            "open" | "openat" if arguments.contains("O_CREAT") || arguments.contains("O_TRUNC") => {
                let opened = descriptor(result).unwrap();
                // One that had a name before is no new name, but to sync it once more does no harm.
                self.named(Path::new(&opened));
            }
            "write" | "writev" if descriptor(arguments).is_some_and(|path| path.starts_with("pipe:")) => {
                if let Some((_, done)) = arguments.split_once("@worker ") {
                    self.acknowledged(done.split("\\n").next().unwrap());
                }
            }
            "write" | "writev" | "pwrite64" | "pwritev" | "ftruncate" | "fallocate" => self.written(file()),
            "ioctl" if arguments.contains("FICLONE") => self.written(file()),
            "copy_file_range" => self.written(PathBuf::from(&paths[1])),
            "sendfile" => self.written(file()),
            "mkdir" | "mkdirat" => self.named(&first()),
            "symlink" | "symlinkat" | "link" | "linkat" => self.named(Path::new(paths.last().unwrap())),
            "rename" | "renameat" | "renameat2" => self.renamed(&first(), Path::new(&paths[1])),
            "unlink" | "unlinkat" | "rmdir" => self.removed(&first()),
            "fsync" | "fdatasync" => self.synced(&first(), false),
            "syncfs" => self.synced(&first(), true),
            _ => {}
        }
    }
}

/// The call, arguments and result of a line of strace, without the process ID, if the call has succeeded.
pub(crate) fn succeeded(line: &str) -> Option<(&str, &str, &str)> {
    let (call, rest) = line.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    (!result.starts_with('-')).then_some((call, arguments, result))
}

/// The path of a leading descriptor, `5</path>`.
pub(crate) fn descriptor(text: &str) -> Option<String> {
    let (number, rest) = text.split_once('<')?;
    let plain =
        number == "AT_FDCWD" || !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let (path, _) = rest.split_once('>')?;
    plain.then(|| path.to_owned())
}

/// The paths that the arguments of a call mean: each string on its own, or below the descriptor before it; and the
/// descriptors that no string follows.
pub(crate) fn paths(arguments: &str) -> Vec<String> {
    let (mut found, mut dir): (Vec<String>, Option<String>) = (Vec::new(), None);
    for argument in arguments.split(", ") {
        let argument = argument.trim_end_matches(')');
        if let Some(path) = descriptor(argument) {
            found.extend(dir.replace(path));
        } else if let Some(name) = argument.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
            let base = dir.take().unwrap_or_default();
            found.push(Path::new(&base).join(name).to_str().unwrap().to_owned());
        }
    }
    found.extend(dir);
    found
}

/// The lines of all threads, each whole, in the order in which the calls returned.
pub(crate) fn whole_lines(log: &str) -> Vec<String> {
    let (mut lines, mut begun) = (Vec::new(), std::collections::HashMap::new());
    for line in log.lines() {
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
        if let Some(start) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, start);
        } else if let Some((_, end)) = rest
            .strip_prefix("<... ")
            .and_then(|rest| rest.split_once(" resumed>"))
        {
            lines.push(format!("{}{end}", begun.remove(thread).unwrap_or_default()));
        } else {
            lines.push(rest.to_owned());
        }
    }
    lines
}

/// Where a store lies: its directories, and which of them is a btrfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In memory, where nothing has to be kept in order.
    InOrder,
    /// On a file system that does not keep the order of changes.
    Unordered,
    /// The image store is another file system.
    ImagesElsewhere,
}

/// Returns how many records were saved and operations acknowledged.
fn run(driver: &'static str, place: Place, durability: Durability, btrfs: &Path) -> (usize, usize) {
    let memory = Path::new("/dev/shm");
    let root = TestRoot::in_dir(if place == Place::Unordered { btrfs } else { memory }, driver);
    let images = tempfile::tempdir_in(btrfs).unwrap();
    let log = root.path().join("log");
    let tracer = root
        .program("strace")
        .words("--follow-forks --quiet=all --signal=none --decode-fds=path --string-limit=4096")
        .with([CALLS])
        .with(["--output".as_ref(), log.as_os_str()]);
    let separate = if place == Place::ImagesElsewhere {
        images.path().to_str().unwrap()
    } else {
        "-"
    };
    let level = durability.to_string();
    Worker::spawn(Worker::command_under(
        tracer,
        "write-everything",
        &root,
        &[separate, &level],
    ))
    .finish();
    let file_system = |root: PathBuf, in_order| FileSystem {
        root,
        in_order,
        content: BTreeSet::new(),
        names: BTreeSet::new(),
        records: BTreeSet::new(),
    };
    let mut disk = Disk {
        file_systems: vec![
            file_system(root.graph(), place != Place::Unordered),
            file_system(images.path().to_owned(), false),
        ],
        full: durability == Durability::Full,
        saves: 0,
        done: 0,
        wrong: Vec::new(),
    };
    for line in whole_lines(&std::fs::read_to_string(&log).unwrap()) {
        disk.replay(&line);
    }
    let wrong = disk.wrong.join("\n");
    assert!(wrong.is_empty(), "{driver}, {place:?}, {level}:\n{wrong}");
    (disk.saves, disk.done)
}

fn on_every_place(driver: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    loop_fs::format("btrfs", &image, 256 << 20);
    let btrfs = LoopFs::mount(&image, &dir.path().join("mounted"));
    for place in [Place::InOrder, Place::Unordered, Place::ImagesElsewhere] {
        for durability in [Durability::Default, Durability::Full] {
            let (saves, done) = run(driver, place, durability, btrfs.path());
            eprintln!("{driver}, {place:?}, {durability}: {saves} saves, {done} operations");
            assert!(saves > 30 && done > 18, "{saves} saves, {done} operations");
        }
    }
}

#[test]
fn a_record_never_says_more_than_the_disk_has_overlay() {
    needs!("strace", "mkfs.btrfs");
    on_every_place("overlay");
}

#[test]
fn a_record_never_says_more_than_the_disk_has_vfs() {
    needs!("strace", "mkfs.btrfs");
    on_every_place("vfs");
}

#[test]
fn the_model_sees_what_is_missing() {
    let mut disk = Disk {
        file_systems: vec![FileSystem {
            root: "/overlay".into(),
            in_order: false,
            content: BTreeSet::new(),
            names: BTreeSet::new(),
            records: BTreeSet::new(),
        }],
        full: true,
        saves: 0,
        done: 0,
        wrong: Vec::new(),
    };
    let log = "1  openat(AT_FDCWD</>, \"/overlay/a/f\", O_WRONLY|O_CREAT, 0600) = 5</overlay/a/f>\n\
               2  mkdirat(7</overlay>, \"d\", 0700 <unfinished ...>\n\
               1  write(5</overlay/a/f>, \"x, y\", 4) = 4\n\
               2  <... mkdirat resumed>) = 0\n\
               1  mkdirat(7</overlay>, \"e\", 0700) = -1 EEXIST (File exists)\n";
    let replay = |disk: &mut Disk, log: &str| {
        whole_lines(log).iter().for_each(|line| disk.replay(line));
    };
    replay(&mut disk, log);
    let paths = |set: &BTreeSet<PathBuf>| {
        set.iter()
            .map(|path| path.display().to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(paths(&disk.file_systems[0].content), ["/overlay/a/f"]);
    assert_eq!(paths(&disk.file_systems[0].names), ["/overlay", "/overlay/a"]);
    let save = "1  rename(\"/overlay/.tmp-layers.json1\", \"/overlay/layers.json\") = 0\n";
    replay(&mut disk, save);
    assert_eq!(disk.wrong.len(), 1);
    replay(
        &mut disk,
        "1  rename(\"/overlay/a\", \"/overlay/b\") = 0\n1  fsync(5</overlay/b/f>) = 0\n1  fsync(6</overlay>) = 0\n",
    );
    replay(&mut disk, "1  write(1<pipe:[5]>, \"@worker done\\n\", 13) = 13\n");
    assert_eq!(disk.wrong.len(), 2, "the names in /overlay/b: {:?}", disk.wrong);
    replay(&mut disk, "1  syncfs(6</overlay>) = 0\n");
    replay(&mut disk, save);
    assert_eq!((disk.wrong.len(), disk.saves, disk.done), (2, 2, 1));
}

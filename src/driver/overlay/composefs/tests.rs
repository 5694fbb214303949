use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps};

use super::convert::{Converted, convert};
use super::image::{DATA, IMAGE, Image, open_root};
use crate::driver::conformance::need_overlay;
use crate::error::ErrorKind;
use crate::skip::skip;
use crate::sys::{at, verity, xattr};

/// A layer directory with a tree that is to be converted.
struct Layer {
    tmp: tempfile::TempDir,
}

impl Layer {
    /// `None` where images cannot be tested.
    fn new(fill: impl FnOnce(&Path)) -> Option<Self> {
        if !need_overlay() {
            return None;
        }
        if !super::is_supported() {
            skip("the kernel has no EROFS");
            return None;
        }
        let tmp = tempfile::tempdir().unwrap();
        for name in ["tree", "diff"] {
            fs::create_dir(tmp.path().join(name)).unwrap();
        }
        let layer = Self { tmp };
        fill(&layer.path("tree"));
        Some(layer)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    fn convert(&self, shown: &[&[u8; 2]]) -> Converted {
        let [tree, objects, layer] = ["tree", "diff", ""].map(|name| at::open_dir(&self.path(name)).unwrap());
        let shown: BTreeSet<[u8; 2]> = shown.iter().map(|name| **name).collect();
        convert(&tree, objects.as_fd(), layer.as_fd(), &shown, false).unwrap()
    }

    fn image(&self) -> PathBuf {
        self.path(DATA).join(IMAGE)
    }

    /// Whether the file system can verify files.
    fn has_verity(&self) -> bool {
        let path = self.path("probe");
        if !path.exists() {
            fs::write(&path, "x").unwrap();
        }
        let file = fs::File::open(&path).unwrap();
        verity::enable(file.as_fd()).unwrap().is_some()
    }

    fn mount(&self) -> Mounted {
        let mount = Image::open(self.tmp.path()).unwrap().mount().unwrap();
        Mounted(open_root(&mount).unwrap())
    }
}

/// The root of a mounted image.
struct Mounted(OwnedFd);

impl Mounted {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd())).join(name)
    }

    fn attribute(&self, name: &str, attribute: &str) -> Option<Vec<u8>> {
        xattr::get_at(self.0.as_fd(), name.as_bytes(), attribute).unwrap()
    }
}

fn set(path: &Path, attribute: &str, value: &[u8]) {
    let dir = at::open_dir(path.parent().unwrap()).unwrap();
    let name = path.file_name().unwrap().as_bytes();
    xattr::set_at(dir.as_fd(), name, attribute.as_bytes(), value).unwrap();
}

/// Everything that may stand in a layer.
fn fill(tree: &Path) {
    fs::create_dir_all(tree.join("dir/deep/er")).unwrap();
    for (name, content) in [
        ("small", &b"12345"[..]),
        ("empty", b""),
        ("dir/same", b"12345"),
        ("dir/odd name\n\\=\t\u{e9}", b"odd"),
        ("-", b"dash"),
        ("!before-dot", b"first"),
        ("dir/block", &[7; 4096]),
        ("dir/large", &[8; 70_000]),
    ] {
        fs::write(tree.join(name), content).unwrap();
    }
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    fs::hard_link(tree.join("small"), tree.join("small-link")).unwrap();
    symlink("../target\nwith=odd \\bytes", tree.join("dir/link")).unwrap();
    for length in [1900, 2100, 4050, 4095] {
        symlink("t".repeat(length), tree.join(format!("long-link-{length}"))).unwrap();
    }
    for (name, kind, device) in [
        ("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        ("disk", FileType::BlockDevice, rustix::fs::makedev(259, 70_000)),
        ("pipe", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
    ] {
        rustix::fs::mknodat(CWD, tree.join(name), kind, Mode::RUSR, device).unwrap();
    }
    for number in 0..400 {
        let name = format!("dir/deep/a rather long name for a file of which there are many {number}");
        fs::write(tree.join(name), format!("{}", number % 7)).unwrap();
    }
    for number in 0..60 {
        fs::create_dir(tree.join(format!("dir/deep/er/{number}"))).unwrap();
    }
    set(&tree.join("small"), "user.note", b"a\0b=\n");
    set(&tree.join("empty"), "user.note", b"a\0b=\n");
    set(&tree.join("dir"), "user.empty", b"");
    set(&tree.join("dir"), &format!("user.{}", "n".repeat(200)), &[1; 300]);
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set(&tree.join("-"), "security.capability", &capability);
    let acl = [
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255,
        16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
    ];
    set(&tree.join("dir/large"), "system.posix_acl_access", &acl);
    std::os::unix::fs::chown(tree.join("dir"), Some(70_000), Some(80_000)).unwrap();
    fs::set_permissions(tree.join("dir/same"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(tree.join("dir/deep"), fs::Permissions::from_mode(0o0)).unwrap();
    for (name, seconds) in [("small", 5), ("dir/same", -7), ("dir/deep", 1 << 33)] {
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: 123_456_789,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        let file = fs::File::open(tree.join(name)).unwrap();
        rustix::fs::futimens(file, &times).unwrap();
    }
}

/// What a tree has, its contents left out.
fn description(root: &Path) -> Vec<String> {
    fn walk(path: &Path, shown: &Path, found: &mut Vec<String>) {
        let meta = path.symlink_metadata().unwrap();
        let is_dir = meta.is_dir();
        let parent = at::open_dir(path.parent().unwrap()).unwrap();
        let name = path.file_name().unwrap().as_bytes();
        let mut attributes = xattr::list_at(parent.as_fd(), name).unwrap();
        attributes.retain(|attribute| !attribute.starts_with("trusted.overlay."));
        attributes.sort();
        let values = attributes
            .iter()
            .map(|attribute| xattr::get_at(parent.as_fd(), name, attribute.as_str()).unwrap());
        let values: Vec<_> = values.collect();
        let target = fs::read_link(path).ok();
        let size = if is_dir { 0 } else { meta.size() };
        let device = if meta.file_type().is_char_device() || meta.file_type().is_block_device() {
            meta.rdev()
        } else {
            0
        };
        found.push(format!(
            "{shown:?} {:o} {}:{} {}.{} {size} {device} {} {target:?} {attributes:?} {values:?}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.nlink(),
        ));
        if is_dir {
            let mut names: Vec<_> = fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            for name in names {
                walk(&path.join(&name), &shown.join(&name), found);
            }
        }
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(root).unwrap() {
        let name = entry.unwrap().file_name();
        let is_hiding = name.len() == 2 && name.as_bytes().iter().all(u8::is_ascii_hexdigit);
        if !is_hiding {
            walk(&root.join(&name), Path::new(&name), &mut found);
        }
    }
    found.sort();
    found
}

#[test]
fn an_image_shows_the_tree_and_its_contents_are_stored_once() {
    let Some(layer) = Layer::new(fill) else { return };
    let expected = description(&layer.path("tree"));
    assert_eq!(layer.convert(&[]), Converted::Yes);
    let mounted = layer.mount();
    assert_eq!(description(&mounted.path("")), expected);
    let is_verified = Image::open(layer.tmp.path()).unwrap().is_verified();
    assert_eq!(is_verified, layer.has_verity());
    // By a loop device, as before Linux 6.12.
    let device = Image::open(layer.tmp.path()).unwrap().mount_device().unwrap();
    let device = Mounted(open_root(&device).unwrap());
    assert_eq!(description(&device.path("")), expected);
    for (name, content) in [("small", "12345"), ("dir/same", "12345"), ("-", "dash")] {
        let redirect = mounted.attribute(name, "trusted.overlay.redirect").unwrap();
        let redirect = String::from_utf8(redirect).unwrap();
        let object = layer.path("diff").join(redirect.strip_prefix('/').unwrap());
        assert_eq!(fs::read_to_string(&object).unwrap(), content);
        let sum = crate::digest::Digest::sha256(content);
        assert_eq!(
            redirect.replace('/', ""),
            sum.as_str().trim_start_matches("sha256:")
        );
        let file = fs::File::open(&object).unwrap();
        let verity = verity::measure(file.as_fd()).unwrap();
        assert_eq!(verity.is_some(), layer.has_verity());
        let head = [0, 36, 0, 1];
        let metacopy = verity.map_or(Vec::new(), |digest| [&head[..], &digest].concat());
        assert_eq!(
            mounted.attribute(name, "trusted.overlay.metacopy").unwrap(),
            metacopy
        );
    }
    let mut objects = 0;
    for dir in fs::read_dir(layer.path("diff")).unwrap() {
        for object in fs::read_dir(dir.unwrap().path()).unwrap() {
            let path = object.unwrap().path();
            let meta = path.metadata().unwrap();
            assert_eq!(
                (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.nlink()),
                (0, 0, 0, 1)
            );
            let dir = at::open_dir(path.parent().unwrap()).unwrap();
            let name = path.file_name().unwrap().as_bytes();
            assert_eq!(xattr::list_at(dir.as_fd(), name).unwrap(), Vec::<String>::new());
            objects += 1;
        }
    }
    // Seven of the many files; "12345" and nothing are there more than once.
    assert_eq!(objects, 7 + 8);
}

#[test]
fn deletions_are_in_an_image_as_in_a_directory() {
    let whiteout = |path: &Path| {
        rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::RUSR, 0).unwrap();
    };
    let Some(layer) = Layer::new(|tree| {
        fs::create_dir(tree.join("opaque")).unwrap();
        set(&tree.join("opaque"), "trusted.overlay.opaque", b"y");
        whiteout(&tree.join("gone"));
        fs::create_dir(tree.join("ab")).unwrap();
        whiteout(&tree.join("cd"));
    }) else {
        return;
    };
    assert_eq!(layer.convert(&[b"ef"]), Converted::Yes);
    let mounted = layer.mount();
    assert_eq!(
        mounted.attribute("opaque", "trusted.overlay.opaque").unwrap(),
        b"y"
    );
    let is_whiteout = |name: &str| {
        let meta = mounted.path(name).symlink_metadata();
        meta.is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == 0)
    };
    assert!(is_whiteout("gone") && is_whiteout("cd") && is_whiteout("00") && is_whiteout("ff"));
    assert!(mounted.path("ab").is_dir());
    // The layers below show it.
    assert!(!mounted.path("ef").exists() && !is_whiteout("ef"));
}

/// A file that is another layer's too stays what it is.
#[test]
fn files_with_other_names_are_copied() {
    let Some(layer) = Layer::new(|tree| fs::write(tree.join("file"), "shared").unwrap()) else {
        return;
    };
    let other = layer.path("other");
    fs::hard_link(layer.path("tree/file"), &other).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(layer.convert(&[]), Converted::Yes);
    assert_eq!(fs::read_to_string(&other).unwrap(), "shared");
    assert_eq!(other.metadata().unwrap().mode() & 0o7777, 0o640);
}

#[test]
fn what_no_image_can_have_stays_a_tree() {
    let Some(layer) = Layer::new(|tree| {
        let file = fs::File::create(tree.join("huge")).unwrap();
        if file.set_len((8 << 40) + 1).is_err() {
            skip("the file system has no files of more than 8 TiB");
        }
    }) else {
        return;
    };
    if layer.path("tree/huge").metadata().unwrap().len() == 0 {
        return;
    }
    assert!(matches!(layer.convert(&[]), Converted::No(reason) if reason.contains("8796093022209")));
    assert!(layer.path("tree/huge").exists() && !layer.path(DATA).exists());
}

#[test]
fn only_an_image_in_its_place_is_opened() {
    let Some(layer) = Layer::new(|tree| fs::write(tree.join("file"), "x").unwrap()) else {
        return;
    };
    assert_eq!(layer.convert(&[]), Converted::Yes);
    let (image, kept) = (layer.image(), layer.path("kept"));
    fs::rename(&image, &kept).unwrap();
    let refused = |kind: ErrorKind| {
        let opened = Image::open(layer.tmp.path()).and_then(|image| image.mount());
        let error = opened.unwrap_err();
        assert_eq!(error.kind(), kind, "{}", error.chain());
        assert!(error.chain().contains(IMAGE), "{}", error.chain());
    };
    refused(ErrorKind::Io);
    symlink(&kept, &image).unwrap();
    refused(ErrorKind::CorruptMetadata);
    fs::remove_file(&image).unwrap();
    rustix::fs::mknodat(CWD, &image, FileType::Fifo, Mode::RUSR, 0).unwrap();
    refused(ErrorKind::CorruptMetadata);
    fs::remove_file(&image).unwrap();
    for content in [&b""[..], b"short", &[0; 8192]] {
        fs::write(&image, content).unwrap();
        refused(ErrorKind::CorruptMetadata);
    }
    let mut damaged = fs::read(&kept).unwrap();
    damaged[1024] ^= 1;
    fs::write(&image, damaged).unwrap();
    refused(ErrorKind::Io);
    fs::remove_file(&image).unwrap();
    fs::rename(layer.path(DATA), layer.path("elsewhere")).unwrap();
    fs::rename(&kept, layer.path("elsewhere").join(IMAGE)).unwrap();
    symlink(layer.path("elsewhere"), layer.path(DATA)).unwrap();
    refused(ErrorKind::CorruptMetadata);
}

/// The programs of composefs, of this machine or of a set of peers.
fn program(name: &str) -> Option<PathBuf> {
    let peers =
        std::env::var_os("GRAPHROOT_TEST_PEERS").map_or("/var/cache/graphroot-peers".into(), PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([peers.join("forky/bin")]);
    let found = dirs.map(|dir| dir.join(name)).find(|path| path.is_file());
    if found.is_none() {
        skip(&format!("no {name}"));
    }
    found
}

#[test]
fn images_are_byte_for_byte_those_of_mkcomposefs() {
    let (Some(info), Some(make)) = (program("composefs-info"), program("mkcomposefs")) else {
        return;
    };
    let Some(layer) = Layer::new(fill) else { return };
    assert_eq!(layer.convert(&[]), Converted::Yes);
    let dump = Command::new(info)
        .arg("dump")
        .arg(layer.image())
        .output()
        .unwrap();
    assert!(dump.status.success(), "{dump:?}");
    let text = layer.path("dump");
    fs::write(&text, &dump.stdout).unwrap();
    let made = Command::new(make)
        .args(["--from-file", "-", "-"])
        .stdin(fs::File::open(&text).unwrap())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let ours = fs::read(layer.image()).unwrap();
    assert_eq!(ours.len(), made.stdout.len());
    let different = ours
        .iter()
        .zip(&made.stdout)
        .position(|(ours, theirs)| ours != theirs);
    assert_eq!(different, None);
}

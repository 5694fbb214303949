//! Damages of the layer `L1` and of `L2` above it: trees, tar-split files, files of the driver.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

use super::Theirs::{Differs, Misses, Same};
use super::healthy::{CAPABILITY, attribute, overwrite, set_mode};
use super::{BOTH, Case, LAYER, TOP, case};

const NO_SET_ID: &str = "it compares the nine permission bits alone";
const NO_ATTRIBUTES: &str = "it compares no attributes";

/// What the tree of a layer has otherwise than its archive.
pub(super) fn cases() -> Vec<Case> {
    vec![
        case("nothing", &[], Same, |_| {}),
        case("a file is missing", LAYER, Same, |s| {
            fs::remove_file(s.file("dir/file")).unwrap();
        }),
        case("an empty file is missing", LAYER, Same, |s| {
            fs::remove_file(s.file("dir/empty")).unwrap();
        }),
        case("a link is missing", LAYER, Same, |s| {
            fs::remove_file(s.file("dir/link")).unwrap();
        }),
        case("a pipe is missing", LAYER, Same, |s| {
            fs::remove_file(s.file("dir/pipe")).unwrap();
        }),
        case("a directory is missing", LAYER, Same, |s| {
            fs::remove_dir_all(s.file("hidden")).unwrap();
        }),
        case("an empty directory is missing", LAYER, Same, |s| {
            fs::remove_dir(s.file("dir/sticky")).unwrap();
        }),
        case("a file is shorter", LAYER, Same, |s| {
            overwrite(&s.file("dir/file"), "cont");
        }),
        case("a file is longer", LAYER, Same, |s| {
            overwrite(&s.file("dir/file"), "content and more");
        }),
        case("a file is empty", LAYER, Same, |s| {
            overwrite(&s.file("dir/file"), "");
        }),
        case("an empty file is not", LAYER, Same, |s| {
            overwrite(&s.file("dir/empty"), "x");
        }),
        case("a file has other content", LAYER, Same, |s| {
            overwrite(&s.file("dir/file"), "CONTENT");
        }),
        case("a file of the top layer has other content", TOP, Same, |s| {
            overwrite(&s.tree("L2").join("dir/new"), "NEW");
        }),
        case("a file of the top layer is missing", TOP, Same, |s| {
            fs::remove_file(s.tree("L2").join("hidden/other")).unwrap();
        }),
        case("a file was added", LAYER, Same, |s| {
            fs::write(s.file("dir/added"), "").unwrap();
        }),
        case("a hidden file was added", LAYER, Same, |s| {
            fs::write(s.file(".added"), "x").unwrap();
        }),
        case("a file was added to the top layer", TOP, Same, |s| {
            fs::write(s.tree("L2").join("dir/added"), "").unwrap();
        }),
        case("a directory was added", LAYER, Same, |s| {
            fs::create_dir(s.file("added")).unwrap();
        }),
        case("a link was added", LAYER, Same, |s| {
            symlink("/etc/passwd", s.file("added")).unwrap();
        }),
        case("a file has another mode", LAYER, Same, |s| {
            set_mode(&s.file("dir/file"), 0o600);
        }),
        case("a directory has another mode", LAYER, Same, |s| {
            set_mode(&s.file("dir"), 0o700);
        }),
        case("a set-ID bit is gone", LAYER, Misses(NO_SET_ID), |s| {
            set_mode(&s.file("dir/set-id"), 0o755);
        }),
        case("a set-ID bit was added", LAYER, Misses(NO_SET_ID), |s| {
            set_mode(&s.file("dir/file"), 0o4644);
        }),
        case("a sticky bit is gone", LAYER, Misses(NO_SET_ID), |s| {
            set_mode(&s.file("dir/sticky"), 0o777);
        }),
        case("a file has another owner", LAYER, Same, |s| {
            std::os::unix::fs::lchown(s.file("dir/file"), Some(1), None).unwrap();
        }),
        case("a link has another owner", LAYER, Same, |s| {
            std::os::unix::fs::lchown(s.file("dir/link"), Some(1), None).unwrap();
        }),
        case("a directory has another group", LAYER, Same, |s| {
            std::os::unix::fs::lchown(s.file("dir"), None, Some(1)).unwrap();
        }),
        case("a file has another time", LAYER, Same, |s| {
            let file = fs::File::options().write(true).open(s.file("dir/file")).unwrap();
            file.set_times(fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH))
                .unwrap();
        }),
        case(
            "a link leads elsewhere",
            LAYER,
            Differs("it compares the time of the link alone"),
            |s| {
                fs::remove_file(s.file("dir/link")).unwrap();
                symlink("empty", s.file("dir/link")).unwrap();
            },
        ),
        case(
            "a device is another one",
            LAYER,
            Differs("it compares the time of the device alone"),
            |s| {
                let path = s.file("dir/null");
                fs::remove_file(&path).unwrap();
                let (kind, mode) = (rustix::fs::FileType::CharacterDevice, 0o644.into());
                rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, rustix::fs::makedev(1, 5)).unwrap();
            },
        ),
        case("a file has capabilities", LAYER, Misses(NO_ATTRIBUTES), |s| {
            attribute(&s.file("dir/file"), "security.capability", CAPABILITY);
        }),
        case(
            "a file has other capabilities",
            LAYER,
            Misses(NO_ATTRIBUTES),
            |s| {
                let mut other = CAPABILITY.to_vec();
                other[5] = 8;
                attribute(&s.file("dir/able"), "security.capability", &other);
            },
        ),
        case("a file has no capabilities", LAYER, Misses(NO_ATTRIBUTES), |s| {
            rustix::fs::lremovexattr(s.file("dir/able"), "security.capability").unwrap();
        }),
        case(
            "a file has another attribute",
            LAYER,
            Misses(NO_ATTRIBUTES),
            |s| {
                attribute(&s.file("dir/file"), "user.x", b"1");
            },
        ),
        case(
            "an attribute has another value",
            LAYER,
            Misses(NO_ATTRIBUTES),
            |s| {
                attribute(&s.file("dir/file"), "user.kept", b"2");
            },
        ),
        case("an attribute is missing", LAYER, Misses(NO_ATTRIBUTES), |s| {
            rustix::fs::lremovexattr(s.file("dir/file"), "user.kept").unwrap();
        }),
        case("a file is a directory", LAYER, Same, |s| {
            fs::remove_file(s.file("dir/file")).unwrap();
            fs::create_dir(s.file("dir/file")).unwrap();
        }),
        case("a directory is a file", LAYER, Same, |s| {
            fs::remove_dir(s.file("dir/sticky")).unwrap();
            fs::write(s.file("dir/sticky"), "").unwrap();
        }),
        case("a directory is a link", LAYER, Same, |s| {
            fs::rename(s.file("hidden"), s.root.path().join("elsewhere")).unwrap();
            symlink(s.root.path().join("elsewhere"), s.file("hidden")).unwrap();
        }),
        case("a file is a link to itself outside", LAYER, Same, |s| {
            let outside = s.root.path().join("outside");
            fs::write(&outside, "content").unwrap();
            fs::remove_file(s.file("dir/file")).unwrap();
            symlink(outside, s.file("dir/file")).unwrap();
        }),
        case("a pipe is a file", LAYER, Same, |s| {
            fs::remove_file(s.file("dir/pipe")).unwrap();
            fs::write(s.file("dir/pipe"), "").unwrap();
        }),
    ]
}

/// What is wrong with the tar-split file.
pub(super) fn of_streams() -> Vec<Case> {
    vec![
        case("the tar-split file is missing", LAYER, Same, |s| {
            fs::remove_file(s.data("layers", "L1.tar-split.gz")).unwrap();
        }),
        case("the tar-split file is cut off", LAYER, Same, |s| {
            let path = s.data("layers", "L1.tar-split.gz");
            let content = fs::read(&path).unwrap();
            fs::write(path, &content[..content.len() / 2]).unwrap();
        }),
        case("the tar-split file is empty", LAYER, Same, |s| {
            fs::write(s.data("layers", "L1.tar-split.gz"), "").unwrap();
        }),
        case("the tar-split file is none", LAYER, Same, |s| {
            fs::write(s.data("layers", "L1.tar-split.gz"), "no gzip").unwrap();
        }),
        case("the tar-split file is a directory", LAYER, Same, |s| {
            let path = s.data("layers", "L1.tar-split.gz");
            fs::remove_file(&path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        case("the tar-split file is that of another layer", LAYER, Same, |s| {
            let other = s.data("layers", "H1.tar-split.gz");
            fs::copy(other, s.data("layers", "L1.tar-split.gz")).unwrap();
        }),
        case("the tree is that of another layer", LAYER, Same, |s| {
            let (own, other) = (s.tree("L1"), s.tree("H1"));
            fs::remove_dir_all(&own).unwrap();
            let copied = s.root.program("cp").arg("-a").args([other, own]).status();
            assert!(copied.unwrap().success());
        }),
    ]
}

/// Layers of which nothing is left.
pub(super) fn of_lost_files(driver: &str) -> Vec<Case> {
    // Over overlay no layer is what it was without the one below it.
    let items = if driver == "overlay" { BOTH } else { LAYER };
    vec![
        case("the tree is missing", items, Same, |s| {
            fs::remove_dir_all(s.tree("L1")).unwrap();
        }),
        case("everything of the driver is missing", items, Same, |s| {
            fs::remove_dir_all(s.layer("L1")).unwrap();
        }),
    ]
}

/// What only a driver has that keeps a layer's own changes.
pub(super) fn of_overlay() -> Vec<Case> {
    let unseen = "the mounted tree shows it nowhere";
    vec![
        case("a whiteout is missing", TOP, Same, |s| {
            let path = s.tree("L2").join("deleted");
            assert_eq!(fs::symlink_metadata(&path).unwrap().rdev(), 0);
            fs::remove_file(path).unwrap();
        }),
        case("a whiteout was added", TOP, Same, |s| {
            let (kind, path) = (
                rustix::fs::FileType::CharacterDevice,
                s.tree("L2").join("dir/file"),
            );
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, 0.into(), 0).unwrap();
        }),
        case("a directory is not opaque", TOP, Same, |s| {
            rustix::fs::lremovexattr(s.tree("L2").join("hidden"), "trusted.overlay.opaque").unwrap();
        }),
        case("a directory is opaque", TOP, Same, |s| {
            attribute(&s.tree("L2").join("dir"), "trusted.overlay.opaque", b"y");
        }),
        case("a directory shows another one", LAYER, Misses(unseen), |s| {
            attribute(&s.file("dir"), "trusted.overlay.redirect", b"/hidden");
        }),
    ]
}

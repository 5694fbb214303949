//! Unpacking where modes and owners are not free to choose: by an ordinary user, and with a forced mode.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;

use crate::archive::tests::out_support::Tree;
use crate::archive::tests::{Layer, OVERLAY, root_or_skip};
use crate::test_util::{TarBuilder, TarEntry as Item};
use crate::whiteout::{OVERRIDE_STAT, WhiteoutFormat};

/// Who has no privileges.
const NOBODY: u32 = 65534;

/// Runs the test `name` in a process of an ordinary user; `false` in that process, where the caller has to do it.
fn delegated(name: &str) -> bool {
    const IN_CHILD: &str = "GRAPHROOT_TEST_ORDINARY_USER";
    if std::env::var_os(IN_CHILD).is_some() || !rustix::process::geteuid().is_root() {
        return false;
    }
    let tmp = tempfile::tempdir().unwrap();
    std::fs::set_permissions(tmp.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    // Whether the user may go to where the program lies does not matter that way.
    let output = std::process::Command::new("/proc/self/exe")
        .args(["--exact", name])
        .env(IN_CHILD, "1")
        .env("TMPDIR", tmp.path())
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    true
}

fn mode(layer: &Layer, path: &str) -> u32 {
    layer.at(path).symlink_metadata().unwrap().mode() & 0o7777
}

#[test]
fn directories_that_forbid_writing_are_filled_and_emptied_by_their_owner() {
    if delegated(
        "archive::tests::permissions::directories_that_forbid_writing_are_filled_and_emptied_by_their_owner",
    ) {
        return;
    }
    let (uid, gid) = (
        rustix::process::geteuid().as_raw().into(),
        rustix::process::getegid().as_raw().into(),
    );
    let mine = |item: Item| item.owner(uid, gid);
    let mut layer = Layer::new(WhiteoutFormat::Apply);
    layer.sync = true;
    std::fs::set_permissions(layer.root(), std::fs::Permissions::from_mode(0o555)).unwrap();
    let first = TarBuilder::new()
        .entry(mine(Item::dir("a").mode(0o555)))
        .entry(mine(Item::dir("a/closed").mode(0o111)))
        .entry(mine(Item::file("a/closed/f", "x")))
        .entry(mine(Item::dir("a/b").mode(0o500)))
        .entry(mine(Item::dir("a/b/c").mode(0o1555)))
        .entry(mine(Item::file("a/b/c/f", "x").mode(0o444)))
        .entry(mine(Item::dir("opened").mode(0o555)))
        .entry(mine(Item::dir("opened").mode(0o711)))
        .entry(mine(Item::dir("late").mode(0o755)))
        .entry(mine(Item::file("late/f", "x")))
        .entry(mine(Item::dir("late").mode(0o500)));
    layer.apply(&first.build()).unwrap();
    for (path, expected) in [
        ("", 0o555),
        ("a", 0o555),
        ("a/b", 0o500),
        ("a/b/c", 0o1555),
        ("opened", 0o711),
        ("late", 0o500),
    ] {
        assert_eq!(mode(&layer, path), expected, "{path:?}");
    }
    // What its owner cannot read could not be exported.
    assert_eq!(mode(&layer, "a/closed"), 0o511);
    assert_eq!(layer.read("a/closed/f"), "x");
    // A second layer goes into what the first has closed, and removes from it.
    let second = TarBuilder::new()
        .entry(mine(Item::file("a/b/c/g", "y")))
        .entry(mine(Item::file("a/b/c/.wh.f", "")))
        .entry(mine(Item::file("late/.wh..wh..opq", "")));
    layer.apply(&second.build()).unwrap();
    assert!(layer.at("a/b/c/g").exists() && !layer.at("a/b/c/f").exists());
    assert!(!layer.at("late/f").exists());
    for (path, expected) in [("", 0o555), ("a/b", 0o500), ("a/b/c", 0o1555), ("late", 0o500)] {
        assert_eq!(mode(&layer, path), expected, "{path:?}");
    }
    let third = TarBuilder::new()
        .entry(mine(Item::file(".wh.late", "")))
        .entry(mine(Item::file("a/b", "now a file")))
        .entry(mine(Item::dir("a").mode(0o755)));
    layer.apply(&third.build()).unwrap();
    assert_eq!(layer.read("a/b"), "now a file");
    assert_eq!(mode(&layer, "a"), 0o755);
    // What is made anew in a closed directory's place is not closed.
    let fourth = TarBuilder::new()
        .entry(mine(Item::dir("d").mode(0o555)))
        .entry(mine(Item::file("d", "")))
        .entry(mine(Item::file(".wh.d", "")))
        .entry(mine(Item::dir("e").mode(0o500)));
    layer.apply(&fourth.build()).unwrap();
    assert!(layer.at("d").is_file() && mode(&layer, "e") == 0o500);
    // For the removal of the test's own directory.
    std::fs::set_permissions(layer.root(), std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn owners_of_others_are_refused_to_an_ordinary_user_unless_they_do_not_matter() {
    if delegated(
        "archive::tests::permissions::owners_of_others_are_refused_to_an_ordinary_user_unless_they_do_not_matter",
    ) {
        return;
    }
    let tar = TarBuilder::new().entry(Item::file("f", "x").owner(0, 0)).build();
    let mut layer = Layer::new(WhiteoutFormat::Apply);
    let error = layer.apply(&tar).unwrap_err();
    assert!(
        error.chain().contains("\"f\"") && error.chain().contains("owner 0:0"),
        "{}",
        error.chain()
    );
    layer.ignore_chown_errors = true;
    layer.apply(&tar).unwrap();
    let owner = layer.at("f").symlink_metadata().unwrap().uid();
    assert_eq!(owner, rustix::process::geteuid().as_raw());
}

#[test]
fn a_forced_mode_hides_owners_modes_and_types_in_an_attribute() {
    let mut layer = Layer::new(WhiteoutFormat::Verbatim);
    layer.force_mask = Some(0o700);
    layer.in_user_namespace = true;
    let tar = TarBuilder::new()
        .entry(Item::dir("./").mode(0o751).owner(5, 6))
        .entry(Item::dir("d").mode(0o1777).owner(1, 2))
        .entry(Item::file("d/f", "content").mode(0o4755).owner(1000, 70_000))
        .entry(
            Item::file("d/own", "")
                .xattr(OVERRIDE_STAT, "9:9:0777:file")
                .xattr("user.kept", "1"),
        )
        .entry(Item::hard_link("d/hard", "d/f").owner(3, 3).mode(0o600))
        .entry(Item::symlink("soft", "d/f").owner(1000, 1000))
        .entry(Item::fifo("pipe").mode(0o640))
        .entry(Item::new(b'3', "char").device(1, 3).mode(0o666))
        .entry(Item::new(b'4', "block").device(259, 70_000).owner(0, 6))
        .entry(Item::file("implied/f", "").mode(0o600))
        .entry(Item::file("below/.wh.gone", ""));
    let below = Tree::new();
    below.file("below/gone", "").mode("below", 0o700);
    below.xattr("below", OVERRIDE_STAT, b"5:5:0750:dir");
    layer.below.push(below.path().to_owned());
    layer.apply(&tar.build()).unwrap();
    assert!(layer.at("below/.wh.gone").exists());
    for (path, value) in [
        ("", "5:6:0751:dir"),
        ("d", "1:2:1777:dir"),
        ("d/f", "1000:70000:4755:file"),
        ("d/own", "0:0:0644:file"),
        ("d/hard", "1000:70000:4755:file"),
        ("pipe", "0:0:0640:pipe"),
        ("char", "0:0:0666:char-1-3"),
        ("block", "0:6:0644:block-259-70000"),
        ("implied", "0:0:0755:dir"),
        ("implied/f", "0:0:0600:file"),
        ("below", "5:5:0750:dir"),
    ] {
        let kept = layer.xattr(path, OVERRIDE_STAT).unwrap();
        assert_eq!(String::from_utf8_lossy(&kept), value, "{path:?}");
        let meta = layer.at(path).symlink_metadata().unwrap();
        assert_eq!(meta.uid(), rustix::process::geteuid().as_raw(), "{path:?}");
        // A root that the archive does not set keeps its mode.
        if !path.is_empty() {
            assert_eq!(meta.mode() & 0o7777, 0o700, "{path:?}");
        }
    }
    for path in ["pipe", "char", "block"] {
        let meta = layer.at(path).symlink_metadata().unwrap();
        assert!(meta.is_file() && meta.len() == 0, "{path}");
    }
    assert_eq!(layer.xattr("soft", OVERRIDE_STAT), None);
    assert_eq!(layer.xattr("d/own", "user.kept").unwrap(), b"1");
    assert_eq!(layer.read("d/f"), "content");
    // Nothing said of the root.
    let silent = TarBuilder::new().entry(Item::file("f", "x")).build();
    layer.apply(&silent).unwrap();
    assert_eq!(layer.xattr("", OVERRIDE_STAT).unwrap(), b"0:0:0755:dir");
}

#[test]
fn owners_and_modes_do_not_come_from_a_layers_attributes() {
    if !root_or_skip() {
        return;
    }
    let layer = Layer::new(OVERLAY);
    let tar = TarBuilder::new().entry(Item::file("f", "").xattr(OVERRIDE_STAT, "9:9:4777:file"));
    layer.apply(&tar.build()).unwrap();
    assert_eq!(layer.xattr("f", OVERRIDE_STAT), None);
}

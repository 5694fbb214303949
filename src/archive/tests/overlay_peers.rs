//! Overlay layers against what others make of them: the kernel's merged view, the stream of containers-storage.

use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, XattrFlags};

use super::*;
use crate::archive::diff::changes::ChangeKind;
use crate::archive::tests::changes::{Object, build, names_of, objects};
use crate::archive::tests::out_support::*;
use crate::archive::tests::overlay::{NS, changes_of, tar_of};

/// A container's layer, written by containers-storage through the kernel: the stream is the same to the byte.
#[test]
fn the_stream_is_the_one_that_containers_storage_makes() {
    if !root_or_skip() {
        return;
    }
    if !have("containers-storage") {
        return;
    }
    let tmp = Tree::new();
    tmp.dir("graph").dir("run").dir("source");
    let store = |args: &[&str]| {
        let (graph, run_root) = (tmp.at("graph"), tmp.at("run"));
        let mut all = vec![
            arg(args[0]),
            arg("-g"),
            arg(&graph),
            arg("-R"),
            arg(&run_root),
            arg("-s"),
            arg("overlay"),
        ];
        all.extend(args[1..].iter().map(|text| arg(*text)));
        String::from_utf8(run("containers-storage", &all))
            .unwrap()
            .lines()
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let source = Tree::new();
    source
        .file("keep", "k")
        .file("delete", "d")
        .file("gone/x", "x")
        .file("dir/f", "f")
        .file("cap", "c")
        .settle();
    let tar = tmp.at("base.tar");
    run(
        "tar",
        &[arg("-C"), arg(source.path()), arg("-cf"), arg(&tar), arg(".")],
    );
    let base = store(&["create-layer"]);
    // The driver leaves its own directory mounted on itself.
    let _mount = Mount(tmp.at("graph/overlay"));
    store(&["applydiff", "--file", tar.to_str().unwrap(), &base]);
    let top = store(&["create-layer", &base]);
    let mounted = PathBuf::from(store(&["mount", &top]));
    let long = format!("dir/{}/{}", "l".repeat(120), "n".repeat(90));
    {
        std::fs::remove_file(mounted.join("delete")).unwrap();
        std::fs::remove_dir_all(mounted.join("gone")).unwrap();
        std::fs::create_dir(mounted.join("gone")).unwrap();
        std::fs::write(mounted.join("gone/y"), "y").unwrap();
        std::fs::create_dir_all(mounted.join(&long)).unwrap();
        std::fs::write(mounted.join(format!("{long}/{}", "f".repeat(130))), "long").unwrap();
        std::fs::write(mounted.join("dir/\u{e4}\u{f6}"), "umlaut").unwrap();
        std::os::unix::fs::symlink("t".repeat(150), mounted.join("link")).unwrap();
        std::fs::hard_link(mounted.join("gone/y"), mounted.join("hard")).unwrap();
        rustix::fs::lsetxattr(mounted.join("keep"), "user.x", b"value", XattrFlags::empty()).unwrap();
        rustix::fs::lsetxattr(mounted.join("hard"), "user.z", b"", XattrFlags::empty()).unwrap();
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        rustix::fs::lsetxattr(
            mounted.join("cap"),
            "security.capability",
            &capability,
            XattrFlags::empty(),
        )
        .unwrap();
        let file = mounted.join("dir/f");
        std::os::unix::fs::lchown(&file, Some(3_000_000), Some(4)).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o6711)).unwrap();
        rustix::fs::mknodat(
            CWD,
            mounted.join("dev"),
            FileType::BlockDevice,
            0o640.into(),
            rustix::fs::makedev(259, 70_000),
        )
        .unwrap();
        rustix::fs::mknodat(CWD, mounted.join("fifo"), FileType::Fifo, 0o640.into(), 0).unwrap();
        Command::new("touch")
            .args(["-h", "-d", "1960-01-01"])
            .arg(mounted.join("fifo"))
            .status()
            .unwrap();
    }
    store(&["unmount", &top]);
    let theirs = tmp.at("theirs.tar");
    store(&["diff", "-u", "-f", theirs.to_str().unwrap(), &top]);
    let theirs = as_newer_releases(std::fs::read(&theirs).unwrap());
    let open = |id: &str| crate::sys::at::open_dir(&tmp.at(&format!("graph/overlay/{id}/diff"))).unwrap();
    let ours = upper_stream(&open(&top), &[open(&base)], NS, &IdMappings::default());
    if ours != theirs {
        let at = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        panic!(
            "differ at {at:?}\nours: {:#?}\ntheirs: {:#?}",
            entries(&ours),
            entries(&theirs)
        );
    }
}

/// Older releases put names of owners into the header, and the type into the mode field too.
fn as_newer_releases(mut tar: Vec<u8>) -> Vec<u8> {
    let octal = |field: &[u8]| {
        let text = std::str::from_utf8(field)
            .unwrap()
            .trim_matches(|c| c == '\0' || c == ' ');
        usize::from_str_radix(text, 8).unwrap()
    };
    let mut at = 0;
    while tar[at] != 0 {
        let block = &mut tar[at..at + 512];
        let size = octal(&block[124..136]);
        let mode = octal(&block[100..108]) & 0o7777;
        block[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
        block[265..329].fill(0);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        at += 512 + size.next_multiple_of(512);
    }
    tar
}

/// Does something to each path: removes, renames, changes, makes.
fn work_in(root: &Tree, objects: &[Object]) {
    for (path, kind, seed) in objects {
        let (path, parent) = names_of(path);
        let there = root.at(&path).symlink_metadata().ok();
        let is_dir = there.as_ref().is_some_and(std::fs::Metadata::is_dir);
        match (kind, there.is_some()) {
            (0, true) => drop(std::fs::rename(root.at(&path), root.at("moved"))),
            (1, true) if !is_dir => root.owner(&path, u32::from(*seed), 5).done(),
            (2, true) if is_dir => root.mode(&path, 0o750).done(),
            (3..=5, true) if is_dir => std::fs::remove_dir_all(root.at(&path)).unwrap(),
            (3..=5, true) => std::fs::remove_file(root.at(&path)).unwrap(),
            _ => {}
        }
        let free = root.at(&path).symlink_metadata().is_err();
        if matches!(kind, 4..=6) && free && std::fs::create_dir_all(root.at(&parent)).is_ok() {
            match seed {
                0 | 1 => root.dir(&path).dir(&format!("{path}/a")).done(),
                2 => root.symlink(&path, "target").done(),
                _ => root.file(&path, "made anew").done(),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_layer_on_two_others_gives_the_merged_tree(base in objects(), middle in objects(), top in objects()) {
        if root_or_skip() {
            let base = build(&base);
            let (middle_dir, upper, work, merged) = (Tree::new(), Tree::new(), Tree::new(), Tree::new());
            {
                let _mount = Mount::new(&[base.path()], Some((middle_dir.path(), work.path())), merged.path());
                work_in(&merged, &middle);
            }
            let work = Tree::new();
            let below = [middle_dir.path(), base.path()];
            let mount = Mount::new(&below, Some((upper.path(), work.path())), merged.path());
            let layer = layer_with(merged.path());
            work_in(&merged, &top);
            let alone = |listing: BTreeMap<String, String>| -> BTreeMap<String, String> {
                let cut = |text: String| text.split(" linked to ").next().unwrap_or_default().to_owned();
                to_the_second(listing).into_iter().map(|(name, text)| (name, cut(text))).collect()
            };
            let expected = alone(listing(merged.path()));
            let listed_before = listing(&layer.root());
            drop(mount);
            let below = [middle_dir.open(), base.open()];
            let tar = tar_of(&upper, &below, &IdMappings::default());
            layer.apply(&tar).unwrap();
            prop_assert_eq!(&alone(layer.listing()), &expected, "{:?}", entries(&tar));
            // The list of changes agrees with what there was and what there is.
            for change in &changes_of(&upper, &below) {
                let path = change.path.strip_prefix("/").unwrap().to_str().unwrap();
                prop_assert_eq!(listed_before.contains_key(path), change.kind != ChangeKind::Add, "{}", change);
                prop_assert_eq!(expected.contains_key(path), change.kind != ChangeKind::Delete, "{}", change);
            }
        }
    }
}

//! Lists of the layers below and their links: written, read, lost and made anew.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use crate::driver::contract::{CreateOptions, Driver as _};
use crate::driver::overlay::tests::place::{
    Place, chain, count_seen, forget_lower_layers, link_of, lower_layers,
};
use crate::error::ErrorKind;

#[test]
fn lost_links_are_put_back() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    forget_lower_layers(&home);
    fs::create_dir(home.join("stray")).unwrap();
    let link = home.join("l").join(link_of(&home, "one"));
    fs::remove_file(&link).unwrap();
    assert_eq!(count_seen(&driver, "three").unwrap(), 3);
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("../one/diff"));
    // From then on no link is needed any more.
    assert_eq!(lower_layers(&home, "three"), "two:one");
    // The name of a parent.
    fs::remove_file(home.join("three/link")).unwrap();
    driver
        .create("four", Some("three"), &CreateOptions::default())
        .unwrap();
    assert_eq!(count_seen(&driver, "four").unwrap(), 3);
    // The whole directory, and entries that are no links to layers.
    forget_lower_layers(&home);
    fs::remove_dir_all(home.join("l")).unwrap();
    assert_eq!(count_seen(&driver, "four").unwrap(), 3);
    symlink("/etc", home.join("l/ABC")).unwrap();
    forget_lower_layers(&home);
    fs::write(home.join("l/file"), "").unwrap();
    fs::remove_file(&link).unwrap();
    assert_eq!(count_seen(&driver, "four").unwrap(), 3);
    assert!(!home.join("l/ABC").is_symlink());
    // Two link IDs for one layer: both stay, and the `link` file does not change.
    let name = link_of(&home, "two");
    symlink("../two/diff", home.join("l/SECOND")).unwrap();
    forget_lower_layers(&home);
    fs::remove_file(&link).unwrap();
    assert_eq!(count_seen(&driver, "four").unwrap(), 3);
    assert_eq!(link_of(&home, "two"), name);
}

#[test]
fn what_cannot_be_put_back_is_named() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    forget_lower_layers(&home);
    let name = link_of(&home, "one");
    drop(driver.defer_remove("one").unwrap().unwrap());
    let error = count_seen(&driver, "three").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptMetadata);
    assert!(
        error.chain().contains(&name) && error.chain().contains("three"),
        "{}",
        error.chain()
    );
    let error = driver
        .create("child", Some("three"), &CreateOptions::default())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptMetadata, "{}", error.chain());
    for lower in ["l/../../x", "nonsense", "", &"l/A:".repeat(600)] {
        fs::write(home.join("three/lower"), lower).unwrap();
        let error = count_seen(&driver, "three").unwrap_err();
        assert!(error.chain().contains("three"), "{}", error.chain());
    }
    fs::write(home.join("three/lower"), vec![b'x'; 300 * 1024]).unwrap();
    assert_eq!(
        count_seen(&driver, "three").unwrap_err().kind(),
        ErrorKind::CorruptMetadata
    );
    fs::write(home.join("three/lower"), b"l/\xff").unwrap();
    assert_eq!(
        count_seen(&driver, "three").unwrap_err().kind(),
        ErrorKind::CorruptMetadata
    );
    drop(driver.defer_remove("three").unwrap().unwrap());
}

#[test]
fn every_way_of_making_a_layer_lists_the_layers_below() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    assert!(!home.join("one/lower-layers").exists());
    assert_eq!(lower_layers(&home, "two"), "one");
    assert_eq!(lower_layers(&home, "three"), "two:one");
    let options = CreateOptions::default();
    driver.create("created", Some("three"), &options).unwrap();
    assert_eq!(lower_layers(&home, "created"), "three:two:one");
    // Staged before its parent exists, and on one that another layer of the same ID has replaced since.
    let apart = Arc::clone(&driver).stage(None, &options).unwrap();
    apart.commit("apart", Some("two"), &options).unwrap();
    assert_eq!(lower_layers(&home, "apart"), "two:one");
    let replaced = Arc::clone(&driver).stage(Some("created"), &options).unwrap();
    drop(driver.defer_remove("created").unwrap());
    driver.create("created", Some("one"), &options).unwrap();
    replaced.commit("replaced", Some("created"), &options).unwrap();
    assert_eq!(lower_layers(&home, "replaced"), "created:one");
    // On a layer of a program that does not know the file, and on one whose older list is lost.
    forget_lower_layers(&home);
    driver.create("next", Some("three"), &options).unwrap();
    assert_eq!(lower_layers(&home, "next"), "three:two:one");
    fs::remove_file(home.join("next/lower")).unwrap();
    driver.create("last", Some("next"), &options).unwrap();
    let links = ["next", "three", "two", "one"].map(|id| format!("l/{}", link_of(&home, id)));
    assert_eq!(
        fs::read_to_string(home.join("last/lower")).unwrap(),
        links.join(":")
    );
    // An ID that cannot stand in the list: the older one decides.
    driver.create("a:b", Some("one"), &options).unwrap();
    driver.create("on a:b", Some("a:b"), &options).unwrap();
    assert!(!home.join("on a:b/lower-layers").exists());
    assert_eq!(count_seen(&driver, "on a:b").unwrap(), 1);
}

#[test]
fn layers_are_mounted_by_the_list_of_ids() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    // Without links and link IDs nothing has to be repaired.
    fs::remove_dir_all(home.join("l")).unwrap();
    fs::remove_file(home.join("two/link")).unwrap();
    assert_eq!(count_seen(&driver, "three").unwrap(), 3);
    assert!(!home.join("l").exists() && !home.join("two/link").exists());
    // Both lists are there and disagree: IDs count.
    fs::write(home.join("three/lower-layers"), "one").unwrap();
    assert_eq!(count_seen(&driver, "three").unwrap(), 2);
    assert!(driver.overlay_diff("three", Some("two")).unwrap().is_none());
    assert!(driver.overlay_diff("three", Some("one")).unwrap().is_some());
    driver
        .create("four", Some("three"), &CreateOptions::default())
        .unwrap();
    assert_eq!(lower_layers(&home, "four"), "three:one");
    assert_eq!(count_seen(&driver, "four").unwrap(), 2);
    // What a power cut leaves of the file counts as none.
    fs::write(home.join("three/lower-layers"), "").unwrap();
    assert_eq!(count_seen(&driver, "three").unwrap(), 3);
}

#[test]
fn a_list_of_ids_leads_to_layers_only() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    let many = vec!["one"; 501].join(":");
    let huge = "x".repeat(300 * 1024);
    for bad in [
        "../../graph/overlay/one",
        "..",
        "/etc",
        "one\n",
        "one/diff",
        "l",
        "tempdirs",
        "one:",
        ":one",
        "two:one:one",
        "three",
        "missing",
        &many,
        &huge,
    ] {
        fs::write(home.join("three/lower-layers"), bad).unwrap();
        let create = driver.create("child", Some("three"), &CreateOptions::default());
        let private = driver.mount_private("three").map(drop);
        for error in [count_seen(&driver, "three").unwrap_err(), private.unwrap_err()] {
            let text = error.chain();
            assert!(text.contains("three"), "{bad:.40}: {text}");
            assert!(
                [ErrorKind::CorruptMetadata, ErrorKind::InvalidInput].contains(&error.kind()),
                "{bad:.40}: {text}"
            );
        }
        // A layer below that is missing stops a mount only, as with the older list.
        assert_eq!(create.is_ok(), bad == "missing", "{bad:.40}");
    }
    fs::remove_file(home.join("three/lower-layers")).unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        home.join("three/lower-layers"),
        rustix::fs::Mode::RWXU,
    )
    .unwrap();
    assert_eq!(count_seen(&driver, "three").unwrap(), 3, "a pipe blocks nobody");
    fs::remove_dir_all(home.join("one/diff")).unwrap();
    let error = count_seen(&driver, "three").unwrap_err();
    assert!(error.chain().contains("\"one\""), "{}", error.chain());
}

#[test]
fn a_list_that_is_no_text_file_of_its_own_is_refused() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    let list = home.join("three/lower-layers");
    let refused = |what: &str| {
        let create = driver.create("child", Some("three"), &CreateOptions::default());
        let private = driver.mount_private("three").map(drop);
        let mounted = count_seen(&driver, "three").map(drop);
        for result in [create, private, mounted] {
            let text = result.unwrap_err().chain();
            assert!(text.contains("lower-layers"), "{what}: {text}");
        }
        assert!(!home.join("child").exists(), "{what}");
        assert_eq!(count_seen(&driver, "two").unwrap(), 2, "{what}");
    };
    for binary in [&b"\xff\xfe"[..], b"\x7fELF\x02\x01", b"two\0:one", b"two:\xc3"] {
        fs::write(&list, binary).unwrap();
        refused(&String::from_utf8_lossy(binary));
    }
    fs::remove_file(&list).unwrap();
    // A list that is right, of another layer; and what has no end.
    for target in ["../two/lower-layers", "/dev/zero", "lower-layers", "nothing"] {
        symlink(target, &list).unwrap();
        refused(target);
        fs::remove_file(&list).unwrap();
    }
    let device = rustix::fs::makedev(1, 5);
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &list,
        rustix::fs::FileType::CharacterDevice,
        mode,
        device,
    )
    .unwrap();
    refused("a device");
    fs::remove_file(&list).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(&list).unwrap();
    refused("a socket");
    drop(socket);
    fs::remove_file(&list).unwrap();
    fs::create_dir(&list).unwrap();
    refused("a directory");
    fs::remove_dir(&list).unwrap();
    // A pipe whose writer says something and stays.
    rustix::fs::mkfifoat(rustix::fs::CWD, &list, mode).unwrap();
    let mut writer = fs::File::options().read(true).write(true).open(&list).unwrap();
    std::io::Write::write_all(&mut writer, b"two:one").unwrap();
    refused("a pipe");
    drop(writer);
    fs::remove_file(&list).unwrap();
    assert_eq!(count_seen(&driver, "three").unwrap(), 3);
    assert_eq!(lower_layers(&home, "two"), "one");
}

#[test]
fn link_ids_that_are_lost_everywhere_are_made_anew() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    let options = CreateOptions::default();
    driver.create("leaf", Some("one"), &options).unwrap();
    for old in [false, true] {
        for id in ["one", "two", "three", "leaf"] {
            if old {
                forget_lower_layers(&home);
            }
            let before = link_of(&home, id);
            fs::remove_dir_all(home.join("l")).unwrap();
            fs::remove_file(home.join(id).join("link")).unwrap();
            if old {
                // The layers above name the link ID in a place that only this layer fits.
                assert_eq!(count_seen(&driver, "three").unwrap(), 3, "{id}");
            }
            let child = format!("on {id} {old}");
            driver.create(&child, Some(id), &options).unwrap();
            assert_eq!(
                count_seen(&driver, &child).unwrap(),
                if id == "three" {
                    3
                } else if id == "two" {
                    2
                } else {
                    1
                }
            );
            let after = link_of(&home, id);
            // A leaf's link ID is known to nobody else.
            assert_eq!(after == before, matches!(id, "one" | "two"), "{id}");
            assert_eq!(
                fs::read_link(home.join("l").join(&after)).unwrap(),
                Path::new("..").join(id).join("diff")
            );
            drop(driver.defer_remove(&child).unwrap());
        }
    }
    // Two layers that an unknown link ID may stand for: no guess is made.
    forget_lower_layers(&home);
    fs::remove_dir_all(home.join("l")).unwrap();
    fs::remove_file(home.join("two/link")).unwrap();
    fs::remove_file(home.join("leaf/link")).unwrap();
    let error = count_seen(&driver, "three").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptMetadata, "{}", error.chain());
    assert!(!home.join("two/link").exists() && !home.join("leaf/link").exists());
}

#[test]
fn links_that_lead_nowhere_are_removed() {
    let Some(place) = Place::new(&[]) else { return };
    let (driver, home) = (place.open().unwrap(), place.home());
    chain(&driver);
    let links = || fs::read_dir(home.join("l")).unwrap().count();
    // The link file of a layer that is deleted cannot be read, is missing, or is that of another layer.
    fs::write(home.join("three/link"), [0xff]).unwrap();
    drop(driver.defer_remove("three").unwrap());
    assert_eq!(links(), 2);
    fs::write(home.join("two/link"), link_of(&home, "one")).unwrap();
    drop(driver.defer_remove("two").unwrap());
    assert_eq!(links(), 1);
    assert_eq!(count_seen(&driver, "one").unwrap(), 1);
    for (target, name) in [("../gone/diff", "GONE"), ("/etc", "ELSEWHERE")] {
        symlink(target, home.join("l").join(name)).unwrap();
    }
    driver.remove_strays().unwrap();
    assert_eq!(links(), 1);
    assert!(home.join("l").join(link_of(&home, "one")).is_symlink());
}

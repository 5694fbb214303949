//! Unmounting what is in use, or was a moment ago.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::driver::MountOptions;
use crate::driver::zfs::tests::setup;

#[test]
fn a_layer_is_removed_while_files_in_it_are_open() {
    let Some(setup) = setup(&[]) else { return };
    setup.create("a", None);
    setup.write("a", "file");
    let root = setup.driver.mount_private("a").unwrap();
    let temp = setup.driver.defer_remove("a").unwrap().unwrap();
    assert!(!setup.driver.exists("a").unwrap() && setup.driver.list_layers().unwrap().is_empty());
    assert!(setup.driver.defer_remove("a").unwrap().is_none());
    // It cannot be destroyed yet.
    drop(temp);
    assert_eq!(setup.names().len(), 1);
    drop(root);
    setup.driver.prune().unwrap();
    assert_eq!(setup.names(), [""; 0]);
    setup.create("a", None);
    let root = setup.driver.mount("a", &MountOptions::default()).unwrap();
    assert_eq!(fs::read_dir(root).unwrap().count(), 0);
}

/// zfs-fuse answers nobody any more if a file system goes before it has read that a file in it is closed.
#[test]
fn files_are_closed_until_the_moment_of_an_unmount() {
    const FILES: u64 = 30;
    // Without care, that happens within some hundreds where other programs want the processors too.
    const ROUNDS: u32 = 400;
    let Some(setup) = setup(&[]) else { return };
    setup.create("a", None);
    let root = setup.driver.mount("a", &MountOptions::default()).unwrap();
    for number in 0..FILES {
        fs::write(root.join(number.to_string()), "").unwrap();
    }
    setup.driver.unmount("a").unwrap();
    let is_done = AtomicBool::new(false);
    let read = |first_pause: usize| {
        let mut pauses = (0..7).cycle().skip(first_pause).map(Duration::from_millis);
        while !is_done.load(Ordering::Relaxed) {
            let open = (0..FILES).map(|number| fs::File::open(root.join(number.to_string())));
            drop(open.collect::<Vec<_>>());
            std::thread::sleep(pauses.next().unwrap());
        }
    };
    let mounted = std::thread::scope(|scope| {
        scope.spawn(|| read(0));
        scope.spawn(|| read(3));
        let mounted = (0..ROUNDS).try_for_each(|_| {
            setup.driver.mount("a", &MountOptions::default())?;
            setup.driver.unmount("a")
        });
        is_done.store(true, Ordering::Relaxed);
        mounted
    });
    mounted.unwrap();
    setup.driver.unmount_all("a").unwrap();
    assert_eq!(setup.names(), ["a"]);
}

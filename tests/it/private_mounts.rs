//! Reading a layer never touches its mount: diffs of a container that others mount, write to and unmount, and what a
//! killed process leaves. With fuse-overlayfs every diff needs a mount.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use graphroot::{ContainerOptions, DiffOptions, ImageOptions, LayerOptions, MountOptions, Store};
use tokio::io::AsyncReadExt as _;

use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::{TestRoot, mounts_below};
use crate::support::store::{names_in, put_bytes};
use crate::support::tar::Tar;
use crate::support::worker::{Worker, tell, wait_for_parent};
use crate::support::{each_set, needs};

const PROGRAM: &str = "overlay.mount_program=/usr/bin/fuse-overlayfs";

/// How often each of the two writers mounts, writes and unmounts.
const ROUNDS: usize = 12;

/// Files of the image that are not changed.
const KEPT: usize = 150;

/// A store with a container `box` on an image of one layer; returns the ID of the container's layer.
async fn container(store: &Store) -> String {
    let mut tar = Tar::new().dir("d/").file("d/changed", "image").dir("kept/");
    for number in 0..KEPT {
        tar = tar.file(format!("kept/{number}"), "kept");
    }
    for number in 0..ROUNDS {
        tar = tar.file(format!("d/doomed-{number}"), "image");
    }
    put_bytes(store, None, LayerOptions::default().id("base"), tar.build())
        .await
        .unwrap();
    let image = ImageOptions::default().name("image");
    store.create_image(Some("base"), image).await.unwrap();
    let container = store
        .create_container(Some("image"), ContainerOptions::default().id("box"))
        .await
        .unwrap();
    container.layer_id().to_owned()
}

/// What a container does in one round; the mount must be there, and be the container's, until the end.
fn write(merged: &Path, who: &str, round: usize) {
    let content = format!("{who} {round}\n").repeat(5000);
    for (name, content) in [
        (format!("d/{who}-{round}"), content.as_str()),
        (format!("d/last-of-{who}"), content.as_str()),
        ("d/changed".to_owned(), who),
    ] {
        let path = merged.join(name);
        fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let last = merged.join(format!("d/last-of-{who}"));
    assert!(
        fs::read_to_string(&last).unwrap() == content,
        "{who} reads what it wrote"
    );
    assert_eq!(fs::read_dir(merged.join("kept")).unwrap().count(), KEPT);
    assert!(mounts_below(merged).contains(&merged.to_owned()), "still mounted");
}

/// No change of a file that is not changed: it would have been seen through a directory on which nothing is mounted, or half
/// of it.
fn assert_sound(paths: impl IntoIterator<Item = PathBuf>) {
    for path in paths {
        assert!(
            path == Path::new("/d") || path == Path::new("/") || path.starts_with("/d/"),
            "{} has not changed",
            path.display()
        );
    }
}

/// Counts one writer less when it ends, also by a panic.
struct Ends(Arc<AtomicUsize>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Compares the container with its image until the writers have ended; returns how often.
async fn compare(store: Store, layer: String, writers: Arc<AtomicUsize>) -> usize {
    let mut count = 0;
    while writers.load(Ordering::SeqCst) > 0 {
        let changes = store.changes(None, &layer).await.unwrap();
        assert_sound(changes.iter().map(|change| PathBuf::from(&change.path)));
        let mut diff = store
            .diff(None, &layer, DiffOptions::uncompressed())
            .await
            .unwrap();
        let mut tar = Vec::new();
        diff.read_to_end(&mut tar).await.unwrap();
        assert_eq!(tar.len() % 512, 0);
        store.diff_size(None, &layer).await.unwrap();
        count += 1;
    }
    count
}

/// Nothing of a private mount is left: no mount but the home's own, no temporary directory, no process of the program.
fn assert_nothing_left(root: &TestRoot) {
    let home = root.graph().join("overlay");
    let mounts = mounts_below(root.path());
    assert!(mounts.iter().all(|mounted| *mounted == home), "{mounts:?}");
    assert_eq!(root.temporary_files(), Vec::<String>::new());
    assert_eq!(
        names_in(&root.run().join("overlay/tempdirs")),
        names_in(Path::new("/nonexistent"))
    );
    // Programs end when the last file in their mount is closed, a moment after it.
    let in_use = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
            .any(|line| {
                let line = String::from_utf8_lossy(&line).into_owned();
                line.contains("fuse-overlayfs") && line.contains(root.path().to_str().unwrap())
            })
    };
    while in_use() {
        std::thread::yield_now();
    }
}

async fn diffs_of_a_container_that_others_mount_write_to_and_unmount(set: PeerSet) {
    if !crate::mount_program::has_device() {
        return;
    }
    let root = Arc::new(TestRoot::new().of(set));
    let store = Store::open(root.options().driver_option(PROGRAM)).await.unwrap();
    let layer = container(&store).await;
    let writers = Arc::new(AtomicUsize::new(2));
    let ours = tokio::spawn({
        let (store, ends) = (store.clone(), Ends(Arc::clone(&writers)));
        async move {
            let _ends = ends;
            for round in 0..ROUNDS {
                let merged = store.mount("box", MountOptions::default()).await.unwrap();
                write(&merged, "ours", round);
                fs::remove_file(merged.join(format!("d/doomed-{round}"))).unwrap();
                store.unmount("box").await.unwrap();
            }
        }
    });
    let theirs = std::thread::spawn({
        let (root, ends) = (Arc::clone(&root), Ends(Arc::clone(&writers)));
        move || {
            let _ends = ends;
            let go = || root.go().with(["--storage-opt", PROGRAM]);
            for round in 0..ROUNDS {
                let merged = PathBuf::from(go().with(["mount", "box"]).run());
                write(&merged, "theirs", round);
                go().with(["unmount", "box"]).run();
            }
        }
    });
    let readers: Vec<_> = (0..2)
        .map(|_| tokio::spawn(compare(store.clone(), layer.clone(), Arc::clone(&writers))))
        .collect();
    ours.await.unwrap();
    let mut compared = 0;
    for reader in readers {
        compared += reader.await.unwrap();
    }
    theirs.join().unwrap();
    eprintln!("{compared} comparisons beside {} mounts", 2 * ROUNDS);
    assert!(compared > 2, "{compared}");
    assert_eq!(store.mounted("box").await.unwrap(), 0);
    let changes = store.changes(None, &layer).await.unwrap();
    let changed = |path: &str| {
        changes
            .iter()
            .any(|change| Path::new(&change.path) == Path::new(path))
    };
    for round in 0..ROUNDS {
        for name in ["ours", "theirs", "doomed"] {
            assert!(changed(&format!("/d/{name}-{round}")), "{name} {round}");
        }
    }
    assert_nothing_left(&root);
}
each_set!(async diffs_of_a_container_that_others_mount_write_to_and_unmount: "fuse-overlayfs", "containers-storage");

/// A mount program that makes the mount and then does not end, so that its caller waits with the mount in its hands.
fn stuck_program(root: &TestRoot) -> (PathBuf, PathBuf) {
    let dir = root.scratch("stuck");
    let (program, flag) = (dir.join("program"), dir.join("pid"));
    let text = format!(
        "#!/bin/sh\nfuse-overlayfs \"$@\" || exit 1\necho $$ > {flag}.new && mv {flag}.new {flag}\nexec sleep 600\n",
        flag = flag.display()
    );
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    (program, flag)
}

/// In a child process: compares a layer with its parent.
pub(crate) async fn compare_in_child(store: Store, layer: &str) {
    let mut diff = store
        .diff(None, layer, DiffOptions::uncompressed())
        .await
        .unwrap();
    let mut start = [0; 512];
    diff.read_exact(&mut start).await.unwrap();
    tell("reading");
    wait_for_parent();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_in_a_diff_leaves_nothing_for_the_next() {
    needs!("fuse-overlayfs");
    if !crate::mount_program::has_device() {
        return;
    }
    let root = TestRoot::new();
    let store = Store::open(root.options().driver_option(PROGRAM)).await.unwrap();
    let layer = container(&store).await;
    let merged = store.mount("box", MountOptions::default()).await.unwrap();
    write(&merged, "ours", 0);
    store.unmount("box").await.unwrap();
    let expected = store.changes(None, &layer).await.unwrap();
    store.free();
    drop(store);

    // While the program makes the mount: it is there, in the temporary directory.
    let (program, flag) = stuck_program(&root);
    let option = format!("overlay.mount_program={}", program.display());
    let worker = Worker::start("compare", &root, &[&option, &layer]);
    while !flag.exists() {
        std::thread::yield_now();
    }
    let private = root.run().join("overlay/tempdirs");
    let inside = mounts_below(&private);
    assert!(!inside.is_empty(), "the program has mounted");
    assert!(worker.kill());
    let pid: i32 = fs::read_to_string(&flag).unwrap().trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(mounts_below(&private), inside, "nobody has cleaned up yet");
    Worker::start("open-with", &root, &[PROGRAM]).finish();
    assert_nothing_left(&root);

    // While it reads: the mount has no path any more, and ends with the process.
    let mut worker = Worker::start("compare", &root, &[PROGRAM, &layer]);
    worker.expect_line("reading");
    assert_eq!(mounts_below(&private), Vec::<PathBuf>::new());
    assert!(worker.kill());
    assert_nothing_left(&root);

    let store = Store::open(root.options().driver_option(PROGRAM)).await.unwrap();
    assert_eq!(store.changes(None, &layer).await.unwrap(), expected);
}

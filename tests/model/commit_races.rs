//! A commit, and a layer of an image that is put, in a process that stops after each of its system calls while another one
//! deletes what it uses: what is made is there as a whole, or the call says what is not known.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use graphroot::Store;
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;

use crate::commits::{BASE, NEW, check_image, prepare};
use crate::every_call::{put, put_image_layer};
use crate::support::locks::{kernel_locks, store_locks};
use crate::support::needs;
use crate::support::root::TestRoot;
use crate::worker::{Location, Remote};

/// What the other process deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deleted {
    Container,
    /// The container, then the image that it is on, with its layers.
    Image,
    /// The record of that image only: the container and the layers stay.
    ImageRecord,
    /// The image that has the new name.
    Namesake,
    /// Every layer that nothing uses.
    Layers,
}

impl Deleted {
    async fn delete(self, store: Store) -> graphroot::Result<()> {
        match self {
            Self::Container => store.delete_container("second").await,
            Self::Image => {
                store.delete_container("second").await?;
                store.delete_image(BASE).await.map(drop)
            }
            Self::ImageRecord => store.delete(store.image(BASE).await?.id()).await,
            Self::Namesake => {
                let images = store.images().await?;
                let empty = images.iter().find(|image| image.top_layer().is_none());
                store.delete_image(empty.unwrap().id()).await.map(drop)
            }
            Self::Layers => {
                for layer in store.layers().await?.iter().rev() {
                    match store.delete_layer(layer.id()).await {
                        Err(error) if error.is_conflict() || error.is_not_found() => {}
                        deleted => deleted?,
                    }
                }
                Ok(())
            }
        }
    }
}

/// Files that processes lock while they use a store.
fn locks(root: &TestRoot) -> Vec<PathBuf> {
    let run = root.run().join(format!("{}-layers", root.driver()));
    let mut locks = store_locks(root);
    locks.extend([root.graph().join("storage.lock"), run.join("mountpoints.lock")]);
    locks
}

/// A call in a process that is traced, and stops after some of its system calls.
struct Stopping<T> {
    call: JoinHandle<T>,
    tracer: u32,
    trace: PathBuf,
}

/// How often a thread of the process with this trace has stopped.
fn stops(trace: &Path) -> usize {
    let trace = std::fs::read_to_string(trace).unwrap_or_default();
    trace.matches("--- stopped by SIGSTOP").count()
}

impl<T: Send + 'static> Stopping<T> {
    /// Makes `call` in a thread of its own.
    fn start(tracer: u32, trace: &Path, call: impl FnOnce() -> T + Send + 'static) -> Self {
        Self {
            call: std::thread::spawn(call),
            tracer,
            trace: trace.to_owned(),
        }
    }

    /// Waits until it stops once more than `known`; `false` if it ends before.
    fn has_stopped(&self, known: usize) -> bool {
        while !self.call.is_finished() {
            if stops(&self.trace) > known {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    /// Lets it come to its end, whenever it stops.
    fn finish(self) -> T {
        let children = format!("/proc/{0}/task/{0}/children", self.tracer);
        while !self.call.is_finished() {
            // It may have ended, and the tracer has had other children at first.
            let processes = std::fs::read_to_string(&children).unwrap_or_default();
            let is_called = |process: &&str| {
                let program = std::fs::read_link(format!("/proc/{process}/exe"));
                program.ok() == std::env::current_exe().ok()
            };
            for process in processes.split_whitespace().filter(is_called) {
                let process = Pid::from_raw(process.parse().unwrap()).unwrap();
                let _sent = kill_process(process, Signal::CONT);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.call.join().unwrap()
    }
}

/// What came of a race.
struct Raced<T> {
    outcome: T,
    /// What the deletion returned; `None` if the call did not stop.
    deleted: Option<graphroot::Result<()>>,
    /// Whether the process stopped at all.
    stopped: bool,
}

/// Makes a call in a process that stops after the `count`-th of `calls` in each thread; at the first time `delete` runs here.
fn race<T: Send + 'static>(
    runtime: &Runtime,
    root: &TestRoot,
    (calls, count): (&str, u32),
    call: impl FnOnce(&mut Remote) -> T + Send + 'static,
    deleted: Deleted,
) -> Raced<T> {
    let store = runtime.block_on(root.open());
    let trace = root.path().join("trace");
    let mut remote = Remote::start_stopping(root, calls, count, &trace);
    let tracer = remote.id();
    let location = Location::of(root, false).synced();
    let opening = Stopping::start(tracer, &trace, move || {
        remote.open(&location).unwrap();
        remote
    });
    let mut remote = opening.finish();
    // Before the call, which may stop at once.
    let known = stops(&trace);
    let calling = Stopping::start(tracer, &trace, move || {
        let outcome = call(&mut remote);
        remote.wait();
        outcome
    });
    if !calling.has_stopped(known) {
        return Raced {
            outcome: calling.finish(),
            deleted: None,
            stopped: known > 0,
        };
    }
    let deletion = runtime.spawn(deleted.delete(store));
    let (locks, started) = (locks(root), Instant::now());
    let is_waiting = |path: &PathBuf| kernel_locks(path).iter().any(|lock| lock.waiting);
    // What else the stopped process may hold is not seen here.
    while !deletion.is_finished()
        && !locks.iter().any(is_waiting)
        && started.elapsed() < Duration::from_secs(1)
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    Raced {
        outcome: calling.finish(),
        deleted: Some(runtime.block_on(deletion).unwrap()),
        stopped: true,
    }
}

/// Removes everything that is left and looks for what belongs to nothing. There may be `layers` without an image.
async fn clear(root: &TestRoot, store: &Store, layers: usize) {
    for container in store.containers().await.unwrap() {
        store.delete_container(container.id()).await.unwrap();
    }
    for image in store.images().await.unwrap() {
        store.delete_image(image.id()).await.unwrap();
    }
    let left = store.layers().await.unwrap();
    assert!(left.len() <= layers, "{left:?}");
    for layer in left.iter().rev() {
        let path = store.mount(layer.id(), Default::default()).await.unwrap();
        assert!(path.exists());
        store.unmount(layer.id()).await.unwrap();
        store.delete_layer(layer.id()).await.unwrap();
    }
    store.garbage_collect().await.unwrap();
    assert!(root.layer_directories().is_empty() && root.short_links().is_empty());
    assert!(root.temporary_files().is_empty() && root.half_written_records().is_empty());
}

/// Looks at the store after a commit.
async fn check_commit(root: &TestRoot, deleted: Deleted, outcome: &Result<(), String>) {
    let store = root.open().await;
    let mut made = false;
    for image in store.images().await.unwrap() {
        let is_new = image.names().contains(&NEW.to_owned());
        if image.top_layer().is_some() {
            let files = if is_new {
                &["first", "second"][..]
            } else {
                &["first"]
            };
            check_image(&store, &image, files).await;
            made |= is_new;
        }
    }
    match outcome {
        Ok(()) => assert!(made),
        Err(error) => assert!(error.contains("not known") && !made, "{error}"),
    }
    if matches!(deleted, Deleted::Namesake | Deleted::Layers) {
        store
            .commit("second", crate::commits::options(NEW))
            .await
            .unwrap();
    }
    clear(root, &store, 2).await;
}

/// They lock and unlock, read what shows whether records have changed, and make changes take place.
const CALLS: [&str; 3] = ["fcntl", "pread64", "rename,renameat,renameat2"];

fn commits(driver: &'static str, deleted: Deleted) {
    needs!("strace");
    let runtime = Runtime::new().unwrap();
    let (mut before, mut after) = (0, 0);
    // What only one of the steps looks up needs fewer moments.
    let calls = match deleted {
        Deleted::ImageRecord | Deleted::Namesake => &CALLS[..1],
        _ => &CALLS[..],
    };
    for calls in calls {
        for count in 1.. {
            let root = TestRoot::of_driver(driver);
            runtime.block_on(async { prepare(&root.open().await).await });
            let moment = format!("{deleted:?} at {count} of {calls}");
            let raced = race(
                &runtime,
                &root,
                (calls, count),
                |remote| remote.commit("second"),
                deleted,
            );
            if let Some(result) = raced.deleted {
                result.unwrap_or_else(|error| panic!("{moment}: {}", error.chain()));
                match &raced.outcome.clone().unwrap() {
                    Ok(()) => after += 1,
                    Err(_not_known) => before += 1,
                }
            }
            runtime.block_on(check_commit(&root, deleted, &raced.outcome.unwrap()));
            if !raced.stopped {
                break;
            }
        }
    }
    eprintln!("{driver}, {deleted:?}: {before} before it is needed, {after} after");
    assert!(before + after > 5);
}

macro_rules! commit_races {
    ($($name:ident: $driver:literal, $deleted:ident;)*) => {$(
        #[test]
        fn $name() {
            commits($driver, Deleted::$deleted);
        }
    )*};
}

commit_races! {
    the_container_of_a_commit: "overlay", Container;
    the_container_of_a_commit_with_vfs: "vfs", Container;
    the_image_below_a_commit: "overlay", Image;
    the_record_of_the_image_below_a_commit: "overlay", ImageRecord;
    the_image_that_has_the_name_of_a_commit: "overlay", Namesake;
    the_layer_of_a_commit: "overlay", Layers;
}

/// A layer of an image is put on another one, which is deleted, also if there is one with this content.
#[test]
fn the_layers_of_an_image() {
    needs!("strace");
    let runtime = Runtime::new().unwrap();
    for again in [false, true] {
        let operation = put_image_layer(Some('a'));
        let (mut before, mut after) = (0, 0);
        // Which moments there are depends on the threads that the steps come to run in; the last change is always one.
        for calls in [CALLS[0], CALLS[2]] {
            for count in 1.. {
                let root = TestRoot::in_dir(Path::new("/dev/shm"), "overlay");
                runtime.block_on(async {
                    let store = root.open().await;
                    put('a', None).run(&store).await.unwrap();
                    if again {
                        operation.run(&store).await.unwrap();
                    }
                });
                let call = {
                    let operation = operation.clone();
                    move |remote: &mut Remote| remote.run(&operation)
                };
                let raced = race(&runtime, &root, (calls, count), call, Deleted::Layers);
                if let Some(result) = raced.deleted {
                    result.unwrap_or_else(|error| panic!("{count} of {calls}: {}", error.chain()));
                    match &raced.outcome {
                        Ok(_layer) => after += 1,
                        Err(error) => {
                            assert_eq!(error, "LayerUnknown", "{count} of {calls}");
                            before += 1;
                        }
                    }
                }
                runtime.block_on(async { clear(&root, &root.open().await, 2).await });
                if !raced.stopped {
                    break;
                }
            }
        }
        eprintln!("there: {again}: {before} before it is needed, {after} after");
        assert!(before > 0 && after > 0);
    }
}

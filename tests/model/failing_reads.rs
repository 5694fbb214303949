//! Calls in a process in which a system call fails that only looks at something. What cannot be looked at is not missing,
//! empty or unused: the call fails or does what it always does, and everything that it was not asked to remove stays.
//!
//! The process is traced from the moment at which it has opened the store, or before. Some of the moments are tried, and
//! all of them with `GRAPHROOT_MODEL_MOMENTS=all`.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use graphroot::{CheckOptions, RepairOptions, Store};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use crate::every_call::{apply, container, failing, id, image, put, put_image_layer};
use crate::operation::Operation;
use crate::run::{Bench, Setup};
use crate::support::peers::PeerSet;
use crate::support::root::TestRoot;
use crate::support::{needs, require_driver};
use crate::worker::{Remote, was_injected};

/// Calls about a whole store, of which nothing is wrong with.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Tending {
    Check,
    Collect,
    /// Of what a check has found in the same process.
    Repair,
}

impl Tending {
    /// What was found or removed, if the call succeeds: nothing.
    pub(crate) async fn run(self, store: &Store) -> Result<String, String> {
        let done = async {
            if matches!(self, Self::Collect) {
                return store.garbage_collect().await.map(|()| String::new());
            }
            let report = store.check(CheckOptions::everything()).await?;
            let mut found = String::new();
            for finding in &report.findings {
                found += &format!("{finding}\n");
            }
            for problem in &report.store_problems {
                found += &format!("{problem}\n");
            }
            if matches!(self, Self::Repair) {
                found = String::new();
                let repaired = store.repair(&report, RepairOptions::everything()).await?;
                for removed in &repaired.removed {
                    found += &format!("removed {removed}\n");
                }
            }
            Ok(found)
        };
        done.await.map_err(|error: graphroot::Error| error.chain())
    }
}

/// What is done in the traced process.
#[derive(Clone, Debug)]
enum Call {
    /// After the store was opened.
    Run(Operation),
    /// Opening the store with whatever driver is found, without what the driver has found out before, and asking for everything.
    Open,
    Tend(Tending),
    /// As [`Call::Open`], after a process was killed while it made this call.
    Recover(Operation),
}

/// A tracer of a process that runs.
struct Tracer(Child);

impl Tracer {
    /// Has all threads of the process traced.
    fn attach(process: u32, calls: &str, error: &str, when: &str, trace: &Path) -> Self {
        let mut strace = Command::new("strace");
        strace
            .args(["--follow-forks", "--quiet=all", "--signal=none"])
            .arg(format!("--attach={process}"))
            .arg(format!("--output={}", trace.display()))
            .arg(format!("--trace={calls}"))
            .arg(format!("--inject={calls}:error={error}:when={when}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let tracer = Self(strace.spawn().unwrap());
        while !Self::has_all_of(process) {
            std::thread::yield_now();
        }
        tracer
    }

    fn has_all_of(process: u32) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let is_traced = |thread: std::io::Result<std::fs::DirEntry>| {
            let status = thread.and_then(|thread| std::fs::read_to_string(thread.path().join("status")));
            status.is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
        };
        threads.into_iter().all(is_traced)
    }
}

impl Drop for Tracer {
    /// It ends with the process.
    fn drop(&mut self) {
        self.0.wait().unwrap();
    }
}

/// Calls that look at something, and those that take locks.
const READING: [&str; 6] = [
    "openat,openat2,open",
    "statx,newfstatat,fstat,lstat,stat,access,faccessat,faccessat2",
    "getdents64",
    "readlinkat,readlink",
    "read,pread64",
    "fgetxattr,getxattr,lgetxattr,flistxattr,listxattr,llistxattr,fstatfs,statfs,fcntl,ioctl",
];

/// Errors that say nothing of the file; that of the disk is one of them unless it is the content that is looked at.
const ERRORS: [&str; 5] = ["EMFILE", "ESTALE", "ENOMEM", "EIO", "EACCES"];

/// Which of the calls fail: all of them, or each so many, the first of them with the number `start`.
fn moments(all: bool, start: u32) -> impl Iterator<Item = u32> {
    let all = all || std::env::var("GRAPHROOT_MODEL_MOMENTS").is_ok_and(|moments| moments == "all");
    let (start, step) = if all { (1, 1) } else { (start, 41) };
    (0..).map(move |moment| start + moment * step)
}

/// Makes the call with failing system calls, each time on a new store that `before` has been done to. Returns how many cases
/// there were.
fn fail_reads(driver: &'static str, before: &[Operation], call: &Call) -> u32 {
    let runtime = Runtime::new().unwrap();
    let mut spare: Option<Remote> = None;
    let mut failed = 0;
    for (number, calls) in READING.into_iter().enumerate() {
        for more in ["", "+"] {
            // Of these there are few, and each of them matters.
            let decisive = match call {
                Call::Run(Operation::Mount(_) | Operation::Unmount { .. }) => calls.starts_with("statx"),
                Call::Open => calls.starts_with("getdents64"),
                _ => false,
            };
            let start = match call {
                // When the layer's tree is looked at.
                Call::Recover(_) => 3,
                _ => 1 + 3 * u32::try_from(number).unwrap(),
            };
            for count in moments(decisive, start) {
                let errors = match call {
                    // A disk that does not give a content has lost it.
                    Call::Tend(Tending::Check | Tending::Repair) => &ERRORS[..3],
                    // What may not be done is not supported.
                    Call::Open | Call::Recover(_) => &ERRORS[..4],
                    _ => &ERRORS[..],
                };
                let error = errors[usize::try_from(count).unwrap() % errors.len()];
                let mut setup = Setup {
                    runtime: &runtime,
                    driver,
                    peers: PeerSet::Installed,
                    spare: &mut spare,
                };
                let mut bench = Bench::new(&mut setup, false).unwrap();
                let moment = format!("{call:?} with {error} at call {count}{more} of {calls}");
                let mut check = || -> Result<bool, String> {
                    for operation in before {
                        bench.whole(operation, true)?;
                    }
                    let trace = bench.root.path().join("trace");
                    let mut process = Remote::start(&bench.root);
                    process.greet();
                    let attach =
                        |id: u32| Tracer::attach(id, calls, error, &format!("{count}{more}"), &trace);
                    let probed = probed(&bench.root);
                    let mut killed = None;
                    if let Call::Recover(operation) = call {
                        let renames = "rename,renameat,renameat2";
                        let mut other = Remote::start_killed(&bench.root, renames, 1 + count % 8);
                        if let Some(Ok(())) = other.try_open(&bench.location.synced()) {
                            other.begin(operation);
                            killed = other.end();
                        }
                        other.wait();
                    }
                    if matches!(call, Call::Open) {
                        forget_probes(&bench.root);
                    }
                    let (tracer, opened) = if let Call::Open | Call::Recover(_) = call {
                        let tracer = attach(process.id());
                        (tracer, process.try_open(&bench.location.with_any_driver()))
                    } else {
                        process.open(&bench.location.synced())?;
                        (attach(process.id()), Some(Ok(())))
                    };
                    match call {
                        Call::Run(operation) => {
                            process.begin(operation);
                            let outcome = process.end();
                            process.kill();
                            drop(tracer);
                            let succeeded = outcome.as_ref().filter(|outcome| outcome.is_ok());
                            bench.after_kill(operation, succeeded, count % 2 == 0)?;
                        }
                        Call::Open => {
                            let seen = match opened {
                                Some(Ok(())) => process.try_observe(),
                                _ => None,
                            };
                            process.kill();
                            drop(tracer);
                            if let Some(Ok(seen)) = seen {
                                bench.is_as_expected(&seen)?;
                            }
                            let wrong = probed_false(&bench.root);
                            if wrong.iter().any(|name| !probed.contains(name)) {
                                return Err(format!("kept as not supported: {wrong:?}"));
                            }
                            bench.unchanged(count % 2 == 0)?;
                        }
                        Call::Recover(operation) => {
                            if let Some(Ok(())) = opened {
                                drop(process.try_observe());
                            }
                            process.kill();
                            drop(tracer);
                            bench.after_kill(operation, killed.as_ref(), count % 2 == 0)?;
                        }
                        Call::Tend(tending) => {
                            let done = process.tend(*tending);
                            process.kill();
                            drop(tracer);
                            if let Some(Ok(found)) = done.filter(|done| *done != Ok(String::new())) {
                                return Err(found);
                            }
                            bench.unchanged(count % 2 == 0)?;
                        }
                    }
                    bench.end(true)?;
                    let injected = was_injected(&trace);
                    failed += u32::from(injected);
                    Ok(!injected)
                };
                let last = check().unwrap_or_else(|error| {
                    if std::env::var("GRAPHROOT_MODEL_GO_ON").is_ok() {
                        eprintln!("FAULT {moment}\n{}", bench.report(&error));
                        return false;
                    }
                    panic!("{moment}\n{}", bench.report(&error))
                });
                spare = Some(bench.into_spare());
                if last {
                    break;
                }
            }
        }
    }
    eprintln!("{driver}: {failed} calls failed in {call:?}");
    failed
}

/// The names of the files in which the driver keeps what it has found out.
fn probed(root: &TestRoot) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root.run().join(root.driver())) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.ends_with("-true") || name.ends_with("-false"))
        .collect()
}

fn probed_false(root: &TestRoot) -> Vec<String> {
    let mut names = probed(root);
    names.retain(|name| name.ends_with("-false"));
    names
}

fn forget_probes(root: &TestRoot) {
    for name in probed(root) {
        std::fs::remove_file(root.run().join(root.driver()).join(name)).unwrap();
    }
}

failing! {
    fail_reads;
    opening_a_store: "overlay",
        [put('a', None), image('b', 'a'), container('c', Some('b'), &["c"], false)], Call::Open;
    opening_a_store_with_vfs: "vfs",
        [put('a', None), image('b', 'a'), container('c', Some('b'), &["c"], false)], Call::Open;
    putting_a_layer: "overlay", [put('a', None)], Call::Run(put('b', Some('a')));
    putting_a_layer_with_vfs: "vfs", [put('a', None)], Call::Run(put('b', Some('a')));
    putting_a_layer_of_an_image: "overlay", [put('a', None)], Call::Run(put_image_layer(Some('a')));
    applying_a_diff: "overlay", [put('a', None), put('b', Some('a'))], Call::Run(apply('b'));
    applying_a_diff_with_vfs: "vfs", [put('a', None), put('b', Some('a'))], Call::Run(apply('b'));
    recovering_a_diff: "overlay", [put('a', None), put('b', Some('a'))], Call::Recover(apply('b'));
    recovering_a_diff_with_vfs: "vfs", [put('a', None), put('b', Some('a'))], Call::Recover(apply('b'));
    recovering_a_container: "overlay",
        [put('a', None), image('b', 'a')], Call::Recover(container('c', Some('b'), &["c"], false));
    creating_a_container: "overlay",
        [put('a', None), image('b', 'a')], Call::Run(container('c', Some('b'), &["c"], false));
    deleting_an_image: "vfs",
        [put('a', None), put('b', Some('a')), image('c', 'b')],
        Call::Run(Operation::DeleteImage { key: id('c'), commit: true });
    deleting_a_container: "overlay",
        [put('a', None), image('b', 'a'), container('c', Some('b'), &["c"], false)],
        Call::Run(Operation::DeleteContainer(id('c')));
    deleting_a_layer: "vfs", [put('a', None)], Call::Run(Operation::DeleteLayer(id('a')));
    mounting: "overlay", [container('c', None, &[], false)], Call::Run(Operation::Mount(id('c')));
    mounting_again: "overlay",
        [container('c', None, &[], false), Operation::Mount(id('c'))], Call::Run(Operation::Mount(id('c')));
    unmounting_once: "overlay",
        [container('c', None, &[], false), Operation::Mount(id('c')), Operation::Mount(id('c'))],
        Call::Run(Operation::Unmount { key: id('c'), force: false });
    checking: "overlay",
        [put('a', None), put('b', Some('a')), image('c', 'b'), container('d', Some('c'), &["d"], false)],
        Call::Tend(Tending::Check);
    repairing: "overlay",
        [put('a', None), put('b', Some('a')), image('c', 'b'), container('d', Some('c'), &["d"], false)],
        Call::Tend(Tending::Repair);
    repairing_with_vfs: "vfs",
        [put('a', None), put('b', Some('a')), image('c', 'b'), container('d', Some('c'), &["d"], false)],
        Call::Tend(Tending::Repair);
    collecting_garbage: "overlay",
        [put('a', None), image('c', 'a'), container('d', Some('c'), &["d"], true)], Call::Tend(Tending::Collect);
}

//! Other processes that hold a store's lock, and who waits for one.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use super::peers::Run as _;
use super::root::TestRoot;

/// How long something that has to happen may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Polls until `done`; panics with `what` if that never comes.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A record lock on a file as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelLock {
    /// Whether it is only asked for.
    pub(crate) waiting: bool,
    pub(crate) write: bool,
    /// The owner; `None` for locks of open files, which have no process.
    pub(crate) pid: Option<u32>,
}

/// The record locks that are held on `file` or waited for.
pub(crate) fn kernel_locks(file: &Path) -> Vec<KernelLock> {
    let Ok(meta) = fs::metadata(file) else {
        return Vec::new();
    };
    let table = fs::read_to_string("/proc/locks").unwrap();
    let inode = format!(":{}", meta.ino());
    let device = format!(
        "{:02x}:{:02x}",
        rustix::fs::major(meta.dev()),
        rustix::fs::minor(meta.dev())
    );
    let mut locks: Vec<KernelLock> = table
        .lines()
        .filter_map(|line| {
            let waiting = line.contains("->");
            let line = line.replace("->", "");
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_number, class, _advisory, mode, pid, place, ..] = fields[..] else {
                return None;
            };
            let record_lock = matches!(class, "POSIX" | "OFDLCK");
            (record_lock && place.starts_with(&device) && place.ends_with(&inode)).then(|| KernelLock {
                waiting,
                write: mode == "WRITE",
                pid: pid.parse().ok(),
            })
        })
        .collect();
    // The kernel gives the table in pieces; what changes between two of them can make a line appear in both.
    locks.dedup();
    locks
}

/// Waits until a process waits for a record lock on `file`.
#[track_caller]
pub(crate) fn wait_for_waiter(file: &Path) {
    wait_until("a waiter for the lock", || {
        kernel_locks(file).iter().any(|lock| lock.waiting)
    });
}

/// A process that holds a lock until told to let go.
#[derive(Debug)]
pub(crate) struct Holder {
    child: Child,
    input: Option<ChildStdin>,
    /// What is still to be given to it.
    rest: Vec<u8>,
}

impl Holder {
    /// A Go process that holds the layer store's lock exclusively: it has created layer `id`, is unpacking `archive`
    /// into it and waits for its end.
    pub(crate) fn go(root: &TestRoot, id: &str, archive: &[u8]) -> Self {
        root.go().args(["create-layer", "--id", id]).run();
        let mut command = root.go();
        command.args(["applydiff", id]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (mut input, pid, file) = (child.stdin.take().unwrap(), child.id(), root.layers_lock());
        let (start, rest) = archive.split_at(512);
        input.write_all(start).unwrap();
        // It takes the lock for moments before; what it has read tells that it is at the layer.
        wait_until("a Go process that holds the lock", || {
            assert_eq!(child.try_wait().unwrap(), None, "the Go process ended early");
            let holds = kernel_locks(&file)
                .iter()
                .any(|lock| !lock.waiting && lock.write && lock.pid == Some(pid));
            holds && rustix::io::ioctl_fionread(&input).unwrap() == 0
        });
        Self {
            child,
            input: Some(input),
            rest: rest.to_vec(),
        }
    }

    /// A process that holds a POSIX record lock on `file`, exclusive or shared.
    pub(crate) fn posix(file: &Path, exclusive: bool) -> Self {
        const PROGRAM: &str = "import fcntl, os, sys\n\
            file = open(sys.argv[1], 'r+b')\n\
            fcntl.lockf(file, fcntl.LOCK_EX if sys.argv[2] == 'exclusive' else fcntl.LOCK_SH)\n\
            print('held', flush=True)\n\
            sys.stdin.read()\n";
        let mode = if exclusive { "exclusive" } else { "shared" };
        let mut child = Command::new("python3")
            .args(["-c", PROGRAM])
            .arg(file)
            .arg(mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "held\n", "the lock holder ended early");
        Self {
            input: child.stdin.take(),
            child,
            rest: Vec::new(),
        }
    }

    /// Gives the holder the rest of its input, waits for its end and tells whether it succeeded.
    pub(crate) fn release(mut self) -> bool {
        let mut input = self.input.take().unwrap();
        input.write_all(&self.rest).unwrap();
        drop(input);
        self.child.wait().unwrap().success()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Ended by `release` already, or the test failed.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

/// The lock files of all three stores.
pub(crate) fn store_locks(root: &TestRoot) -> Vec<PathBuf> {
    ["layers", "images", "containers"]
        .iter()
        .map(|what| root.metadata_dir(what).join(format!("{what}.lock")))
        .collect()
}

#[test]
fn a_holder_is_seen_and_let_go() {
    if super::require("python3").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.lock");
    fs::write(&file, "").unwrap();
    let holder = Holder::posix(&file, true);
    // While other locks come and go, the kernel's table can lack a line for a moment.
    let expected = [KernelLock {
        waiting: false,
        write: true,
        pid: Some(holder.child.id()),
    }];
    wait_until("the holder to be seen", || kernel_locks(&file) == expected);
    assert!(holder.release());
    assert_eq!(kernel_locks(&file), []);
}

//! Datasets of zfs, in a pool in memory that all tests of a process share. Where the kernel has no zfs the daemon zfs-fuse is
//! started. Processes use it one after the other.
//!
//! Nobody maintains zfs-fuse any more, and it may stop answering. That is noticed within seconds: the daemon is killed, which ends
//! every call that waits for it, and the next dataset is in a pool of a new one. [`surviving`] runs a test again whose daemon died.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree};

use super::scripted_fs::{self, ScriptedFs};

/// Where the daemon's process ID is.
const DAEMON: &str = "/run/graphroot-test-zfs.pid";

/// Makes a pool, says so, and takes it away when its standard input ends: at the latest with the process that has the
/// other end. Arguments: the directory for it, its name, and where the daemon's process ID is.
const SCRIPT: &str = r#"set -e
dir=$1 pool=$2 daemon=$3
lock=/run/graphroot-test-zfs.lock
has_kernel() { grep -qw zfs /proc/filesystems; }
answers() { timeout 20 zfs list -H -o name >/dev/null 2>&1; }
kill_daemon() {
    pid=$(cat "$daemon" 2>/dev/null) || return 0
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = zfs-fuse ]; then kill -KILL "$pid"; fi
    rm -f "$daemon"
}
end() {
    timeout 20 zpool destroy -f "$pool" 2>/dev/null || true
    kill_daemon
    umount --quiet --lazy "$dir/mounted" || true
    rm -rf --one-file-system "$dir"
}
trap "" INT TERM
exec 9>"$lock"
flock 9
trap end EXIT
if ! has_kernel && ! answers; then
    command -v zfs-fuse >/dev/null
    kill_daemon
    mkdir -p /run/zfs
    zfs-fuse --enable-xattr --no-kstat-mount --max-arc-size 64 --pidfile "$daemon" 9>&- </dev/null >/dev/null 2>&1
    for second in 1 2 3 4 5 6 7 8 9; do answers && break; sleep 1; done
fi
answers
truncate --size 4G "$dir/image"
timeout 60 zpool create -o cachefile=none -m "$dir/mounted" "$pool" "$dir/image" >/dev/null
chmod 0755 "$dir" "$dir/mounted"
echo ready
read -r line || true
"#;

/// Kills the daemon. Its argument is where the process ID is.
const KILL: &str = r#"pid=$(cat "$1") && [ "$(cat "/proc/$pid/comm")" = zfs-fuse ] && kill -KILL "$pid""#;

/// Asks for the pool, and for the file system of its directory: another thread of the daemon answers that. Arguments: the pool, the
/// directory.
const PROBE: &str = r#"zfs list -H -o name "$1" && stat -f "$2""#;

/// How long the daemon may take to answer, and how often it is asked while tests run.
const PATIENCE: &str = "20";
const PAUSE: Duration = Duration::from_secs(5);

/// How many daemons may die before no test is run any more.
const MAX_DEATHS: u32 = 3;

const LEFT_OUT: &str = "tests over zfs run with GRAPHROOT_TEST_ZFS=1";

/// Says why there is no dataset. That nobody has asked for these tests is no failure.
pub(crate) fn without(why: &str, skip: impl FnOnce(&str)) {
    match why == LEFT_OUT {
        true => eprintln!("SKIPPED: {why}"),
        false => skip(why),
    }
}

/// A pool of this process.
struct Pool {
    name: String,
    made: ScriptedFs,
    is_dead: bool,
}

/// What has happened so far.
struct State {
    pool: Option<Pool>,
    /// How many pools were made.
    made: u32,
    deaths: u32,
}

fn state() -> MutexGuard<'static, State> {
    static STATE: Mutex<State> = Mutex::new(State {
        pool: None,
        made: 0,
        deaths: 0,
    });
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Makes a pool where there is none that works.
    fn make_pool(&mut self) -> Result<&Pool, &'static str> {
        if std::env::var_os("GRAPHROOT_TEST_ZFS").is_none() {
            return Err(LEFT_OUT);
        }
        if !rustix::process::geteuid().is_root() {
            return Err("a zfs pool is made by root");
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|dir| dir.join("zpool").is_file()) {
            return Err("neither OpenZFS nor zfs-fuse is installed");
        }
        if self.pool.as_ref().is_some_and(|pool| pool.is_dead)
            && let Some(mut dead) = self.pool.take()
        {
            // Its script ends, and lets go of the lock.
            drop(dead.made.program.stdin.take());
            dead.made.program.wait().unwrap();
        }
        assert!(
            self.deaths <= MAX_DEATHS,
            "zfs-fuse has died {} times",
            self.deaths
        );
        if self.pool.is_none() {
            let name = format!("graphroot-test-{}-{}", std::process::id(), self.made);
            let made = scripted_fs::make("zfs", SCRIPT, &[&name, DAEMON]);
            let made = made.ok_or("a zfs pool cannot be made here")?;
            self.pool = Some(Pool {
                name,
                made,
                is_dead: false,
            });
            self.made += 1;
            let number = self.made;
            std::thread::spawn(move || watch(number));
        }
        Ok(self.pool.as_ref().unwrap())
    }

    /// Kills the daemon if it does not answer.
    fn check(&mut self) {
        let Some(pool) = self.pool.as_mut().filter(|pool| !pool.is_dead) else {
            return;
        };
        let dir = pool.made.dir.to_str().unwrap();
        if !succeeds(
            "timeout",
            &[
                "--signal=KILL",
                PATIENCE,
                "sh",
                "-c",
                PROBE,
                "sh",
                &pool.name,
                dir,
            ],
        ) {
            pool.is_dead = true;
            self.deaths += 1;
            succeeds("bash", &["-c", KILL, "bash", DAEMON]);
            tell(&format!(
                "zfs-fuse does not answer any more: death {}",
                self.deaths
            ));
        }
    }
}

/// Looks after the pool of this number as long as it works.
fn watch(number: u32) {
    loop {
        std::thread::sleep(PAUSE);
        let mut state = state();
        state.check();
        if state.made != number || state.pool.as_ref().is_none_or(|pool| pool.is_dead) {
            return;
        }
    }
}

/// Writes a line that is shown also if the test succeeds.
fn tell(line: &str) {
    let line = format!("{line}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Runs a test, and again whenever it fails because the daemon has died.
pub(crate) fn surviving(test: impl Fn()) {
    loop {
        let before = state().deaths;
        let Err(failure) = catch_unwind(AssertUnwindSafe(&test)) else {
            return;
        };
        let deaths = {
            let mut state = state();
            state.check();
            state.deaths
        };
        if deaths == before {
            resume_unwind(failure);
        }
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default();
        tell(&format!("zfs-fuse has died during {name}, which runs once more"));
    }
}

/// A mounted dataset. It goes when this is dropped, with those below it.
#[derive(Debug)]
pub(crate) struct Dataset {
    name: String,
    dir: PathBuf,
    /// The number of the pool.
    pool: u32,
}

impl Dataset {
    /// Makes one; else says why that cannot be.
    pub(crate) fn new() -> Result<Self, &'static str> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut state = state();
        let pool = state.make_pool()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (name, dir) = (
            format!("{}/n{number}", pool.name),
            pool.made.dir.join(format!("n{number}")),
        );
        let pool = state.made;
        // Others need the state to notice that the daemon is dead.
        drop(state);
        assert!(zfs(&["create", &name]), "cannot make the dataset {name}");
        Ok(Self { name, dir, pool })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether its daemon works, as far as that is known.
    fn is_alive(&self) -> bool {
        let state = state();
        state.made == self.pool && state.pool.as_ref().is_some_and(|pool| !pool.is_dead)
    }
}

/// Whether a command succeeds, whatever it says.
fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().unwrap().success()
}

/// Whether a command of `zfs` succeeds.
pub(crate) fn zfs(arguments: &[&str]) -> bool {
    succeeds("timeout", &[&["60", "zfs"], arguments].concat())
}

impl Drop for Dataset {
    fn drop(&mut self) {
        // What a dead daemon leaves goes with its pool.
        if !self.is_alive() {
            return;
        }
        let mut mounts = mounts();
        mounts.retain(|mounted| mounted.starts_with(&self.dir));
        // The deepest first.
        mounts.sort_by_key(|mounted| std::cmp::Reverse(mounted.as_os_str().len()));
        for mounted in mounts {
            unmount(&mounted);
        }
        // What is busy goes with the pool.
        zfs(&["destroy", "-r", &self.name]);
    }
}

/// What the daemon has mounted.
fn mounts() -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let served = table.lines().filter(|line| line.contains(" - fuse.zfs "));
    served
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect()
}

/// Unmounts what the daemon has mounted; whether it has.
pub(crate) fn unmounts(mounted: &Path) -> bool {
    let is_served = mounts().iter().any(|served| served == mounted);
    if is_served {
        unmount(mounted);
    }
    is_served
}

/// Unmounts, without the hurry that zfs-fuse does not survive: before the file system goes it has to read that files are closed.
pub(crate) fn unmount(mounted: &Path) {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    for _ in 0..100 {
        let kept = open_tree(CWD, mounted, flags);
        let unmounted = rustix::mount::unmount(mounted, UnmountFlags::empty());
        if let Ok(kept) = kept {
            (0..16)
                .take_while(|_| rustix::fs::fstatfs(&kept).is_ok())
                .for_each(drop);
        }
        match unmounted {
            Err(Errno::BUSY) => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => return eprintln!("cannot unmount {}: {error}", mounted.display()),
            Ok(()) => return,
        }
    }
    eprintln!("{} is in use and stays mounted", mounted.display());
}

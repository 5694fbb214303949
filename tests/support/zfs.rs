//! Datasets of zfs, in a pool in memory that all tests of a process share. Where the kernel has no zfs the daemon zfs-fuse is
//! started: one for all processes of the machine, which goes with the last of them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::scripted_fs::{self, ScriptedFs};

/// Makes a pool, says so, and takes it away when its standard input ends: at the latest with the process that has the
/// other end. Arguments: the directory for it, its name.
const SCRIPT: &str = r#"set -e
dir=$1 pool=$2
lock=/run/graphroot-test-zfs.lock daemon=/run/graphroot-test-zfs.pid
has_kernel() { grep -qw zfs /proc/filesystems; }
answers() { timeout 20 zfs list -H -o name >/dev/null 2>&1; }
kill_daemon() {
    pid=$(cat "$daemon" 2>/dev/null) || return 0
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = zfs-fuse ]; then kill -KILL "$pid"; fi
    rm -f "$daemon"
}
end() {
    timeout 60 zpool destroy -f "$pool" 2>/dev/null || true
    # The last one.
    if flock --nonblock --exclusive 9; then kill_daemon; fi
    umount --quiet --lazy "$dir/mounted" || true
    rm -rf --one-file-system "$dir"
}
trap "" INT TERM
exec 9>"$lock"
flock 9
if ! has_kernel && ! answers; then
    command -v zfs-fuse >/dev/null
    kill_daemon
    mkdir -p /run/zfs
    zfs-fuse --no-kstat-mount --max-arc-size 64 --pidfile "$daemon" 9>&- </dev/null >/dev/null 2>&1
    for second in 1 2 3 4 5 6 7 8 9; do answers && break; sleep 1; done
fi
answers
flock --shared 9
trap end EXIT
truncate --size 4G "$dir/image"
timeout 60 zpool create -o cachefile=none -m "$dir/mounted" "$pool" "$dir/image" >/dev/null
chmod 0755 "$dir" "$dir/mounted"
echo ready
read -r line || true
"#;

/// zfs-fuse, which nobody maintains any more, stops answering now and then: a test over it may never end.
const LEFT_OUT: &str = "tests over zfs run with GRAPHROOT_TEST_ZFS=1";

/// Says why there is no dataset. That nobody has asked for these tests is no failure.
pub(crate) fn without(why: &str, skip: impl FnOnce(&str)) {
    match why == LEFT_OUT {
        true => eprintln!("SKIPPED: {why}"),
        false => skip(why),
    }
}

/// The pool of this process.
struct Pool {
    name: String,
    made: ScriptedFs,
}

/// A mounted dataset. It goes when this is dropped, with those below it.
#[derive(Debug)]
pub(crate) struct Dataset {
    name: String,
    dir: PathBuf,
}

fn pool() -> Result<&'static Pool, &'static str> {
    static POOL: OnceLock<Result<Pool, &'static str>> = OnceLock::new();
    POOL.get_or_init(make_pool).as_ref().map_err(|why| *why)
}

fn make_pool() -> Result<Pool, &'static str> {
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
    let name = format!("graphroot-test-{}", std::process::id());
    let made = scripted_fs::make("zfs", SCRIPT, &[&name]);
    let made = made.ok_or("a zfs pool cannot be made here")?;
    Ok(Pool { name, made })
}

impl Dataset {
    /// Makes one; else says why that cannot be.
    pub(crate) fn new() -> Result<Self, &'static str> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let pool = pool()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (name, dir) = (
            format!("{}/n{number}", pool.name),
            pool.made.dir.join(format!("n{number}")),
        );
        assert!(zfs(&["create", &name]), "cannot make the dataset {name}");
        Ok(Self { name, dir })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// Whether a command succeeds.
pub(crate) fn zfs(arguments: &[&str]) -> bool {
    let status = Command::new("timeout")
        .arg("60")
        .arg("zfs")
        .args(arguments)
        .stderr(Stdio::null())
        .status();
    status.unwrap().success()
}

impl Drop for Dataset {
    fn drop(&mut self) {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut mounts: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        mounts.retain(|mounted| Path::new(mounted).starts_with(&self.dir));
        // The deepest first.
        mounts.sort_by_key(|mounted| std::cmp::Reverse(mounted.len()));
        for mounted in mounts {
            unmount(Path::new(mounted));
        }
        // What is busy goes with the pool.
        zfs(&["destroy", "-r", &self.name]);
    }
}

/// Unmounts, without the hurry that zfs-fuse does not survive: it has to read first that files are closed.
pub(crate) fn unmount(mounted: &Path) {
    let answer = rustix::fs::statfs(mounted);
    let flags = rustix::mount::UnmountFlags::empty();
    if let Err(error) = answer.and_then(|_| rustix::mount::unmount(mounted, flags)) {
        eprintln!("cannot unmount {}: {error}", mounted.display());
    }
}

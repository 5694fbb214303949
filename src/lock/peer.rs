//! Another process that takes classic `fcntl` locks, as the Go library does, for tests.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Reads one expression per line, prints what it evaluates to.
const SCRIPT: &str = "
import errno, fcntl, os, sys, time
opened = {}
def fd(path):
    if path not in opened:
        opened[path] = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    return opened[path]
def lock(path, how):
    try:
        fcntl.lockf(fd(path), how)
        return 'locked'
    except OSError as error:
        return 'busy' if error.errno in (errno.EAGAIN, errno.EACCES) else str(error)
def unlock(path):
    fcntl.lockf(fd(path), fcntl.LOCK_UN)
    return 'unlocked'
def add(path, data, times):
    for _ in range(times):
        fcntl.lockf(fd(path), fcntl.LOCK_EX)
        first, second = map(int, open(data).read().split())
        assert first == second, (first, second)
        out = os.open(data, os.O_WRONLY)
        os.pwrite(out, b'%20d' % (first + 1), 0)
        os.pwrite(out, b' %20d' % (second + 1), 20)
        os.close(out)
        fcntl.lockf(fd(path), fcntl.LOCK_UN)
    return 'added'
for line in sys.stdin:
    print(eval(line), flush=True)
";

/// A running `python3`; killed when dropped, which ends its locks.
pub(crate) struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// `None`, with a message, where there is no `python3`.
    pub(crate) fn start() -> Option<Self> {
        let mut command = Command::new("python3");
        let spawned = command
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        match spawned {
            Ok(mut child) => {
                let input = child.stdin.take().unwrap();
                let output = BufReader::new(child.stdout.take().unwrap());
                Some(Self { child, input, output })
            }
            Err(error) => {
                crate::skip::skip(&format!("python3: {error}"));
                None
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn send(&mut self, expression: &str) {
        writeln!(self.input, "{expression}").unwrap();
    }

    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn eval(&mut self, expression: &str) -> String {
        self.send(expression);
        self.answer()
    }

    /// Whether the lock could be had at once.
    pub(crate) fn try_exclusive(&mut self, path: &Path) -> bool {
        self.try_lock(path, "fcntl.LOCK_EX")
    }

    /// Whether the lock could be had at once.
    pub(crate) fn try_shared(&mut self, path: &Path) -> bool {
        self.try_lock(path, "fcntl.LOCK_SH")
    }

    fn try_lock(&mut self, path: &Path, how: &str) -> bool {
        match &*self.eval(&format!("lock({path:?}, {how} | fcntl.LOCK_NB)")) {
            "locked" => true,
            "busy" => false,
            other => panic!("{other}"),
        }
    }

    pub(crate) fn unlock(&mut self, path: &Path) {
        assert_eq!(self.eval(&format!("unlock({path:?})")), "unlocked");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

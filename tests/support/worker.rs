//! Work in another process: the test binary runs itself.
//!
//! A test starts a [`Worker`] with a name from `tests/it/worker.rs` and a store. The worker reports by lines on its
//! standard output; everything else there (the test harness writes too) is skipped.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use super::root::TestRoot;

/// Names the work for the child process.
pub(crate) const WORK: &str = "GRAPHROOT_WORKER";
/// Where its store lies: graph root, run root, driver, in lines.
pub(crate) const STORE: &str = "GRAPHROOT_WORKER_STORE";
/// Arguments, in lines.
pub(crate) const ARGUMENTS: &str = "GRAPHROOT_WORKER_ARGUMENTS";
/// The ignored test that a child process runs.
const ENTRY: &str = "worker::entry";
/// What a line for the parent begins with.
const MARK: &str = "@worker ";

/// A running child process.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts `work` on a store.
    pub(crate) fn start(work: &str, root: &TestRoot, arguments: &[&str]) -> Self {
        Self::spawn(Self::command(work, root, arguments))
    }

    /// The command that [`Worker::start`] runs.
    pub(crate) fn command(work: &str, root: &TestRoot, arguments: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([ENTRY, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
        Self::environment(&mut command, work, root, arguments);
        command
    }

    /// The same, run by another program such as a tracer.
    pub(crate) fn command_under(
        wrapper: Command,
        work: &str,
        root: &TestRoot,
        arguments: &[&str],
    ) -> Command {
        let mut command = wrapper;
        command.arg(std::env::current_exe().unwrap());
        Self::prepared(command, work, root, arguments)
    }

    /// The same, for a command that ends with the path of this program.
    pub(crate) fn prepared(mut command: Command, work: &str, root: &TestRoot, arguments: &[&str]) -> Command {
        command.args([ENTRY, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
        Self::environment(&mut command, work, root, arguments);
        command
    }

    fn environment(command: &mut Command, work: &str, root: &TestRoot, arguments: &[&str]) {
        let store = format!(
            "{}\n{}\n{}",
            root.graph().display(),
            root.run().display(),
            root.driver()
        );
        command
            .env(WORK, work)
            .env(STORE, store)
            .env(ARGUMENTS, arguments.join("\n"));
    }

    /// Runs a command made by this type.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take(), child.stdout.take().unwrap());
        Self {
            child,
            input,
            output: BufReader::new(output),
        }
    }

    /// The next line of the worker; `None` if it ended.
    pub(crate) fn next_line(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // The harness does not end its own line before a test writes.
            if let Some(at) = line.find(MARK) {
                return Some(line[at + MARK.len()..].trim_end().to_owned());
            }
        }
    }

    /// Waits for a line that is `expected`.
    #[track_caller]
    pub(crate) fn expect_line(&mut self, expected: &str) {
        assert_eq!(self.next_line().as_deref(), Some(expected));
    }

    /// Lets a worker that waits go on.
    pub(crate) fn go_on(&mut self) {
        self.feed(b"\n");
    }

    /// Gives the worker something to read.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        assert!(self.try_feed(bytes), "worker {} is dead", self.id());
    }

    /// As [`Worker::feed`], for a worker that may have been killed; `false` if it was.
    pub(crate) fn try_feed(&mut self, bytes: &[u8]) -> bool {
        match self.input.as_mut().unwrap().write_all(bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => false,
            written => {
                written.unwrap();
                true
            }
        }
    }

    /// Ends what the worker reads.
    pub(crate) fn end_input(&mut self) {
        drop(self.input.take());
    }

    /// Waits for the worker's success and returns its remaining lines.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Vec<String> {
        self.end_input();
        let lines = std::iter::from_fn(|| self.next_line()).collect();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the worker failed ({status}): {lines:?}");
        lines
    }

    /// Waits for the worker's end, however it ends.
    pub(crate) fn wait(mut self) -> ExitStatus {
        self.end_input();
        self.child.wait().unwrap()
    }

    /// The process's ID.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills the worker with SIGKILL and waits for its end. Returns whether that is what ended it.
    pub(crate) fn kill(mut self) -> bool {
        use std::os::unix::process::ExitStatusExt as _;
        // It may have ended already.
        let _sent = self.child.kill();
        self.child.wait().unwrap().signal() == Some(9)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

/// In the worker: what to do, with which arguments; `None` in an ordinary test run.
pub(crate) fn assignment() -> Option<(String, Vec<String>)> {
    let work = std::env::var(WORK).ok()?;
    let arguments = std::env::var(ARGUMENTS)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    Some((work, arguments))
}

/// In the worker: graph root, run root and driver of the store.
pub(crate) fn store_location() -> (PathBuf, PathBuf, String) {
    let text = std::env::var(STORE).unwrap();
    let mut lines = text.lines().map(str::to_owned);
    let mut next = || lines.next().unwrap();
    (next().into(), next().into(), next())
}

/// In the worker: does what is traced. What blocks is done on one thread: the tracer counts the calls of each thread for
/// themselves.
pub(crate) fn run_traced<F: Future>(work: impl FnOnce() -> F + Send) {
    std::thread::scope(|scope| {
        let work = || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.max_blocking_threads(1).enable_all().build().unwrap();
            runtime.block_on(work());
        };
        scope.spawn(work).join().unwrap();
    });
}

/// In the worker: writes a line for the parent.
pub(crate) fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{line}").unwrap();
    out.flush().unwrap();
}

/// In the worker: waits until the parent says to go on.
pub(crate) fn wait_for_parent() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
}

/// A field of `/proc/self/status` in KiB, such as `VmHWM`, the peak of resident memory.
pub(crate) fn own_memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("no {field}"))
}

/// Sets the peak of resident memory to what is resident now.
pub(crate) fn reset_peak_memory() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

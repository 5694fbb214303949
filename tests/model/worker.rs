//! The other process: it makes the calls that it is told, and tells what they returned.

use std::path::Path;

use graphroot::{Durability, Store, StoreOptions};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::commits;
use crate::failing_reads::Tending;
use crate::observe::observe;
use crate::operation::{Operation, Outcome};
use crate::support::peers::Run as _;
use crate::support::root::TestRoot;
use crate::support::worker::{Worker, assignment, tell};

/// A line to the worker.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Open(Location),
    Run(Operation),
    /// All at the same time.
    Together(Vec<Operation>),
    /// Of this container.
    Commit(String),
    Tend(Tending),
    Observe,
    /// Says that it runs.
    Greet,
}

/// Where a store lies and how it is opened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Location {
    graph: String,
    run: String,
    driver: String,
    transient: bool,
    durability: Syncs,
}

/// What a store waits for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Syncs {
    Never,
    Always,
}

impl Location {
    pub(crate) fn of(root: &TestRoot, transient: bool) -> Self {
        Self {
            graph: root.graph().to_str().unwrap().to_owned(),
            run: root.run().to_str().unwrap().to_owned(),
            driver: root.driver().to_owned(),
            transient,
            durability: Syncs::Never,
        }
    }

    /// The same, opened with full durability.
    pub(crate) fn synced(&self) -> Self {
        Self {
            durability: Syncs::Always,
            ..self.clone()
        }
    }

    /// The same, opened with full durability and whatever driver is found.
    pub(crate) fn with_any_driver(&self) -> Self {
        Self {
            driver: String::new(),
            ..self.synced()
        }
    }

    pub(crate) async fn open(&self) -> graphroot::Result<Store> {
        let mut options = StoreOptions::new(&self.graph, &self.run)
            .driver(&self.driver)
            .durability(match self.durability {
                Syncs::Never => Durability::None,
                Syncs::Always => Durability::Full,
            });
        options.transient = self.transient;
        Store::open(options).await
    }
}

/// A store in another process.
#[derive(Debug)]
pub(crate) struct Remote(Worker);

impl Remote {
    /// Starts the process, without a store yet.
    pub(crate) fn start(root: &TestRoot) -> Self {
        Self(Worker::start("calls", root, &[]))
    }

    /// As [`Remote::start`], traced: it is killed when a thread of it makes the `count`-th of some system calls.
    pub(crate) fn start_killed(root: &TestRoot, calls: &str, count: u32) -> Self {
        Self::start_killed_with(root, calls, count, &[])
    }

    /// As [`Remote::start_killed`], with these variables in its environment.
    pub(crate) fn start_killed_with(
        root: &TestRoot,
        calls: &str,
        count: u32,
        variables: &[(&str, &str)],
    ) -> Self {
        let injected = format!("signal=KILL:when={count}");
        Self::start_traced(root, calls, &injected, Path::new("/dev/null"), variables)
    }

    /// As [`Remote::start`], traced: the `count`-th of some system calls that a thread of it makes fail with this error.
    /// [`was_injected`] tells whether one did.
    pub(crate) fn start_failing(
        root: &TestRoot,
        calls: &str,
        error: &str,
        count: &str,
        trace: &Path,
    ) -> Self {
        let injected = format!("error={error}:when={count}");
        Self::start_traced(root, calls, &injected, trace, &[])
    }

    /// As [`Remote::start`], traced: it stops after the `count`-th of some system calls that a thread of it makes, and the
    /// trace says so.
    pub(crate) fn start_stopping(root: &TestRoot, calls: &str, count: u32, trace: &Path) -> Self {
        let injected = format!("signal=STOP:when={count}");
        Self::start_traced(root, calls, &injected, trace, &[])
    }

    fn start_traced(
        root: &TestRoot,
        calls: &str,
        injected: &str,
        trace: &Path,
        variables: &[(&str, &str)],
    ) -> Self {
        // Without `--seccomp-bpf`, with which strace 6.1 counts only to one.
        let tracer = root
            .program("strace")
            .words("--follow-forks --quiet=all --signal=STOP")
            .with([
                format!("--output={}", trace.display()),
                format!("--trace={calls}"),
                format!("--inject={calls}:{injected}"),
            ]);
        let mut command = Worker::command_under(tracer, "calls", root, &[]);
        command.envs(variables.iter().copied());
        Self(Worker::spawn(command))
    }

    /// A process that was killed before gets nothing.
    fn send(&mut self, request: &Request) {
        let mut line = serde_json::to_vec(request).unwrap();
        line.push(b'\n');
        self.0.try_feed(&line);
    }

    /// What it answered; `None` if it is dead.
    fn answer<T: for<'a> Deserialize<'a>>(&mut self) -> Option<T> {
        Some(serde_json::from_str(&self.0.next_line()?).unwrap())
    }

    pub(crate) fn open(&mut self, location: &Location) -> Result<(), String> {
        self.try_open(location).unwrap()
    }

    /// As [`Remote::open`], of a process that may be killed.
    pub(crate) fn try_open(&mut self, location: &Location) -> Option<Result<(), String>> {
        self.send(&Request::Open(location.clone()));
        self.answer()
    }

    pub(crate) fn run(&mut self, operation: &Operation) -> Outcome {
        self.begin(operation);
        self.end().unwrap()
    }

    /// Has it make a call.
    pub(crate) fn begin(&mut self, operation: &Operation) {
        self.send(&Request::Run(operation.clone()));
    }

    /// What the call returned; `None` if the process was killed before it could tell.
    pub(crate) fn end(&mut self) -> Option<Outcome> {
        self.answer()
    }

    /// Has it make several calls at the same time.
    pub(crate) fn begin_together(&mut self, operations: &[Operation]) {
        self.send(&Request::Together(operations.to_vec()));
    }

    /// What they returned; `None` if the process was killed before it could tell.
    pub(crate) fn end_together(&mut self) -> Option<Vec<Outcome>> {
        self.answer()
    }

    /// Has it commit a container; `None` if the process was killed before it could tell.
    pub(crate) fn commit(&mut self, container: &str) -> Option<Result<(), String>> {
        self.send(&Request::Commit(container.to_owned()));
        self.answer()
    }

    pub(crate) fn observe(&mut self) -> Result<Value, String> {
        self.try_observe().unwrap()
    }

    /// As [`Remote::observe`], of a process that may have ended.
    pub(crate) fn try_observe(&mut self) -> Option<Result<Value, String>> {
        self.send(&Request::Observe);
        self.answer()
    }

    /// Has it tend its store; `None` if it has ended.
    pub(crate) fn tend(&mut self, tending: Tending) -> Option<Result<String, String>> {
        self.send(&Request::Tend(tending));
        self.answer()
    }

    /// Waits until it runs.
    pub(crate) fn greet(&mut self) {
        self.send(&Request::Greet);
        let () = self.answer().unwrap();
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn kill(self) {
        self.0.kill();
    }

    /// Lets it come to its end, or sees that it has.
    pub(crate) fn wait(self) {
        self.0.wait();
    }
}

/// Whether the trace of a process tells of a call that was made to fail.
pub(crate) fn was_injected(trace: &Path) -> bool {
    std::fs::read_to_string(trace).unwrap().contains("(INJECTED)")
}

/// The entry of a child process; see `support/worker.rs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the entry of child processes"]
async fn entry() {
    if assignment().is_none() {
        return;
    }
    let mut store: Option<Store> = None;
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).unwrap() > 0 {
        let answer = match (serde_json::from_str(&line).unwrap(), &store) {
            (Request::Open(location), _) => {
                let opened = location.open().await.map_err(|error| error.chain());
                let answer = serde_json::to_string(&opened.as_ref().map(drop));
                store = opened.ok();
                answer
            }
            (Request::Run(operation), Some(store)) => {
                let outcome: Outcome = operation.run(store).await;
                serde_json::to_string(&outcome)
            }
            (Request::Together(operations), Some(store)) => {
                let calls = operations.iter().map(|operation| operation.run(store));
                serde_json::to_string(&futures::future::join_all(calls).await)
            }
            (Request::Commit(container), Some(store)) => {
                let committed = store.commit(&container, commits::options(commits::NEW)).await;
                serde_json::to_string(&committed.map(drop).map_err(|error| error.chain()))
            }
            (Request::Observe, Some(store)) => {
                let seen = observe(store).await.map_err(|error| format!("{error:?}"));
                serde_json::to_string(&seen)
            }
            (Request::Greet, _) => serde_json::to_string(&()),
            (Request::Tend(tending), Some(store)) => serde_json::to_string(&tending.run(store).await),
            (request, None) => panic!("{request:?} without a store"),
        };
        tell(&answer.unwrap());
        line.clear();
    }
}

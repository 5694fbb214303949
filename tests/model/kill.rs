//! Killing a process in the midst of a call.
//!
//! Which moment that is, is not to be had exactly, nor need it be: whatever it is, the store has to be in the state
//! before the call or in the one after it.

use std::fs;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::inotify;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::root::TestRoot;

/// When to kill.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moment {
    /// So long after the call was sent.
    After(Duration),
    /// When so many changes were seen in the directories of the store.
    Change(u16),
}

/// Waits for its moment in a thread of its own.
#[derive(Debug)]
pub(crate) struct Killer {
    thread: JoinHandle<()>,
    /// Tells the thread that the call has ended: by dropping it and, for one that waits for changes, by a change.
    ended: mpsc::Sender<()>,
    stop: PathBuf,
}

/// The directories in which calls change something.
fn directories(root: &TestRoot) -> Vec<PathBuf> {
    let home = root.graph().join(root.driver());
    let run = |what: &str| root.run().join(format!("{}-{what}", root.driver()));
    let mut directories = vec![
        run("layers"),
        run("containers"),
        home.join("l"),
        home.join("dir"),
        home.join("subvolumes"),
        home.join("graph"),
        home.join("tempdirs"),
        home,
    ];
    for what in ["layers", "images", "containers"] {
        let dir = root.metadata_dir(what);
        directories.push(dir.join("tmp"));
        // Those of items, too: their big data is written there.
        let entries = fs::read_dir(&dir).into_iter().flatten();
        directories.extend(entries.map(|entry| entry.unwrap().path()));
        directories.push(dir);
    }
    directories.retain(|dir| dir.is_dir());
    directories
}

impl Killer {
    /// Gets ready; the call has to be sent right after.
    pub(crate) fn start(root: &TestRoot, process: u32, moment: Moment) -> Self {
        let process = Pid::from_raw(process.try_into().unwrap()).unwrap();
        let (ended, end) = mpsc::channel();
        let stop = root.scratch("stop");
        let thread = match moment {
            Moment::After(delay) => {
                let due = Instant::now() + delay;
                std::thread::spawn(move || kill_at(process, due, &end))
            }
            Moment::Change(count) => {
                let changes = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
                let watched = inotify::WatchFlags::CREATE
                    | inotify::WatchFlags::MOVE
                    | inotify::WatchFlags::DELETE
                    | inotify::WatchFlags::MODIFY;
                for dir in directories(root) {
                    inotify::add_watch(&changes, dir, watched).unwrap();
                }
                let last = inotify::add_watch(&changes, &stop, watched).unwrap();
                std::thread::spawn(move || {
                    let mut buffer = [MaybeUninit::uninit(); 4096];
                    let mut reader = inotify::Reader::new(&changes, &mut buffer);
                    for _ in 0..=count {
                        if reader.next().unwrap().wd() == last {
                            return;
                        }
                    }
                    send(process);
                })
            }
        };
        Self { thread, ended, stop }
    }

    /// The call has ended, by itself or not.
    pub(crate) fn stop(self) {
        drop(self.ended);
        fs::write(self.stop.join("ended"), "").unwrap();
        self.thread.join().unwrap();
    }
}

fn kill_at(process: Pid, due: Instant, end: &mpsc::Receiver<()>) {
    // A timer alone is late by more than many calls take.
    let spin = Duration::from_micros(100);
    let early = due.saturating_duration_since(Instant::now()).saturating_sub(spin);
    if !early.is_zero() && end.recv_timeout(early) == Err(mpsc::RecvTimeoutError::Disconnected) {
        return;
    }
    while Instant::now() < due {
        if end.try_recv() == Err(mpsc::TryRecvError::Disconnected) {
            return;
        }
    }
    send(process);
}

/// The process cannot have been waited for yet, so the ID is its.
fn send(process: Pid) {
    kill_process(process, Signal::KILL).unwrap();
}

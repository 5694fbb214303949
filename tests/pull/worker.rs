//! What child processes of the tests do.

use crate::support::worker::assignment;

/// The entry of a child process; see `support/worker.rs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the entry of child processes"]
async fn entry() {
    let Some((work, arguments)) = assignment() else {
        return;
    };
    panic!("no such work: {work} {arguments:?}");
}

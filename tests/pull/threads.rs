//! Pulls and pushes with hardly a thread for blocking calls.

use std::time::Duration;

use graphroot::Store;
use graphroot::oci::{PullOptions, Puller, PushOptions, push};

use crate::fake_registry::{FakeRegistry, layer};
use crate::support::needs;
use crate::support::root::TestRoot;

/// Long enough on a busy machine; a test that hangs fails by it.
const PATIENCE: Duration = Duration::from_secs(300);

async fn pull(store: &Store, source: &str) -> String {
    let puller = Puller::new(store, PullOptions::default());
    puller
        .pull_as(&source.parse().unwrap(), &["h.io/some/image:v1"])
        .await
        .unwrap()
        .image
        .id()
        .to_owned()
}

#[test]
fn images_are_copied_with_one_blocking_thread() {
    needs!();
    let fake = FakeRegistry::start();
    let layers: Vec<_> = (0..8).map(|number| layer(&format!("file{number}"), 2)).collect();
    let image = fake.add("some/image", &layers);
    for blocking in [1, 4] {
        for workers in [0, 2] {
            let mut runtime = match workers {
                0 => tokio::runtime::Builder::new_current_thread(),
                _ => tokio::runtime::Builder::new_multi_thread(),
            };
            let runtime = runtime
                .worker_threads(workers.max(1))
                .max_blocking_threads(blocking)
                .enable_all()
                .build()
                .unwrap();
            let copies = async {
                let root = TestRoot::in_memory();
                let store = root.open().await;
                let id = pull(&store, &image.reference).await;
                for kind in ["oci", "docker-archive", "oci-archive"] {
                    let to = format!("{kind}:{}:h.io/some/image:v1", root.path().join(kind).display());
                    push(&store, &id, &to.parse().unwrap(), PushOptions::default())
                        .await
                        .unwrap();
                    let other = TestRoot::in_memory();
                    assert_eq!(pull(&other.open().await, &to).await, id, "{kind}");
                }
            };
            let done = runtime.block_on(async { tokio::time::timeout(PATIENCE, copies).await });
            // A thread that hangs must not keep the test from failing.
            runtime.shutdown_background();
            assert!(
                done.is_ok(),
                "hangs with {workers} workers and {blocking} blocking threads"
            );
        }
    }
}

//! Commits of unpacked layers, several at once.
//!
//! A caller whose layer is unpacked puts it in the queue and then waits for two things: the exclusive lock, and the
//! result. The caller that gets the lock first commits everything that is queued by then, with the same two saves (and
//! syncs) as for one layer, and sends all results. So layers that become ready during a save share the next one.
//!
//! A caller that is dropped takes its layer out of the queue, unless its commit has begun. A crash leaves what a crash
//! in the commit of each single layer leaves: staging directories, and records with the flag `incomplete`.

use std::pin::pin;
use std::sync::Arc;

use futures::future::{Either, select};
use tokio::sync::oneshot;

use crate::bridge;
use crate::error::{ErrorKind, Result};
use crate::options::LayerOptions;
use crate::record::WriteGuard;
use crate::record::layer::LayerRow;
use crate::store::inner::Inner;
use crate::store::layer_store::locked::LayerStore;
use crate::store::layer_store::new_layer::{NewLayer, Unpacked};
use crate::store::stage::plan::LayerPlan;
use crate::store::stage::queue::{Answer, Commit};

/// A place in the queue, given up on drop.
struct Place {
    inner: Arc<Inner>,
    number: u64,
}

impl Place {
    fn take(
        inner: &Arc<Inner>,
        plan: LayerPlan,
        options: LayerOptions,
        unpacked: Unpacked,
    ) -> (Self, Waiting) {
        let (answer, waiting) = oneshot::channel();
        let mut queue = inner.commits.queue();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.push(Commit {
            number,
            plan,
            options,
            unpacked,
            answer,
        });
        drop(queue);
        let inner = Arc::clone(inner);
        (Self { inner, number }, waiting)
    }

    /// Whether its commit has not begun.
    fn is_waiting(&self) -> bool {
        let queue = self.inner.commits.queue();
        queue.waiting.iter().any(|commit| commit.number == self.number)
    }

    /// Takes it out of the queue, unless its commit has begun.
    fn withdraw(&self) -> Option<Commit> {
        let mut queue = self.inner.commits.queue();
        let found = queue
            .waiting
            .iter()
            .position(|commit| commit.number == self.number)?;
        Some(queue.waiting.remove(found))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(commit) = self.withdraw() {
            // It may remove a whole tree.
            bridge::spawn_detached(move || drop(commit));
        }
    }
}

type Waiting = oneshot::Receiver<Answer>;

/// Makes an unpacked diff a layer, together with others that are ready.
///
/// If dropped: nothing has happened, or the commit that has begun ends in the background.
pub(crate) async fn commit(
    inner: &Arc<Inner>,
    plan: LayerPlan,
    options: LayerOptions,
    unpacked: Unpacked,
) -> Answer {
    let (place, waiting) = Place::take(inner, plan, options, unpacked);
    let lock = pin!(inner.layers.write());
    let waiting = match select(waiting, lock).await {
        Either::Left((answer, _lock)) => return settled(answer),
        Either::Right((Ok(guard), waiting)) => {
            if place.is_waiting() {
                let inner = Arc::clone(inner);
                bridge::run(move || {
                    commit_waiting(inner, guard);
                    Ok(())
                })
                .await?;
            }
            waiting
        }
        Either::Right((Err(error), waiting)) => {
            if let Some(commit) = place.withdraw() {
                bridge::spawn_detached(move || drop(commit));
                return Err(error);
            }
            waiting
        }
    };
    settled(waiting.await)
}

fn settled(answer: std::result::Result<Answer, oneshot::error::RecvError>) -> Answer {
    let gone = |_dropped| Err(ErrorKind::Cancelled.err("the commit of the layer ended early"));
    answer.unwrap_or_else(gone)
}

/// Commits everything that is queued, releases the lock, and answers.
fn commit_waiting(inner: Arc<Inner>, guard: WriteGuard<LayerRow>) {
    let commits = std::mem::take(&mut inner.commits.queue().waiting);
    let mut layers = match LayerStore::enter(inner, guard) {
        Ok(layers) => layers,
        Err(error) => {
            for Commit { answer, .. } in commits {
                drop(answer.send(Err(error.again())));
            }
            return;
        }
    };
    let mut wanted: Vec<Result<NewLayer>> = Vec::with_capacity(commits.len());
    let mut answers = Vec::with_capacity(commits.len());
    for commit in commits {
        if commit.answer.is_closed() {
            // The caller has just been dropped.
            layers.discard(commit.unpacked);
            continue;
        }
        wanted.push(commit.plan.layer(layers.table(), commit.options, commit.unpacked));
        answers.push(commit.answer);
    }
    let mut results = layers.create_all(wanted);
    if let Err(error) = layers.settle() {
        for result in results.iter_mut().filter(|result| result.is_ok()) {
            *result = Err(error.again());
        }
    }
    // Releasing the lock and removing the emptied staging directories cannot fail any more.
    let results = layers.finish(Ok(results)).unwrap_or_default();
    for (answer, result) in answers.into_iter().zip(results) {
        drop(answer.send(result));
    }
}

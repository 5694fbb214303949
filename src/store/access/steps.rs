//! Running steps that hold locks.

use crate::error::Result;
use crate::store::Store;
use crate::store::access::batch::Batch;
use crate::store::access::held::Held;
use crate::store::access::needs::Needs;
use crate::store::access::queue::Request;

impl Store {
    /// Runs a step that holds these locks, beside others in one [batch](crate::store::access::batch).
    ///
    /// If dropped: nothing has happened, or the step runs to its end.
    pub(crate) async fn in_batch<T, F>(
        &self,
        needs: Needs,
        step: impl FnOnce(Batch) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + 'static,
    {
        let request = Request { needs, alone: false };
        self.writers.run(&self.inner, request, step).await
    }

    /// Runs a step that needs no save in its middle. What it changes in records is saved when it has ended well.
    pub(crate) async fn step<T: Send + 'static>(
        &self,
        needs: Needs,
        step: impl FnOnce(&mut Held) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.in_batch(needs, async move |batch: Batch| batch.with(step))
            .await
    }

    /// As [`Store::step`]. Nothing else runs in the same batch.
    pub(crate) async fn step_alone<T: Send + 'static>(
        &self,
        needs: Needs,
        step: impl FnOnce(&mut Held) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let request = Request { needs, alone: true };
        let step = async move |batch: Batch| batch.with(step);
        self.writers.run(&self.inner, request, step).await
    }
}

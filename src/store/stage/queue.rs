//! Unpacked layers that wait for the layer lock, see `commit`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::error::Result;
use crate::options::LayerOptions;
use crate::record::layer::LayerRow;
use crate::store::layer_store::new_layer::Unpacked;
use crate::store::stage::plan::LayerPlan;

/// The result of one commit.
pub(crate) type Answer = Result<Arc<LayerRow>>;

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Commits(Mutex<Queue>);

#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(super) next: u64,
    pub(super) waiting: Vec<Commit>,
}

/// A layer that is ready.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(super) number: u64,
    pub(super) plan: LayerPlan,
    pub(super) options: LayerOptions,
    pub(super) unpacked: Unpacked,
    pub(super) answer: oneshot::Sender<Answer>,
}

impl Commits {
    /// The queue, locked for a moment.
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

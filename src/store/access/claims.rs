//! Layers whose files or mounts a step of a batch is working on, beside others: one step for each layer.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;

/// The layers that are claimed, by their IDs.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims(Rc<RefCell<HashSet<String>>>);

impl Claims {
    /// Whether no step has claimed the layer.
    pub(super) fn is_free(&self, layer: &str) -> bool {
        !self.0.borrow().contains(layer)
    }

    /// Claims a layer, if it is free.
    pub(super) fn claim(&self, layer: &str) -> Option<Claim> {
        let free = self.0.borrow_mut().insert(layer.to_owned());
        free.then(|| Claim {
            claims: self.clone(),
            layer: layer.to_owned(),
        })
    }
}

/// A layer that one step works on until this is dropped.
#[derive(Debug)]
#[must_use = "the layer is free again when this is dropped"]
pub(crate) struct Claim {
    claims: Claims,
    layer: String,
}

impl Claim {
    /// The ID of the layer.
    pub(crate) fn layer(&self) -> &str {
        &self.layer
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.0.borrow_mut().remove(&self.layer);
    }
}

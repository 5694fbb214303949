//! Copying.
use crate::call::{Call, Out, Outcome};
pub(crate) async fn copy(call: &Call, _out: &mut Out) -> Outcome {
    crate::service::not_there_yet(call)
}

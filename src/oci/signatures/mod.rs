//! Signatures of images: where they are, what they hold, and whether the policy accepts them. (Feature `signatures`.)

mod der;
pub(crate) mod evaluate;
mod fetch;
mod openpgp;
mod payload;
pub(crate) mod signature;
mod sigstore;
pub(crate) mod storage;

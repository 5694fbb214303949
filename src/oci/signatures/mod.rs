//! Signatures of images: where they are, what they hold, and whether the policy accepts them. (Feature `signatures`.)

mod chain;
mod der;
pub(crate) mod evaluate;
mod fetch;
mod fulcio;
mod openpgp;
mod openpgp_keys;
mod payload;
mod pem;
mod pki;
mod rekor;
pub(crate) mod signature;
mod sigstore;
pub(crate) mod storage;
mod x509;

//! Stub: ofd.

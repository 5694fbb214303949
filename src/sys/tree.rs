//! Stub: tree.

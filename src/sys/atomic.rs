//! Stub: atomic.

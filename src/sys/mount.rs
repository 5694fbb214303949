//! Stub: mount.

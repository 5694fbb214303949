//! Lock files.

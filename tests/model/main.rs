//! The store against a plain model of it: random sequences of calls from two processes, with and without kills.
//!
//! A sequence is drawn by proptest, run on a fresh store by two independent processes in turn, and compared with
//! [`model::Model`] call by call; at its end everything that the store shows and everything that lies on disk is
//! compared. What fails is shrunk to a short sequence and printed with its seed.
//!
//! | variable | meaning |
//! |---|---|
//! | `GRAPHROOT_MODEL_CASES` | sequences of each test; with it, others each time |
//! | `GRAPHROOT_MODEL_MOMENTS` | `all`: each system call that looks at something fails once, not some of them |
//! | `GRAPHROOT_MODEL_SEED` | the seed to draw them from, as printed by an earlier run |

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::print_stderr,
    reason = "what was skipped and measured belongs to the output"
)]

#[expect(dead_code, reason = "shared with tests/it, which uses the rest")]
#[path = "../support/mod.rs"]
mod support;

mod commit_races;
mod commits;
mod disk;
mod every_call;
mod failing_reads;
mod key;
mod kill;
mod mapped;
mod model;
mod mounts;
mod observe;
mod operation;
mod plan;
mod questions;
mod rules;
mod run;
mod sequences;
mod together;
mod worker;
#[path = "../support/zfs.rs"]
mod zfs;

use support::scripted_fs;

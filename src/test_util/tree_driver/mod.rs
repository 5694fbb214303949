//! Tests of the promises of a [`TreeDriver`], which the page [`tree_drivers`](crate::tree_drivers) lists.

mod additional;
mod bed;
mod changes;
mod clones;
mod failures;
mod fill;
mod kept_open;
mod life;
mod outside;
mod processes;
mod tree;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use crate::bridge;
use crate::error::Result;
use crate::test_util::temp_store::TempDirectory;
use crate::test_util::tree_driver::bed::{Bed, Fault, panic_message};
use crate::tree_driver::TreeDriver;

/// A test of a promise.
type Test = fn(&Bed) -> Result<(), Fault>;

/// Something that a [`TreeDriver`] promises. The page [`tree_drivers`](crate::tree_drivers) says what each means.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TreePromise {
    /// `empty-tree`
    EmptyTree,
    /// `same-content`
    SameContent,
    /// `same-attributes`
    SameAttributes,
    /// `same-hard-links`
    SameHardLinks,
    /// `separate-files`
    SeparateFiles,
    /// `source-unchanged`
    SourceUnchanged,
    /// `long-chains`
    LongChains,
    /// `moved-trees`
    MovedTrees,
    /// `exchanged-trees`
    ExchangedTrees,
    /// `missing-source`
    MissingSource,
    /// `independent-deletion`
    IndependentDeletion,
    /// `repeated-deletion`
    RepeatedDeletion,
    /// `open-files`
    OpenFiles,
    /// `repeated-attaching`
    RepeatedAttaching,
    /// `stays-inside`
    StaysInside,
    /// `several-processes`
    SeveralProcesses,
    /// `additional-stores`
    AdditionalStores,
    /// `nothing-open`
    NothingOpen,
    /// `parallel-calls`
    ParallelCalls,
    /// `syncing`
    Syncing,
    /// `limits`
    Limits,
    /// `killed-processes`
    KilledProcesses,
    /// `life-of-a-layer`
    LifeOfALayer,
}

impl TreePromise {
    /// All of them, in the order of the tests.
    pub const ALL: &[Self] = &[
        Self::EmptyTree,
        Self::SameContent,
        Self::SameAttributes,
        Self::SameHardLinks,
        Self::SeparateFiles,
        Self::SourceUnchanged,
        Self::LongChains,
        Self::MovedTrees,
        Self::ExchangedTrees,
        Self::MissingSource,
        Self::IndependentDeletion,
        Self::RepeatedDeletion,
        Self::OpenFiles,
        Self::RepeatedAttaching,
        Self::StaysInside,
        Self::SeveralProcesses,
        Self::AdditionalStores,
        Self::NothingOpen,
        Self::ParallelCalls,
        Self::Syncing,
        Self::Limits,
        Self::KilledProcesses,
        Self::LifeOfALayer,
    ];

    /// The name on the page [`tree_drivers`](crate::tree_drivers).
    pub const fn name(self) -> &'static str {
        match self {
            Self::EmptyTree => "empty-tree",
            Self::SameContent => "same-content",
            Self::SameAttributes => "same-attributes",
            Self::SameHardLinks => "same-hard-links",
            Self::SeparateFiles => "separate-files",
            Self::SourceUnchanged => "source-unchanged",
            Self::LongChains => "long-chains",
            Self::MovedTrees => "moved-trees",
            Self::ExchangedTrees => "exchanged-trees",
            Self::MissingSource => "missing-source",
            Self::IndependentDeletion => "independent-deletion",
            Self::RepeatedDeletion => "repeated-deletion",
            Self::OpenFiles => "open-files",
            Self::RepeatedAttaching => "repeated-attaching",
            Self::StaysInside => "stays-inside",
            Self::SeveralProcesses => "several-processes",
            Self::AdditionalStores => "additional-stores",
            Self::NothingOpen => "nothing-open",
            Self::ParallelCalls => "parallel-calls",
            Self::Syncing => "syncing",
            Self::Limits => "limits",
            Self::KilledProcesses => "killed-processes",
            Self::LifeOfALayer => "life-of-a-layer",
        }
    }

    /// The test, but for that of the store.
    fn test(self) -> Option<Test> {
        Some(match self {
            Self::EmptyTree => clones::empty_tree,
            Self::SameContent => clones::same_content,
            Self::SameAttributes => clones::same_attributes,
            Self::SameHardLinks => clones::same_hard_links,
            Self::SeparateFiles => clones::separate_files,
            Self::SourceUnchanged => clones::source_unchanged,
            Self::LongChains => clones::long_chains,
            Self::MovedTrees => changes::moved_trees,
            Self::ExchangedTrees => changes::exchanged_trees,
            Self::MissingSource => failures::missing_source,
            Self::IndependentDeletion => changes::independent_deletion,
            Self::RepeatedDeletion => failures::repeated_deletion,
            Self::OpenFiles => changes::open_files,
            Self::RepeatedAttaching => changes::repeated_attaching,
            Self::StaysInside => outside::stays_inside,
            Self::SeveralProcesses => processes::several_processes,
            Self::AdditionalStores => additional::additional_stores,
            Self::NothingOpen => kept_open::nothing_open,
            Self::ParallelCalls => changes::parallel_calls,
            Self::Syncing => changes::syncing,
            Self::Limits => changes::limits,
            Self::KilledProcesses => failures::killed_processes,
            Self::LifeOfALayer => return None,
        })
    }
}

impl fmt::Display for TreePromise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A promise that a driver does not keep.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenPromise {
    /// Which one.
    pub promise: TreePromise,
    /// What was seen.
    pub reason: String,
}

impl fmt::Display for BrokenPromise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise, self.reason)
    }
}

/// Tests all promises of a driver, and returns those that it breaks. `make` is called twice for each test: the second object is the
/// driver as another process has it, so it has to know of the trees of the first one by what is on disk. The test works in a new directory below
/// `below`, which has to be where the driver works, and which is removed again. Some tests are only made as root.
///
/// Takes the locks of stores that it makes. It waits for the driver without a limit: each promise is logged at level `DEBUG` before it is
/// tested, so the last one is that of a driver that hangs.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io) if the directories cannot be made or removed.
///
/// # Cancellation
/// The test that is running goes on to its end in the background, and its directory is removed.
///
/// The page [`tree_drivers`](crate::tree_drivers) has an example, and says what the tests cannot see.
pub async fn check_tree_driver(
    make: impl Fn() -> Arc<dyn TreeDriver>,
    below: &Path,
) -> Result<Vec<BrokenPromise>> {
    let mut broken = Vec::new();
    for promise in TreePromise::ALL.iter().copied() {
        tracing::debug!(%promise, "testing a driver");
        let (driver, other, below) = (make(), make(), below.to_owned());
        let directory = bridge::run(move || TempDirectory::create_in(&below)).await?;
        let (directory, tested) = match promise.test() {
            Some(test) => {
                let run = move || {
                    let bed = Bed::make(driver, other, &directory.path);
                    Ok((directory, bed.and_then(|bed| run_test(test, &bed))))
                };
                bridge::run(run).await?
            }
            None => {
                let tested = life::life_of_a_layer([driver, other], &directory.path).await;
                (directory, tested)
            }
        };
        if let Err(Fault(reason)) = tested {
            broken.push(BrokenPromise { promise, reason });
        }
        let mut directory = directory;
        bridge::run(move || directory.remove()).await?;
    }
    Ok(broken)
}

/// Runs a test; a panic is a fault.
fn run_test(test: Test, bed: &Bed) -> Result<(), Fault> {
    let tested = catch_unwind(AssertUnwindSafe(|| test(bed)));
    tested.unwrap_or_else(|panic| Err(Fault(panic_message(panic))))
}

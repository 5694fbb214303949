//! Complete trees: those of drivers that do not keep a layer's changes apart, and of copies with other owners.
//!
//! What is expected of one is made of the headers of all layers below it. Layers are gone through from the lowest ones up, so
//! that the headers of each are read once; a tree is kept only while one above it is still to be made.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};

use crate::archive::verify::expected_tree::ExpectedTree;
use crate::archive::verify::layer_reading::LayerReading;
use crate::bridge;
use crate::error::{IoContext as _, Result};
use crate::options::CheckOptions;
use crate::record::layer::LayerRow;
use crate::store::Store;
use crate::store::access::Needs;
use crate::store::check::contents::{ask, compare_tree, comparing, read_to_end, tell_differences};
use crate::store::check::data;
use crate::store::check::finding::Problem;
use crate::store::check::survey::Survey;
use crate::store::inner::StoreOrigin;
use crate::sys::at;

/// A layer in the order of the work.
struct Next {
    layer: (StoreOrigin, Arc<LayerRow>),
    /// The tree of those below.
    below: Arc<ExpectedTree>,
}

/// What a piece of the work has come to.
enum Done {
    /// Nobody knows what a layer's tree should be.
    Unknown,
    /// What is expected of a layer's tree.
    Expected(Arc<LayerRow>, Arc<ExpectedTree>),
    /// What is wrong with a layer's tree.
    Compared(String, Vec<Problem>),
}

impl Store {
    /// Compares the trees of the layers `wanted`. Those whose streams cannot be read, or which stand on such a layer, are
    /// passed over: nobody knows what they should be.
    pub(super) async fn check_whole_trees(
        &self,
        survey: &Survey,
        wanted: &HashSet<String>,
        options: &CheckOptions,
        parallel: usize,
    ) -> Result<Vec<(String, Vec<Problem>)>> {
        // Those that are needed, each with the ones that stand on it.
        let mut above: HashMap<String, Vec<(StoreOrigin, Arc<LayerRow>)>> = HashMap::new();
        let mut needed: HashSet<&str> = HashSet::new();
        let mut roots = Vec::new();
        for id in wanted {
            let mut next = survey.layer(id);
            while let Some(layer) = next {
                if !needed.insert(&*layer.1.id) {
                    break;
                }
                next = match &*layer.1.parent {
                    "" => {
                        roots.push(layer.clone());
                        None
                    }
                    parent => {
                        above.entry(parent.to_owned()).or_default().push(layer.clone());
                        survey.layer(parent)
                    }
                };
            }
        }
        let mut todo: Vec<Next> = roots
            .into_iter()
            .map(|layer| Next {
                layer,
                below: Arc::default(),
            })
            .collect();
        let mut found = HashMap::new();
        // The headers of one layer are read while the trees of others are compared.
        let mut running: FuturesUnordered<BoxFuture<'_, Result<Done>>> = FuturesUnordered::new();
        let (mut is_reading, mut compared) = (false, 0);
        loop {
            if !is_reading
                && compared < parallel
                && let Some(next) = todo.pop()
            {
                is_reading = true;
                running.push(self.read_tree(next, options).boxed());
            }
            match running.next().await.transpose()? {
                None => break,
                Some(Done::Unknown) => is_reading = false,
                Some(Done::Expected(row, expected)) => {
                    is_reading = false;
                    for layer in above.remove(&*row.id).unwrap_or_default() {
                        let below = Arc::clone(&expected);
                        todo.push(Next { layer, below });
                    }
                    if wanted.contains(&*row.id) {
                        compared += 1;
                        running.push(self.compare_whole_tree(row, expected).boxed());
                    }
                }
                Some(Done::Compared(id, problems)) => {
                    compared -= 1;
                    found.insert(id, problems);
                }
            }
        }
        Ok(own_problems(survey, &found))
    }

    /// Finds out what is expected of a layer's complete tree.
    async fn read_tree(&self, next: Next, options: &CheckOptions) -> Result<Done> {
        let (home, row) = next.layer;
        let Some(own) = self.tree_of_headers(home, &row, options).await? else {
            return Ok(Done::Unknown);
        };
        let put = move || {
            let mut tree = Arc::unwrap_or_clone(next.below);
            own.put_on(&mut tree)?;
            Ok(Arc::new(tree))
        };
        match bridge::run(put).await {
            Ok(expected) => Ok(Done::Expected(row, expected)),
            Err(error) => {
                let reason = data::reason(error)?;
                tracing::debug!(layer = &*row.id, reason, "the layer's tree is not compared");
                Ok(Done::Unknown)
            }
        }
    }

    async fn compare_whole_tree(&self, row: Arc<LayerRow>, expected: Arc<ExpectedTree>) -> Result<Done> {
        let problems = self.check_whole_tree(&row, expected).await?;
        Ok(Done::Compared(row.id.to_string(), problems))
    }

    /// What the headers of a layer describe; `None` if they cannot be read.
    pub(super) async fn tree_of_headers(
        &self,
        home: StoreOrigin,
        row: &LayerRow,
        options: &CheckOptions,
    ) -> Result<Option<ExpectedTree>> {
        let path = self.tar_split_of(home, &row.id)?;
        let open = move || at::open_regular(&path).at("opening", &path);
        let tar_split = match bridge::run(open).await {
            Ok(tar_split) => tar_split,
            Err(error) => return data::reason(error).map(|_unreadable| None),
        };
        let silent = CheckOptions {
            progress: None,
            ..options.clone()
        };
        match read_to_end(LayerReading::headers(tar_split), &row.id, &silent).await {
            Ok(content) => Ok(content.expected),
            Err(error) => data::reason(error).map(|_unreadable| None),
        }
    }

    async fn check_whole_tree(
        &self,
        row: &Arc<LayerRow>,
        expected: Arc<ExpectedTree>,
    ) -> Result<Vec<Problem>> {
        let (layer, ignore_times) = (Arc::clone(row), self.ignores_times());
        let opened = self.step(Needs::LAYERS.with_graph(), move |held| {
            let driver = &held.layers()?.driver;
            ask(&**driver, || {
                let root = driver.mount_private(&layer.id)?;
                let comparing = comparing(driver, &layer, &root, ignore_times)?;
                Ok((root, comparing))
            })
        });
        let compared = match opened.await? {
            Ok((root, comparing)) => compare_tree(root, expected, comparing, None).await,
            Err(error) => Err(error),
        };
        let mut problems = Vec::new();
        match compared {
            Ok(compared) => tell_differences(&compared, &mut problems),
            Err(error) => {
                let reason = data::reason(error)?;
                problems.push(Problem::DiffUnreadable { reason });
            }
        }
        Ok(problems)
    }
}

/// Leaves out what was found in a layer below too, through which it shows.
fn own_problems(survey: &Survey, found: &HashMap<String, Vec<Problem>>) -> Vec<(String, Vec<Problem>)> {
    let mut own = Vec::new();
    for (id, problems) in found {
        let Some((_, row)) = survey.layer(id) else {
            continue;
        };
        let below: Vec<&Problem> = survey
            .below(row)
            .filter_map(|(below, _)| found.get(below))
            .flatten()
            .collect();
        let is_own = |problem: &&Problem| !below.contains(problem);
        let problems: Vec<Problem> = problems.iter().filter(is_own).cloned().collect();
        if !problems.is_empty() {
            own.push((id.clone(), problems));
        }
    }
    own
}

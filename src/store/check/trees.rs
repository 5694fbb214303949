//! Complete trees: those of drivers that do not keep a layer's changes apart, and of copies with other owners.
//!
//! What is expected of one is made of the headers of all layers below it. Layers are gone through from the lowest ones up, so
//! that the headers of each are read once; a tree is kept only while one above it is still to be made.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt as _;

use crate::archive::verify::expected_tree::ExpectedTree;
use crate::archive::verify::layer_reading::LayerReading;
use crate::bridge;
use crate::error::{IoContext as _, Result};
use crate::options::CheckOptions;
use crate::record::layer::LayerRow;
use crate::store::Store;
use crate::store::access::Needs;
use crate::store::check::contents::{compare_tree, comparing, read_to_end, tell_differences};
use crate::store::check::finding::Problem;
use crate::store::check::survey::Survey;
use crate::store::inner::StoreOrigin;
use crate::sys::at;

/// A layer in the order of the work.
struct Next {
    layer: (StoreOrigin, Arc<LayerRow>),
    /// The tree of those below.
    below: ExpectedTree,
    /// What was found in those below, which can show in this one too.
    known: Arc<Vec<Problem>>,
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
        let mut above: HashMap<&str, Vec<&(StoreOrigin, Arc<LayerRow>)>> = HashMap::new();
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
                        above.entry(parent).or_default().push(layer);
                        survey.layer(parent)
                    }
                };
            }
        }
        let above = &above;
        let chains = futures::stream::iter(roots).map(|root| async move {
            let mut results = Vec::new();
            let mut todo = vec![Next {
                layer: root,
                below: ExpectedTree::default(),
                known: Arc::default(),
            }];
            while let Some(next) = todo.pop() {
                let row = &next.layer.1;
                let expected = self.expected_tree(&next.layer, next.below, options).await;
                let Some(mut expected) = expected else {
                    continue;
                };
                let mut known = next.known;
                if wanted.contains(&*row.id) {
                    let mut problems = Vec::new();
                    expected = match self.check_whole_tree(row, expected, &mut problems).await {
                        Ok(expected) => expected,
                        Err(error) => {
                            let reason = error.chain().to_string();
                            results.push((row.id.to_string(), vec![Problem::DiffUnreadable { reason }]));
                            continue;
                        }
                    };
                    problems.retain(|problem| !known.contains(problem));
                    if !problems.is_empty() {
                        Arc::make_mut(&mut known).extend(problems.iter().cloned());
                        results.push((row.id.to_string(), problems));
                    }
                }
                let standing = above.get(&*row.id).map(Vec::as_slice).unwrap_or_default();
                let Some((first, others)) = standing.split_first() else {
                    continue;
                };
                let follow = |layer: &&(StoreOrigin, Arc<LayerRow>), below| Next {
                    layer: (*layer).clone(),
                    below,
                    known: Arc::clone(&known),
                };
                todo.extend(others.iter().map(|layer| follow(layer, expected.clone())));
                todo.push(follow(first, expected));
            }
            results
        });
        let results: Vec<Vec<_>> = chains.buffer_unordered(parallel).collect().await;
        Ok(results.into_iter().flatten().collect())
    }

    /// What is expected of a layer's complete tree; `None` if nobody knows.
    async fn expected_tree(
        &self,
        (home, row): &(StoreOrigin, Arc<LayerRow>),
        below: ExpectedTree,
        options: &CheckOptions,
    ) -> Option<ExpectedTree> {
        let own = self.tree_of_headers(*home, row, options).await?;
        let put = move || {
            let mut tree = below;
            own.put_on(&mut tree)?;
            Ok(tree)
        };
        bridge::run(put).await.ok()
    }

    /// What the headers of a layer describe; `None` if they cannot be read.
    pub(super) async fn tree_of_headers(
        &self,
        home: StoreOrigin,
        row: &LayerRow,
        options: &CheckOptions,
    ) -> Option<ExpectedTree> {
        let path = self.tar_split_of(home, &row.id).ok()?;
        let open = move || at::open_regular(&path).at("opening", &path);
        let tar_split = bridge::run(open).await.ok()?;
        let silent = CheckOptions {
            progress: None,
            ..options.clone()
        };
        let content = read_to_end(LayerReading::headers(tar_split), &row.id, &silent).await;
        content.ok()?.expected
    }

    async fn check_whole_tree(
        &self,
        row: &Arc<LayerRow>,
        expected: ExpectedTree,
        problems: &mut Vec<Problem>,
    ) -> Result<ExpectedTree> {
        let (layer, ignore_times) = (Arc::clone(row), self.ignores_times());
        let opened = self.step(Needs::LAYERS.with_graph(), move |held| {
            let driver = &held.layers()?.driver;
            let root = driver.mount_private(&layer.id)?;
            let comparing = comparing(driver, &layer, &root, ignore_times)?;
            Ok((root, comparing))
        });
        let (root, comparing) = opened.await?;
        let compared = compare_tree(root, expected, comparing, None).await?;
        tell_differences(&compared, problems);
        Ok(compared.expected)
    }
}

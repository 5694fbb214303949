//! The course of a heal.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::options::CheckOptions;
use crate::store::Store;
use crate::store::access::Needs;
use crate::store::check::finding::{CheckedItem, Finding, ItemKind, Problem};
use crate::store::check::report::CheckReport;
use crate::store::heal::driver_data::standings_on;
use crate::store::heal::options::{HealEvent, HealOptions};
use crate::store::heal::plan::Plan;
use crate::store::heal::report::{HealFailure, HealReport, Healed, HealedHow, NotHealed};
use crate::store::heal::usage::Usage;

/// How often the items are checked again after something was made anew. Each time there is more to see: the layers on one that
/// was missing, for instance.
const MAX_ROUNDS: usize = 64;

/// What was asked for.
#[derive(Debug)]
struct Targets {
    layers: HashSet<String>,
    images: HashSet<String>,
}

/// The state of a heal.
struct Course<'a> {
    store: &'a Store,
    options: &'a HealOptions,
    /// `None` for everything.
    targets: Option<Targets>,
    healed: Vec<Healed>,
    failures: BTreeMap<CheckedItem, NotHealed>,
    /// Layers of which single files were made anew. If that was not all, the whole layer is.
    by_files: HashSet<String>,
    /// Layers that were made anew, and how much was healed before and with each.
    anew: HashMap<String, usize>,
    /// Layers that are checked again.
    touched: HashSet<String>,
}

/// # Healing
impl Store {
    /// Makes what is damaged of images anew, in place: layers whose files, tar-split data or directories are missing or are not
    /// as recorded, records of layers that are lost, the driver's files, manifests and configs. IDs, names, parents,
    /// children and containers stay.
    ///
    /// The content of a layer comes from a stream with the digest that the record has, or the config of its image: that of
    /// another layer of this store or of its additional stores, or of the [sources](HealOptions::sources), in this order.
    /// It is unpacked beside the layer, and takes its place when all of it was read and its digest is right. Where only files
    /// are damaged and the layer's tar-split data is whole, the new tree has the other files of the old one (overlay). What a source
    /// gives that is anything else changes nothing.
    ///
    /// A container that is mounted keeps on showing the old files of a layer below it, until it is unmounted and mounted
    /// again: overlayfs does not notice that a directory below a mount is another one. The old tree stays
    /// in the layer's directory until the next heal or [`Store::garbage_collect`] without such a mount removes it. With a driver whose layers are
    /// whole trees (all but overlay), a layer that is mounted itself is left as it is, and
    /// [`Error::is_busy`](crate::Error::is_busy) says so; with zfs-fuse one in which files are open, too.
    ///
    /// With such a driver damage that was there when a layer was made on the damaged one is in that, too. Each layer of an image is
    /// made anew of its own stream, the lowest first. A container's own layer has what was changed in the
    /// container and is left as it is; so are copies of layers with other owners, layers in additional stores, and
    /// composefs layers.
    ///
    /// The record of a lost layer is made by what the config of an image says of its place, with the ID that the image, or the
    /// layer above, refers to. If an additional store is missing, the layer may be there, and nothing is made.
    ///
    /// Takes the locks of [`Store::check`], and for each layer the layer lock for a moment and then exclusively for one step. No
    /// lock is held while a source is read. Memory is that of a check, and a few MiB for a stream.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`] for an item that is neither a layer nor an image; those of [`Store::check`]. What cannot be made
    /// anew is in the report.
    ///
    /// # Cancellation
    /// Layers that were not reached are as they were. To heal again completes it.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store, other: graphroot::Store) -> graphroot::Result<()> {
    /// use graphroot::HealOptions;
    /// let options = HealOptions::default().item("localhost/demo:latest").source(other);
    /// let report = store.heal(options).await?;
    /// for healed in &report.healed {
    ///     println!("{healed}");
    /// }
    /// assert!(report.is_success());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn heal(&self, options: HealOptions) -> Result<HealReport> {
        let targets = self.heal_targets(&options).await?;
        let mut course = Course {
            store: self,
            options: &options,
            targets,
            healed: Vec::new(),
            failures: BTreeMap::new(),
            by_files: HashSet::new(),
            anew: HashMap::new(),
            touched: HashSet::new(),
        };
        let only = course
            .targets
            .as_ref()
            .map(|targets| Arc::new(targets.layers.clone()));
        let mut found = match options.found.clone() {
            Some(found) => found,
            None => self.check(course.check_options(only)).await?,
        };
        for _ in 0..MAX_ROUNDS {
            let before = course.healed.len();
            course.begin_round().await?;
            // Boxed: the state is large.
            Box::pin(course.round(&found)).await?;
            if course.healed.len() == before {
                break;
            }
            found = Box::pin(course.check_again(&found)).await?;
        }
        course.complete_records(&found).await;
        let sweep = self.step_alone(Needs::LAYERS, |held| held.layers()?.remove_all_old_trees());
        if let Err(error) = sweep.await {
            tracing::warn!(error = %error.chain(), "cannot remove the old trees of layers");
        }
        course.forget_failures(&found);
        let store_problems = found.store_problems;
        let left = found.findings.into_iter();
        let left = left.filter(|finding| course.is_wanted(finding)).collect();
        let failures = course.failures.into_iter();
        Ok(HealReport {
            healed: course.healed,
            failures: failures
                .map(|(item, reason)| HealFailure { item, reason })
                .collect(),
            left,
            store_problems,
        })
    }

    async fn heal_targets(&self, options: &HealOptions) -> Result<Option<Targets>> {
        if options.items.is_empty() {
            return Ok(None);
        }
        let usage = Usage::of(self).await?;
        let mut targets = Targets {
            layers: HashSet::new(),
            images: HashSet::new(),
        };
        for item in &options.items {
            match self.image(item).await {
                Ok(image) => {
                    targets.images.insert(image.id().to_owned());
                    let mapped = image.mapped_top_layers().iter().map(String::as_str);
                    for top in image.top_layer().into_iter().chain(mapped) {
                        targets.layers.extend(usage.below(top));
                        targets.layers.insert(top.to_owned());
                    }
                }
                Err(error) if error.kind() == ErrorKind::ImageUnknown => {
                    match self.layer(item).await {
                        Ok(layer) => targets.layers.insert(layer.id().to_owned()),
                        // One without a record.
                        Err(error)
                            if error.kind() == ErrorKind::LayerUnknown && usage.get(item).is_some() =>
                        {
                            targets.layers.insert(item.clone())
                        }
                        Err(error) => return Err(error),
                    };
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(targets))
    }
}

/// The first one below a layer that is not whole.
fn first_below<'a>(below: &'a [String], broken: &BTreeSet<String>) -> Option<&'a String> {
    below.iter().find(|below| broken.contains(*below))
}

impl Course<'_> {
    /// What a check looks at. What is wrong with containers counts if everything was asked for.
    fn check_options(&self, only: Option<Arc<HashSet<String>>>) -> CheckOptions {
        let mut options = CheckOptions::everything().container_data(self.targets.is_none());
        options.only = only;
        options
    }

    /// Checks what was made anew, and what was found to be wrong with layers on it. What was found in
    /// other layers is still so.
    async fn check_again(&self, found: &CheckReport) -> Result<CheckReport> {
        let usage = Usage::of(self.store).await?;
        let mut only = self.touched.clone();
        let mut known: HashMap<String, Vec<Problem>> = HashMap::new();
        let is_of_layer = |finding: &&Finding| finding.item.kind == ItemKind::Layer;
        for Finding { item, problem } in found.findings.iter().filter(is_of_layer) {
            if self.touched.contains(&item.id) {
                continue;
            }
            if usage
                .below(&item.id)
                .iter()
                .any(|below| self.touched.contains(below))
            {
                only.insert(item.id.clone());
            } else if problem.is_of_contents() {
                known.entry(item.id.clone()).or_default().push(problem.clone());
            }
        }
        let options = self.check_options(Some(Arc::new(only)));
        self.store.check_knowing(options, known).await
    }

    /// Whether a finding is about what was asked for, and about damage.
    fn is_wanted(&self, finding: &Finding) -> bool {
        self.wants(&finding.item) && !matches!(finding.problem, Problem::Unreferenced | Problem::Unaccounted)
    }

    /// Whether an item was asked for.
    fn wants(&self, item: &CheckedItem) -> bool {
        self.targets.as_ref().is_none_or(|targets| match item.kind {
            ItemKind::Layer => targets.layers.contains(&item.id),
            ItemKind::Image => targets.images.contains(&item.id),
            ItemKind::Container => false,
        })
    }

    /// Completes the records that were made of layers with which nothing is wrong.
    async fn complete_records(&self, found: &CheckReport) {
        let is_record = |healed: &&Healed| matches!(healed.how, HealedHow::Record { .. });
        for Healed { item, .. } in self.healed.iter().filter(is_record) {
            if found.findings.iter().any(|finding| finding.item == *item) {
                continue;
            }
            if let Err(error) = self.store.complete_record(&item.id).await {
                tracing::warn!(layer = item.id, error = %error.chain(), "cannot complete the record of a layer");
            }
        }
    }

    fn done(&mut self, item: CheckedItem, how: HealedHow) {
        self.failures.remove(&item);
        self.healed.push(Healed { item, how });
    }

    /// Whether it is worth trying: it has not failed yet.
    fn is_open(&self, item: &CheckedItem) -> bool {
        !self.failures.contains_key(item)
    }

    /// Has that be tried again which may have failed because of something that is whole by now.
    async fn begin_round(&mut self) -> Result<()> {
        let healed: HashSet<&str> = self.healed.iter().map(|healed| healed.item.id.as_str()).collect();
        if self.failures.is_empty() || healed.is_empty() {
            return Ok(());
        }
        let usage = Usage::of(self.store).await?;
        self.failures.retain(|item, reason| {
            let stands_on_healed = || {
                usage
                    .below(&item.id)
                    .iter()
                    .any(|below| healed.contains(&**below))
            };
            !matches!(reason, NotHealed::Below { .. } | NotHealed::Failed(_)) && !stands_on_healed()
        });
        Ok(())
    }

    /// Forgets failures with items of which a later check says that nothing is wrong with them.
    fn forget_failures(&mut self, found: &CheckReport) {
        self.failures.retain(|item, _| {
            let is_about = |finding: &Finding| match &finding.problem {
                Problem::ParentMissing { parent } => *parent == item.id,
                Problem::LayerMissing { layer } => *layer == item.id,
                _ => false,
            };
            let mut findings = found.findings.iter();
            findings.any(|finding| is_about(finding) || finding.item == *item)
        });
    }

    async fn round(&mut self, found: &CheckReport) -> Result<()> {
        let plan = Plan::of(&found.findings);
        self.heal_data(&plan).await?;
        self.heal_records(&plan, found).await?;
        for item in &plan.driver_data {
            if !self.wants(item) || !self.is_open(item) {
                continue;
            }
            self.touched.insert(item.id.clone());
            match self.store.mend_layer(&item.id).await {
                Ok(()) => self.done(item.clone(), HealedHow::DriverData),
                Err(error) => drop(self.failures.insert(item.clone(), NotHealed::Failed(error))),
            }
        }
        self.heal_contents(&plan).await
    }

    async fn heal_data(&mut self, plan: &Plan) -> Result<()> {
        for (item, keys) in &plan.data {
            if !self.wants(item) || !self.is_open(item) {
                continue;
            }
            if item.kind == ItemKind::Layer {
                self.heal_layer_data(item, keys).await?;
                continue;
            }
            // It may have been deleted since the check.
            let Some(image) = self.store.image_by_id(&item.id).await? else {
                continue;
            };
            for key in keys {
                match self
                    .store
                    .heal_image_item(&image, key, &self.options.sources)
                    .await
                {
                    Ok(source) => {
                        let key = key.clone();
                        self.done(item.clone(), HealedHow::Data { key, source });
                    }
                    Err(reason) => drop(self.failures.insert(item.clone(), reason)),
                }
            }
        }
        Ok(())
    }

    async fn heal_layer_data(&mut self, item: &CheckedItem, keys: &BTreeSet<String>) -> Result<()> {
        let usage = Usage::of(self.store).await?;
        for key in keys {
            self.touched.insert(item.id.clone());
            let healed = self
                .store
                .heal_layer_item(item, key, &usage, &self.options.sources);
            match healed.await {
                Ok(source) => {
                    let key = key.clone();
                    self.done(item.clone(), HealedHow::Data { key, source });
                }
                Err(reason) => drop(self.failures.insert(item.clone(), reason)),
            }
        }
        Ok(())
    }

    async fn heal_records(&mut self, plan: &Plan, found: &CheckReport) -> Result<()> {
        for id in &plan.missing {
            let item = CheckedItem::new(ItemKind::Layer, id, false);
            if !self.wants(&item) || !self.is_open(&item) {
                continue;
            }
            // Anew each time: one may be the parent of another one.
            let usage = Usage::of(self.store).await?;
            if usage.get(id).is_none() {
                continue;
            }
            let restored = match found.store_problems.is_empty() {
                true => self.store.restore_record(id, &usage).await,
                false => Err(NotHealed::MayBeWhole),
            };
            match restored {
                Ok(parent) => {
                    let on_it = standings_on(&usage, id).into_iter();
                    self.touched.extend(on_it.map(|standing| standing.id));
                    self.touched.insert(id.clone());
                    self.done(item, HealedHow::Record { parent });
                }
                Err(reason) => drop(self.failures.insert(item, reason)),
            }
        }
        Ok(())
    }

    async fn heal_contents(&mut self, plan: &Plan) -> Result<()> {
        let mut items: BTreeMap<&CheckedItem, bool> = plan
            .contents
            .iter()
            // What those files say may be all that is wrong.
            .filter(|(item, _)| !plan.driver_data.contains(item))
            .map(|(item, is_own)| (item, *is_own))
            .collect();
        for item in &plan.not_mountable {
            self.touched.insert(item.id.clone());
            if !item.read_only && !self.is_there(&item.id).await? {
                items.insert(item, true);
            }
        }
        let usage = Usage::of(self.store).await?;
        let mut items: Vec<_> = items
            .into_iter()
            .filter(|(item, _)| self.wants(item))
            .filter(|(item, _)| item.read_only || usage.layers.contains_key(&item.id))
            .collect();
        items.sort_by_key(|(item, _)| usage.below(&item.id).len());
        let all: BTreeSet<String> = items.iter().map(|(item, _)| item.id.clone()).collect();
        let mut broken = all.clone();
        self.options.tell(|| HealEvent::Started { layers: items.len() });
        for (item, is_own) in items {
            let id = item.id.as_str();
            self.touched.insert(id.to_owned());
            if !self.store.stages_apart() {
                // What was wrong with it may be in those on it too.
                let on_it = standings_on(&usage, id).into_iter();
                self.touched.extend(on_it.map(|standing| standing.id));
            }
            let below = usage.below(id);
            // The next check tells what is left when those below are whole.
            let waits = !is_own && first_below(&below, &all).is_some();
            if !self.is_open(item) || waits && first_below(&below, &broken).is_none() {
                continue;
            }
            let healed = match first_below(&below, &broken) {
                Some(layer) => Err(NotHealed::Below { layer: layer.clone() }),
                None if item.read_only => Err(NotHealed::ReadOnly),
                None if self.is_final(id, &below) => Err(NotHealed::StillDamaged),
                None => {
                    let files = plan.files.get(item).filter(|_| !self.by_files.contains(id));
                    self.by_files.insert(id.to_owned());
                    self.store
                        .heal_layer(id, files, &usage, &broken, self.options)
                        .await
                }
            };
            match healed {
                Ok(how) => {
                    broken.remove(id);
                    let layer = id.to_owned();
                    self.options.tell(|| HealEvent::Healed { layer });
                    let is_whole = matches!(how, HealedHow::Layer { .. });
                    self.done(item.clone(), how);
                    if is_whole {
                        self.anew.insert(id.to_owned(), self.healed.len());
                    }
                }
                Err(reason) => drop(self.failures.insert(item.clone(), reason)),
            }
        }
        Ok(())
    }

    /// Whether a layer was made anew, and nothing below it since: to do it again would give the same.
    fn is_final(&self, id: &str, below: &[String]) -> bool {
        let since = self.anew.get(id).and_then(|since| self.healed.get(*since..));
        since.is_some_and(|since| !since.iter().any(|healed| below.contains(&healed.item.id)))
    }

    /// Whether the driver has the layer.
    async fn is_there(&self, id: &str) -> Result<bool> {
        let (driver, id) = (self.store.inner.driver(), id.to_owned());
        crate::bridge::run(move || driver.exists(&id)).await
    }
}

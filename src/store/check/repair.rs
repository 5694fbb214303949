//! Removes what is damaged, and what cannot exist without it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::bridge;
use crate::driver::Standing;
use crate::error::{ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::options::RepairOptions;
use crate::store::Store;
use crate::store::access::Needs;
use crate::store::all_stores::Without;
use crate::store::check::finding::{CheckedItem, Finding, ItemKind, Problem};
use crate::store::check::identity::Identity;
use crate::store::check::repair_report::{Kept, KeptReason, RepairFailure, RepairReport};
use crate::store::check::report::CheckReport;
use crate::store::check::strays::{Stray, StrayKind};

/// The damaged items of a report, in the order in which they can be removed.
struct Plan<'a> {
    /// Each with its findings.
    items: Vec<(&'a CheckedItem, Vec<&'a Finding>)>,
}

impl<'a> Plan<'a> {
    /// Containers, images, then layers from the top downwards, and those without a record last.
    fn of(report: &'a CheckReport, depths: &HashMap<String, usize>) -> Self {
        let mut by_item: BTreeMap<&CheckedItem, Vec<&Finding>> = BTreeMap::new();
        for finding in &report.findings {
            by_item.entry(&finding.item).or_default().push(finding);
        }
        let mut items: Vec<_> = by_item.into_iter().collect();
        items.sort_by_key(|(item, _)| {
            let depth = depths.get(&item.id).copied();
            let kind = match item.kind {
                ItemKind::Container => 0,
                ItemKind::Image => 1,
                ItemKind::Layer if depth.is_some() => 2,
                ItemKind::Layer => 3,
            };
            (kind, std::cmp::Reverse(depth))
        });
        Self { items }
    }
}

/// What is known of the items while they are removed.
#[derive(Default)]
struct State {
    /// Images that were removed, and layers that were or went with one; in a dry run what would have been.
    gone: Without,
    /// Images and layers that containers need which stay.
    needed: BTreeSet<String>,
    /// Layers whose driver files were made anew, or should have been.
    mended: HashSet<String>,
}

/// Whether nothing else is wrong than that layers are missing.
fn is_only_without_layers(findings: &[&Finding]) -> bool {
    let lacks = |finding: &&Finding| finding.problem.is_missing_layer();
    let follows = |finding: &&Finding| {
        finding.problem.depends_on_records()
            && !matches!(finding.problem, Problem::Unreferenced | Problem::Unaccounted)
    };
    findings.iter().any(lacks) && findings.iter().all(follows)
}

/// What was looked up by its ID; `None` if there is no record of it.
fn known<T>(found: Result<T>) -> Result<Option<T>> {
    const UNKNOWN: [ErrorKind; 3] = [
        ErrorKind::LayerUnknown,
        ErrorKind::ImageUnknown,
        ErrorKind::ContainerUnknown,
    ];
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if UNKNOWN.contains(&error.kind()) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_known<T>(found: Result<T>) -> Result<bool> {
    Ok(known(found)?.is_some())
}

/// # Repair
impl Store {
    /// Removes the damaged items of a report, and what cannot exist without them: containers if the options say so, images
    /// with the layers that nothing else needs, layers. Items of additional stores are never touched. Nothing is
    /// removed whose damage may not be its own: see [`CheckReport::store_problems`].
    ///
    /// Damaged files of records are written anew first ([`RepairOptions::rebuild_records`]), under the exclusive locks of all
    /// stores; the streams of layers whose records are lost are read before, without a lock.
    ///
    /// Each item is deleted by itself, with the locks of [`Store::delete_container`], [`Store::delete_image`] and
    /// [`Store::delete_layer`]. One that was deleted, or made anew, since the check stays as it is. A failure with one
    /// does not keep the others.
    ///
    /// # Errors
    /// [`ErrorKind::NotSupported`] for a store of another user, in which all owners look wrong; others if the records
    /// cannot be read. Failures with single items are in the result.
    ///
    /// # Cancellation
    /// Items that were not reached are not removed. To repair again completes what was not done.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
    /// use graphroot::{CheckOptions, RepairOptions};
    /// let report = store.check(CheckOptions::everything()).await?;
    /// let repaired = store.repair(&report, RepairOptions::keeping_containers()).await?;
    /// for kept in &repaired.kept {
    ///     eprintln!("{}: {}", kept.item, kept.reason);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn repair(&self, report: &CheckReport, options: RepairOptions) -> Result<RepairReport> {
        if !options.dry_run {
            self.refuse_to_repair_for_others().await?;
        }
        let mut result = RepairReport::default();
        if options.rebuild_records && report.has_damaged_records() {
            let rebuilt = self.rebuild_records(options.dry_run).await?;
            if !rebuilt.files.is_empty() {
                let items: BTreeSet<&CheckedItem> =
                    report.findings.iter().map(|finding| &finding.item).collect();
                let kept = |item: &CheckedItem| Kept {
                    item: item.clone(),
                    reason: KeptReason::RecordsRebuilt,
                };
                return Ok(RepairReport {
                    replaced_files: rebuilt.files,
                    rebuilt: rebuilt.records,
                    kept: items.into_iter().map(kept).collect(),
                    ..result
                });
            }
        }
        let plan = Plan::of(report, &self.layer_depths().await?);
        let mut state = State {
            mended: self.mend_driver_data(report, &options, &mut result).await?,
            ..State::default()
        };
        for (item, findings) in plan.items {
            let reason = match self
                .reason_to_keep(report, item, &findings, &options, &state)
                .await?
            {
                Some(reason) => reason,
                // It went with an image.
                None if result.removed.contains(item) => continue,
                None => match self.remove(report, item, &findings, &options, &mut state).await {
                    Ok(Some(layers)) => {
                        result.removed.push(item.clone());
                        let layers = layers
                            .iter()
                            .map(|id| CheckedItem::new(ItemKind::Layer, id, false));
                        result.removed.extend(layers);
                        continue;
                    }
                    Ok(None) => KeptReason::Changed,
                    Err(error) => {
                        let failure = RepairFailure {
                            item: item.clone(),
                            error,
                        };
                        match self.is_gone(item).await {
                            true => result.left_behind.push(failure),
                            false => result.failures.push(failure),
                        }
                        continue;
                    }
                },
            };
            if item.kind == ItemKind::Container && reason != KeptReason::Changed {
                state.needed.extend(self.needs_of_container(&item.id).await?);
            }
            let item = item.clone();
            result.kept.push(Kept { item, reason });
        }
        Ok(result)
    }

    /// Refuses a store that belongs to another user: what is on disk looks different to him, in his user namespace.
    async fn refuse_to_repair_for_others(&self) -> Result<()> {
        let root = self.inner.options.graph_root.clone();
        let owner = bridge::run(move || {
            let stat = rustix::fs::stat(&root).at("looking at", root)?;
            Ok(stat.st_uid)
        });
        let owner = owner.await?;
        let own = rustix::process::geteuid().as_raw();
        if owner == own {
            return Ok(());
        }
        Err(ErrorKind::NotSupported.err(format!(
            "repairing a store of user {owner} as user {own}: what is on disk looks different to that user"
        )))
    }

    /// Makes the driver's files anew where they do not agree with the records. Returns the layers, also those with which it failed.
    async fn mend_driver_data(
        &self,
        report: &CheckReport,
        options: &RepairOptions,
        result: &mut RepairReport,
    ) -> Result<HashSet<String>> {
        let mut mended = HashSet::new();
        let is_about_driver = |finding: &&Finding| matches!(finding.problem, Problem::DriverData { .. });
        for finding in report.findings.iter().filter(is_about_driver) {
            let item = &finding.item;
            if item.read_only || mended.contains(&item.id) {
                continue;
            }
            let done = match options.dry_run {
                true => Ok(()),
                false => self.mend_layer(&item.id).await,
            };
            // What could not be mended is no reason to remove anything either.
            mended.insert(item.id.clone());
            match done {
                Ok(()) => result.mended.push(item.clone()),
                Err(error) => {
                    let item = item.clone();
                    result.failures.push(RepairFailure { item, error });
                }
            }
        }
        Ok(mended)
    }

    pub(crate) async fn mend_layer(&self, id: &str) -> Result<()> {
        let mut below = Vec::new();
        let mut next = self.layer(id).await?.parent().map(str::to_owned);
        while let Some(parent) = next.take().filter(|parent| !below.contains(parent)) {
            next = self.layer(&parent).await?.parent().map(str::to_owned);
            below.push(parent);
        }
        let is_lowest = below.is_empty() && self.is_lowest_of_images(id).await?;
        let id = id.to_owned();
        let mended = self.step(Needs::LAYERS, move |held| {
            let layers = held.layers()?;
            layers.get(&id)?;
            layers.driver.mend(&Standing { id, below, is_lowest })
        });
        mended.await
    }

    /// Whether a layer whose record names none below it is the lowest one of all images that have it: their configs name as
    /// many layers as there are from it upwards.
    async fn is_lowest_of_images(&self, id: &str) -> Result<bool> {
        let layers = self.layers().await?;
        let parents: HashMap<&str, Option<&str>> =
            layers.iter().map(|layer| (layer.id(), layer.parent())).collect();
        let mut is_lowest = false;
        for image in self.images().await? {
            let mapped = image.mapped_top_layers().iter().map(String::as_str);
            for top in image.top_layer().into_iter().chain(mapped) {
                let mut chain = vec![top];
                while let Some(Some(parent)) = chain.last().and_then(|last| parents.get(last))
                    && !chain.contains(parent)
                {
                    chain.push(parent);
                }
                if chain.last() != Some(&id) {
                    continue;
                }
                let Ok(manifest) = self.manifest_of(&image).await else {
                    return Ok(false);
                };
                match self.config_of(&image, &manifest).await {
                    Ok(config) if config.diff_ids.len() == chain.len() => is_lowest = true,
                    _ => return Ok(false),
                }
            }
        }
        Ok(is_lowest)
    }

    async fn reason_to_keep(
        &self,
        report: &CheckReport,
        item: &CheckedItem,
        findings: &[&Finding],
        options: &RepairOptions,
        state: &State,
    ) -> Result<Option<KeptReason>> {
        if item.read_only {
            return Ok(Some(KeptReason::ReadOnly));
        }
        let is_mended = |finding: &&Finding| {
            let layer = finding.problem.mendable_layer(&finding.item);
            layer.is_some_and(|layer| state.mended.contains(layer))
        };
        if findings.iter().any(is_mended) {
            return Ok(Some(KeptReason::Mended));
        }
        if item.kind == ItemKind::Container && !options.remove_containers {
            return Ok(Some(KeptReason::Container));
        }
        let may_be_whole = !report.store_problems.is_empty()
            && findings
                .iter()
                .all(|finding| finding.problem.depends_on_records());
        // There were images or containers of which nobody knows the layers.
        let has_strays = || {
            let of_user =
                |stray: &Stray| matches!(stray.kind, StrayKind::ImageData | StrayKind::ContainerData);
            report.strays.iter().any(of_user)
        };
        let is_unused =
            |finding: &&Finding| matches!(finding.problem, Problem::Unreferenced | Problem::Unaccounted);
        if may_be_whole || findings.iter().all(is_unused) && has_strays() {
            return Ok(Some(KeptReason::MayBeWhole));
        }
        if !options.missing_layers_are_lost && is_only_without_layers(findings) {
            return Ok(Some(KeptReason::LayersMissing));
        }
        Ok(state
            .needed
            .contains(&item.id)
            .then_some(KeptReason::NeededByContainer))
    }

    /// Removes an item, and returns the layers that go with it; `None` if it is not there any more, or is another one by now.
    async fn remove(
        &self,
        report: &CheckReport,
        item: &CheckedItem,
        findings: &[&Finding],
        options: &RepairOptions,
        state: &mut State,
    ) -> Result<Option<Vec<String>>> {
        let id = item.id.as_str();
        if !self.is_same(report, item).await? {
            return Ok(None);
        }
        let gone = |result: Result<()>, kinds: &[ErrorKind]| match result {
            Ok(()) => Ok(Some(Vec::new())),
            Err(error) if kinds.contains(&error.kind()) => Ok(None),
            Err(error) => Err(error),
        };
        let thought = |is_there: bool| Ok(is_there.then(Vec::new));
        match item.kind {
            ItemKind::Container => {
                if options.dry_run {
                    let container = self.container(id).await;
                    let layer = container
                        .as_ref()
                        .map(|container| container.layer_id().to_owned());
                    state.gone.layers.extend(layer);
                    return thought(is_known(container)?);
                }
                let kinds = [ErrorKind::NotAContainer, ErrorKind::ContainerUnknown];
                let deleted = self.delete_container(id).await;
                gone(deleted, &kinds).context(|| format!("deleting container {id}"))
            }
            ItemKind::Image => {
                let deleted = match options.dry_run {
                    true => self.layers_of_image_without(id, state.gone.clone()).await,
                    false => self.delete_image(id).await,
                };
                match deleted {
                    Ok(layers) => {
                        state.gone.images.insert(id.to_owned());
                        state.gone.layers.extend(layers.iter().cloned());
                        Ok(Some(layers))
                    }
                    Err(error)
                        if [ErrorKind::NotAnImage, ErrorKind::ImageUnknown].contains(&error.kind()) =>
                    {
                        Ok(None)
                    }
                    Err(error) => Err(error.context(format!("deleting image {id}"))),
                }
            }
            ItemKind::Layer
                if findings
                    .iter()
                    .any(|finding| finding.problem == Problem::Unaccounted) =>
            {
                thought(self.remove_unaccounted(id, options).await?)
            }
            ItemKind::Layer => {
                if options.dry_run {
                    state.gone.layers.insert(id.to_owned());
                    return thought(is_known(self.layer(id).await)?);
                }
                let kinds = [ErrorKind::NotALayer, ErrorKind::LayerUnknown];
                let deleted = self.delete_layer(id).await;
                gone(deleted, &kinds).context(|| format!("deleting layer {id}"))
            }
        }
    }

    /// The layers that would go with an image.
    async fn layers_of_image_without(&self, id: &str, without: Without) -> Result<Vec<String>> {
        let id = id.to_owned();
        let layers = self.write_to_all_stores_alone(move |all| {
            Ok((all.layers_to_delete(&id, &without), all.find_image(&id)))
        });
        match layers.await? {
            (layers, Some(_)) => Ok(layers),
            (_, None) => Err(ErrorKind::ImageUnknown.err("it is gone")),
        }
    }

    /// What tells an item from another one with the same ID; `None` if it has no record.
    async fn identity(&self, item: &CheckedItem) -> Result<Option<Identity>> {
        let (id, dirs) = (item.id.as_str(), self.inner.dirs.clone());
        match item.kind {
            ItemKind::Layer => match known(self.layer(id).await)? {
                Some(layer) => bridge::run(move || Ok(Some(Identity::of_layer(layer.row(), &dirs)))).await,
                None => Ok(None),
            },
            ItemKind::Image => match known(self.image(id).await)? {
                Some(image) => bridge::run(move || Ok(Some(Identity::of_image(image.row(), &dirs)))).await,
                None => Ok(None),
            },
            ItemKind::Container => match known(self.container(id).await)? {
                Some(container) => {
                    bridge::run(move || Ok(Some(Identity::of_container(container.row(), &dirs)))).await
                }
                None => Ok(None),
            },
        }
    }

    /// Whether an item that has a record is the one that was checked.
    async fn is_same(&self, report: &CheckReport, item: &CheckedItem) -> Result<bool> {
        Ok(match (report.identities.get(item), self.identity(item).await?) {
            (Some(then), Some(now)) => *then == now,
            // What went with an image, or has no record.
            (_, None) => true,
            (None, Some(_)) => false,
        })
    }

    /// Whether an item has no record any more, after something has failed. What is incomplete goes now.
    async fn is_gone(&self, item: &CheckedItem) -> bool {
        let found = match item.kind {
            ItemKind::Layer => is_known(self.layer(&item.id).await),
            ItemKind::Image => is_known(self.image(&item.id).await),
            ItemKind::Container => is_known(self.container(&item.id).await),
        };
        matches!(found, Ok(false))
    }

    /// Removes a layer that only the driver has.
    async fn remove_unaccounted(&self, id: &str, options: &RepairOptions) -> Result<bool> {
        if options.dry_run {
            return Ok(true);
        }
        let (dirs, transient) = (self.inner.dirs.clone(), self.inner.options.transient);
        let layer = id.to_owned();
        let removed =
            self.write_to_all_stores_alone(move |all| all.remove_without_record(&dirs, transient, &layer));
        removed.await.context(|| format!("deleting storage layer {id}"))
    }

    /// The image of a container, its layer, and the layers below both.
    async fn needs_of_container(&self, id: &str) -> Result<Vec<String>> {
        let Some(container) = known(self.container(id).await)? else {
            return Ok(Vec::new());
        };
        let mut needed = Vec::new();
        let mut tops = vec![container.layer_id().to_owned()];
        if let Some(image) = container.image_id() {
            needed.push(image.to_owned());
            if let Some(image) = known(self.image(image).await)? {
                let copies = image.mapped_top_layers().iter().map(String::as_str);
                tops.extend(image.top_layer().into_iter().chain(copies).map(str::to_owned));
            }
        }
        for top in tops {
            let mut next = Some(top);
            while let Some(id) = next.take().filter(|id| !needed.contains(id)) {
                if let Some(layer) = known(self.layer(&id).await)? {
                    next = layer.parent().map(str::to_owned);
                }
                needed.push(id);
            }
        }
        Ok(needed)
    }

    /// How many layers each one stands on.
    async fn layer_depths(&self) -> Result<HashMap<String, usize>> {
        let parents: HashMap<String, String> = {
            let layers = self.layers().await?;
            let pairs = layers.iter().map(|layer| {
                let parent = layer.parent().unwrap_or_default();
                (layer.id().to_owned(), parent.to_owned())
            });
            pairs.collect()
        };
        let depth = |id: &String| {
            let mut seen = HashSet::new();
            let mut next = parents.get(id);
            while let Some(parent) = next.filter(|parent| seen.insert(*parent)) {
                next = parents.get(parent);
            }
            seen.len()
        };
        Ok(parents.keys().map(|id| (id.clone(), depth(id))).collect())
    }
}

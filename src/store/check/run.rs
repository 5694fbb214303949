//! The course of a check.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;

use crate::bridge;
use crate::error::Result;
use crate::options::{CheckEvent, CheckOptions};
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::store::Store;
use crate::store::check::contents::LayerResult;
use crate::store::check::data;
use crate::store::check::finding::{CheckedItem, ItemKind, Problem};
use crate::store::check::rebuild::examined::Examined;
use crate::store::check::records::{Findings, examine, layer_item};
use crate::store::check::report::{CheckReport, StoreProblem};
use crate::store::check::survey::Survey;
use crate::store::inner::StoreOrigin;
use crate::store::views::Container;
use crate::sys::processors;

/// Layers that are checked at the same time at the most.
const MAX_PARALLEL: usize = 8;

/// The problems of the items of one kind, with the records that they are about.
struct Found<R> {
    rows: HashMap<String, (Arc<R>, Vec<Problem>)>,
}

impl<R> Default for Found<R> {
    fn default() -> Self {
        Self { rows: HashMap::new() }
    }
}

impl<R: PartialEq> Found<R> {
    fn add(&mut self, id: &str, row: &Arc<R>, problems: Vec<Problem>) {
        if !problems.is_empty() {
            let entry = self.rows.entry(id.to_owned());
            let (_, all) = entry.or_insert_with(|| (Arc::clone(row), Vec::new()));
            all.extend(problems);
        }
    }

    /// What was found about an item whose record is still this one.
    fn take(&mut self, id: &str, now: &Arc<R>) -> Vec<Problem> {
        let found = self
            .rows
            .remove(id)
            .filter(|(row, _)| Arc::ptr_eq(row, now) || **row == **now);
        found.map(|(_, problems)| problems).unwrap_or_default()
    }
}

/// The report of a check, with what is wrong with the files of records.
fn report_of(survey: Survey, findings: Findings, damage: Vec<StoreProblem>) -> CheckReport {
    let findings = findings.into_list();
    let lost = survey.lost.iter().cloned();
    let mut store_problems: Vec<_> = lost.map(|path| StoreProblem::RecordsLost { path }).collect();
    store_problems.extend(damage);
    if findings.iter().any(|finding| finding.problem.is_missing_layer()) {
        let absent = survey.absent.iter().cloned();
        store_problems.extend(absent.map(|path| StoreProblem::AdditionalStoreMissing { path }));
    }
    CheckReport {
        records_alone: false,
        identities: survey.identities,
        findings,
        store_problems,
        strays: survey.strays,
    }
}

/// # Check
impl Store {
    /// Looks for damage: records that refer to what is not there, data and contents that are not as recorded, layers that
    /// nobody needs. Nothing is changed; mounts that others use are not touched.
    ///
    /// Layers are checked at the same time, as many as there are processors, up to eight. Memory grows with the number of
    /// names in the largest layers, not with the sizes of files.
    ///
    /// Records are read twice, under the shared locks of all stores. Contents are read without a lock; the layer lock is
    /// held for the moment in which a layer's files are opened, and with the graph lock exclusively while it is mounted.
    /// What is found about an item that is changed or deleted meanwhile does not count.
    ///
    /// As the Go library does, it looks at the layers, images and containers of all stores; of those in additional stores, at
    /// everything but mounts.
    ///
    /// A file of records that is damaged, so that no program can load it, is told of in [`CheckReport::store_problems`], with
    /// what the records say that can be read; contents are not checked then. [`Store::repair`](crate::Store::repair) rebuilds
    /// it.
    ///
    /// # Errors
    /// [`ErrorKind::LoadError`](crate::ErrorKind::LoadError), [`ErrorKind::Io`](crate::ErrorKind::Io) and others, if records
    /// cannot be read or locked, or if contents cannot be looked at for what says nothing of them, as when the process has too
    /// many files open, or a driver does not work without its daemon. Damage is no error.
    ///
    /// # Cancellation
    /// The check ends with the steps that are running.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
    /// use graphroot::CheckOptions;
    /// let report = store.check(CheckOptions::everything()).await?;
    /// for finding in &report.findings {
    ///     eprintln!("{finding}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn check(&self, options: CheckOptions) -> Result<CheckReport> {
        self.check_knowing(options, HashMap::new()).await
    }

    /// As [`Store::check`]; of layers that the options leave out, this is `known` to be wrong with the contents.
    pub(crate) async fn check_knowing(
        &self,
        options: CheckOptions,
        known: HashMap<String, Vec<Problem>>,
    ) -> Result<CheckReport> {
        let examined = self.examine_records().await?;
        if !examined.can_be_loaded() {
            return self.check_damaged_records(&options).await;
        }
        let survey = Survey::of_records(self).await?;
        options.tell(|| CheckEvent::Started {
            layers: survey.layers.len(),
            bytes: survey
                .layers
                .iter()
                .map(|(_, row)| u64::try_from(row.diff_size).unwrap_or(0))
                .sum(),
        });
        let mut layers = self.check_layers(&survey, &options, &known).await?;
        let mut images = self.check_image_data(&survey, &options).await?;
        let mut containers = self.check_container_data(&survey, &options).await?;
        drop(survey);
        let survey = Survey::of(self).await?;
        let mut findings = Findings::default();
        for (_, row) in &survey.layers {
            let item = layer_item(&survey, &row.id);
            for problem in layers.take(&row.id, row) {
                findings.add(&item, problem);
            }
        }
        for (home, row) in &survey.images {
            let item = CheckedItem::new(ItemKind::Image, &row.id, home.read_only());
            for problem in images.take(&row.id, row) {
                findings.add(&item, problem);
            }
        }
        for row in &survey.containers {
            let item = CheckedItem::new(ItemKind::Container, &row.id, false);
            for problem in containers.take(&row.id, row) {
                findings.add(&item, problem);
            }
        }
        examine(&survey, options.layer_unreferenced_maximum_age, &mut findings);
        Ok(report_of(survey, findings, examined.problems()))
    }

    /// What the records tell that can be read of damaged files. No content is checked: for that the files have to be loaded.
    async fn check_damaged_records(&self, options: &CheckOptions) -> Result<CheckReport> {
        let files = self.hold_files(false).await?;
        let (files, examined) = bridge::run(move || {
            let texts = files.read()?;
            Ok((files, Examined::of(&texts)))
        })
        .await?;
        let mut survey = Survey::of_examined(self, &examined).with_disk(self).await?;
        drop(files);
        let mut findings = Findings::default();
        let damaged = examined.losing();
        // Nobody knows all records: neither what refers to a layer, nor what has none.
        survey.lost.retain(|file| !damaged.contains(file));
        let lost = std::mem::replace(&mut survey.lost, damaged);
        examine(&survey, options.layer_unreferenced_maximum_age, &mut findings);
        survey.lost = lost;
        Ok(CheckReport {
            records_alone: true,
            ..report_of(survey, findings, examined.problems())
        })
    }

    async fn check_layers(
        &self,
        survey: &Survey,
        options: &CheckOptions,
        known: &HashMap<String, Vec<Problem>>,
    ) -> Result<Found<LayerRow>> {
        // Twice as many as there are processors: one takes the place of another that waits for a thread.
        let parallel = processors().saturating_mul(2).min(MAX_PARALLEL);
        // Owned, for the sake of callers who have to know that this can be sent to another thread.
        // Of one that stands on nothing, nothing else can be told.
        let is_checked = |(_, row): &&(StoreOrigin, Arc<LayerRow>)| {
            options.includes(&row.id) && survey.below(row).all(|(_, below)| below.is_some())
        };
        let mut layers: Vec<_> = survey.layers.iter().filter(is_checked).cloned().collect();
        // A large one that comes last keeps one processor busy alone.
        layers.sort_by_key(|(_, row)| Reverse(row.diff_size));
        let checks = layers.into_iter().map(|(home, row)| async move {
            let result = self.check_layer(home, &row, options).await?;
            Ok((row, result))
        });
        let mut running = futures::stream::iter(checks).buffer_unordered(parallel);
        let (mut found, mut whole) = (Found::default(), HashSet::new());
        while let Some(checked) = running.next().await {
            let (row, result): (Arc<LayerRow>, LayerResult) = checked?;
            found.add(&row.id, &row, result.problems);
            if result.wants_whole_tree {
                whole.insert(row.id.to_string());
            }
        }
        for (_, row) in &survey.layers {
            if let Some(known) = known.get(&*row.id) {
                found.add(&row.id, row, known.clone());
            }
        }
        for (id, problems) in self.check_whole_trees(survey, &whole, options, parallel).await? {
            if let Some((_, row)) = survey.layer(&id) {
                found.add(&id, row, problems);
            }
        }
        Ok(found)
    }

    async fn check_image_data(&self, survey: &Survey, options: &CheckOptions) -> Result<Found<ImageRow>> {
        let mut found = Found::default();
        for (home, row) in survey.images.iter().filter(|_| options.image_data) {
            let mut problems = Vec::new();
            for key in &row.big_data_names {
                let content = self.image_item(row, *home, key).await;
                problems.extend(data::of_record(&**row, key, content).await?);
            }
            found.add(&row.id, row, problems);
        }
        Ok(found)
    }

    async fn image_item(&self, row: &ImageRow, home: StoreOrigin, key: &str) -> Result<Bytes> {
        self.read_image_item(row, home, key).await.map(Bytes::from)
    }

    async fn check_container_data(
        &self,
        survey: &Survey,
        options: &CheckOptions,
    ) -> Result<Found<ContainerRow>> {
        let mut found = Found::default();
        for row in survey.containers.iter().filter(|_| options.container_data) {
            let container = Container::new(row);
            let mut problems = Vec::new();
            for key in &row.big_data_names {
                let content = self.read_container_item(&container, key).await;
                problems.extend(data::of_record(&**row, key, content).await?);
            }
            found.add(&row.id, row, problems);
        }
        Ok(found)
    }
}

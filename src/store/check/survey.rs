//! All records of a store at one moment, and what the driver has.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bridge;
use crate::driver::{Standing, StandingDamage};
use crate::error::{Error, Result};
use crate::lock::temp_dir;
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record;
use crate::record::{Records, TAR_SPLIT};
use crate::store::Store;
use crate::store::access::everything::Everything;
use crate::store::check::finding::{CheckedItem, ItemKind};
use crate::store::check::identity::Identity;
use crate::store::check::rebuild::examined::Examined;
use crate::store::check::strays::{Stray, StrayKind, in_the_making, of_driver, strays_in};
use crate::store::dirs::Dirs;
use crate::store::evidence::{containers_of_other_mode, layers_of_other_mode};
use crate::store::inner::StoreOrigin;
use crate::sys::at;
use crate::sys::presence::is_there;

/// See the module's head. Of items with one ID in several stores only the first is there, which is the one that is used.
pub(super) struct Survey {
    pub(super) layers: Vec<(StoreOrigin, Arc<LayerRow>)>,
    pub(super) images: Vec<(StoreOrigin, Arc<ImageRow>)>,
    pub(super) containers: Vec<Arc<ContainerRow>>,
    /// Layers of the driver that have no record anywhere.
    pub(super) unaccounted: Vec<String>,
    pub(super) strays: Vec<Stray>,
    /// Files of the driver that do not agree with the records.
    pub(super) driver_damage: Vec<StandingDamage>,
    /// Files of records that say nothing, although there is what belongs to their rows.
    pub(super) lost: Vec<PathBuf>,
    /// Directories of additional stores in which there are no records of layers.
    pub(super) absent: Vec<PathBuf>,
    /// What each item is that could be removed.
    pub(super) identities: BTreeMap<CheckedItem, Identity>,
    positions: HashMap<String, usize>,
}

/// Bytes of a file of records that may all be zeros.
const MAX_EMPTY: u64 = 1 << 30;

/// Whether a file is missing or has nothing in it, or nothing but zeros.
fn says_nothing(file: &Path) -> bool {
    match at::read_regular(file, MAX_EMPTY) {
        Ok(content) => content
            .iter()
            .all(|byte| *byte == 0 || byte.is_ascii_whitespace()),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn first_of_each<'a, R: Record, I: Iterator<Item = &'a Arc<R>>>(
    stores: impl Iterator<Item = (StoreOrigin, I)>,
) -> Vec<(StoreOrigin, Arc<R>)> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for (home, rows) in stores {
        for row in rows {
            if seen.insert(row.id().to_owned()) {
                found.push((home, Arc::clone(row)));
            }
        }
    }
    found
}

impl Survey {
    /// Looks at the records alone; what is on disk stays empty.
    pub(super) async fn of_records(store: &Store) -> Result<Self> {
        Ok(Self::of_held(&store.hold_everything().await?))
    }

    fn of_held(held: &Everything) -> Self {
        let layers = first_of_each(held.layers.iter().map(|(home, table)| (*home, table.rows())));
        let images = first_of_each(held.images.iter().map(|(home, table)| (*home, table.rows())));
        Self::of_rows(layers, images, held.containers.rows().map(Arc::clone).collect())
    }

    /// What can be read of damaged files of records.
    pub(super) fn of_examined(store: &Store, examined: &Examined) -> Self {
        let additional = store.inner.additional_images.iter();
        let read_only: Vec<bool> = additional.map(|store| store.read_only).collect();
        let origin = |index: Option<usize>, read_only: bool| match index {
            None => StoreOrigin::Primary,
            Some(index) => StoreOrigin::Additional { index, read_only },
        };
        let of_layer = |(index, row)| (origin(index, true), std::iter::once(row));
        let of_image = |(index, row): (Option<usize>, _)| {
            let read_only = index.and_then(|index| read_only.get(index)) != Some(&false);
            (origin(index, read_only), std::iter::once(row))
        };
        let containers = first_of_each(
            examined
                .container_rows()
                .map(|row| (StoreOrigin::Primary, std::iter::once(row))),
        );
        Self::of_rows(
            first_of_each(examined.layer_rows().map(of_layer)),
            first_of_each(examined.image_rows().map(of_image)),
            containers.into_iter().map(|(_, row)| row).collect(),
        )
    }

    fn of_rows(
        layers: Vec<(StoreOrigin, Arc<LayerRow>)>,
        images: Vec<(StoreOrigin, Arc<ImageRow>)>,
        containers: Vec<Arc<ContainerRow>>,
    ) -> Self {
        let positions = layers
            .iter()
            .enumerate()
            .map(|(index, (_, row))| (row.id.to_string(), index))
            .collect();
        Self {
            layers,
            images,
            containers,
            unaccounted: Vec::new(),
            strays: Vec::new(),
            driver_damage: Vec::new(),
            lost: Vec::new(),
            absent: Vec::new(),
            identities: BTreeMap::new(),
            positions,
        }
    }

    /// Looks at everything.
    pub(super) async fn of(store: &Store) -> Result<Self> {
        let held = store.hold_everything().await?;
        let survey = Self::of_held(&held);
        // While nothing can be made or deleted.
        let survey = survey.with_disk(store).await;
        drop(held);
        survey
    }

    /// Looks at what is on disk. The caller holds all locks shared.
    pub(super) async fn with_disk(self, store: &Store) -> Result<Self> {
        let mut survey = self;
        let (driver, dirs) = (store.inner.driver(), store.inner.dirs.clone());
        let transient = store.inner.options.transient;
        let additional: Vec<PathBuf> = store
            .inner
            .additional_layers
            .iter()
            .map(|store| store.dir.clone())
            .collect();
        let inner = &store.inner;
        let mut files = inner.layers.paths();
        files.extend(inner.images.paths());
        files.extend(inner.graph_images.iter().flat_map(Records::paths));
        files.extend(inner.containers.paths());
        bridge::run(move || {
            survey.driver_damage = driver.examine(&survey.standings())?;
            let other_layers = layers_of_other_mode(&dirs, transient)?;
            let other_containers = containers_of_other_mode(&dirs, transient)?;
            let layers: HashSet<&str> = survey.layers.iter().map(|(_, row)| &*row.id).collect();
            let of_containers: HashSet<&str> = survey.containers.iter().map(|row| &*row.layer).collect();
            let is_known =
                |id: &str| layers.contains(id) || other_layers.contains(id) || of_containers.contains(id);
            let found = driver.list_layers()?;
            let unaccounted: Vec<String> = found.iter().filter(|id| !is_known(id)).cloned().collect();
            // A directory alone may have been made without a record; what something refers to, or belongs to, had one.
            let of_images: HashSet<&str> = survey
                .images
                .iter()
                .flat_map(|(_, row)| row.top_layers())
                .collect();
            let is_lost = |id: &str| {
                let is_used = of_images.contains(id) || of_containers.contains(id);
                let has_files = || {
                    let tar_split = dirs.layers().join(format!("{id}{TAR_SPLIT}"));
                    Ok::<_, Error>(is_there(&tar_split)? || is_there(&dirs.layers().join(id))?)
                };
                let has_record = layers.contains(id) || other_layers.contains(id);
                Ok::<_, Error>(!has_record && (is_used || has_files()?))
            };
            let mut lost_layers = false;
            for id in &found {
                lost_layers = lost_layers || is_lost(id)?;
            }
            let layers = layers
                .into_iter()
                .chain(other_layers.iter().map(String::as_str))
                .collect();
            let images = survey.images.iter().map(|(_, row)| &*row.id).collect();
            let containers = survey.containers.iter().map(|row| &*row.id);
            let containers = containers
                .chain(other_containers.iter().map(String::as_str))
                .collect();
            let mut strays = strays_in(&dirs.layers(), StrayKind::TarSplit, &layers)?;
            strays.extend(strays_in(&dirs.layers(), StrayKind::LayerData, &layers)?);
            strays.extend(strays_in(&dirs.images(), StrayKind::ImageData, &images)?);
            strays.extend(strays_in(
                &dirs.containers(),
                StrayKind::ContainerData,
                &containers,
            )?);
            strays.extend(of_driver(driver.leftovers()?));
            let temp_dirs = temp_dir::stale(&dirs.layers_tmp())?.into_iter();
            strays.extend(temp_dirs.map(|path| Stray {
                path,
                kind: StrayKind::TempDir,
            }));
            let item_dirs = [
                dirs.layers(),
                dirs.images(),
                dirs.graph_images(),
                dirs.containers(),
            ];
            strays.extend(in_the_making(&files, &item_dirs.into_iter().collect())?);
            strays.sort();
            let has = |kind| strays.iter().any(|stray: &Stray| stray.kind == kind);
            let lost_files = [
                (dirs.layers().join("layers.json"), lost_layers),
                (dirs.images().join("images.json"), has(StrayKind::ImageData)),
                (
                    dirs.containers().join("containers.json"),
                    !transient && has(StrayKind::ContainerData),
                ),
            ];
            let lost = lost_files
                .into_iter()
                .filter(|(file, evidence)| *evidence && says_nothing(file));
            survey.lost = lost.map(|(file, _)| file).collect();
            for dir in additional {
                if !is_there(&dir.join("layers.json"))? {
                    survey.absent.push(dir);
                }
            }
            survey.unaccounted = unaccounted;
            survey.identities = survey.identify(&dirs);
            survey.strays = strays;
            Ok(survey)
        })
        .await
    }

    /// What the layers of the primary store stand on, as far as all of that is there.
    fn standings(&self) -> Vec<Standing> {
        let own = self.layers.iter().filter(|(home, _)| !home.read_only());
        let standing = |(_, row): &(StoreOrigin, Arc<LayerRow>)| {
            let below = self.below(row).map(|(id, found)| found.map(|_| id.to_owned()));
            let below = below.collect::<Option<Vec<String>>>()?;
            Some(Standing {
                id: row.id.to_string(),
                below,
                is_lowest: false,
            })
        };
        own.filter_map(standing).collect()
    }

    /// What each item of the primary stores is.
    fn identify(&self, dirs: &Dirs) -> BTreeMap<CheckedItem, Identity> {
        let own = |home: &StoreOrigin| !home.read_only();
        let layers = self.layers.iter().filter(|(home, _)| own(home)).map(|(_, row)| {
            let item = CheckedItem::new(ItemKind::Layer, &row.id, false);
            (item, Identity::of_layer(row, dirs))
        });
        let images = self.images.iter().filter(|(home, _)| own(home)).map(|(_, row)| {
            let item = CheckedItem::new(ItemKind::Image, &row.id, false);
            (item, Identity::of_image(row, dirs))
        });
        let containers = self.containers.iter().map(|row| {
            let item = CheckedItem::new(ItemKind::Container, &row.id, false);
            (item, Identity::of_container(row, dirs))
        });
        layers.chain(images).chain(containers).collect()
    }

    /// A layer by its ID.
    pub(super) fn layer(&self, id: &str) -> Option<&(StoreOrigin, Arc<LayerRow>)> {
        self.layers.get(*self.positions.get(id)?)
    }

    /// The layers below one, nearest first, each with its ID; `None` for one that is missing, which is the last. Ends where
    /// the layers come back to one that was there before.
    pub(super) fn below<'a>(
        &'a self,
        row: &'a LayerRow,
    ) -> impl Iterator<Item = (&'a str, Option<&'a Arc<LayerRow>>)> {
        let mut seen: HashSet<&str> = HashSet::from([&*row.id]);
        let mut next = row.parent_id();
        std::iter::from_fn(move || {
            let id = next.take()?;
            if !seen.insert(id) {
                return None;
            }
            let found = self.layer(id).map(|(_, row)| row);
            next = found.and_then(|row| row.parent_id());
            Some((id, found))
        })
    }

    /// Whether the layers below one come back to it.
    pub(super) fn loops(&self, row: &LayerRow) -> bool {
        let last = self.below(row).last();
        let parent = match last {
            None => &*row.parent,
            Some((_, Some(last))) => &*last.parent,
            Some((_, None)) => return false,
        };
        !parent.is_empty() && *parent == *row.id
    }
}

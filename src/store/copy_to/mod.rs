//! Copies of a store, or of a part of it, in another graph root and with another driver.
//!
//! ```text
//! shared locks of both, for a moment:  what is there, what is missing
//! no lock:   layer → stream as it came in ───────────────────────────────────────┐ beside each other
//!                    └ files offered as origins: clones on the same file system │
//! target:            unpacked in a staging directory ── its parent is there ────┘─→ layer
//!            layer without a stream → its tree → staging directory on its parent ─→ layer
//!            image → record and data, in one step
//!            container → its tree and its data staged → both records, in one step
//!            container that is there → compared → left as it is, or replaced by a staged one, in one step
//!            layer without a digest that is there → compared → left as it is
//! ```
//!
//! An item is in the target as a whole or not at all, and after what it needs: whoever is killed copies the rest the next
//! time.

mod apart;
mod comparison;
mod container;
mod image;
mod layer;
mod layer_tree;
pub(crate) mod options;
mod plan;
pub(crate) mod report;

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use crate::bridge;
use crate::driver::{Loss, MountState};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::lock::single_flight;
use crate::store::Store;
use crate::store::check::finding::ItemKind;
use crate::store::copy_to::comparison::Compared;
use crate::store::copy_to::layer::{Copied, Job, Outcome};
use crate::store::copy_to::options::{CopyEvent, CopyOptions};
use crate::store::copy_to::plan::{Plan, SourceContainer, SourceLayer};
use crate::store::copy_to::report::{CopiedItem, CopyReport, DifferentItem, LostContent};
use crate::sys::processors;
use crate::sys::tree_users::is_used;
use crate::whiteout::WhiteoutFormat;

/// Items that are copied at the same time, at the most. Each has a thread and a few MiB.
const MAX_AT_ONCE: usize = 8;

/// The key of the lock that all copies to a store take.
const FLIGHT: &str = "copy";

/// What is said of a container that is not replaced for that.
const IN_USE: &str = "it is mounted there, and cannot be replaced";

/// # Copies in other stores
impl Store {
    /// Copies this store, or some images and containers of it, to another one, which may have another driver: layers, images
    /// and containers with their IDs, names, dates, digests, flags, metadata, mappings, tar-split data and big data, and what
    /// containers have changed. Neither a registry nor an image program is needed.
    ///
    /// Layers and images that `to` has already, by ID and digest, are taken as done and stay as they are, also an image that was
    /// given more names; so a copy that was cut off is continued
    /// by the same call, with the same end. A layer without a digest that `to` has is compared with this one, contents included, and
    /// if they differ, the report says so; the copy stays as it is. Layers are copied before those on them, several at a time. Where both stores are
    /// on one file system that can share content, files are clones.
    ///
    /// A container that `to` has already is compared with this one, contents included. If one of the two has changed since, the
    /// report says so, with the first difference, and the copy stays as it is; with [`CopyOptions::refresh`] it is replaced,
    /// unless it is mounted. What `to` cannot have is no difference, and is named again. Mounted are copies by the records in the run root of `to`, and with overlay wherever there is such a mount. The new one is ready before the old one is deleted, in one step: other users of `to` see one or the
    /// other. If the process is killed in that step, `to` may be without the container until the same call is made again.
    ///
    /// A layer with tar-split data is copied as the stream that it came from, and is refused if that has not the recorded
    /// digest. Of a layer without it, such as a container's, the tree is copied: everything that its files have, whoever their
    /// owners are, with hard links, holes, sockets, access control lists, all extended attributes, and what belongs to the root
    /// directory. Left out are only the attributes `security.selinux` and `security.evm`, which belong to a place, and the flags of
    /// `chattr`. What `to` cannot have is named in the report ([`CopyReport::lost`]): attributes that its file system or a user
    /// namespace refuses or has no room for, links to paths that are too long for it, times out of its range, devices in a user namespace, and in the driver overlay what overlayfs or a mount program would take
    /// for a mark of its own (`trusted.overlay.*`, character devices 0:0, with a mount program names that begin with `.wh.`).
    /// Attributes `trusted.*` are not seen from within a user namespace.
    ///
    /// The trees are compared with those of the layers below. Where this driver keeps changes apart (overlay) only these are
    /// read, else everything is, since a changed file can have kept its size and times.
    ///
    /// Of additional image stores and of an additional layer store only those layers and images are copied that what is copied needs, or
    /// that are named, unless `to` finds them in such a store too. They become layers and images of `to` itself.
    ///
    /// A container is copied as each of its files is when it is read; for one moment of all files, stop it. The report says
    /// which ones were mounted. What it has in the run root and what is mounted in its directories and its tree is not copied. Files of
    /// programs beside the store in its graph root, such as Podman's database of containers and its volumes, are theirs.
    ///
    /// Owners on disk follow the driver of `to`: where it maps owners in mounts, layers of images with ID mappings are kept
    /// without them, as by [`Store::put_layer`].
    ///
    /// Nothing in this store is changed, except that what killed processes have left is put right as by every reader, and
    /// that the driver may try out, in its directory for temporary data, what the kernel does. Its locks
    /// are taken shared, all of them for a moment and the layer lock for a moment for each layer, and none while data flows: it
    /// may be in use meanwhile. What is deleted from it before it is copied is left out. In `to` the locks are those of
    /// [`Store::put_layer`], [`Store::create_image`] and [`Store::create_container`], for each item; to replace a container also
    /// those of [`Store::delete_container`]. Two copies to one store are made one after the other.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if `to` is this store, or [lies in it](Store::contains), and for options that exclude each
    /// other; [`ErrorKind::ImageUnknown`] and
    /// [`ErrorKind::ContainerUnknown`] for what is named; [`ErrorKind::DuplicateId`] if `to` has an item with the ID of one of
    /// this store and other content, and the error that says so for a name, both before anything is copied;
    /// [`ErrorKind::LayerUnknown`] if a layer is missing here; [`ErrorKind::DigestMismatch`] and
    /// [`ErrorKind::LayerContentModified`] for a damaged layer; those of reading and of creating each item. What was copied
    /// before that stays.
    ///
    /// # Cancellation
    /// What was copied stays, and nothing half-done remains; an item that is being put in place is finished in the
    /// background. The same call continues.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
    /// use graphroot::{CopyOptions, Store, StoreOptions};
    /// let options = StoreOptions::new("/srv/containers/storage", "/run/copied").driver("overlay");
    /// let other = Store::open(options).await?;
    /// let report = store.copy_to(&other, CopyOptions::new()).await?;
    /// println!("{} items copied, {} were there", report.copied.len(), report.present.len());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn copy_to(&self, to: &Self, options: CopyOptions) -> Result<CopyReport> {
        let what = format!(
            "copying {} to {}",
            self.graph_root().display(),
            to.graph_root().display()
        );
        // Boxed: the state is large.
        let copied = Box::pin(self.copy_all_to(to, options));
        copied.await.map_err(|error| error.context(what))
    }

    /// Whether [`Store::copy_to`] finds what it is to copy: all that `options` name, with every layer that it needs. Nothing is
    /// changed, and no other store is needed. The locks are taken shared, for a moment.
    ///
    /// # Errors
    /// Those of [`Store::copy_to`] before anything is copied, but for what depends on the other store.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn check_copy(&self, options: &CopyOptions) -> Result<()> {
        let checked = async {
            options.validate()?;
            Plan::check(self, options).await
        };
        let what = || format!("copying {}", self.graph_root().display());
        checked.await.map_err(|error: Error| error.context(what()))
    }

    async fn copy_all_to(&self, to: &Self, options: CopyOptions) -> Result<CopyReport> {
        options.validate()?;
        let dirs = &to.inner.dirs;
        // What is only looked at may be anywhere.
        for root in [Some(&dirs.graph_root), dirs.image_store.as_ref()]
            .into_iter()
            .flatten()
        {
            if !options.dry_run && self.contains(root).await? {
                let (ours, theirs) = (root.display(), self.graph_root().display());
                return Err(ErrorKind::InvalidInput.err(format!("{ours} lies in the store {theirs}")));
            }
        }
        let mut plan = Plan::new(self, to, &options).await;
        let mut _flight = None;
        if !options.dry_run {
            let locks = dirs.layers_tmp();
            let lock = locks.join(FLIGHT);
            // What is refused leaves no trace; but it may only be half of what another copy puts there.
            if plan.is_ok() || bridge::run(move || Ok(lock.exists())).await? {
                _flight = Some(single_flight::acquire(&locks, FLIGHT).await?);
            }
            plan = Plan::new(self, to, &options).await;
        }
        let mut plan = plan?;
        let mut course = Course {
            report: CopyReport {
                present: plan.present.clone(),
                ..CopyReport::default()
            },
            job: Arc::new(Job {
                from: self.clone(),
                to: to.clone(),
                options,
            }),
        };
        course
            .compare_layers(std::mem::take(&mut plan.undigested))
            .await?;
        let outdated = course.compare(std::mem::take(&mut plan.there)).await?;
        if course.job.options.dry_run {
            let layers = plan.layers.iter().map(SourceLayer::item);
            let images = plan.images.iter().map(plan::SourceImage::item);
            let containers = plan.containers.iter().map(SourceContainer::item);
            course.report.copied = layers.chain(images).chain(containers).collect();
            course.report.refreshed = outdated.iter().map(SourceContainer::item).collect();
            return Ok(course.report);
        }
        course.job.options.tell(|| CopyEvent::Started {
            layers: plan.layers.len() + plan.containers.len() + outdated.len(),
            images: plan.images.len(),
            containers: plan.containers.len() + outdated.len(),
        });
        course.copy_layers(plan.layers).await?;
        for image in plan.images {
            let item = image.item();
            course.begin(&item);
            let copied = course.job.copy_image(&image).await;
            let copied = copied.map(|()| Copied::There(Outcome::default()));
            course.end(item, copied).await?;
        }
        let new = plan.containers.into_iter().map(|container| (container, false));
        let containers = new.chain(outdated.into_iter().map(|container| (container, true)));
        course.copy_containers(containers.collect()).await?;
        Ok(course.report)
    }
}

/// The state of a copy.
struct Course {
    job: Arc<Job>,
    report: CopyReport,
}

/// Whether a layer has come to the target; `None` as long as that is open.
type There = Option<bool>;

/// An item and what copying it has come to.
type Ended = (CopiedItem, Result<Copied>);

/// The result of a task, or the end of this one.
fn joined<T>(result: std::result::Result<T, tokio::task::JoinError>) -> Result<T> {
    match result {
        Ok(result) => Ok(result),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_aborted) => Err(ErrorKind::Cancelled.err("the runtime is shutting down")),
    }
}

/// Waits until a layer is there. If it failed, that ends everything.
async fn wait_for(parent: Option<watch::Receiver<There>>) -> bool {
    let Some(mut parent) = parent else { return true };
    let there = parent.wait_for(Option::is_some).await.map(|there| *there);
    match there {
        Ok(there) => there.unwrap_or_default(),
        Err(_failed) => std::future::pending().await,
    }
}

impl Course {
    fn begin(&self, item: &CopiedItem) {
        self.job.options.tell(|| CopyEvent::Copying {
            kind: item.kind,
            id: item.id.clone(),
        });
    }

    /// Notes what copying an item has come to.
    async fn end(&mut self, item: CopiedItem, copied: Result<Copied>) -> Result<()> {
        match copied {
            Ok(Copied::Gone) => self.report.gone.push(item),
            Ok(Copied::InUse) => {
                let difference = IN_USE.to_owned();
                self.report.different.push(DifferentItem { item, difference });
            }
            Ok(Copied::There(outcome)) => {
                self.job.options.tell(|| CopyEvent::Copied {
                    kind: item.kind,
                    id: item.id.clone(),
                });
                if outcome.while_mounted {
                    self.report.mounted.push(item.clone());
                }
                self.lose(&item, outcome.losses);
                match outcome.refreshed {
                    true => self.report.refreshed.push(item),
                    false => self.report.copied.push(item),
                }
            }
            Err(error) if error.is_not_found() && !self.job.is_there(&item).await? => {
                tracing::debug!(?item, error = %error.chain(), "deleted before it was copied");
                self.report.gone.push(item);
            }
            Err(error) => return Err(error.context(format!("copying {} {:?}", item.kind.noun(), item.id))),
        }
        Ok(())
    }

    /// Notes what the target cannot have of an item.
    fn lose(&mut self, item: &CopiedItem, losses: Vec<Loss>) {
        let lost = losses.into_iter().map(|Loss { path, what }| LostContent {
            item: item.clone(),
            path,
            what,
        });
        self.report.lost.extend(lost);
    }

    async fn copy_layers(&mut self, layers: Vec<SourceLayer>) -> Result<()> {
        let permits = Arc::new(Semaphore::new(processors().clamp(2, MAX_AT_ONCE)));
        let mut there: HashMap<String, watch::Receiver<There>> = HashMap::new();
        let mut tasks: JoinSet<Ended> = JoinSet::new();
        for layer in layers {
            // A layer has its permit before those on it: one of those that have permits always goes on.
            let permit = loop {
                tokio::select! {
                    permit = Arc::clone(&permits).acquire_owned() => break permit,
                    Some(ended) = tasks.join_next() => {
                        let (item, copied) = joined(ended)?;
                        self.end(item, copied).await?;
                    }
                }
            };
            let permit = permit.map_err(|closed| {
                ErrorKind::Cancelled
                    .err("waiting to copy a layer")
                    .with_source(closed)
            })?;
            let (tell, told) = watch::channel(None);
            there.insert(layer.row.id.to_string(), told);
            let parent = layer
                .row
                .parent_id()
                .and_then(|parent| there.get(parent))
                .cloned();
            let job = Arc::clone(&self.job);
            self.begin(&layer.item());
            let task = async move {
                let item = layer.item();
                let copied = match job.copy_layer(&layer, wait_for(parent)).await {
                    Err(error) if error.is_not_found() && matches!(job.is_there(&item).await, Ok(false)) => {
                        Ok(Copied::Gone)
                    }
                    copied => copied,
                };
                if let Ok(copied) = &copied {
                    tell.send_replace(Some(matches!(copied, Copied::There(_))));
                }
                drop(permit);
                (item, copied)
            };
            tasks.spawn(task.in_current_span());
        }
        self.end_all(tasks).await
    }

    /// Has `work` run for each of the items in a task of its own, several at a time.
    fn at_once<I, W>(&self, items: Vec<I>, work: impl Fn(Arc<Job>, I) -> W) -> JoinSet<W::Output>
    where
        W: Future<Output: Send + 'static> + Send + 'static,
    {
        let permits = Arc::new(Semaphore::new(processors().clamp(2, MAX_AT_ONCE)));
        let mut tasks = JoinSet::new();
        for item in items {
            let (permits, work) = (Arc::clone(&permits), work(Arc::clone(&self.job), item));
            let task = async move {
                let _permit = permits.acquire_owned().await;
                work.await
            };
            tasks.spawn(task.in_current_span());
        }
        tasks
    }

    /// Compares layers with the copies that the target has of them.
    async fn compare_layers(&mut self, layers: Vec<SourceLayer>) -> Result<()> {
        let mut tasks = self.at_once(layers, |job, layer| async move {
            let id = layer.row.id.to_string();
            job.options.tell(|| CopyEvent::Comparing { id });
            (layer.item(), job.compare_trees(&layer.row).await)
        });
        while let Some(ended) = tasks.join_next().await {
            match joined(ended)? {
                (item, Ok(Compared::Same(losses))) => {
                    self.lose(&item, losses);
                    self.report.present.push(item);
                }
                (item, Ok(Compared::Different(difference))) => {
                    self.report.different.push(DifferentItem { item, difference });
                }
                (item, Err(error)) => self.end(item, Err(error)).await?,
            }
        }
        Ok(())
    }

    /// Compares containers with the copies that the target has of them. Returns those that are to be copied anew.
    async fn compare(&mut self, containers: Vec<SourceContainer>) -> Result<Vec<SourceContainer>> {
        let mut tasks = self.at_once(containers, |job, container| async move {
            let id = container.row.id.to_string();
            job.options.tell(|| CopyEvent::Comparing { id });
            let found = job.compare(&container).await;
            let in_use = match &found {
                Ok(Compared::Different(_)) if job.options.refresh => {
                    job.is_in_use(&container.layer.row.id).await
                }
                _ => Ok(false),
            };
            (container, found.and_then(|found| Ok((found, in_use?))))
        });
        let mut outdated = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            let (container, found) = joined(ended)?;
            let item = container.item();
            match found {
                Ok((Compared::Same(losses), _)) => {
                    self.lose(&item, losses);
                    self.report.present.push(item);
                }
                Ok((Compared::Different(_), false)) if self.job.options.refresh => outdated.push(container),
                Ok((Compared::Different(difference), in_use)) => {
                    let difference = match in_use {
                        true => format!("{difference}; {IN_USE}"),
                        false => difference,
                    };
                    self.report.different.push(DifferentItem { item, difference });
                }
                Err(error) => self.end(item, Err(error)).await?,
            }
        }
        Ok(outdated)
    }

    /// Copies containers, and those anew that are outdated.
    async fn copy_containers(&mut self, containers: Vec<(SourceContainer, bool)>) -> Result<()> {
        let tasks = self.at_once(containers, |job, (container, is_outdated)| async move {
            let item = container.item();
            job.options.tell(|| CopyEvent::Copying {
                kind: item.kind,
                id: item.id.clone(),
            });
            let copied = job.copy_container(&container, is_outdated).await;
            (item, copied)
        });
        self.end_all(tasks).await?;
        Ok(())
    }

    /// Waits for the tasks. Those that are left after a failure end with this.
    async fn end_all(&mut self, mut tasks: JoinSet<Ended>) -> Result<()> {
        while let Some(ended) = tasks.join_next().await {
            let (item, copied) = joined(ended)?;
            self.end(item, copied).await?;
        }
        Ok(())
    }
}

impl Job {
    /// Whether a layer of the target is mounted: by what its run root counts, and, whatever other run root it is used with, where
    /// the driver has mounts of its own by these, else by what is seen of the use of its tree.
    pub(super) async fn is_in_use(&self, layer: &str) -> Result<bool> {
        if self.to.mounted(layer).await? > 0 {
            return Ok(true);
        }
        let (driver, layer) = (self.to.inner.driver(), layer.to_owned());
        bridge::run(move || {
            if driver.own_mount_state(&layer)? != MountState::Nowhere {
                return Ok(true);
            }
            let tree = driver.layer_tree(&layer)?;
            if tree.whiteouts != WhiteoutFormat::Apply {
                return Ok(false);
            }
            is_used(tree.dir.as_fd()).during("looking for users of a layer's tree")
        })
        .await
    }

    /// Whether the source still has an item, with everything that it needs.
    async fn is_there(&self, item: &CopiedItem) -> Result<bool> {
        let held = self.from.hold_everything().await?;
        Ok(match item.kind {
            ItemKind::Layer => held.layers.iter().any(|(_, table)| table.get(&item.id).is_some()),
            ItemKind::Image => held.images.iter().any(|(_, table)| table.get(&item.id).is_some()),
            ItemKind::Container => held.containers.get(&item.id).is_some(),
        })
    }
}

//! Copies of a store, or of a part of it, in another graph root and with another driver.
//!
//! ```text
//! shared locks of both, for a moment:  what is there, what is missing
//! no lock:   layer → stream as it came in, or what the driver says has changed ─┐ beside each other
//!                    └ files offered as origins: clones on the same file system │
//! target:            unpacked in a staging directory ── its parent is there ────┘─→ layer
//!            image → record and data, in one step
//!            container → layer and data staged → both records, in one step
//! ```
//!
//! An item is in the target as a whole or not at all, and after what it needs: whoever is killed copies the rest the next
//! time.

mod container;
mod image;
mod layer;
pub(crate) mod options;
mod plan;
pub(crate) mod report;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::Mode;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use crate::bridge;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::store::Store;
use crate::store::check::finding::ItemKind;
use crate::store::copy_to::layer::{Copied, Job};
use crate::store::copy_to::options::{CopyEvent, CopyOptions};
use crate::store::copy_to::plan::{Plan, SourceContainer, SourceLayer};
use crate::store::copy_to::report::{CopiedItem, CopyReport};
use crate::sys::{at, processors, tree};

/// Items that are copied at the same time, at the most. Each has a thread and a few MiB.
const MAX_AT_ONCE: usize = 8;

/// # Copies in other stores
impl Store {
    /// Copies this store, or some images and containers of it, to another one, which may have another driver: layers, images
    /// and containers with their IDs, names, dates, digests, flags, metadata, mappings, tar-split data and big data, and what
    /// containers have changed. Neither a registry nor an image program is needed.
    ///
    /// What `to` has already, by ID and digest, is taken as done and stays as it is, also a container that has changed since it
    /// was copied, and an image that was given more names; so a copy that was cut off is continued
    /// by the same call, with the same end. Layers are copied before those on them, several at a time. Where both stores are
    /// on one file system that can share content, files of 16 KiB and more are clones.
    ///
    /// A layer with tar-split data is copied as the stream that it came from, and is refused if that has not the recorded
    /// digest. Of a layer without it, such as a container's, the changes against its parent are copied as [`Store::diff`] has
    /// them. Left out is what it leaves out: sockets; with ID mappings, files of owners that they do not contain; the extended
    /// attributes `trusted.*` and unknown ones of `security.*`, access control lists, and those of the layer's root directory.
    /// A file that a container has named `.wh.NAME` becomes a deletion of `NAME`; a hard link to a file of the image that has
    /// not changed becomes a file of its own; and where drivers compare trees (vfs), a file that has kept its size and times
    /// counts as unchanged.
    ///
    /// Of additional image stores and of an additional layer store only those layers and images are copied that what is copied needs, or
    /// that are named, unless `to` finds them in such a store too. They become layers and images of `to` itself.
    ///
    /// A container is copied as each of its files is when it is read; for one moment of all files, stop it. The report says
    /// which ones were mounted. What it has in the run root and what is mounted in its directories is not copied. Files of
    /// programs beside the store in its graph root, such as Podman's database of containers and its volumes, are theirs.
    ///
    /// Owners on disk follow the driver of `to`: where it maps owners in mounts, layers of images with ID mappings are kept
    /// without them, as by [`Store::put_layer`].
    ///
    /// Nothing in this store is changed, except that what killed processes have left is put right as by every reader, and
    /// that the driver may try out, in its directory for temporary data, what the kernel does. Its locks
    /// are taken shared, all of them for a moment and the layer lock for a moment for each layer, and none while data flows: it
    /// may be in use meanwhile. What is deleted from it before it is copied is left out. In `to` the locks are those of
    /// [`Store::put_layer`], [`Store::create_image`] and [`Store::create_container`], for each item.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if `to` is this store, or lies in it; [`ErrorKind::ImageUnknown`] and
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

    async fn copy_all_to(&self, to: &Self, options: CopyOptions) -> Result<CopyReport> {
        let (from_root, to_root) = (self.graph_root().to_owned(), to.graph_root().to_owned());
        bridge::run(move || check_apart(&from_root, &to_root)).await?;
        let plan = Plan::new(self, to, &options).await?;
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
        if course.job.options.dry_run {
            let layers = plan.layers.iter().map(SourceLayer::item);
            let images = plan.images.iter().map(plan::SourceImage::item);
            let containers = plan.containers.iter().map(SourceContainer::item);
            course.report.copied = layers.chain(images).chain(containers).collect();
            return Ok(course.report);
        }
        course.job.options.tell(|| CopyEvent::Started {
            layers: plan.layers.len() + plan.containers.len(),
            images: plan.images.len(),
            containers: plan.containers.len(),
        });
        course.copy_layers(plan.layers).await?;
        for image in plan.images {
            let item = image.item();
            course.begin(&item);
            let copied = course.job.copy_image(&image).await.map(|()| Copied::Whole);
            course.end(item, copied).await?;
        }
        course.copy_containers(plan.containers).await?;
        Ok(course.report)
    }
}

/// Refuses a target that is the source, or lies in it.
fn check_apart(from: &Path, to: &Path) -> Result<()> {
    let open = |path: &Path| at::open_dir(path).at("opening", path);
    let identity = |dir: &OwnedFd| {
        let stat = rustix::fs::fstat(dir).during("looking at a graph root")?;
        Ok::<_, Error>(tree::identity(&stat))
    };
    let (source, mut above) = (identity(&open(from)?)?, open(to)?);
    let mut known = identity(&above)?;
    loop {
        if known == source {
            let what = format!("{} lies in the store {}", to.display(), from.display());
            return Err(ErrorKind::InvalidInput.err(what));
        }
        above = rustix::fs::openat(&above, "..", tree::DIR_FLAGS, Mode::empty())
            .at("opening what is above", to)?;
        let next = identity(&above)?;
        if next == known {
            return Ok(());
        }
        known = next;
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
type Outcome = (CopiedItem, Result<Copied>);

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
            Ok(copied) => {
                self.job.options.tell(|| CopyEvent::Copied {
                    kind: item.kind,
                    id: item.id.clone(),
                });
                if matches!(copied, Copied::WhileMounted) {
                    self.report.mounted.push(item.clone());
                }
                self.report.copied.push(item);
            }
            Err(error) if error.is_not_found() && !self.job.is_there(&item).await? => {
                tracing::debug!(?item, error = %error.chain(), "deleted before it was copied");
                self.report.gone.push(item);
            }
            Err(error) => return Err(error.context(format!("copying {} {:?}", item.kind.noun(), item.id))),
        }
        Ok(())
    }

    async fn copy_layers(&mut self, layers: Vec<SourceLayer>) -> Result<()> {
        let permits = Arc::new(Semaphore::new(processors().clamp(2, MAX_AT_ONCE)));
        let mut there: HashMap<String, watch::Receiver<There>> = HashMap::new();
        let mut tasks: JoinSet<Outcome> = JoinSet::new();
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
                    Ok(true) => Ok(Copied::Whole),
                    Ok(false) => Ok(Copied::Gone),
                    Err(error) if error.is_not_found() && matches!(job.is_there(&item).await, Ok(false)) => {
                        Ok(Copied::Gone)
                    }
                    Err(error) => Err(error),
                };
                if let Ok(copied) = &copied {
                    tell.send_replace(Some(matches!(copied, Copied::Whole)));
                }
                drop(permit);
                (item, copied)
            };
            tasks.spawn(task.in_current_span());
        }
        self.end_all(tasks).await
    }

    async fn copy_containers(&mut self, containers: Vec<SourceContainer>) -> Result<()> {
        let permits = Arc::new(Semaphore::new(processors().clamp(2, MAX_AT_ONCE)));
        let mut tasks: JoinSet<Outcome> = JoinSet::new();
        for container in containers {
            let (permits, job) = (Arc::clone(&permits), Arc::clone(&self.job));
            let task = async move {
                let _permit = permits.acquire_owned().await;
                let item = container.item();
                job.options.tell(|| CopyEvent::Copying {
                    kind: item.kind,
                    id: item.id.clone(),
                });
                let copied = job.copy_container(&container).await;
                (item, copied)
            };
            tasks.spawn(task.in_current_span());
        }
        self.end_all(tasks).await?;
        Ok(())
    }

    /// Waits for the tasks. Those that are left after a failure end with this.
    async fn end_all(&mut self, mut tasks: JoinSet<Outcome>) -> Result<()> {
        while let Some(ended) = tasks.join_next().await {
            let (item, copied) = joined(ended)?;
            self.end(item, copied).await?;
        }
        Ok(())
    }
}

impl Job {
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

//! The process-wide list of open stores, and how one is opened.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::bridge;
use crate::config::{Loader, load};
use crate::driver::Driver;
use crate::driver::select::open_driver;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::lock::record_lock::{ExclusiveLock, LockFile, LockMode};
use crate::options::StoreOptions;
use crate::store::Store;
use crate::store::access::writers::Writers;
use crate::store::inner::Inner;
use crate::store::roots::DistinctDirs;
use crate::sys::name_sync::{self, NameSync};
use crate::sys::presence::is_there;
use crate::sys::{clean_path, make_private_dir};

/// In the graph root: held while a driver starts.
const GRAPH_LOCK: &str = "storage.lock";

/// Open stores. Weak, so that a store ends with its last clone; a thread that is about to end may have the first part for a
/// moment longer, and only clones have the second.
static STORES: Mutex<Vec<(Weak<Inner>, Weak<Writers>)>> = Mutex::new(Vec::new());

/// The store of an entry that has clones left.
fn upgrade((inner, writers): &(Weak<Inner>, Weak<Writers>)) -> Option<Store> {
    Some(Store {
        inner: inner.upgrade()?,
        writers: writers.upgrade()?,
    })
}

fn find(options: &StoreOptions) -> Option<Store> {
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    stores.retain(|(_, handles)| handles.strong_count() > 0);
    stores
        .iter()
        .filter_map(upgrade)
        .find(|store| same(&store.inner, options))
}

fn same(store: &Inner, wanted: &StoreOptions) -> bool {
    store.options.graph_root == wanted.graph_root
        && store.options.run_root == wanted.run_root
        && wanted
            .driver
            .as_deref()
            .is_none_or(|name| canonical_driver(name) == store.dirs.driver_name)
}

fn canonical_driver(name: &str) -> &str {
    if name == "overlay2" { "overlay" } else { name }
}

/// Names the options of a later caller that have no effect.
fn warn_of_differences(store: &Inner, wanted: &StoreOptions) {
    let differing = wanted.differing(&store.options);
    if !differing.is_empty() {
        tracing::warn!(
            graph_root = %store.options.graph_root.display(),
            options = differing.join(", "),
            "the store is open already in this process with other options, which stay in force"
        );
    }
}

/// Takes a store off the list.
pub(crate) fn forget(inner: &Arc<Inner>) {
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    stores.retain(|(store, handles)| {
        handles.strong_count() > 0 && !std::ptr::eq(store.as_ptr(), Arc::as_ptr(inner))
    });
}

fn absolute(path: PathBuf, what: &str) -> Result<PathBuf> {
    if path.as_os_str().is_empty() {
        return Err(ErrorKind::IncompleteOptions.err(format!("no storage {what} specified")));
    }
    clean_path(&path).at("making absolute", &path)
}

/// Fills in what the caller left to the configuration: everything, or one of the two roots. Files are read only if
/// something is missing, so that a broken file does not matter to callers that do not need it.
async fn complete(mut options: StoreOptions, loader: Loader) -> Result<StoreOptions> {
    let is_missing = |path: &Path| path.as_os_str().is_empty();
    match (is_missing(&options.graph_root), is_missing(&options.run_root)) {
        (false, false) => return Ok(options),
        (true, true) if options.driver.is_some() || !options.driver_options.is_empty() => {
            return Err(ErrorKind::IncompleteOptions.err("no storage graph root or run root specified"));
        }
        _ => {}
    }
    let configured = load(loader).await?;
    if is_missing(&options.graph_root) && is_missing(&options.run_root) {
        return Ok(StoreOptions {
            durability: options.durability,
            lock_timeout: options.lock_timeout,
            max_unpacks: options.max_unpacks,
            tree_driver: options.tree_driver,
            ..configured
        });
    }
    if is_missing(&options.graph_root) {
        options.graph_root = configured.graph_root;
    } else {
        options.run_root = configured.run_root;
    }
    Ok(options)
}

pub(crate) async fn open(options: StoreOptions) -> Result<Store> {
    let mut options = complete(options, Loader::for_process()).await?;
    options.graph_root = absolute(options.graph_root, "graph root")?;
    options.run_root = absolute(options.run_root, "run root")?;
    options.image_store = options
        .image_store
        .map(|path| absolute(path, "image store"))
        .transpose()?;
    options.id_mappings.validate()?;
    if let Some(store) = find(&options) {
        warn_of_differences(&store.inner, &options);
        return Ok(store);
    }
    let timeout = options.lock_timeout;
    let begun = bridge::run(move || {
        let made = Missing::find(&options);
        make_private_dir(&options.run_root)?;
        make_root(&options.graph_root, &options)?;
        if let Some(image_store) = &options.image_store {
            make_root(image_store, &options)?;
        }
        drop(DistinctDirs::roots(&options)?);
        let lock = LockFile::open(&options.graph_root.join(GRAPH_LOCK), LockMode::ReadWrite)?;
        // It is never held for long, so that this one step is mostly enough.
        match lock.try_exclusive()? {
            Some(held) => assemble(options, lock, held, &made).map(Begun::Done),
            None => Ok(Begun::Busy(Box::new(options), lock)),
        }
    })
    .await?;
    let inner = match begun {
        Begun::Done(inner) => inner,
        Begun::Busy(options, lock) => {
            let held = lock.exclusive(timeout).await?;
            bridge::run(move || assemble(*options, lock, held, &Missing::default())).await?
        }
    };
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    // Another task may have opened the same store meanwhile: the first one on the list is used.
    if let Some(first) = stores
        .iter()
        .filter_map(upgrade)
        .find(|store| same(&store.inner, &inner.options))
    {
        warn_of_differences(&first.inner, &inner.options);
        return Ok(first);
    }
    let store = Store {
        inner,
        writers: Arc::default(),
    };
    stores.push((Arc::downgrade(&store.inner), Arc::downgrade(&store.writers)));
    Ok(store)
}

/// Makes a directory that survives a reboot, if it is missing.
fn make_root(path: &Path, options: &StoreOptions) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    make_private_dir(path)?;
    match Inner::name_sync(options) {
        NameSync::Off => Ok(()),
        NameSync::InOrder | NameSync::Always => path.ancestors().skip(1).try_for_each(name_sync::sync_after),
    }
}

/// The directories that opening a store makes.
#[derive(Default)]
struct Missing(Vec<PathBuf>);

impl Missing {
    fn find(options: &StoreOptions) -> Self {
        let roots = [&options.graph_root, &options.run_root];
        let dirs = roots.into_iter().chain(&options.image_store);
        // What cannot be looked at was not made by this.
        let is_missing = |dir: &&Path| matches!(is_there(dir), Ok(false));
        let dirs = dirs.flat_map(|root| root.ancestors().take_while(is_missing));
        Self(dirs.map(Path::to_owned).collect())
    }

    /// Removes them, if there is nothing in them: no driver works there. The graph lock is held.
    fn remove(&self, options: &StoreOptions) {
        if self.0.contains(&options.graph_root) {
            std::fs::remove_file(options.graph_root.join(GRAPH_LOCK)).ok();
        }
        for dir in &self.0 {
            // Another one may have put something there.
            std::fs::remove_dir(dir).ok();
        }
    }
}

/// How far the first step of opening a store has come.
enum Begun {
    Done(Arc<Inner>),
    /// Another process or task has the lock.
    Busy(Box<StoreOptions>, Arc<LockFile>),
}

/// Opens everything under the graph lock.
fn assemble(
    options: StoreOptions,
    lock: Arc<LockFile>,
    held: ExclusiveLock,
    missing: &Missing,
) -> Result<Arc<Inner>> {
    let token = held.token()?;
    let driver = open_driver(&crate::store::inner::driver_config(&options));
    let driver: Arc<dyn Driver> = driver.inspect_err(|_no_driver| missing.remove(&options))?;
    let inner = Inner::assemble(options, lock, driver, token)?;
    drop(held);
    Ok(Arc::new(inner))
}

/// # Opening
impl Store {
    /// Opens the store in `options.graph_root` and `options.run_root`, creating what is missing.
    ///
    /// If neither root, nor a driver, nor driver options are given, everything but
    /// [`StoreOptions::durability`], [`StoreOptions::lock_timeout`] and [`StoreOptions::max_unpacks`] is taken from
    /// [`StoreOptions::default_for_user`], and if one root is missing, that root. Otherwise the machine's
    /// configuration is not looked at.
    ///
    /// A store with the same two roots (and the same driver, if one is named) that this process has open already is
    /// returned as it is, whatever the other options say, as the Go library's `GetStore` does; a warning
    /// ([`tracing`]) names the options that differ. [`Store::free`] ends that.
    ///
    /// Takes `storage.lock` while the driver starts; waits for no other lock. Stale files of killed processes are
    /// removed here and at the first use of the records.
    ///
    /// # Errors
    /// [`ErrorKind::IncompleteOptions`] if no root is given but a driver is, [`ErrorKind::NotSupported`] if no driver works here,
    /// [`ErrorKind::InvalidInput`] for a driver option that is not known, or if two of the graph root, the run root, the
    /// image store and an additional image store are one directory, on whichever paths; [`ErrorKind::Io`].
    ///
    /// Where no driver works, directories that were made for it are removed.
    ///
    /// # Cancellation
    /// Directories may have been created; nothing else remains.
    ///
    /// # Panics
    /// Like all methods, outside a tokio runtime, and in one without timers (`enable_time`) when a lock is waited for.
    pub async fn open(options: StoreOptions) -> Result<Self> {
        open(options).await
    }

    /// Forgets this store in the process-wide list: the next [`Store::open`] makes a new one. Clones go on working.
    pub fn free(&self) {
        forget(&self.inner);
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// Collects what is logged.
    struct Log(Arc<Mutex<String>>);

    impl tracing::Subscriber for Log {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() == tracing::Level::WARN
        }
        fn new_span(&self, _span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _span: &tracing::span::Id, _values: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _span: &tracing::span::Id, _follows: &tracing::span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            let mut log = self.0.lock().unwrap();
            event.record(
                &mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                    write!(log, "{field}={value:?};").unwrap();
                },
            );
        }
        fn enter(&self, _span: &tracing::span::Id) {}
        fn exit(&self, _span: &tracing::span::Id) {}
    }

    #[tokio::test]
    async fn a_store_that_is_open_with_other_options_says_which_differ() {
        let log = Arc::new(Mutex::new(String::new()));
        let _logging = tracing::subscriber::set_default(Log(Arc::clone(&log)));
        let dir = tempfile::tempdir().unwrap();
        let options = || StoreOptions::new(dir.path().join("graph"), dir.path().join("run")).driver("vfs");
        let first = Store::open(options()).await.unwrap();
        let same = Store::open(options()).await.unwrap();
        assert!(Arc::ptr_eq(&first.inner, &same.inner));
        assert_eq!(*log.lock().unwrap(), "");
        let other = options()
            .transient(true)
            .max_unpacks(3)
            .driver_option("vfs.ignore_chown_errors=true");
        let same = Store::open(other).await.unwrap();
        assert!(Arc::ptr_eq(&first.inner, &same.inner) && !same.transient_store());
        let log = log.lock().unwrap();
        assert!(log.contains("driver_options, transient, max_unpacks"), "{log}");
    }

    #[tokio::test]
    async fn where_no_driver_works_nothing_is_left() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (graph, run) = (dir.path().join("new/deep/graph"), dir.path().join("new/run"));
        let open = || Store::open(StoreOptions::new(&graph, &run).driver("btrfs"));
        let error = open().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSupported);
        assert!(!dir.path().join("new").exists());
        // What was there stays, empty or not.
        std::fs::create_dir_all(&graph).unwrap();
        open().await.unwrap_err();
        assert!(graph.join(GRAPH_LOCK).exists() && !run.exists());
    }

    #[tokio::test]
    async fn what_is_not_said_comes_from_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("storage.conf");
        let text = "[storage]\ndriver = \"vfs\"\ngraphroot = \"/the/graph\"\nrunroot = \"/the/run\"\n";
        std::fs::write(&file, text).unwrap();
        let loader = || Loader::new().variable("CONTAINERS_STORAGE_CONF", &file);

        let timeout = Some(std::time::Duration::from_secs(1));
        let nothing = StoreOptions::default().lock_timeout(timeout).max_unpacks(3);
        let all = complete(nothing, loader()).await.unwrap();
        assert_eq!(
            (&*all.graph_root, &*all.run_root),
            (Path::new("/the/graph"), Path::new("/the/run"))
        );
        assert_eq!((all.driver.as_deref(), all.lock_timeout), (Some("vfs"), timeout));
        assert_eq!(all.max_unpacks, 3);

        // One root: of the configuration only the other one.
        for (graph, run) in [("/my", ""), ("", "/my")] {
            let one = complete(StoreOptions::new(graph, run), loader()).await.unwrap();
            let expected = if graph.is_empty() {
                ("/the/graph", "/my")
            } else {
                ("/my", "/the/run")
            };
            assert_eq!(
                (&*one.graph_root, &*one.run_root),
                (Path::new(expected.0), Path::new(expected.1))
            );
            assert_eq!(one.driver, None);
        }
        for half in [
            StoreOptions::default().driver("vfs"),
            StoreOptions::default().driver_option("vfs.ignore_chown_errors=true"),
        ] {
            let error = complete(half, loader()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::IncompleteOptions);
        }

        // Options that leave nothing open do not depend on the files.
        std::fs::write(&file, "broken").unwrap();
        assert!(complete(StoreOptions::new("/my", "/own"), loader()).await.is_ok());
        assert!(complete(StoreOptions::new("/my", ""), loader()).await.is_err());
    }
}

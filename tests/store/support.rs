//! A store in a temporary directory, and small archives to put into it.

use std::path::{Path, PathBuf};
use std::pin::Pin;

use graphroot::{CheckOptions, Durability, Layer, LayerOptions, Result, Store, StoreOptions};
use tokio::io::AsyncReadExt as _;

use crate::{btrfs, zfs};

/// A store that is unmounted and removed when the test ends, however it ends.
pub struct TestStore {
    pub store: Store,
    layout: Layout,
    root: tempfile::TempDir,
    /// What the root is in.
    dataset: Option<zfs::Dataset>,
}

/// How a store is spread over directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Everything below the graph root.
    Plain,
    /// Images and their layers in a directory of their own.
    Split,
    /// Container records in the run root.
    Transient,
    /// Beside a read-only store that has layers and images of its own.
    Additional,
    /// Everything below the graph root, mounted by a program.
    Program,
    /// Everything below the graph root; layers in parts have images.
    Composefs,
    /// Beside an additional layer store with references and one without, `offered` and `plain`.
    LayerStores,
}

/// The program that mounts where [`Layout::Program`] is asked for.
const MOUNT_PROGRAM: &str = "/usr/bin/fuse-overlayfs";

/// Why a layout of a driver cannot be tested here.
fn obstacle(driver: &str, layout: Layout) -> Option<&'static str> {
    if driver == "overlay" && !rustix::process::geteuid().is_root() {
        return Some("overlay needs root");
    }
    if driver == "btrfs"
        && let Err(why) = btrfs::shared()
    {
        return Some(why);
    }
    let open_fuse = || std::fs::File::options().read(true).write(true).open("/dev/fuse");
    let has_erofs = || {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        known.lines().any(|line| line.trim() == "erofs")
    };
    match layout {
        Layout::Composefs if !has_erofs() => Some("the kernel has no EROFS"),
        Layout::Program if !Path::new(MOUNT_PROGRAM).exists() => Some("fuse-overlayfs is not installed"),
        Layout::Program if open_fuse().is_err() => Some("/dev/fuse cannot be opened"),
        _ => None,
    }
}

/// Says that a test cannot run here; fails where all have to.
pub fn skip(why: &str) {
    assert!(
        std::env::var("GRAPHROOT_TEST_REQUIRE").as_deref() != Ok("all"),
        "{why}"
    );
    eprintln!("SKIPPED: {why}");
}

impl std::ops::Deref for TestStore {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl TestStore {
    /// `None`, with a line that says why, where the driver cannot work.
    pub async fn open(driver: &str, layout: Layout) -> Option<Self> {
        if let Some(why) = obstacle(driver, layout) {
            skip(why);
            return None;
        }
        let mut dataset = None;
        let place = match driver {
            "zfs" => match zfs::Dataset::new() {
                Ok(made) => dataset.insert(made).path().to_owned(),
                Err(why) => {
                    zfs::without(why, skip);
                    return None;
                }
            },
            "btrfs" => btrfs::shared().unwrap().to_owned(),
            _ => std::env::temp_dir(),
        };
        let root = tempfile::Builder::new()
            .prefix("graphroot-test-")
            .tempdir_in(place)
            .unwrap();
        if layout == Layout::Additional {
            fill_additional(&root.path().join("additional"), driver).await;
        }
        if layout == Layout::LayerStores {
            for name in ["offered", "plain"] {
                std::fs::create_dir(root.path().join(name)).unwrap();
            }
        }
        let options = options(root.path(), driver, layout);
        Some(Self {
            store: Store::open(options).await.unwrap(),
            layout,
            root,
            dataset,
        })
    }

    /// A second, independent opening of the same directories, as another process would have it.
    pub async fn reopen(&self) -> Store {
        self.reopen_as(self.layout).await
    }

    /// As [`TestStore::reopen`], as if the store had another layout.
    pub async fn reopen_as(&self, layout: Layout) -> Store {
        self.store.free();
        let driver = self.store.graph_driver_name();
        Store::open(options(self.root.path(), driver, layout))
            .await
            .unwrap()
    }

    /// As [`TestStore::reopen`], with an option for pulls.
    pub async fn reopen_with(&self, key: &str, value: &str) -> Store {
        self.reopen_as_with(self.layout, key, value).await
    }

    /// As [`TestStore::reopen_as`], with an option for pulls.
    pub async fn reopen_as_with(&self, layout: Layout, key: &str, value: &str) -> Store {
        self.store.free();
        let driver = self.store.graph_driver_name();
        let options = options(self.root.path(), driver, layout);
        Store::open(options.pull_option(key, value)).await.unwrap()
    }

    pub fn path(&self) -> &Path {
        self.root.path()
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The directory of records of one kind.
    pub fn records(&self, kind: &str) -> PathBuf {
        let root = match (self.layout, kind) {
            (Layout::Split, "images") => "images",
            _ => "graph",
        };
        let name = format!("{}-{kind}", self.store.graph_driver_name());
        self.root.path().join(root).join(name)
    }

    /// The datasets of layers, whatever state they are in.
    pub fn datasets(&self) -> Vec<String> {
        let mut zfs = std::process::Command::new("zfs");
        zfs.args(["list", "-H", "-r", "-t", "filesystem", "-o", "name"]);
        let root = self.dataset.as_ref().unwrap().name();
        let listed = zfs.arg(root).output().unwrap().stdout;
        let names = String::from_utf8(listed).unwrap();
        names
            .lines()
            .filter(|name| *name != root)
            .map(str::to_owned)
            .collect()
    }

    /// Has the driver lose a layer.
    pub fn lose(&self, id: &str) {
        let Some(dataset) = &self.dataset else {
            let place = place_of(self, id);
            return std::fs::remove_dir_all(writable(place)).unwrap();
        };
        let place = place_of(self, id);
        zfs::unmounts(&place);
        std::fs::remove_dir(place).unwrap();
        let name = format!("{}/{id}", dataset.name());
        let mut clones = std::process::Command::new("zfs");
        clones.args(["list", "-H", "-r", "-t", "filesystem", "-o", "origin,name"]);
        let listed = clones.arg(dataset.name()).output().unwrap().stdout;
        for clone in String::from_utf8(listed).unwrap().lines() {
            // What stands on it stays.
            if let Some((_, clone)) = clone
                .strip_prefix(&format!("{name}@"))
                .and_then(|clone| clone.split_once('\t'))
            {
                assert!(zfs::zfs(&["promote", clone]), "promoting {clone}");
            }
        }
        assert!(zfs::zfs(&["destroy", "-r", &name]), "destroying {name}");
    }

    /// Layers of this store, without those that the additional store brings.
    pub async fn own_layers(&self) -> Vec<Layer> {
        let mut layers = self.layers().await.unwrap();
        layers.retain(|layer| !layer.read_only());
        layers
    }

    /// Images of this store, without those that the additional store brings.
    pub async fn own_images(&self) -> Vec<graphroot::Image> {
        let mut images = self.images().await.unwrap();
        images.retain(|image| !image.read_only());
        images
    }

    /// Puts a layer of these files.
    pub async fn put(&self, parent: Option<&str>, name: &str, files: &[(&str, &str)]) -> Layer {
        let tar = tar(files);
        let options = LayerOptions::default().name(name);
        self.put_layer(parent, options, std::io::Cursor::new(tar))
            .await
            .unwrap()
            .layer
    }
}

pub fn options(root: &Path, driver: &str, layout: Layout) -> StoreOptions {
    let mut options = StoreOptions::new(root.join("graph"), root.join("run"))
        .driver(driver)
        .durability(Durability::None);
    options = for_this_user(options, driver);
    match layout {
        Layout::Plain => {}
        Layout::Split => options.image_store = Some(root.join("images")),
        Layout::Transient => options.transient = true,
        Layout::Additional => {
            options = options.driver_option(format!(
                "{driver}.imagestore={}",
                root.join("additional").display()
            ));
        }
        Layout::LayerStores => {
            let (offered, plain) = (root.join("offered"), root.join("plain"));
            let stores = format!("{}:ref,{}", offered.display(), plain.display());
            options = options.driver_option(format!("overlay.additionallayerstore={stores}"));
        }
        Layout::Composefs => {
            options = options.driver_option("overlay.use_composefs=true");
        }
        Layout::Program => {
            options = options.driver_option(format!("{driver}.mount_program={MOUNT_PROGRAM}"));
        }
    }
    options
}

/// Who is not root owns everything in his layers.
fn for_this_user(options: StoreOptions, driver: &str) -> StoreOptions {
    if driver == "vfs" && !rustix::process::geteuid().is_root() {
        options.driver_option("vfs.ignore_chown_errors=true")
    } else {
        options
    }
}

/// Makes a store that others will only read.
async fn fill_additional(root: &Path, driver: &str) {
    let options = StoreOptions::new(root, root.join("run"))
        .driver(driver)
        .durability(Durability::None);
    let store = Store::open(for_this_user(options, driver)).await.unwrap();
    let layer = LayerOptions::default().name("additional-layer");
    let layer = store
        .put_layer(None, layer, std::io::Cursor::new(tar(&[("from-below", "1")])))
        .await
        .unwrap()
        .layer;
    store
        .set_layer_big_data(layer.id(), "item", std::io::Cursor::new(b"data".to_vec()))
        .await
        .unwrap();
    let image = graphroot::ImageOptions::default()
        .name("additional-image")
        .big_data("manifest", "{\"a\":1}");
    store.create_image(Some(layer.id()), image).await.unwrap();
    store.shutdown_force().await.unwrap();
    store.free();
}

impl Drop for TestStore {
    fn drop(&mut self) {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut mounts: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        mounts.sort_by_key(|mount| std::cmp::Reverse(mount.len()));
        for mount in mounts
            .into_iter()
            .filter(|mount| Path::new(mount).starts_with(self.root.path()))
        {
            if !zfs::unmounts(Path::new(mount)) {
                rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH).ok();
            }
        }
    }
}

/// A tar of files and directories; a name that ends in `/` is a directory, a content of `-> X` a symbolic link.
pub fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    // Within a runtime its budget for one poll would run out, and nothing would wake this executor.
    futures::executor::block_on(tokio::task::unconstrained(async {
        let mut builder = tokio_tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tokio_tar::Header::new_ustar();
            header.set_mtime(1_600_000_000);
            header.set_uid(0);
            header.set_gid(0);
            if name.ends_with('/') {
                header.set_entry_type(tokio_tar::EntryType::Directory);
                header.set_mode(0o755);
                header.set_size(0);
                builder
                    .append_data(&mut header, name, std::io::Cursor::new(b""))
                    .await
                    .unwrap();
            } else if let Some(target) = content.strip_prefix("-> ") {
                header.set_entry_type(tokio_tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                header.set_link_name(target).unwrap();
                builder
                    .append_data(&mut header, name, std::io::Cursor::new(b""))
                    .await
                    .unwrap();
            } else {
                header.set_mode(0o644);
                header.set_size(content.len() as u64);
                builder
                    .append_data(&mut header, name, std::io::Cursor::new(content.as_bytes()))
                    .await
                    .unwrap();
            }
        }
        builder.into_inner().await.unwrap()
    }))
}

/// How long a call, or something in the background, may take on a busy machine.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// Nothing is left in the temporary directories of a store that was opened anew. What a dropped call has begun on the pool may
/// end, and be removed, after that.
pub async fn assert_nothing_temporary(store: &TestStore) {
    drop(store.reopen().await);
    let dirs = [
        tree_of(store, "any").ancestors().nth(2).unwrap().join("tempdirs"),
        store.records("layers").join("tmp"),
    ];
    let left = || {
        let names = dirs
            .iter()
            .filter_map(|dir| std::fs::read_dir(dir).ok())
            .flatten();
        names.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let removed = async {
        while !left().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let removed = tokio::time::timeout(PATIENCE, removed).await;
    assert!(removed.is_ok(), "{:?}", left());
}

/// The files of a layer, where the driver keeps them.
pub fn tree_of(store: &TestStore, id: &str) -> PathBuf {
    let driver = store.graph_driver_name();
    let root = match store.layout() {
        // btrfs has all layers in one place.
        Layout::Split if driver != "btrfs" => store.path().join("images"),
        _ => store.path().join("graph"),
    };
    let home = root.join(driver);
    match driver {
        "overlay" => home.join(id).join("diff"),
        "btrfs" => home.join("subvolumes").join(id),
        "zfs" => {
            if let Some(dataset) = &store.dataset {
                // The daemon mounts it where its property says, if it is there and not mounted.
                zfs::zfs(&["mount", &format!("{}/{id}", dataset.name())]);
            }
            home.join("graph").join(id)
        }
        _ => home.join("dir").join(id),
    }
}

/// Where the driver has a layer: a directory with more than the tree, with overlay.
pub fn place_of(store: &TestStore, id: &str) -> PathBuf {
    let tree = tree_of(store, id);
    match store.graph_driver_name() {
        "overlay" => tree.parent().unwrap().to_owned(),
        _ => tree,
    }
}

/// A mounted layer whose root directory can be written to, as everything can to root.
pub fn writable(mounted: PathBuf) -> PathBuf {
    if !rustix::process::geteuid().is_root() {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&mounted, mode).unwrap();
    }
    mounted
}

/// Asserts that nothing is wrong with a store, and that it has nothing that belongs to nobody.
pub async fn assert_clean(store: &Store, moment: &str) {
    let report = store.check(CheckOptions::everything()).await.unwrap();
    assert!(
        report.is_clean() && report.strays.is_empty(),
        "{moment}: {report:#?}"
    );
}

/// All bytes of a stream.
pub async fn read_all(mut stream: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// The kind of an expected failure.
pub fn kind<T>(result: Result<T>) -> graphroot::ErrorKind {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(error) => error.kind(),
    }
}

/// A case, as a value: what the compiler makes of it is made once, however many drivers it runs over.
type Case = fn(TestStore) -> Pin<Box<dyn Future<Output = ()>>>;

/// Runs a case over one driver.
pub fn over(driver: &str, layout: Layout, case: Case) {
    run_over(&[driver], async || {
        if let Some(store) = TestStore::open(driver, layout).await {
            case(store).await;
        }
    });
}

/// Runs a test of these drivers in a runtime for the first of them.
pub fn run_over(drivers: &[&str], test: impl AsyncFn()) {
    let run = || {
        // Over vfs on the current-thread runtime: nothing may depend on a second worker.
        let mut runtime = match drivers {
            ["vfs", ..] => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        };
        runtime.enable_all().build().unwrap().block_on(test());
    };
    match drivers.contains(&"zfs") {
        true => zfs::surviving(run),
        false => run(),
    }
}

/// One named test per driver for each function; the function gets a fresh store.
macro_rules! each_driver {
    ($($(#[$doc:meta])* async fn $name:ident($store:ident) $body:block)*) => {
        mod cases {
            use super::*;
            $($(#[$doc])* pub fn $name($store: crate::support::TestStore) -> std::pin::Pin<Box<dyn Future<Output = ()>>> {
                Box::pin(async move $body)
            })*
        }
        each_driver!(@layout overlay, "overlay", Plain, $($name)*);
        each_driver!(@layout overlay_split, "overlay", Split, $($name)*);
        each_driver!(@layout overlay_transient, "overlay", Transient, $($name)*);
        each_driver!(@layout overlay_additional, "overlay", Additional, $($name)*);
        each_driver!(@layout overlay_program, "overlay", Program, $($name)*);
        each_driver!(@layout vfs, "vfs", Plain, $($name)*);
        each_driver!(@layout btrfs, "btrfs", Plain, $($name)*);
        each_driver!(@layout btrfs_split, "btrfs", Split, $($name)*);
        each_driver!(@layout btrfs_additional, "btrfs", Additional, $($name)*);
        each_driver!(@layout vfs_split, "vfs", Split, $($name)*);
        each_driver!(@layout vfs_transient, "vfs", Transient, $($name)*);
        each_driver!(@layout vfs_additional, "vfs", Additional, $($name)*);
        each_driver!(@layout zfs, "zfs", Plain, $($name)*);
    };
    (@layout $module:ident, $driver:literal, $layout:ident, $($name:ident)*) => {
        mod $module {
            $(#[test]
            fn $name() {
                crate::support::over($driver, crate::support::Layout::$layout, super::cases::$name);
            })*
        }
    };
}

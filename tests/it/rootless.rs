//! Stores of an ordinary user: without any privileges, and as root of a user namespace, where the kernel or
//! fuse-overlayfs mounts. The same user's Podman and the Go library's command work on the same store.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use graphroot::{ContainerOptions, Digest, ErrorKind, IdMap, LayerOptions, Store, StoreOptions};

use crate::support::oci::OciImage;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::{TestRoot, mounts_below};
use crate::support::store::{exported, layer_ids, names_in, put_bytes};
use crate::support::tar::{Header, Tar};
use crate::support::user::{NAMESPACE, UID, User};
use crate::support::worker::{Worker, store_location, tell};
use crate::support::{each_set, missing, needs};

const NAME: &str = "localhost/rootless:1";
const MOUNT_PROGRAM: &str = "/usr/bin/fuse-overlayfs";

/// How the user works with his store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Without privileges: whole copies, all his own.
    Copies,
    /// In a user namespace.
    Kernel,
    /// In one inside of that.
    Nested,
    /// In one that has no other IDs than the user's own: all files belong to him.
    Alone,
    /// In a user namespace, through fuse-overlayfs.
    Program,
    /// The same, with modes on disk that let everybody read.
    Masked,
}

impl Way {
    fn named(name: &str) -> Self {
        match name {
            "copies" => Self::Copies,
            "kernel" => Self::Kernel,
            "nested" => Self::Nested,
            "alone" => Self::Alone,
            "program" => Self::Program,
            "masked" => Self::Masked,
            _ => panic!("no such way: {name}"),
        }
    }

    fn options(self) -> Vec<String> {
        let program = || format!("overlay.mount_program={MOUNT_PROGRAM}");
        match self {
            Self::Copies => vec!["vfs.ignore_chown_errors=true".into()],
            Self::Kernel | Self::Nested => Vec::new(),
            Self::Alone => vec!["overlay.ignore_chown_errors=true".into()],
            Self::Program => vec![program()],
            Self::Masked => vec![program(), "overlay.force_mask=shared".into()],
        }
    }

    /// How the user gets there; `enter` is Podman's command.
    fn wrapper(self, enter: &Command) -> Vec<&str> {
        let enter = std::iter::once(enter.get_program()).chain(enter.get_args());
        let enter = enter.map(|word| word.to_str().unwrap());
        match self {
            Self::Copies => Vec::new(),
            Self::Nested => enter.chain(NAMESPACE.iter().copied()).collect(),
            Self::Kernel | Self::Alone | Self::Program | Self::Masked => enter.collect(),
        }
    }

    /// As whose a file of user 1000 is seen.
    fn seen_owner(self) -> u32 {
        match self {
            Self::Copies => UID,
            Self::Alone => 0,
            _ => 1000,
        }
    }

    /// Whose it is on disk.
    fn owner_on_disk(self) -> u32 {
        match self {
            Self::Masked => 0,
            _ => self.seen_owner(),
        }
    }

    /// What is seen of the image. Devices can be made nowhere; the program shows what stands for one.
    fn seen(self) -> Vec<&'static str> {
        let mut seen = SEEN.to_vec();
        if self == Self::Masked {
            seen.insert(5, "null");
        }
        seen
    }

    /// The mode of a directory on disk that has mode 0555 in the layer.
    fn mode_on_disk(self) -> u32 {
        match self {
            Self::Masked => 0o755,
            _ => 0o555,
        }
    }
}

/// Sends the user to work on a store of his.
fn send(set: PeerSet, driver: &'static str, way: &str) {
    let root = TestRoot::in_dir(&std::env::temp_dir(), driver).of(set);
    let user = User::new(root.path());
    if Way::named(way) == Way::Alone {
        for name in ["subuid", "subgid"] {
            fs::write(root.path().join("user").join(name), "").unwrap();
        }
    }
    for dir in ["graph", "run", "xdg"] {
        fs::create_dir(root.path().join(dir)).unwrap();
    }
    Command::new("chown")
        .arg("--recursive")
        .arg(format!("{UID}:{UID}"))
        .args(["graph", "run", "xdg", "etc", "home", "tmp"].map(|dir| root.path().join(dir)))
        .run();
    fs::set_permissions(
        root.path().join("xdg"),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
    let peers = Peers {
        graph: root.graph(),
        run: root.run(),
        driver: driver.into(),
        way: Way::named(way),
    };
    let enter = peers.podman().with(["unshare"]);
    let mut command = user.program(&peers.way.wrapper(&enter));
    command
        .env_clear()
        .envs(root.environment())
        .env("XDG_RUNTIME_DIR", root.path().join("xdg"));
    let lines = Worker::spawn(Worker::prepared(command, "rootless", &root, &[way])).finish();
    assert_eq!(lines, ["done"]);
}

fn an_ordinary_user_has_a_store_of_copies(set: PeerSet) {
    send(set, "vfs", "copies");
}
each_set!(fn an_ordinary_user_has_a_store_of_copies: "unshare", "setpriv", "newuidmap", "podman", "containers-storage", "tar");

fn the_kernel_mounts_in_a_user_namespace(set: PeerSet) {
    send(set, "overlay", "kernel");
}
each_set!(fn the_kernel_mounts_in_a_user_namespace: "unshare", "setpriv", "newuidmap", "podman", "containers-storage", "tar");

fn the_kernel_mounts_in_a_nested_user_namespace(set: PeerSet) {
    send(set, "overlay", "nested");
}
each_set!(fn the_kernel_mounts_in_a_nested_user_namespace: "unshare", "setpriv", "newuidmap", "podman", "containers-storage", "tar");

fn all_files_belong_to_a_user_without_other_ids(set: PeerSet) {
    send(set, "overlay", "alone");
}
each_set!(fn all_files_belong_to_a_user_without_other_ids: "unshare", "setpriv", "newuidmap", "podman", "containers-storage", "tar");

#[test]
fn who_may_not_mount_is_told_so() {
    needs!("unshare", "setpriv", "newuidmap");
    let root = TestRoot::new();
    let user = User::new(root.path());
    for dir in [root.graph(), root.run()] {
        fs::create_dir(&dir).unwrap();
        std::os::unix::fs::chown(&dir, Some(UID), Some(UID)).unwrap();
    }
    // No mount namespace of its own.
    let command = user.program(&["unshare", "--user", "--map-root-user"]);
    Worker::spawn(Worker::prepared(command, "rootless-without-mounts", &root, &[])).finish();
}

/// What a user does who may not mount.
pub(crate) async fn work_without_mounts() {
    let (graph, run, driver) = store_location();
    let options = || StoreOptions::new(&graph, &run);
    let error = Store::open(options().driver(driver)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    assert!(error.chain().contains("mount namespace"), "{}", error.chain());
    // It is not for ever.
    assert_eq!(names_in(&run.join("overlay")), BTreeSet::new());
    assert!(!graph.join("overlay").exists());
    let store = Store::open(options()).await.unwrap();
    assert_eq!(store.graph_driver_name(), "vfs");
}

fn a_program_mounts_in_a_user_namespace(set: PeerSet) {
    if !Path::new("/dev/fuse").exists() {
        return missing("there is no /dev/fuse");
    }
    send(set, "overlay", "program");
}
each_set!(fn a_program_mounts_in_a_user_namespace: "unshare", "setpriv", "newuidmap", "podman", "containers-storage", "tar", "fuse-overlayfs");

fn modes_on_disk_are_forced_where_a_program_shows_others(set: PeerSet) {
    if !Path::new("/dev/fuse").exists() {
        return missing("there is no /dev/fuse");
    }
    send(set, "overlay", "masked");
}
each_set!(fn modes_on_disk_are_forced_where_a_program_shows_others: "unshare", "setpriv", "newuidmap", "podman", "containers-storage", "tar", "fuse-overlayfs");

/// The store as the user's other programs open it.
struct Peers {
    graph: PathBuf,
    run: PathBuf,
    driver: String,
    way: Way,
}

impl Peers {
    fn options(&self) -> StoreOptions {
        let options = StoreOptions::new(&self.graph, &self.run).driver(&self.driver);
        self.way
            .options()
            .into_iter()
            .fold(options, StoreOptions::driver_option)
    }

    fn podman(&self) -> Command {
        let mut command = Command::new("podman");
        command
            .arg("--root")
            .arg(&self.graph)
            .arg("--runroot")
            .arg(&self.run);
        self.driver_arguments(command)
    }

    fn go(&self) -> Command {
        // Without privileges the Go library refuses to make layers.
        let mut command = match self.way {
            Way::Copies => self.podman().with(["unshare", "containers-storage"]),
            _ => Command::new("containers-storage"),
        };
        command
            .arg("--graph")
            .arg(&self.graph)
            .arg("--run")
            .arg(&self.run);
        self.driver_arguments(command)
    }

    fn driver_arguments(&self, mut command: Command) -> Command {
        command.arg("--storage-driver").arg(&self.driver);
        for option in self.way.options() {
            command.arg("--storage-opt").arg(option);
        }
        command
    }

    fn layer_dir(&self, id: &str) -> PathBuf {
        match self.way {
            Way::Copies => self.graph.join("vfs/dir").join(id),
            _ => self.graph.join("overlay").join(id).join("diff"),
        }
    }
}

/// What the user does.
pub(crate) async fn work(way: &str) {
    let (graph, run, driver) = store_location();
    let way = Way::named(way);
    let peers = Peers {
        graph,
        run,
        driver,
        way,
    };
    let root = rustix::process::geteuid().is_root();
    assert_eq!(root, way != Way::Copies);
    if way == Way::Copies {
        refusals(&peers).await;
    }
    let store = Store::open(peers.options()).await.unwrap();
    let image = put_image(&store, &peers).await;
    let container = use_container(&store, &peers).await;
    seen_by_others(&store, &peers, &image, &container).await;
    made_by_others(&store, &peers).await;
    delete_all(&store, &peers).await;
    tell("done");
}

/// What cannot be done without privileges says why.
async fn refusals(peers: &Peers) {
    let place = |name: &str| (peers.graph.join(name), peers.run.join(name));
    let (graph, run) = place("refused");
    let error = Store::open(StoreOptions::new(&graph, &run).driver("overlay"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    assert!(error.chain().contains("user namespace"), "{}", error.chain());
    // Layers belong to root.
    let plain = || StoreOptions::new(&graph, &run).driver("vfs");
    let store = Store::open(plain()).await.unwrap();
    let error = store
        .create_layer(None, LayerOptions::default())
        .await
        .unwrap_err();
    assert!(error.chain().contains("ignore_chown_errors"), "{}", error.chain());
    assert!(store.layers().await.unwrap().is_empty());
    store.free();
    // Unless the user is root in them: then all files of that user can be there, and no others.
    let (graph, run) = place("mapped");
    let mut options = StoreOptions::new(&graph, &run).driver("vfs");
    options.id_mappings.uids = vec![IdMap::new(0, UID, 1)];
    options.id_mappings.gids = vec![IdMap::new(0, UID, 1)];
    let store = Store::open(options).await.unwrap();
    let mine = Tar::new().dir("d/").file("d/f", "mine").build();
    let layer = put_bytes(&store, None, LayerOptions::default(), mine)
        .await
        .unwrap();
    let dir = graph.join("vfs/dir").join(layer.id());
    assert_eq!(fs::read_to_string(dir.join("d/f")).unwrap(), "mine");
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o555);
    let others = Tar::new().entry(Header::new(b'0', "f").owner(1, 1)).build();
    let error = put_bytes(&store, Some(layer.id()), LayerOptions::default(), others)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidMappings, "{}", error.chain());
    store.delete_layer(layer.id()).await.unwrap();
    store.free();
}

/// An image of two layers; the upper one deletes and replaces.
async fn put_image(store: &Store, peers: &Peers) -> OciImage {
    let base = Tar::new()
        .dir("d/")
        .file("d/kept", "kept")
        .file("d/gone", "gone")
        .entry(Header::new(b'5', "closed/").mode(0o555))
        .file("closed/file", "inside")
        .dir("opaque/")
        .file("opaque/old", "old")
        .entry(
            Header::new(b'0', "owned")
                .owner(1000, 1000)
                .size(5)
                .content("owned"),
        )
        .entry(Header::new(b'3', "null").device(1, 3));
    let child = Tar::new()
        .dir("d/")
        .file("d/.wh.gone", "")
        .file("d/more", "more")
        .dir("opaque/")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "new");
    let named = |id: &str| LayerOptions::default().id(id);
    let base = put_bytes(store, None, named("base"), base.build()).await.unwrap();
    let child = put_bytes(store, Some("base"), named("child"), child.build())
        .await
        .unwrap();
    for layer in [&base, &child] {
        let (digest, size) = exported(store, layer.id()).await;
        assert_eq!(Some(digest), layer.uncompressed_digest());
        assert_eq!(Some(size), layer.uncompressed_size());
    }
    on_disk(peers);
    let image = OciImage::new(&[base, child]);
    store
        .create_image(Some("child"), image.options(NAME))
        .await
        .unwrap();
    image
}

fn on_disk(peers: &Peers) {
    let (base, child) = (peers.layer_dir("base"), peers.layer_dir("child"));
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(
        [mode(&base), mode(&child), mode(&base.join("closed"))],
        [peers.way.mode_on_disk(); 3]
    );
    match (fs::symlink_metadata(base.join("null")), peers.way) {
        (Ok(stand_in), Way::Masked) => assert!(stand_in.is_file()),
        (made, _) => assert!(made.is_err(), "devices cannot be made"),
    }
    assert_eq!(
        fs::metadata(base.join("owned")).unwrap().uid(),
        peers.way.owner_on_disk()
    );
    let flag = || fs::read_to_string(peers.graph.join("overlay/.has-mount-program")).unwrap();
    let probes = || names_in(&peers.run.join("overlay"));
    match peers.way {
        Way::Copies => {
            assert!(!child.join("d/gone").exists() && !child.join("opaque/old").exists());
        }
        Way::Kernel | Way::Nested | Way::Alone => {
            let gone = fs::symlink_metadata(child.join("d/gone")).unwrap();
            assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
            let mut value = [0; 8];
            let length = rustix::fs::getxattr(child.join("opaque"), "user.overlay.opaque", &mut value[..]);
            assert_eq!(&value[..length.unwrap()], b"y");
            assert_eq!(flag(), "false");
            let expected = ["metacopy()-false", "overlay-true"];
            assert!(
                probes().is_superset(&expected.map(str::to_owned).into()),
                "{:?}",
                probes()
            );
        }
        Way::Program | Way::Masked => {
            assert!(child.join("d/.wh.gone").is_file() && child.join("opaque/.wh..wh..opq").is_file());
            assert_eq!(flag(), "true");
            assert!(!probes().contains("overlay-true"), "the kernel was asked");
        }
    }
}

const SEEN: &[&str] = &[
    "closed",
    "closed/file",
    "d",
    "d/kept",
    "d/more",
    "opaque",
    "opaque/new",
    "owned",
];

fn listing(root: &Path) -> Vec<String> {
    let text = Command::new("find")
        .arg(root)
        .args(["-mindepth", "1", "-printf", "%P\\n"])
        .run();
    let mut names: Vec<String> = text.lines().map(str::to_owned).collect();
    names.sort();
    names
}

/// Mounts a container, changes things in it and looks at what has changed. Returns its layer.
async fn use_container(store: &Store, peers: &Peers) -> String {
    let options = ContainerOptions::default().id("container");
    let container = store.create_container(Some(NAME), options).await.unwrap();
    let layer = container.layer_id().to_owned();
    let path = store.mount("container", Default::default()).await.unwrap();
    assert_eq!(listing(&path), peers.way.seen());
    assert_eq!(fs::read_to_string(path.join("closed/file")).unwrap(), "inside");
    fs::write(path.join("d/new"), "new").unwrap();
    fs::remove_file(path.join("d/kept")).unwrap();
    fs::create_dir(path.join("d/dir")).unwrap();
    let mounts = mounts_below(&peers.graph);
    assert_eq!(mounts.contains(&path), peers.way != Way::Copies, "{mounts:?}");
    assert_eq!(store.unmount("container").await.unwrap(), 0);
    assert!(!mounts_below(&peers.graph).contains(&path));
    let changes: BTreeSet<String> = store
        .changes(None, &layer)
        .await
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    for expected in ["A /d/dir", "A /d/new", "C /d", "D /d/kept"] {
        assert!(changes.contains(expected), "{expected} is missing in {changes:?}");
    }
    assert_eq!(changes.len(), 4, "{changes:?}");
    let (_, size) = exported(store, &layer).await;
    assert!(size > 0);
    layer
}

/// Others see what we have made.
async fn seen_by_others(store: &Store, peers: &Peers, image: &OciImage, layer: &str) {
    let listed: BTreeSet<String> = peers
        .go()
        .with(["layers"])
        .run()
        .lines()
        .map(str::to_owned)
        .collect();
    for id in ["base", "child", layer] {
        assert!(listed.contains(id), "{id} is missing in {listed:?}");
    }
    let images = peers
        .podman()
        .with([
            "images",
            "--no-trunc",
            "--format",
            "{{.Repository}}:{{.Tag}} {{.ID}}",
        ])
        .run();
    assert_eq!(images, format!("{NAME} sha256:{}", image.id()));
    let changes = peers.go().with(["changes", layer]).run();
    for expected in ["Add \"/d/new\"", "Delete \"/d/kept\""] {
        assert!(changes.contains(expected), "{expected} is missing in {changes}");
    }
    let file = peers.run.join("exported.tar");
    peers
        .go()
        .with(["diff", "--uncompressed", "--file"])
        .with([file.as_os_str(), "child".as_ref()])
        .run();
    let theirs = Digest::sha256(fs::read(&file).unwrap());
    assert_eq!(
        Some(theirs),
        store.layer("child").await.unwrap().uncompressed_digest()
    );
    if peers.way == Way::Copies {
        return;
    }
    // A mount is shared by all processes of the namespace.
    let path = PathBuf::from(peers.go().with(["mount", "container"]).run());
    assert_eq!(store.mounted("container").await.unwrap(), 1);
    assert_eq!(fs::read_to_string(path.join("d/new")).unwrap(), "new");
    assert!(!path.join("d/kept").exists() && !path.join("d/gone").exists());
    assert_eq!(store.mount("container", Default::default()).await.unwrap(), path);
    peers.go().with(["unmount", "container"]).run();
    assert!(mounts_below(&peers.graph).contains(&path));
    assert_eq!(store.unmount("container").await.unwrap(), 0);
    assert!(!mounts_below(&peers.graph).contains(&path));
    let path = PathBuf::from(peers.podman().with(["image", "mount", NAME]).run());
    assert_eq!(listing(&path), peers.way.seen());
    assert_eq!(
        fs::metadata(path.join("owned")).unwrap().uid(),
        peers.way.seen_owner()
    );
    assert_eq!(fs::metadata(path.join("closed")).unwrap().mode() & 0o7777, 0o555);
    peers.podman().with(["image", "unmount", NAME]).run();
}

/// We see what others have made.
async fn made_by_others(store: &Store, peers: &Peers) {
    let tar = Tar::new()
        .dir("d/")
        .file("d/.wh.more", "")
        .file("d/theirs", "theirs")
        .dir("opaque/")
        .file("opaque/.wh..wh..opq", "")
        .build();
    let file = peers.run.join("theirs.tar");
    fs::write(&file, &tar).unwrap();
    peers
        .go()
        .with(["import-layer", "--id", "theirs", "--readonly", "--file"])
        .with([file.as_os_str(), "child".as_ref()])
        .run();
    let layer = store.layer("theirs").await.unwrap();
    assert_eq!(layer.uncompressed_digest(), Some(Digest::sha256(&tar)));
    assert_eq!(exported(store, "theirs").await.0, Digest::sha256(&tar));
    // The program cannot list a layer with forced modes that it could write to, whoever made it.
    if peers.way != Way::Masked {
        let path = store.mount("theirs", Default::default()).await.unwrap();
        let mut expected = peers.way.seen();
        expected.retain(|name| *name != "opaque/new");
        for name in &mut expected {
            if *name == "d/more" {
                *name = "d/theirs";
            }
        }
        assert_eq!(listing(&path), expected);
        store.unmount("theirs").await.unwrap();
    }
    // A container of theirs, with changes.
    peers.go().with(["create-container", "--id", "box", NAME]).run();
    let container = store.container("box").await.unwrap();
    let path = store.mount("box", Default::default()).await.unwrap();
    assert_eq!(listing(&path), peers.way.seen());
    fs::remove_file(path.join("d/more")).unwrap();
    store.unmount("box").await.unwrap();
    let changes = peers.go().with(["changes", container.layer_id()]).run();
    assert!(changes.contains("Delete \"/d/more\""), "{changes}");
    peers.go().with(["delete-container", "box"]).run();
}

/// Everything goes, and leaves nothing.
async fn delete_all(store: &Store, peers: &Peers) {
    store.delete_container("container").await.unwrap();
    store.delete_layer("theirs").await.unwrap();
    store.delete_image(NAME).await.unwrap();
    assert_eq!(layer_ids(store).await, BTreeSet::new());
    assert_eq!(peers.go().with(["layers"]).run(), "");
    assert_eq!(peers.podman().with(["images", "--quiet"]).run(), "");
    let home = peers.graph.join(&peers.driver);
    let left = match peers.way {
        Way::Copies => names_in(&home.join("dir")),
        _ => {
            let own = ["l", "tempdirs", ".has-mount-program"];
            let mut names = names_in(&home);
            names.retain(|name| !own.contains(&name.as_str()));
            names
        }
    };
    assert_eq!(left, BTreeSet::new());
    assert_eq!(names_in(&home.join("tempdirs")), BTreeSet::new());
    let mounts = mounts_below(&peers.graph);
    assert!(mounts.iter().all(|mounted| *mounted == home), "{mounts:?}");
    store.shutdown().await.unwrap();
}

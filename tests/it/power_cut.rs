//! What a power cut leaves, as far as images of a disk show it: while a store is written to, the file that holds its file
//! system is cloned again and again, and each clone is mounted and opened as after a reboot.
//!
//! A clone has everything that the file system had written to its disk at one moment, in whichever order it did so. Where
//! the kernel has `dm-log-writes`, the disk is made again as it was after single writes instead, without what was in its
//! cache; those tests are ignored elsewhere.
//! Set `GRAPHROOT_TEST_POWER_CUTS` for more of them than a short run takes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use graphroot::{ContainerOptions, Digest, Durability, ImageOptions, LayerOptions, Store, StoreOptions};

use crate::support::logged_disk::{Entry, LoggedDisk};
use crate::support::loop_fs::{self, LoopFs};
use crate::support::needs;
use crate::support::store::{exported, names_in, put_bytes};
use crate::support::tar::Tar;

/// Cuts of one campaign in a short run.
const CUTS: usize = 10;
/// Steps of the work on a logged disk: up to the first that deletes something.
const LOGGED_STEPS: usize = 8;
/// Writes of a logged disk from one cut to the next, beside those at the marks.
const LOGGED_WRITES: usize = 150;
/// Bytes of the file system that is cut off.
const SIZE: u64 = 512 << 20;

/// What an item was at some moment, to the knowledge of its maker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Begun,
    There,
    Going,
    Gone,
}

/// Layers, images and containers by their IDs.
type Log = Arc<Mutex<BTreeMap<String, State>>>;

fn note(log: &Log, id: &str, state: State) {
    log.lock().unwrap().insert(id.to_owned(), state);
}

/// A cut: the clone, and what was known just before and just after it.
struct Cut {
    image: PathBuf,
    before: BTreeMap<String, State>,
    after: BTreeMap<String, State>,
}

impl Cut {
    /// Whether an item was in this state all the time.
    fn was(&self, id: &str, state: State) -> bool {
        self.before.get(id) == Some(&state) && self.after.get(id) == Some(&state)
    }
}

fn options(dir: &Path, driver: &str, durability: Durability) -> StoreOptions {
    StoreOptions::new(dir.join("graph"), dir.with_extension("run"))
        .driver(driver)
        .durability(durability)
}

/// Makes and deletes items until `stop` says so.
async fn work(store: &Store, log: &Log, stop: &tokio::sync::Notify) {
    let stopped = stop.notified();
    tokio::pin!(stopped);
    for number in 0.. {
        if futures::poll!(&mut stopped).is_ready() {
            return;
        }
        step(store, log, number).await.unwrap();
    }
}

async fn step(store: &Store, log: &Log, number: usize) -> graphroot::Result<()> {
    let names = |kind: &str, number: usize| format!("{kind}{number}");
    // Stacks of four layers.
    let (layer, parent) = (
        names("layer", number),
        number.checked_sub(1).map(|below| names("layer", below)),
    );
    let parent = parent.filter(|_| !number.is_multiple_of(4));
    note(log, &layer, State::Begun);
    let options = LayerOptions::default()
        .id(&layer)
        .name(names("name", number))
        .big_data("item", layer.clone());
    // Some with a few files, some with many, some without any.
    let files = [3, 40, 0, 1][number % 4];
    if files == 0 {
        drop(store.create_layer(parent.as_deref(), options).await?);
    } else {
        let tar = (0..files).fold(Tar::new().dir("d/"), |tar, file| {
            tar.file(format!("d/{layer}-{file}"), layer.repeat(200))
        });
        drop(put_bytes(store, parent.as_deref(), options, tar.build()).await?);
    }
    note(log, &layer, State::There);
    if number % 4 == 3 {
        let image = names("image", number);
        note(log, &image, State::Begun);
        let options = ImageOptions::default()
            .id(&image)
            .big_data("manifest", image.clone());
        drop(store.create_image(Some(&layer), options).await?);
        note(log, &image, State::There);
        store
            .set_image_big_data(&image, "more", image.repeat(9), None)
            .await?;
        let container = names("container", number);
        note(log, &container, State::Begun);
        let options = ContainerOptions::default()
            .id(&container)
            .big_data("spec", container.clone());
        drop(store.create_container(Some(&image), options).await?);
        note(log, &container, State::There);
        store
            .set_container_big_data(&container, "spec", container.repeat(2))
            .await?;
    }
    if number % 8 == 7 {
        let old = number - 4;
        let (container, image) = (names("container", old), names("image", old));
        note(log, &container, State::Going);
        store.delete_container(&container).await?;
        note(log, &container, State::Gone);
        let mut gone: Vec<String> = (old - 3..=old).map(|layer| names("layer", layer)).collect();
        gone.push(image.clone());
        gone.iter().for_each(|id| note(log, id, State::Going));
        drop(store.delete_image(&image).await?);
        gone.iter().for_each(|id| note(log, id, State::Gone));
    }
    Ok(())
}

/// What the checks of a campaign found.
#[derive(Debug, Default)]
struct Found {
    layers: usize,
    images: usize,
    containers: usize,
    /// Items that were acknowledged before the cut, and those of them that are there.
    acknowledged: usize,
    kept: usize,
    wrong: Vec<String>,
}

/// Whether a record was named by the log in a way that fits what was found.
fn compare(cut: &Cut, there: &BTreeSet<String>, durability: Durability, found: &mut Found) {
    for id in cut.before.keys() {
        let is_there = there.contains(id);
        if cut.was(id, State::There) {
            found.acknowledged += 1;
            found.kept += usize::from(is_there);
            if !is_there && durability == Durability::Full {
                found.wrong.push(format!("{id} was there and is lost"));
            }
        }
        if is_there && durability == Durability::Full && cut.was(id, State::Gone) {
            found.wrong.push(format!("{id} was deleted and is back"));
        }
    }
}

/// Opens what a cut left, as the next program would, and looks at everything that is recorded.
async fn check(dir: &Path, cut: &Cut, driver: &str, durability: Durability, found: &mut Found) {
    let store = Store::open(options(dir, driver, durability)).await.unwrap();
    let mut there = BTreeSet::new();
    let mut layers = BTreeSet::new();
    for layer in store.layers().await.unwrap() {
        found.layers += 1;
        there.insert(layer.id().to_owned());
        layers.insert(layer.id().to_owned());
        if let Err(error) = check_layer(&store, &layer).await {
            found.wrong.push(format!("layer {}: {error}", layer.id()));
        }
    }
    for image in store.images().await.unwrap() {
        found.images += 1;
        there.insert(image.id().to_owned());
        if !layers.contains(image.top_layer().unwrap()) {
            found
                .wrong
                .push(format!("image {} has lost its layer", image.id()));
        }
        for key in image.big_data_names() {
            let data = store.image_big_data(image.id(), key).await;
            let data = data.map(|data| Digest::sha256(&data));
            if data.as_ref().ok() != image.big_data_digest(key).as_ref() {
                found.wrong.push(format!("image {}, {key}: {data:?}", image.id()));
            }
        }
    }
    for container in store.containers().await.unwrap() {
        found.containers += 1;
        there.insert(container.id().to_owned());
        let data = store.container_big_data(container.id(), "spec").await;
        let data = data.map(|data| Digest::sha256(&data));
        if data.as_ref().ok() != container.big_data_digest("spec").as_ref() {
            found
                .wrong
                .push(format!("container {}: {data:?}", container.id()));
        }
        match store.mount(container.id(), Default::default()).await {
            Ok(path) => {
                let top = store
                    .layer(container.layer_id())
                    .await
                    .unwrap()
                    .parent()
                    .unwrap()
                    .to_owned();
                let number: usize = top.trim_start_matches("layer").parse().unwrap();
                for (layer, file) in [(number, 0), (number - 2, 39), (number - 3, 2)] {
                    let read = std::fs::read_to_string(path.join(format!("d/layer{layer}-{file}")));
                    if read.as_deref().ok() != Some(&*format!("layer{layer}").repeat(200)) {
                        found
                            .wrong
                            .push(format!("container {}, layer {layer}: {read:?}", container.id()));
                    }
                }
                store.unmount(container.id()).await.unwrap();
            }
            Err(error) => found
                .wrong
                .push(format!("container {}: {error:?}", container.id())),
        }
    }
    compare(cut, &there, durability, found);
    found.wrong.extend(leftovers(dir, driver, &layers));
    // Everything can be worked with: names and IDs of what is not there are free.
    let free = |id: &&String| id.starts_with("layer") && !there.contains(*id);
    for id in cut.after.keys().filter(free) {
        let made = store.create_layer(None, LayerOptions::default().id(id)).await;
        if let Err(error) = made.and(store.delete_layer(id).await) {
            found.wrong.push(format!("{id} cannot be made: {error:?}"));
        }
    }
    store.shutdown_force().await.unwrap();
    store.free();
}

async fn check_layer(store: &Store, layer: &graphroot::Layer) -> Result<(), String> {
    let id = layer.id();
    let lost = |error: graphroot::Error| format!("{error:?}");
    for key in layer.big_data_names() {
        let mut data = store.layer_big_data(id, key).await.map_err(lost)?;
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut data, &mut text)
            .await
            .map_err(|error| error.to_string())?;
        if text != id {
            return Err(format!("{key}: {text:?}"));
        }
    }
    let mounted = store.mount(id, Default::default()).await.map_err(lost)?;
    let listed = std::fs::read_dir(&mounted).map(Iterator::count);
    store.unmount(id).await.map_err(lost)?;
    let _count: usize = listed.map_err(|error| error.to_string())?;
    if let Some(digest) = layer.uncompressed_digest() {
        let size = store.diff_size(None, id).await.map_err(lost)?;
        let is = exported(store, id).await.0;
        if is != digest {
            return Err(format!("{size} bytes, digest {is}, not {digest}"));
        }
    }
    Ok(())
}

/// What belongs to no recorded layer although a reader and a writer have been there.
fn leftovers(dir: &Path, driver: &str, layers: &BTreeSet<String>) -> Vec<String> {
    let graph = dir.join("graph");
    let records = graph.join(format!("{driver}-layers"));
    let mut odd = Vec::new();
    for name in names_in(&records) {
        let id = name.strip_suffix(".tar-split.gz").unwrap_or(&name);
        if (name != id || id.starts_with("layer")) && !name.starts_with("layers.") && !layers.contains(id) {
            odd.push(name);
        }
    }
    let home = graph.join(driver);
    let trees = if driver == "vfs" {
        home.join("dir")
    } else {
        home.clone()
    };
    let own = |name: &String| name.starts_with("layer") || name.len() == 64;
    odd.extend(
        names_in(&trees)
            .into_iter()
            .filter(|name| own(name) && !layers.contains(name)),
    );
    let temporary = [home.join("tempdirs"), records.join("tmp")];
    odd.extend(temporary.iter().flat_map(|dir| names_in(dir)));
    for link in names_in(&home.join("l")) {
        let target = std::fs::read_link(home.join("l").join(&link)).unwrap();
        if !home.join("l").join(&target).exists() {
            odd.push(format!("l/{link}"));
        }
    }
    odd.into_iter().map(|name| format!("{name} is left")).collect()
}

async fn campaign(kind: &str, driver: &str, durability: Durability) {
    let cuts = std::env::var("GRAPHROOT_TEST_POWER_CUTS").map_or(CUTS, |count| count.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let outer_image = dir.path().join("outer");
    loop_fs::format("xfs", &outer_image, 8 << 30);
    let outer = LoopFs::mount(&outer_image, &dir.path().join("clones"));
    let disk = outer.path().join("disk");
    loop_fs::format(kind, &disk, SIZE);
    let inner = LoopFs::mount(&disk, &dir.path().join("disk"));

    let store = Store::open(options(inner.path(), driver, durability))
        .await
        .unwrap();
    let log = Log::default();
    let stop = Arc::new(tokio::sync::Notify::new());
    let working = tokio::spawn({
        let (store, log, stop) = (store.clone(), Arc::clone(&log), Arc::clone(&stop));
        async move { work(&store, &log, &stop).await }
    });
    let mut made = Vec::new();
    for number in 0..cuts {
        // Any moment will do, some time after the last one, however fast the machine is.
        let progress = || {
            log.lock()
                .unwrap()
                .values()
                .filter(|state| **state != State::Begun)
                .count()
        };
        let begun = progress();
        while progress() < begun + number % 4 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(1 + 7 * (number as u64 % 8))).await;
        let known = || log.lock().unwrap().clone();
        let image = outer.path().join(format!("cut{number}"));
        let (from, to) = (
            std::fs::File::open(&disk).unwrap(),
            std::fs::File::create_new(&image).unwrap(),
        );
        let before = known();
        rustix::fs::ioctl_ficlone(&to, &from).unwrap();
        let after = known();
        made.push(Cut { image, before, after });
    }
    stop.notify_one();
    working.await.unwrap();
    store.shutdown_force().await.unwrap();
    store.free();
    drop(store);
    drop(inner);

    examine(dir.path(), &made, kind, driver, durability).await;
}

/// Mounts every cut and checks it; panics if something is wrong with one.
async fn examine(dir: &Path, cuts: &[Cut], kind: &str, driver: &str, durability: Durability) {
    let mut found = Found::default();
    for (number, cut) in cuts.iter().enumerate() {
        let target = dir.join(format!("cut{number}"));
        let mounted = LoopFs::mount(&cut.image, &target);
        if mounted.path().join("graph").exists() {
            let wrong = found.wrong.len();
            check(mounted.path(), cut, driver, durability, &mut found).await;
            for wrong in &mut found.wrong[wrong..] {
                wrong.insert_str(0, &format!("cut {number}: "));
            }
        } else if durability == Durability::Full && cut.before.values().any(|state| *state == State::There) {
            found.wrong.push(format!("cut {number}: no store"));
        }
    }
    let Found {
        layers,
        images,
        containers,
        acknowledged,
        kept,
        wrong,
    } = found;
    eprintln!(
        "{kind}, {driver}, {durability}: {} cuts; {layers} layers, {images} images and {containers} containers \
         looked at; {kept} of {acknowledged} acknowledged items kept; {} wrong",
        cuts.len(),
        wrong.len()
    );
    assert!(
        wrong.is_empty(),
        "{kind}, {driver}, {durability}:\n{}",
        wrong.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_recorded_is_whole_after_a_power_cut_on_btrfs() {
    needs!("mkfs.xfs", "mkfs.btrfs");
    campaign("btrfs", "overlay", Durability::Default).await;
    campaign("btrfs", "overlay", Durability::Full).await;
    campaign("btrfs", "vfs", Durability::Full).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_recorded_is_whole_after_a_power_cut_on_ext4() {
    needs!("mkfs.xfs", "mkfs.ext4");
    campaign("ext4", "overlay", Durability::Default).await;
    campaign("ext4", "overlay", Durability::Full).await;
    campaign("ext4", "vfs", Durability::Full).await;
}

/// Cuts off a disk that loses what is in its cache: at moments right after an item was acknowledged, when the disk has
/// nothing but what was flushed, and after writes in between.
async fn logged_campaign(kind: &str, driver: &str, durability: Durability) {
    let dir = tempfile::tempdir().unwrap();
    let disk = LoggedDisk::new(dir.path(), SIZE);
    loop_fs::format_on(kind, &disk.device());
    let inner = LoopFs::mount(&disk.device(), &dir.path().join("mounted"));
    let store = Store::open(options(inner.path(), driver, durability))
        .await
        .unwrap();
    let log = Log::default();
    // What was known when each mark was set, from the first.
    let mut known = Vec::new();
    for number in 0..LOGGED_STEPS {
        step(&store, &log, number).await.unwrap();
        disk.mark();
        known.push(log.lock().unwrap().clone());
    }
    store.shutdown_force().await.unwrap();
    store.free();
    drop(store);
    drop(inner);

    let outer_image = dir.path().join("outer");
    loop_fs::format("xfs", &outer_image, 8 << 30);
    let outer = LoopFs::mount(&outer_image, &dir.path().join("clones"));
    let state = std::fs::File::create_new(outer.path().join("disk")).unwrap();
    state.set_len(SIZE).unwrap();
    let (mut made, mut marks, mut writes) = (Vec::new(), 0, 0_usize);
    let mut cut = |before: usize, after: usize| {
        let image = outer.path().join(format!("cut{}", made.len()));
        let to = std::fs::File::create_new(&image).unwrap();
        rustix::fs::ioctl_ficlone(&to, &state).unwrap();
        let (before, after) = (known[before].clone(), known[after].clone());
        made.push(Cut { image, before, after });
    };
    disk.replay(|entry| match entry {
        // The last one is the device's own.
        Entry::Mark(number) => {
            marks = number;
            if marks <= LOGGED_STEPS {
                cut(marks - 1, marks - 1);
            }
        }
        Entry::Write(place, bytes) => {
            std::os::unix::fs::FileExt::write_all_at(&state, &bytes, place).unwrap();
            writes += 1;
            if (1..LOGGED_STEPS).contains(&marks) && writes.is_multiple_of(LOGGED_WRITES) {
                cut(marks - 1, marks);
            }
        }
        Entry::Discard => {}
    });
    assert_eq!(
        made.iter().filter(|cut| cut.before == cut.after).count(),
        LOGGED_STEPS
    );
    examine(dir.path(), &made, kind, driver, durability).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs dm-log-writes: tests/vm/run"]
async fn what_is_acknowledged_is_on_the_disk_with_btrfs() {
    logged_campaign("btrfs", "overlay", Durability::Full).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs dm-log-writes: tests/vm/run"]
async fn what_is_acknowledged_is_on_the_disk_with_ext4() {
    logged_campaign("ext4", "overlay", Durability::Full).await;
    logged_campaign("ext4", "overlay", Durability::Default).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs dm-log-writes: tests/vm/run"]
async fn what_is_acknowledged_is_on_the_disk_with_xfs() {
    logged_campaign("xfs", "overlay", Durability::Full).await;
    logged_campaign("xfs", "vfs", Durability::Full).await;
}

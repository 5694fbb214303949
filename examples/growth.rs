//! How a store behaves as it grows: the same operations at 100, 1,000 and 10,000 layers, beside the same through the
//! Go library's command on the same root.
//!
//! ```text
//! cargo run --release --example growth -- ROOT [--sizes 100,1000,10000] [--rounds 7] [--driver overlay]
//!                                              [--peer PROGRAM]
//! ```
//!
//! ROOT is a new directory, best on a tmpfs; it is removed at the end. Layers have no content, ten stand on one
//! another; every fifth has an image, every twentieth a container (which has a layer of its own besides). Needs root
//! for overlay.
//!
//! Three columns: in a store that is open already, in one that is opened for the operation, and by a process of the
//! peer (its start included; the row `nothing` says what that costs alone). Each cell is the median with the range.

#![expect(clippy::print_stdout, reason = "it is a program")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use graphroot::{ContainerOptions, Durability, ImageOptions, LayerOptions, Store, StoreOptions};

type Res<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Layers that stand on one another.
const CHAIN: usize = 10;
/// Layers for each image.
const PER_IMAGE: usize = 5;
/// Layers for each container.
const PER_CONTAINER: usize = 20;

struct Arguments {
    root: PathBuf,
    sizes: Vec<usize>,
    rounds: usize,
    driver: String,
    peer: String,
}

fn arguments() -> Res<Arguments> {
    let mut found = Arguments {
        root: PathBuf::new(),
        sizes: vec![100, 1_000, 10_000],
        rounds: 7,
        driver: "overlay".into(),
        peer: "containers-storage".into(),
    };
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        let mut value = || given.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--sizes" => found.sizes = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--rounds" => found.rounds = value()?.parse()?,
            "--driver" => found.driver = value()?,
            "--peer" => found.peer = value()?,
            flag if flag.starts_with('-') => return Err(format!("unknown option {flag}").into()),
            _ => found.root = argument.into(),
        }
    }
    if found.root.as_os_str().is_empty() {
        return Err("the directory for the store is missing".into());
    }
    if found.root.exists() {
        return Err(format!("{} exists already", found.root.display()).into());
    }
    Ok(found)
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    Nothing,
    ListLayers,
    ListImages,
    ListContainers,
    ByName,
    ByTruncatedId,
    CreateLayer,
    DeleteLayer,
    CreateImage,
    DeleteImage,
    CreateContainer,
    DeleteContainer,
}

impl Row {
    const ALL: [Self; 12] = [
        Self::Nothing,
        Self::ListLayers,
        Self::ListImages,
        Self::ListContainers,
        Self::ByName,
        Self::ByTruncatedId,
        Self::CreateLayer,
        Self::CreateImage,
        Self::CreateContainer,
        Self::DeleteContainer,
        Self::DeleteImage,
        Self::DeleteLayer,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::ListLayers => "list layers",
            Self::ListImages => "list images",
            Self::ListContainers => "list containers",
            Self::ByName => "layer by name",
            Self::ByTruncatedId => "layer by truncated ID",
            Self::CreateLayer => "create layer",
            Self::DeleteLayer => "delete layer",
            Self::CreateImage => "create image",
            Self::DeleteImage => "delete image",
            Self::CreateContainer => "create container",
            Self::DeleteContainer => "delete container",
        }
    }
}

/// Times of one column, by row.
type Times = BTreeMap<Row, Vec<Duration>>;

/// The store in the making.
struct Growth {
    arguments: Arguments,
    layers: Vec<String>,
    /// ID of the last image and of the layer that it stands on.
    image: (String, String),
}

impl Growth {
    fn options(&self) -> StoreOptions {
        let root = &self.arguments.root;
        StoreOptions::new(root.join("graph"), root.join("run"))
            .driver(self.arguments.driver.clone())
            // So that what is compared is the work and not the disk.
            .durability(Durability::None)
    }

    async fn fill(&mut self, store: &Store, size: usize) -> Res<()> {
        while self.layers.len() < size {
            let number = self.layers.len();
            let parent = if number.is_multiple_of(CHAIN) {
                None
            } else {
                self.layers.last()
            };
            let options = LayerOptions::default().name(format!("layer-{number}"));
            let layer = store.create_layer(parent.map(String::as_str), options).await?;
            let id = layer.id().to_owned();
            if number.is_multiple_of(PER_IMAGE) {
                let options = ImageOptions::default()
                    .name(format!("localhost/image-{number}:latest"))
                    .big_data("manifest", format!(r#"{{"schemaVersion":2,"number":{number}}}"#));
                let image = store.create_image(Some(&id), options).await?;
                self.image = (image.id().to_owned(), id.clone());
            }
            if number.is_multiple_of(PER_CONTAINER) {
                let options = ContainerOptions::default().name(format!("container-{number}"));
                store.create_container(Some(&self.image.0), options).await?;
            }
            self.layers.push(id);
        }
        Ok(())
    }

    /// A layer from the middle: its name and the beginning of its ID.
    fn sought(&self) -> (String, &str) {
        let middle = self.layers.len() / 2;
        let id = self.layers.get(middle).map_or("", String::as_str);
        (format!("layer-{middle}"), id.get(..12).unwrap_or(id))
    }

    /// One operation. What a row creates in one round, another row of the same round deletes.
    async fn ours(&self, store: &Store, row: Row) -> Res<()> {
        let (name, prefix) = self.sought();
        match row {
            Row::Nothing => {}
            Row::ListLayers => drop(store.layers().await?),
            Row::ListImages => drop(store.images().await?),
            Row::ListContainers => drop(store.containers().await?),
            Row::ByName => drop(store.layer(&name).await?),
            Row::ByTruncatedId => drop(store.layer(prefix).await?),
            Row::CreateLayer => {
                let options = LayerOptions::default().id("extra-layer");
                drop(store.create_layer(Some(&self.image.1), options).await?);
            }
            Row::DeleteLayer => store.delete_layer("extra-layer").await?,
            Row::CreateImage => {
                let options = ImageOptions::default().id("extra-image");
                drop(store.create_image(Some(&self.image.1), options).await?);
            }
            Row::DeleteImage => drop(store.delete_image("extra-image").await?),
            Row::CreateContainer => {
                let options = ContainerOptions::default().id("extra-container");
                drop(store.create_container(Some(&self.image.0), options).await?);
            }
            Row::DeleteContainer => store.delete_container("extra-container").await?,
        }
        Ok(())
    }

    /// The same by the peer.
    fn theirs(&self, row: Row) -> Res<()> {
        let (name, prefix) = self.sought();
        let (image, layer) = (self.image.0.as_str(), self.image.1.as_str());
        self.peer(&match row {
            Row::Nothing => vec!["version"],
            Row::ListLayers => vec!["layers", "--json"],
            Row::ListImages => vec!["images", "--json"],
            Row::ListContainers => vec!["containers", "--json"],
            Row::ByName => vec!["layer", "--json", &name],
            Row::ByTruncatedId => vec!["layer", "--json", prefix],
            Row::CreateLayer => vec!["create-layer", "--readonly", "--id", "extra-layer", layer],
            Row::DeleteLayer => vec!["delete-layer", "extra-layer"],
            Row::CreateImage => vec!["create-image", "--id", "extra-image", layer],
            Row::DeleteImage => vec!["delete-image", "extra-image"],
            Row::CreateContainer => vec!["create-container", "--id", "extra-container", image],
            Row::DeleteContainer => vec!["delete-container", "extra-container"],
        })
    }

    fn peer(&self, arguments: &[&str]) -> Res<()> {
        let root = &self.arguments.root;
        let status = Command::new(&self.arguments.peer)
            .arg("--graph")
            .arg(root.join("graph"))
            .arg("--run")
            .arg(root.join("run"))
            .args(["--storage-driver", &self.arguments.driver])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("{} {} failed", self.arguments.peer, arguments.join(" ")).into())
        }
    }

    /// All rows in a store that is open.
    async fn measure_open(&self, store: &Store) -> Res<Times> {
        let mut times = Times::new();
        // The previous process has made the caches stale.
        for row in Row::ALL {
            self.ours(store, row).await?;
        }
        for _ in 0..self.arguments.rounds {
            for row in Row::ALL.into_iter().filter(|row| *row != Row::Nothing) {
                let started = Instant::now();
                self.ours(store, row).await?;
                times.entry(row).or_default().push(started.elapsed());
            }
        }
        Ok(times)
    }

    /// All rows, each with a store of its own. Returns the last one.
    async fn measure_fresh(&self, mut store: Store) -> Res<(Times, Store)> {
        let mut times = Times::new();
        for _ in 0..self.arguments.rounds {
            for row in Row::ALL {
                // The next one shares nothing with it.
                store.free();
                drop(store);
                let started = Instant::now();
                store = Store::open(self.options()).await?;
                self.ours(&store, row).await?;
                times.entry(row).or_default().push(started.elapsed());
            }
        }
        Ok((times, store))
    }

    fn measure_peer(&self) -> Res<Times> {
        let mut times = Times::new();
        for _ in 0..self.arguments.rounds {
            for row in Row::ALL {
                let started = Instant::now();
                self.theirs(row)?;
                times.entry(row).or_default().push(started.elapsed());
            }
        }
        Ok(times)
    }
}

#[tokio::main]
async fn main() -> Res<()> {
    let arguments = arguments()?;
    let mut growth = Growth {
        layers: Vec::new(),
        image: Default::default(),
        arguments,
    };
    std::fs::create_dir_all(&growth.arguments.root)?;
    let outcome = grow(&mut growth).await;
    std::fs::remove_dir_all(&growth.arguments.root)?;
    outcome
}

async fn grow(growth: &mut Growth) -> Res<()> {
    let mut store = Store::open(growth.options()).await?;
    let peer = has(&growth.arguments.peer);
    if !peer {
        println!("SKIPPED {}: the command is not there", growth.arguments.peer);
    }
    for size in growth.arguments.sizes.clone() {
        let started = Instant::now();
        growth.fill(&store, size).await?;
        println!(
            "\nmilliseconds; {size} layers, {} images, {} containers ({}; filled in {:.1?})",
            size.div_ceil(PER_IMAGE),
            size.div_ceil(PER_CONTAINER),
            growth.arguments.driver,
            started.elapsed()
        );
        let open = growth.measure_open(&store).await?;
        let (fresh, last) = growth.measure_fresh(store).await?;
        store = last;
        let theirs = if peer {
            growth.measure_peer()?
        } else {
            Times::new()
        };
        println!(
            "{:22} {:>30} {:>30} {:>30}",
            "",
            "open store",
            "opened for it",
            name_of(&growth.arguments.peer)
        );
        for row in Row::ALL {
            println!(
                "{:22} {:>30} {:>30} {:>30}",
                row.label(),
                cell(open.get(&row)),
                cell(fresh.get(&row)),
                cell(theirs.get(&row))
            );
        }
    }
    let started = Instant::now();
    store.wipe().await?;
    println!("\nwiped in {:.1?}", started.elapsed());
    store.shutdown_force().await?;
    Ok(())
}

fn has(program: &str) -> bool {
    let version = Command::new(program)
        .arg("--help")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    version.is_ok()
}

fn name_of(program: &str) -> &str {
    let name = Path::new(program).file_name().and_then(|name| name.to_str());
    name.unwrap_or(program)
}

fn milliseconds(time: &Duration) -> String {
    format!("{:.3}", time.as_secs_f64() * 1e3)
}

/// `median (min to max)`.
fn cell(times: Option<&Vec<Duration>>) -> String {
    let mut sorted = times.cloned().unwrap_or_default();
    sorted.sort();
    match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(min), Some(median), Some(max)) => {
            format!(
                "{} ({} to {})",
                milliseconds(median),
                milliseconds(min),
                milliseconds(max)
            )
        }
        _ => "-".into(),
    }
}

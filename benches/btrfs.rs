//! What snapshots are for: containers created and deleted, and what they have changed, over btrfs, by `graphroot` beside
//! `containers-storage` of Debian testing, and by the library.
//!
//! ```text
//! cargo bench --features cli --bench btrfs [-- LAYER.tar.gz]
//! ```
//!
//! Everything runs on a new file system in a file in one directory (`$GRAPHROOT_BENCH_DIR`, else `/dev/shm`), in turn. The
//! tables show the median and the range of each, and the ratio of the median to that of the first row. Times of commands are
//! those of whole processes; `version` shows how much of that their start is. Needs root, and the program that makes btrfs.
#![expect(clippy::print_stdout, reason = "it is a program")]

#[path = "support/command.rs"]
mod command;
#[path = "support/disk.rs"]
mod disk;
mod support;
#[path = "support/testing.rs"]
mod testing;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use graphroot::{ContainerOptions, DiffOptions, ImageBuilder, LayerOptions, MountOptions, Store};
use tokio::io::AsyncReadExt as _;

use command::command;
use disk::Disk;
use support::{Res, is_there, options, print_rows, remove, run, runtime, timed};
use testing::testing_programs;

/// How often each contender runs.
const ROUNDS: usize = 15;

/// Containers that are deleted together.
const CONTAINERS: usize = 100;

/// How often so many are.
const DELETIONS: usize = 3;

const DRIVER: &str = "btrfs";

fn main() -> Res<()> {
    if !is_there("mkfs.btrfs", "-V") {
        return Ok(());
    }
    let dir = support::directory()?;
    let blob = support::layer(dir.path(), "usr/share")?;
    println!("{} on btrfs, {ROUNDS} rounds each", blob.display());
    let ours = PathBuf::from(env!("CARGO_BIN_EXE_graphroot"));
    let mut programs = vec![("graphroot", ours)];
    programs.extend(testing_programs().map(|bin| ("containers-storage", bin.join("containers-storage"))));
    let bench = Bench {
        disk: Disk::new(DRIVER, dir.path())?,
        programs,
    };
    bench.run(&blob)
}

/// The store in which everything happens, and the programs that work in it.
struct Bench {
    disk: Disk,
    programs: Vec<(&'static str, PathBuf)>,
}

/// Times by row.
type Rows = Vec<(String, Vec<Duration>)>;

impl Bench {
    fn command(&self, program: &Path, verb: &str) -> Command {
        command(program, self.disk.path(), DRIVER, verb)
    }

    fn run(&self, blob: &Path) -> Res<()> {
        let runtime = runtime()?;
        let store = runtime.block_on(async {
            let store = Store::open(options(self.disk.path(), DRIVER)).await?;
            let file = tokio::fs::File::open(blob).await?;
            let put = store.put_layer(None, LayerOptions::default(), file).await?;
            let image = ImageBuilder::new().top_layer(put.layer.id()).cmd(["sh"]);
            let image = image.build(&store).await?;
            store.set_names(image.id(), &["image"]).await?;
            Ok(store) as Res<Store>
        })?;
        self.started()?;
        self.created(&runtime, &store)?;
        self.changed(&runtime, &store)?;
        self.deleted(&runtime, &store)?;
        runtime.block_on(remove(&store))
    }

    fn rows(&self, library: &str, verb: &str) -> Rows {
        let of_programs = self.programs.iter().map(|(name, _)| format!("{name} {verb}"));
        let library = [library.to_owned()].into_iter().filter(|name| !name.is_empty());
        let mut names: Vec<String> = of_programs.collect();
        names.extend(library);
        names.into_iter().map(|name| (name, Vec::new())).collect()
    }

    /// The start of a process alone.
    fn started(&self) -> Res<()> {
        println!("start of a process");
        let mut rows = self.rows("", "version");
        for _ in 0..ROUNDS {
            for ((_, program), row) in self.programs.iter().zip(&mut rows) {
                row.1.push(timed(&mut self.command(program, "version"))?);
            }
        }
        print(&rows);
        Ok(())
    }

    fn created(&self, runtime: &tokio::runtime::Runtime, store: &Store) -> Res<()> {
        println!("create a container");
        let mut rows = self.rows("Store::create_container", "create-container");
        for round in 0..ROUNDS {
            for ((name, program), row) in self.programs.iter().zip(&mut rows) {
                let name = format!("{name}-{round}");
                let mut create = self.command(program, "create-container");
                row.1.push(timed(create.args(["--name", &name, "image"]))?);
            }
            let started = Instant::now();
            let options = ContainerOptions::default().name(format!("library-{round}"));
            runtime.block_on(store.create_container(Some("image"), options))?;
            if let Some((_, times)) = rows.last_mut() {
                times.push(started.elapsed());
            }
        }
        print(&rows);
        Ok(())
    }

    fn deleted(&self, runtime: &tokio::runtime::Runtime, store: &Store) -> Res<()> {
        println!("delete {CONTAINERS} containers that have 20 files of their own each");
        let mut rows = self.rows("Store::delete_container", "delete-container");
        let create = || {
            runtime.block_on(async {
                let mut ids = Vec::new();
                for _ in 0..CONTAINERS {
                    let container = store
                        .create_container(Some("image"), ContainerOptions::default())
                        .await?;
                    let tree = self.tree(container.layer_id());
                    for number in 0..20 {
                        fs::write(tree.join(format!("file{number}")), [1; 1000])?;
                    }
                    ids.push(container.id().to_owned());
                }
                Ok(ids) as Res<Vec<String>>
            })
        };
        for _ in 0..DELETIONS {
            for ((_, program), row) in self.programs.iter().zip(&mut rows) {
                let ids = create()?;
                self.sync()?;
                row.1
                    .push(timed(self.command(program, "delete-container").args(ids))?);
            }
            let ids = create()?;
            self.sync()?;
            let started = Instant::now();
            runtime.block_on(async {
                for id in ids {
                    store.delete_container(&id).await?;
                }
                Ok(()) as Res<()>
            })?;
            if let Some((_, times)) = rows.last_mut() {
                times.push(started.elapsed());
            }
        }
        print(&rows);
        Ok(())
    }

    /// The subvolume of a layer.
    fn tree(&self, layer: &str) -> PathBuf {
        self.disk.path().join("graph/btrfs/subvolumes").join(layer)
    }

    fn sync(&self) -> Res<()> {
        run(Command::new("sync").arg("-f").arg(self.disk.path()))
    }

    /// A container that has changed little of a large image, before and after the file system has written that.
    fn changed(&self, runtime: &tokio::runtime::Runtime, store: &Store) -> Res<()> {
        let container =
            runtime.block_on(store.create_container(Some("image"), ContainerOptions::default()))?;
        let layer = container.layer_id();
        let tree = runtime.block_on(store.mount(container.id(), MountOptions::default()))?;
        let mut round = 0;
        for verb in ["changes", "diff"] {
            for written in [false, true] {
                println!(
                    "{verb} of ten files in a large image, {}",
                    if written { "written" } else { "just changed" }
                );
                let mut rows = self.rows(&format!("Store::{verb}"), verb);
                for _ in 0..ROUNDS {
                    let mut change = || {
                        round += 1;
                        change(&tree, round)?;
                        if written { self.sync() } else { Ok(()) }
                    };
                    for ((_, program), row) in self.programs.iter().zip(&mut rows) {
                        change()?;
                        let mut command = self.command(program, verb);
                        if verb == "diff" {
                            command.arg("--uncompressed");
                        }
                        row.1.push(timed(command.arg(layer).stdout(Stdio::null()))?);
                    }
                    change()?;
                    let started = Instant::now();
                    runtime.block_on(async {
                        if verb == "changes" {
                            store.changes(None, layer).await?;
                        } else {
                            let mut diff = store.diff(None, layer, DiffOptions::uncompressed()).await?;
                            diff.read_to_end(&mut Vec::new()).await?;
                        }
                        Ok(()) as Res<()>
                    })?;
                    if let Some((_, times)) = rows.last_mut() {
                        times.push(started.elapsed());
                    }
                }
                print(&rows);
            }
        }
        runtime.block_on(store.unmount(container.id()))?;
        Ok(())
    }
}

fn print(rows: &Rows) {
    print_rows(rows.iter().map(|(name, times)| (name.as_str(), times.as_slice())));
}

/// Makes and changes some files, a tenth of them in a directory of the image.
fn change(tree: &Path, round: usize) -> Res<()> {
    let dir = tree.join("new");
    fs::create_dir_all(&dir)?;
    for number in 0..9 {
        fs::write(dir.join(format!("file{number}")), format!("content {round}"))?;
    }
    let one = fs::read_dir(tree)?
        .filter_map(Result::ok)
        .find(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != "new")
        .ok_or("an image without directories")?;
    let file = one.path().join("changed");
    fs::write(&file, format!("content {round}"))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

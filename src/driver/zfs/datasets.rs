//! What is asked of `zfs`: making, listing, renaming and destroying the datasets of layers.

use std::thread;
use std::time::Duration;

use crate::driver::zfs::command::{Program, Refusal};
use crate::driver::zfs::names::{Root, Temporary, snapshot};
use crate::error::{ErrorKind, Result};

/// The property with the mark of the graph root that a dataset was made for.
pub(super) const HOME: &str = "graphroot:home";

/// The property with the number of the temporary directory to which a layer belongs that was removed while it could not be
/// renamed.
const REMOVED: &str = "graphroot:removed";

/// The value of a property that is not set.
const NOT_SET: &str = "-";

/// How often, and how far apart, something busy is tried again: zfs-fuse is for a moment after an unmount.
const MAX_BUSY: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// The datasets of one graph root.
#[derive(Clone, Debug)]
pub(super) struct Datasets {
    pub(super) program: Program,
    pub(super) root: Root,
    /// The mark of this graph root.
    pub(super) mark: String,
}

/// A dataset in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: String,
    /// It has the mark of this graph root.
    pub(super) is_ours: bool,
    /// The number of the temporary directory to which the removed layer belongs.
    pub(super) removed: Option<String>,
}

/// Repeats what fails because something is busy.
fn unless_busy(
    limit: u32,
    mut ask: impl FnMut() -> Result<Result<String, Refusal>>,
) -> Result<Result<String, Refusal>> {
    for _ in 1..limit {
        match ask()? {
            Err(refusal) if refusal.is_busy() => thread::sleep(BUSY_PAUSE),
            ended => return Ok(ended),
        }
    }
    ask()
}

impl Datasets {
    /// Refuses a dataset for layers that is not there, and a `zfs` that does not work.
    pub(super) fn check_root(&self) -> Result<()> {
        let name = self.root.name();
        let arguments = ["list", "-H", "-t", "filesystem", "-o", "name", name];
        let asked = self.program.ask(&arguments).map_err(|error| {
            let what = format!("cannot find root filesystem {name}: asking zfs");
            ErrorKind::NotSupported.err(what).with_source(error)
        });
        match asked? {
            Ok(printed) if printed.trim_end() == name => Ok(()),
            Ok(printed) => Err(self.program.garbage(&arguments, &printed)),
            Err(refusal) if refusal.is_missing() => {
                let what = format!("cannot find root filesystem {name}");
                Err(ErrorKind::InvalidInput
                    .err(what)
                    .with_source(refusal.into_error()))
            }
            // No module in the kernel, no daemon, or no rights.
            Err(refusal) => {
                let what = format!(
                    "cannot find root filesystem {name}: {}",
                    refusal.into_error().chain()
                );
                let source = "prerequisites for driver not satisfied (wrong filesystem?)";
                Err(ErrorKind::NotSupported.err(what).with_source(source))
            }
        }
    }

    /// The datasets below the one for layers, and with `snapshots` those of their snapshots.
    pub(super) fn list(&self, snapshots: bool) -> Result<Vec<Listed>> {
        let properties = format!("name,{HOME},{REMOVED}");
        let (depth, kinds) = if snapshots {
            ("2", "filesystem,snapshot")
        } else {
            ("1", "filesystem")
        };
        let arguments = [
            "list",
            "-H",
            "-r",
            "-d",
            depth,
            "-t",
            kinds,
            "-o",
            &properties,
            self.root.name(),
        ];
        self.parse(&arguments, &self.program.run(&arguments)?)
    }

    fn parse(&self, arguments: &[&str], printed: &str) -> Result<Vec<Listed>> {
        let parse = |line: &str| {
            let fields: Vec<&str> = line.split('\t').collect();
            let [name, home, removed] = fields[..] else {
                return Err(self.program.garbage(arguments, line));
            };
            if !name.starts_with(self.root.name()) {
                return Err(self.program.garbage(arguments, line));
            }
            Ok(Listed {
                name: name.to_owned(),
                is_ours: home == self.mark,
                removed: Some(removed.to_owned()).filter(|removed| removed != NOT_SET),
            })
        };
        printed.lines().map(parse).collect()
    }

    /// What is known of one dataset; `None` if it is not there.
    pub(super) fn look_up(&self, name: &str) -> Result<Option<Listed>> {
        let properties = format!("name,{HOME},{REMOVED}");
        let arguments = ["list", "-H", "-t", "filesystem", "-o", &properties, name];
        match self.program.ask(&arguments)? {
            Ok(printed) => match self.parse(&arguments, &printed)?.pop() {
                Some(found) if found.name == name && printed.lines().count() == 1 => Ok(Some(found)),
                _ => Err(self.program.garbage(&arguments, &printed)),
            },
            Err(refusal) if refusal.is_missing() => Ok(None),
            Err(refusal) => Err(refusal.into_error()),
        }
    }

    /// Makes a dataset that is empty, or a clone of `parent` through a snapshot with the number of a temporary directory.
    /// [`Refusal::is_there`] if it is there.
    pub(super) fn make(
        &self,
        name: &str,
        parent: Option<&str>,
        number: &str,
        properties: &[String],
    ) -> Result<Result<(), Refusal>> {
        let mark = format!("{HOME}={}", self.mark);
        let all = properties.iter().chain([&mark]);
        let options: Vec<&str> = all.flat_map(|property| ["-o", property]).collect();
        let made = |asked: Result<String, Refusal>| asked.map(drop);
        let Some(parent) = parent else {
            let arguments = [&["create"], &options[..], &[name]].concat();
            return Ok(made(self.program.ask(&arguments)?));
        };
        let snapshot = snapshot(parent, number);
        if let Err(refusal) = self.program.ask(&["snapshot", &snapshot])? {
            return Ok(Err(refusal));
        }
        let arguments = [&["clone"], &options[..], &[&snapshot, name]].concat();
        let cloned = self.program.ask(&arguments);
        // It goes when its last clone does, or now if there is none.
        self.destroy_snapshot(&snapshot)?;
        Ok(made(cloned?))
    }

    /// Destroys a snapshot as soon as nothing is a clone of it.
    pub(super) fn destroy_snapshot(&self, name: &str) -> Result<()> {
        match self.program.ask(&["destroy", "-d", name])? {
            Err(refusal) if !refusal.is_missing() => Err(refusal.into_error()),
            _ => Ok(()),
        }
    }

    pub(super) fn set(&self, name: &str, property: &str) -> Result<()> {
        self.program.run(&["set", property, name]).map(drop)
    }

    /// Marks a layer as removed, by the process that holds the temporary directory of this number.
    pub(super) fn mark_removed(&self, name: &str, number: &str) -> Result<()> {
        self.set(name, &format!("{REMOVED}={number}"))
    }

    /// Has a daemon mount a dataset where its property says.
    pub(super) fn mount(&self, name: &str) -> Result<Result<(), Refusal>> {
        let mounted = unless_busy(MAX_BUSY, || self.program.ask(&["mount", name]))?;
        Ok(mounted.map(drop))
    }

    /// Renames a dataset. On failure it keeps its name.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<Result<(), Refusal>> {
        let renamed = unless_busy(MAX_BUSY, || self.program.ask(&["rename", from, to]))?;
        Ok(renamed.map(drop))
    }

    /// Destroys a dataset with its snapshots, and with datasets in it. Clones of them stay. One that is not there is no error.
    pub(super) fn destroy(&self, name: &str) -> Result<()> {
        let destroy = || unless_busy(MAX_BUSY, || self.program.ask(&["destroy", "-r", name]));
        let refusal = match destroy()? {
            Ok(_) => return Ok(()),
            Err(refusal) if refusal.is_missing() => return Ok(()),
            Err(refusal) if refusal.has_clones() => refusal,
            Err(refusal) => return Err(refusal.into_error()),
        };
        // The clones become the owners of the snapshots, one after the other.
        let clones = self.clones_of(name)?;
        if clones.is_empty() {
            return Err(refusal.into_error());
        }
        for clone in clones {
            tracing::debug!(clone, "promoting the clone of a dataset that is destroyed");
            if let Err(refusal) = self.program.ask(&["promote", &clone])? {
                tracing::debug!(error = %refusal.into_error().chain(), "no clone to promote");
            }
        }
        destroy()?.map(drop).map_err(Refusal::into_error)
    }

    /// The datasets below the one for layers that are clones of snapshots of this one.
    fn clones_of(&self, name: &str) -> Result<Vec<String>> {
        let arguments = [
            "list",
            "-H",
            "-r",
            "-t",
            "filesystem",
            "-o",
            "name,origin",
            self.root.name(),
        ];
        let printed = self.program.run(&arguments)?;
        let clones = printed.lines().filter_map(|line| {
            let (clone, origin) = line.split_once('\t')?;
            let (of, _snapshot) = origin.split_once('@')?;
            (of == name).then(|| clone.to_owned())
        });
        Ok(clones.collect())
    }

    /// Destroys what belongs to the temporary directory of this number, which is among `listed`.
    pub(super) fn destroy_temporary(&self, number: &str, listed: &[Listed]) -> Result<()> {
        let temporary = [Temporary::New, Temporary::Old].map(|kind| self.root.temporary(number, kind));
        let ending = snapshot("", number);
        for found in listed {
            if found.name.ends_with(&ending) {
                self.destroy_snapshot(&found.name)?;
            }
        }
        for found in listed.iter().filter(|found| !found.name.contains('@')) {
            let is_removed =
                found.removed.as_deref() == Some(number) && self.root.id_of(&found.name).is_some();
            if is_removed || (found.is_ours && temporary.contains(&found.name)) {
                self.destroy(&found.name)?;
            }
        }
        Ok(())
    }

    /// The values of properties of the dataset for layers.
    pub(super) fn properties(&self, names: &str) -> Result<Vec<(String, String)>> {
        let arguments = ["get", "-H", "-p", "-o", "property,value", names, self.root.name()];
        let printed = self.program.run(&arguments)?;
        let pairs = printed.lines().filter_map(|line| line.split_once('\t'));
        Ok(pairs
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect())
    }

    /// The health of the pool.
    pub(super) fn health(&self) -> Result<String> {
        let arguments = ["list", "-H", "-o", "health", self.root.pool()];
        let printed = self.program.beside("zpool").run(&arguments)?;
        Ok(printed.trim_end().to_owned())
    }
}

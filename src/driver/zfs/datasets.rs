//! What is asked of `zfs`: making, listing, renaming and destroying the datasets of layers.

use std::collections::HashMap;
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

/// The property of a dataset that was made to take the place of a layer's: the number of its temporary directory, and the ID.
pub(super) const REPLACES: &str = "graphroot:replaces";

/// The value of a property that is not set.
const NOT_SET: &str = "-";

/// How often, and how far apart, something busy is tried again: zfs-fuse is for a moment after an unmount.
const MAX_BUSY: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// How many clones of a dataset that is destroyed are promoted: one, unless others are made meanwhile.
const MAX_PROMOTED: u32 = 10;

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
    /// The value of [`REPLACES`].
    pub(super) replaces: Option<String>,
}

/// The properties of which a [`Listed`] is made.
fn listed_properties() -> String {
    format!("name,{HOME},{REMOVED},{REPLACES}")
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
        let properties = listed_properties();
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
            let [name, home, removed, replaces] = fields[..] else {
                return Err(self.program.garbage(arguments, line));
            };
            if !name.starts_with(self.root.name()) {
                return Err(self.program.garbage(arguments, line));
            }
            let set = |value: &str| Some(value.to_owned()).filter(|value| value != NOT_SET);
            Ok(Listed {
                name: name.to_owned(),
                is_ours: home == self.mark,
                removed: set(removed),
                replaces: set(replaces),
            })
        };
        printed.lines().map(parse).collect()
    }

    /// What is known of one dataset; `None` if it is not there.
    pub(super) fn look_up(&self, name: &str) -> Result<Option<Listed>> {
        let properties = listed_properties();
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
        for _ in 0..MAX_PROMOTED {
            match unless_busy(MAX_BUSY, || self.program.ask(&["destroy", "-r", name]))? {
                Ok(_) => return Ok(()),
                Err(refusal) if refusal.is_missing() => return Ok(()),
                Err(refusal) if refusal.has_clones() => {
                    if !self.promote_clone_of(name, None)? {
                        return Err(refusal.into_error());
                    }
                }
                Err(refusal) => return Err(refusal.into_error()),
            }
        }
        Err(ErrorKind::Io.err(format!("destroying {name}, which gets clones again and again")))
    }

    /// Makes all clones of a dataset independent of it, but not the dataset `except`. The program unmounts clones when
    /// it renames what they depend on, unless the kernel mounts them.
    pub(super) fn release_clones(&self, name: &str, except: Option<&str>) -> Result<()> {
        for _ in 0..MAX_PROMOTED {
            if !self.promote_clone_of(name, except)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Promotes a clone of a dataset, but not the dataset `except`. `false` if there is none.
    ///
    /// # Errors
    /// That with which the program refuses the youngest of them, if it refuses all: a clone with a quota needs room in it for
    /// what it takes over.
    fn promote_clone_of(&self, name: &str, except: Option<&str>) -> Result<bool> {
        // In the order in which they were made.
        let arguments = [
            "list", "-H", "-r", "-d", "1", "-t", "snapshot", "-o", "name", name,
        ];
        let printed = self.program.run(&arguments)?;
        let snapshots: Vec<&str> = printed.lines().collect();
        if snapshots.is_empty() {
            return Ok(false);
        }
        let mut clones = self.clones_of(name)?;
        clones.retain(|_snapshot, clone| Some(&**clone) != except);
        // It becomes the owner of the snapshots up to the one that it is a clone of, with their clones: the youngest, if its
        // quota has room for them.
        let mut refused = None;
        for clone in snapshots
            .iter()
            .rev()
            .filter_map(|snapshot| clones.get(*snapshot))
        {
            tracing::debug!(clone, name, "promoting a clone");
            match self.program.ask(&["promote", clone])? {
                Ok(_) => return Ok(true),
                // Somebody else has removed or promoted it.
                Err(refusal) if refusal.is_missing() || refusal.is_no_clone() => return Ok(true),
                Err(refusal) => refused = refused.or(Some(refusal)),
            }
        }
        refused.map_or(Ok(false), |refusal| Err(refusal.into_error()))
    }

    /// The datasets below the one for layers that are clones of snapshots of this one, by those, of which each has one.
    fn clones_of(&self, name: &str) -> Result<HashMap<String, String>> {
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
            (of == name).then(|| (origin.to_owned(), clone.to_owned()))
        });
        Ok(clones.collect())
    }

    /// Destroys what belongs to the temporary directory of this number, of which nobody but the caller has the lock. An exchange that was
    /// begun is completed before.
    pub(super) fn destroy_temporary(&self, number: &str) -> Result<()> {
        let listed = self.list(true)?;
        self.complete_exchange(number, &listed)?;
        let temporary = [Temporary::New, Temporary::Old].map(|kind| self.root.temporary(number, kind));
        let ending = snapshot("", number);
        for found in &listed {
            if found.name.ends_with(&ending) {
                self.destroy_snapshot(&found.name)?;
            }
        }
        for found in listed.iter().filter(|found| !found.name.contains('@')) {
            let is_removed =
                found.removed.as_deref() == Some(number) && self.root.id_of(&found.name).is_some();
            if found.is_ours && (is_removed || temporary.contains(&found.name)) {
                self.destroy(&found.name)?;
            }
        }
        Ok(())
    }

    /// The values of properties of a dataset.
    pub(super) fn properties(&self, names: &str, of: &str) -> Result<Vec<(String, String)>> {
        let arguments = ["get", "-H", "-p", "-o", "property,value", names, of];
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

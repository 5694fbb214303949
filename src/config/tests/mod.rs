//! The configuration of invented machines.

mod keys;
mod merging;
mod mistakes;
mod places;
mod users;

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::{Effective, Loader};
use crate::error::Error;

const DEBIAN: &str = include_str!("fixtures/debian.conf");
const FEDORA: &str = include_str!("fixtures/fedora.conf");
const CRIO: &str = include_str!("fixtures/crio.conf");
const NESTED: &str = include_str!("fixtures/nested.conf");
const EVERYTHING: &str = include_str!("fixtures/everything.conf");

/// The administrator's file.
const ETC: &str = "etc/containers/storage.conf";
/// The distribution's file.
const USR: &str = "usr/share/containers/storage.conf";

/// A machine whose files are in a temporary directory.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A machine with nothing but this file of the administrator.
    fn with(text: &str) -> Self {
        let machine = Self::new();
        machine.write(ETC, text);
        machine
    }

    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// For root without variables.
    fn loader(&self) -> Loader {
        Loader::new().root(self.0.path())
    }

    /// What root gets.
    fn load(&self) -> Effective {
        self.loader().now()
    }

    /// The names of the files that were read, below the machine's root.
    fn files(&self, effective: &Effective) -> Vec<String> {
        let inside = |file: &PathBuf| {
            file.strip_prefix(self.0.path())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        effective.files.iter().map(inside).collect()
    }
}

impl Loader {
    fn now(&self) -> Effective {
        self.load_now().unwrap()
    }

    fn fails(&self) -> Error {
        match self.load_now() {
            Ok(effective) => panic!("it was loaded:\n{effective}"),
            Err(error) => error,
        }
    }
}

/// Sets the graph root, which shows who had the last word.
fn graph(root: &str) -> String {
    format!("[storage]\ngraphroot = \"{root}\"\n")
}

/// The effective value of a key, and its origin, without the machine's root.
fn value_of(machine: &Machine, effective: &Effective, key: &str) -> (String, String) {
    let value = effective.values.iter().find(|value| value.key == key);
    let value = value.unwrap_or_else(|| panic!("{key} is not set:\n{effective}"));
    let root = format!("{}/", machine.0.path().display());
    (value.value.clone(), value.origin.to_string().replace(&root, ""))
}

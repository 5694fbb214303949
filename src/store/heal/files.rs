//! Single files of a layer that are made anew, if its tar-split data is whole.
//!
//! The whole stream is read, and its digest compared, but only the entries of the damaged files are unpacked. A copy of the
//! layer's tree gets them, whose other files are those of the layer itself.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::archive::apply::selection::Selection;
use crate::archive::path::{clean, split};
use crate::archive::verify::difference::{AttributeChange, DifferenceKind};
use crate::bridge::{self, Detached};
use crate::error::{IoContext as _, Result};
use crate::record::layer::LayerRow;
use crate::store::Store;
use crate::store::access::Needs;
use crate::store::check::finding::Problem;
use crate::store::heal::options::HealOptions;
use crate::store::heal::source::{HealSource, WantedContent};
use crate::store::heal::whole::{Renewed, stream_from};
use crate::store::layer_store::heal::Renewal;
use crate::sys::at;

/// More damaged files than these are no reason to keep the others.
const MAX_FILES: usize = 1000;

/// See the module's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DamagedFiles {
    /// The names of what is missing or has other content or attributes, cleaned.
    wrong: BTreeSet<Vec<u8>>,
    /// The names of what should not be there.
    added: BTreeSet<Vec<u8>>,
}

/// Whether something else is in the place of a directory.
fn is_directory_lost(change: &AttributeChange) -> bool {
    matches!(change, AttributeChange::Type { expected: b'5', .. })
}

fn cleaned(path: &Path) -> Vec<u8> {
    let mut name = Vec::new();
    clean(path.as_os_str().as_bytes(), &mut name);
    name
}

impl DamagedFiles {
    /// What is wrong with a layer, if it is that.
    pub(super) fn of<'a>(problems: impl Iterator<Item = &'a Problem>) -> Option<Self> {
        let mut files = Self::default();
        for problem in problems {
            match problem {
                Problem::FileModified { path, .. } => drop(files.wrong.insert(cleaned(path))),
                Problem::ContentModified(difference) => {
                    let name = cleaned(&difference.path);
                    match &difference.kind {
                        // What a directory is unpacked over hides what lies below it, and so the directory would.
                        DifferenceKind::Changed(changes) if changes.iter().any(is_directory_lost) => {
                            return None;
                        }
                        DifferenceKind::Missing { .. } | DifferenceKind::Changed(_) => {
                            files.wrong.insert(name)
                        }
                        DifferenceKind::Added { .. } => files.added.insert(name),
                        DifferenceKind::NotDeleted | DifferenceKind::Hidden => return None,
                    };
                }
                // The layers below may have been damaged too.
                Problem::NotMountable { .. } => {}
                _ => return None,
            }
        }
        let all = files.wrong.iter().chain(&files.added);
        let is_root = |name: &Vec<u8>| name.is_empty();
        let is_few = (1..=MAX_FILES).contains(&(files.wrong.len() + files.added.len()));
        (is_few && !all.into_iter().any(is_root)).then_some(files)
    }

    /// The names of what is missing or has other content or attributes.
    pub(super) fn wrong(&self) -> &BTreeSet<Vec<u8>> {
        &self.wrong
    }

    /// The entries that are unpacked: also those of the directories, whose times change with what they have.
    fn selection(&self) -> Selection {
        let mut names = self.wrong.clone();
        for name in self.wrong.iter().chain(&self.added) {
            let mut above = split(name).0;
            while !above.is_empty() {
                names.insert(above.to_vec());
                above = split(above).0;
            }
        }
        Selection::new(names)
    }

    fn paths(&self) -> Vec<PathBuf> {
        let all = self.wrong.union(&self.added);
        all.map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(name)))
            .collect()
    }
}

impl Store {
    /// Makes files of a layer anew of what `from` gives ([`stream_from`]); `None` if that is nothing. Returns their paths.
    pub(super) async fn renew_files_from(
        &self,
        from: (&dyn HealSource, usize),
        wanted: &WantedContent,
        renewed: &Renewed,
        files: &DamagedFiles,
        options: &HealOptions,
    ) -> Result<Option<Vec<PathBuf>>> {
        let Some(stream) = stream_from(from, wanted, options).await? else {
            return Ok(None);
        };
        let content = self.unpack_anew(stream, Some(files.selection()), renewed).await?;
        let (tar_split, durable) = (
            self.inner.dirs.tar_split(&renewed.row.id)?,
            self.inner.sync_content(),
        );
        // The layer keeps it; what takes the tree's place comes with one.
        let copied = bridge::run(move || {
            let unpacked = content.unpacked.into_inner();
            let to = &unpacked.tar_split.path;
            let mut from = at::open_regular(&tar_split).at("opening", &tar_split)?;
            let mut file = std::fs::File::create(to).at("creating", to)?;
            std::io::copy(&mut from, &mut file).at("copying tar-split to", to)?;
            if durable {
                file.sync_data().at("syncing", to)?;
            }
            Ok(Detached::new(unpacked))
        });
        let unpacked = copied.await?;
        let taken_out: Vec<Vec<u8>> = files.added.iter().cloned().collect();
        let renewed = renewed.clone();
        // Alone: it takes as long as there are files, and saves in its middle.
        let step = self.step_alone(Needs::LAYERS, move |held| {
            let (row, said) = (Arc::clone(&renewed.row), LayerRow::clone(&renewed.row));
            let renewal = Renewal { row, said };
            held.layers()?
                .renew_files(renewal, unpacked.into_inner(), &taken_out)
        });
        step.await?;
        Ok(Some(files.paths()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::verify::difference::Difference;

    fn modified(path: &str) -> Problem {
        Problem::FileModified {
            path: path.into(),
            reason: String::new(),
        }
    }

    fn different(path: &str, kind: DifferenceKind) -> Problem {
        Problem::ContentModified(Difference {
            path: path.into(),
            kind,
        })
    }

    #[test]
    fn only_damage_to_files_is_taken() {
        let problems = [
            modified("a/b"),
            different("/a/b", DifferenceKind::Missing { is_dir: false }),
            different("/new", DifferenceKind::Added { is_dir: true }),
        ];
        let files = DamagedFiles::of(problems.iter()).unwrap();
        assert_eq!(files.paths(), [PathBuf::from("a/b"), PathBuf::from("new")]);
        let selection = Selection::new([b"a".to_vec(), b"a/b".to_vec()]);
        assert_eq!(files.selection(), selection);
        for other in [
            Problem::TarSplitMissing,
            different("/x", DifferenceKind::Hidden),
            different("/", DifferenceKind::Changed(Vec::new())),
            Problem::MoreModified { count: 1 },
        ] {
            assert_eq!(
                DamagedFiles::of(problems.iter().chain([&other])),
                None,
                "{other:?}"
            );
        }
        assert_eq!(DamagedFiles::of(std::iter::empty()), None);
    }
}

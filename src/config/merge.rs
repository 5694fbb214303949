//! Merging the files: for each key the last file that has it wins, but a list can be appended. Pure.

use std::collections::BTreeMap;

use crate::config::parse::{Content, Parsed};
use crate::config::value::{Origin, Warning};

/// A key's value after all files.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) value: Content,
    /// The last file that set it.
    pub(super) origin: Origin,
}

/// All files together.
#[derive(Debug, Default)]
pub(super) struct Settings {
    values: BTreeMap<&'static str, Setting>,
    pub(super) pull_options: BTreeMap<String, (String, Origin)>,
    pub(super) has_pull_options: bool,
    pub(super) warnings: Vec<Warning>,
}

impl Settings {
    /// Merges the next file, which takes precedence.
    pub(super) fn add(&mut self, file: Parsed) {
        for assignment in file.assignments {
            let name = assignment.key.name;
            let value = match (assignment.value, self.values.remove(name).map(|old| old.value)) {
                (Content::List(texts, append), Some(Content::List(mut old, old_append))) => {
                    // Compat: the `append` of one file also holds for later files that have none.
                    let append = append.or(old_append);
                    if append == Some(true) {
                        old.extend(texts);
                        Content::List(old, append)
                    } else {
                        Content::List(texts, append)
                    }
                }
                (value, _) => value,
            };
            let origin = assignment.origin;
            self.values.insert(name, Setting { value, origin });
        }
        for (key, value, origin) in file.pull_options {
            self.pull_options.insert(key, (value, origin));
        }
        self.has_pull_options |= file.has_pull_options;
        self.warnings.extend(file.warnings);
    }

    /// A text that is not empty, and where it was set.
    pub(super) fn text(&self, name: &str) -> Option<(&str, &Origin)> {
        match self.values.get(name) {
            Some(Setting {
                value: Content::Text(text),
                origin,
            }) if !text.is_empty() => Some((text, origin)),
            _ => None,
        }
    }

    /// A switch, and where it was set.
    pub(super) fn switch(&self, name: &str) -> Option<(bool, &Origin)> {
        match self.values.get(name) {
            Some(Setting {
                value: Content::Switch(switch),
                origin,
            }) => Some((*switch, origin)),
            _ => None,
        }
    }

    /// A number that is not 0, and where it was set.
    pub(super) fn count(&self, name: &str) -> Option<(u32, &Origin)> {
        match self.values.get(name) {
            Some(Setting {
                value: Content::Count(count),
                origin,
            }) if *count != 0 => Some((*count, origin)),
            _ => None,
        }
    }

    /// The elements of a list.
    pub(super) fn list(&self, name: &str) -> &[(String, Origin)] {
        match self.values.get(name) {
            Some(Setting {
                value: Content::List(texts, _),
                ..
            }) => texts,
            _ => &[],
        }
    }
}

//! The random IDs of one side, by the names that the script gives them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::op::New;
use super::records::Records;

/// Names and IDs, both ways.
#[derive(Debug, Default)]
pub(super) struct Names {
    by_name: BTreeMap<String, String>,
    by_id: BTreeMap<String, String>,
    copies: usize,
}

impl Names {
    /// The ID that a text of the script means.
    pub(super) fn id(&self, text: &str) -> String {
        match self.by_name.get(text) {
            Some(id) => id.clone(),
            None => text.to_owned(),
        }
    }

    /// The text with names in place of random IDs.
    pub(super) fn named(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (id, name) in &self.by_id {
            if text.contains(id.as_str()) {
                text = text.replace(id, name);
            }
        }
        text
    }

    /// Names the IDs that appeared in the records with the last operation, which made `new`.
    pub(super) fn learn(&mut self, records: &Records, new: Option<&New>, known: &BTreeSet<&str>) {
        let wanted = new.map(|new| new.id).filter(|id| !id.is_empty());
        for row in &records.containers {
            let id = text(row, "id");
            let name = self.learn_one(id, known, |_| wanted.map(str::to_owned));
            let layer = format!("@{}.layer", name.trim_start_matches('@'));
            self.learn_one(text(row, "layer"), known, |_| Some(layer.clone()));
        }
        for row in records.layers.iter().chain(&records.images) {
            self.learn_one(text(row, "id"), known, |copies| match wanted {
                Some(name) if name.starts_with('@') => Some(name.to_owned()),
                // Copies of a top layer with other owners.
                _ => {
                    *copies += 1;
                    Some(format!("@copy-{copies}"))
                }
            });
        }
    }

    fn learn_one(
        &mut self,
        id: &str,
        known: &BTreeSet<&str>,
        name: impl FnOnce(&mut usize) -> Option<String>,
    ) -> String {
        if known.contains(id) {
            return id.to_owned();
        }
        if let Some(name) = self.by_id.get(id) {
            return name.clone();
        }
        let name = name(&mut self.copies).unwrap_or_else(|| panic!("nobody asked for {id}"));
        self.by_name.insert(name.clone(), id.to_owned());
        self.by_id.insert(id.to_owned(), name.clone());
        name
    }
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

//! Random operations on a table and on a naive model of it.

use proptest::prelude::*;

use crate::record::layer::LayerRow;
use crate::record::names::NameOperation;
use crate::record::table::Table;
use crate::record::tests::sample::{load, named_layer, strings, text};

/// What a table should be, without any index.
#[derive(Clone, Debug, Default)]
struct Model(Vec<(String, Vec<String>)>);

impl Model {
    fn find(&self, key: &str) -> Option<&str> {
        let by_id = self.0.iter().find(|(id, _)| id == key);
        let by_name = self
            .0
            .iter()
            .find(|(_, names)| names.iter().any(|name| name == key));
        let mut prefixed = self
            .0
            .iter()
            .filter(|(id, _)| !key.is_empty() && id.starts_with(key) && !id.contains(' '));
        let unique = match (prefixed.next(), prefixed.next()) {
            (Some(one), None) => Some(one),
            _ => None,
        };
        by_id.or(by_name).or(unique).map(|(id, _)| id.as_str())
    }

    fn owner(&self, name: &str) -> Option<usize> {
        self.0
            .iter()
            .position(|(_, names)| names.iter().any(|other| other == name))
    }

    fn apply(&mut self, id: &str, operation: NameOperation, given: &[String]) -> bool {
        let Some(at) = self.0.iter().position(|(other, _)| other == id) else {
            return false;
        };
        let old = std::mem::take(&mut self.0[at].1);
        let wanted: Vec<String> = match operation {
            NameOperation::Set => given.to_vec(),
            NameOperation::Add => given.iter().chain(&old).cloned().collect(),
            NameOperation::Remove => old.into_iter().filter(|name| !given.contains(name)).collect(),
        };
        let mut result: Vec<String> = Vec::new();
        for name in wanted {
            if !result.contains(&name) {
                self.0
                    .iter_mut()
                    .for_each(|(_, names)| names.retain(|other| *other != name));
                result.push(name);
            }
        }
        self.0[at].1 = result;
        true
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Insert(String, Vec<String>),
    Remove(String),
    Names(String, NameOperation, Vec<String>),
    Reload,
}

/// Operations, each with whether it is undone at once.
fn operations() -> impl Strategy<Value = Vec<(Operation, bool)>> {
    let id = || "[ab]{0,3}| a|b a";
    let names = || prop::collection::vec("[abn]{0,2}", 0..4);
    let kind = prop_oneof![
        Just(NameOperation::Set),
        Just(NameOperation::Add),
        Just(NameOperation::Remove)
    ];
    let one = prop_oneof![
        3 => (id(), names()).prop_map(|(id, names)| Operation::Insert(id, names)),
        2 => id().prop_map(Operation::Remove),
        3 => (id(), kind, names()).prop_map(|(id, kind, names)| Operation::Names(id, kind, names)),
        1 => Just(Operation::Reload),
    ];
    prop::collection::vec((one, any::<bool>()), 0..40)
}

proptest! {
    #[test]
    fn a_table_is_what_the_naive_model_is(operations in operations()) {
        let mut table: Table<LayerRow> = Table::empty(2);
        let mut model = Model::default();
        for (operation, undone) in operations {
            let before = (table.savepoint(), model.clone());
            match operation {
                Operation::Insert(id, given) => {
                    let taken = model.0.iter().any(|(other, _)| *other == id);
                    let clash = given.iter().any(|name| model.owner(name).is_some());
                    let given: Vec<&str> = given.iter().map(String::as_str).collect();
                    let result = table.insert(named_layer(&id, &given), 0);
                    prop_assert_eq!(result.is_ok(), !taken && !clash);
                    if result.is_ok() {
                        model.0.push((id.clone(), Vec::new()));
                        model.apply(&id, NameOperation::Set, &strings(&given));
                    }
                }
                Operation::Remove(id) => {
                    let before = model.0.len();
                    model.0.retain(|(other, _)| *other != id);
                    prop_assert_eq!(table.remove(&id).is_some(), model.0.len() < before);
                }
                Operation::Names(id, kind, given) => {
                    prop_assert_eq!(table.apply_names(&id, kind, &given).is_ok(), model.apply(&id, kind, &given));
                }
                Operation::Reload => {
                    let files = [text(&table, 0), text(&table, 1)];
                    table = load(&[&files[0], &files[1]], true).unwrap();
                    prop_assert!(!table.needs_save());
                    continue;
                }
            }
            if undone {
                table.roll_back(before.0);
                model = before.1;
            }
            let rows: Vec<_> = table.rows().map(|row| (row.id.to_string(), row.names.clone())).collect();
            prop_assert_eq!(&rows, &model.0);
            for key in ["", "a", "b", "aa", "ab", "ba", "n", "nn", "an", "aab", " a", "b a", "b ", "x"] {
                prop_assert_eq!(table.find(key).map(|row| row.id.as_str()), model.find(key), "{:?}", key);
            }
        }
    }
}

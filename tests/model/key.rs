//! How sequences name things: IDs, names and keys to choose from, and the ways in which a call says what it means.

use proptest::prelude::*;
use proptest::sample::select;

use crate::model::{Item, Items, Model};

/// The beginnings of IDs that are given to things of every kind: some share theirs with others, some do not.
pub(crate) const BEGINNINGS: &[&str] = &[
    "aaaa", "aaab", "aab0", "ab00", "b000", "c0de", "1234", "1235", "d000", "d001", "f00d", "9999",
];

/// Odd IDs. No program cleans up what a crash leaves of these, so they are not for sequences with kills.
pub(crate) const ODD_IDS: &[&str] = &["has space", "foo-bar_ID", "UPPER", "a", "..", "l", "a/b"];

/// Names. Some look like the beginning of an ID, one like a whole one.
pub(crate) const NAMES: &[&str] = &[
    "n0",
    "n1",
    "n2",
    "n3",
    "docker.io/library/x:latest",
    "aa",
    "b",
    "has space",
    "",
    "aaabeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee",
];

/// Keys of big data items: with plain and with escaped file names, manifests, and at the end some that are refused.
pub(crate) const ITEMS: &[&str] = &[
    "manifest",
    "manifest-x",
    "a",
    "Foo",
    "sha256:ab",
    "abc",
    "abc/",
    "",
    "..",
    "???",
];
pub(crate) const GOOD_ITEMS: usize = 6;

pub(crate) const FILES: &[&str] = &["f", "d/f", "../f"];

/// Content of several sizes, of which the last does not fit into one chunk of any pipeline.
pub(crate) const LENGTHS: &[usize] = &[0, 5, 1000, 300_000];

/// An ID of those that are given.
pub(crate) fn given_id(number: usize) -> String {
    format!("{:e<64}", BEGINNINGS[number % BEGINNINGS.len()])
}

/// How something is named in a call.
#[derive(Clone, Debug)]
pub(crate) enum Key {
    /// One of what is there, by position, and how it is named.
    There(Kind, u8, Form),
    /// The beginning, of this length, of one of the IDs that are given.
    Given(usize, usize),
    /// One of the names that are given.
    Name(usize),
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Layer,
    Image,
    Container,
    /// A container's own layer.
    OwnLayer,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    Full,
    Beginning(usize),
    Name,
}

impl Key {
    /// Whether it is to be one of what is there, and nothing is.
    pub(crate) fn lacks(&self, model: &Model) -> bool {
        match self {
            Self::There(Kind::Layer, ..) => model.layers.0.is_empty(),
            Self::There(Kind::Image, ..) => model.images.0.is_empty(),
            Self::There(Kind::Container | Kind::OwnLayer, ..) => model.containers.0.is_empty(),
            _ => false,
        }
    }

    pub(crate) fn resolve(&self, model: &Model) -> String {
        fn pick<T: Item>(items: &Items<T>, index: u8) -> Option<&T> {
            let count = items.0.len();
            items.0.get(usize::from(index).checked_rem(count)?)
        }
        let (found, form) = match self {
            Self::Given(number, length) => return given_id(*number)[..*length].to_owned(),
            Self::Name(number) => return NAMES[*number % NAMES.len()].to_owned(),
            Self::Unknown => return "nosuch".to_owned(),
            Self::There(kind, index, form) => {
                let container = || pick(&model.containers, *index);
                let found = match kind {
                    Kind::Layer => pick(&model.layers, *index).map(Item::common),
                    Kind::Image => pick(&model.images, *index).map(Item::common),
                    Kind::Container => container().map(Item::common),
                    Kind::OwnLayer => {
                        let own = container().and_then(|container| model.layers.get(&container.layer));
                        own.map(Item::common)
                    }
                };
                (found, form)
            }
        };
        let Some(common) = found else {
            return "nosuch".to_owned();
        };
        match form {
            Form::Full => common.id.clone(),
            Form::Beginning(length) => common.id.chars().take(*length).collect(),
            Form::Name => common.names.first().unwrap_or(&common.id).clone(),
        }
    }
}

/// A key, mostly of something of these kinds.
pub(crate) fn key(kinds: &'static [Kind]) -> impl Strategy<Value = Key> + Clone {
    let form = prop_oneof![
        5 => Just(Form::Full),
        1 => (1..6usize).prop_map(Form::Beginning),
        2 => Just(Form::Name),
    ];
    let everything = &[Kind::Layer, Kind::Image, Kind::Container, Kind::OwnLayer];
    prop_oneof![
        16 => (select(kinds), any::<u8>(), form.clone()).prop_map(|(kind, index, form)| Key::There(kind, index, form)),
        1 => (select(everything), any::<u8>(), form).prop_map(|(kind, index, form)| Key::There(kind, index, form)),
        1 => (0..BEGINNINGS.len(), select(vec![0usize, 1, 2, 3, 4, 12, 64]))
            .prop_map(|(number, length)| Key::Given(number, length)),
        1 => (0..NAMES.len()).prop_map(Key::Name),
        1 => Just(Key::Unknown),
    ]
}

//! Sequences as proptest draws them: what to call, on which of the things that will be there by then.
//!
//! A plan does not know the state in which it will run; [`Plan::resolve`] makes it a call when its turn comes. So a
//! shorter sequence, as shrinking tries it, still makes sense.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::key::{BEGINNINGS, FILES, GOOD_ITEMS, ITEMS, Key, Kind, LENGTHS, NAMES, ODD_IDS, given_id, key};
use crate::model::{Item, Model};
use crate::operation::{Blob, Data, NameChange, New, Operation, Question, digest};

/// What is called.
#[derive(Clone, Copy, Debug)]
enum Verb {
    CreateLayer,
    PutLayer,
    CreateImage,
    CreateContainer,
    DeleteLayer,
    DeleteImage,
    DeleteContainer,
    Delete,
    Names(NameChange),
    SetMetadata,
    SetLayerData,
    SetImageData,
    SetContainerData,
    SetContainerFile,
    Ask(Question),
    Mount,
    Unmount,
    MountImage,
    UnmountImage,
    GarbageCollect,
    Shutdown,
}

/// A call in the making. Each verb uses what it needs of it.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    verb: Verb,
    key: Key,
    /// Nothing is built on.
    base: bool,
    /// IDs of what is created and of a container's layer.
    ids: (NewId, NewId),
    names: Vec<usize>,
    text: u8,
    item: usize,
    data: Data,
    items: Vec<(usize, Data)>,
    files: Vec<(u8, Option<Data>)>,
    flags: (bool, bool),
    rare: bool,
}

/// The ID of something new.
#[derive(Clone, Copy, Debug)]
enum NewId {
    Given(usize),
    Chosen,
    Odd(usize),
}

impl NewId {
    fn text(self) -> String {
        match self {
            Self::Given(number) => given_id(number),
            Self::Chosen => String::new(),
            Self::Odd(number) => ODD_IDS[number % ODD_IDS.len()].to_owned(),
        }
    }
}

/// Whether a sequence is for kills: then IDs are as those of real stores, and known before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ids {
    Any,
    Given,
}

fn new_id(ids: Ids) -> BoxedStrategy<NewId> {
    let given = (0..BEGINNINGS.len()).prop_map(NewId::Given);
    match ids {
        Ids::Given => given.boxed(),
        Ids::Any => prop_oneof![
            12 => given,
            4 => Just(NewId::Chosen),
            1 => (0..ODD_IDS.len()).prop_map(NewId::Odd),
        ]
        .boxed(),
    }
}

fn item() -> impl Strategy<Value = usize> + Clone {
    prop_oneof![8 => 0..GOOD_ITEMS, 1 => 0..ITEMS.len()]
}

fn data() -> impl Strategy<Value = Data> + Clone {
    (0..4u8, select(LENGTHS)).prop_map(|(fill, length)| Data { fill, length })
}

/// Verbs with weights, and on what they are called mostly.
fn verb() -> impl Strategy<Value = (Verb, Key)> {
    const LAYER: &[Kind] = &[Kind::Layer];
    const IMAGE: &[Kind] = &[Kind::Image];
    const CONTAINER: &[Kind] = &[Kind::Container];
    const OWN_LAYER: &[Kind] = &[Kind::OwnLayer];
    const ANY: &[Kind] = &[Kind::Layer, Kind::Image, Kind::Container];
    const MOUNTABLE: &[Kind] = &[Kind::Layer, Kind::Container];
    let on = |kinds, verbs: Vec<Verb>| (select(verbs), key(kinds));
    let ask = |kinds, questions: Vec<Question>| {
        let verbs = questions.into_iter().map(Verb::Ask).collect();
        on(kinds, verbs)
    };
    use Question as Q;
    prop_oneof![
        4 => on(LAYER, vec![Verb::CreateLayer]),
        6 => on(LAYER, vec![Verb::PutLayer]),
        6 => on(LAYER, vec![Verb::CreateImage]),
        8 => on(IMAGE, vec![Verb::CreateContainer]),
        3 => on(LAYER, vec![Verb::DeleteLayer]),
        3 => on(IMAGE, vec![Verb::DeleteImage]),
        3 => on(CONTAINER, vec![Verb::DeleteContainer]),
        2 => on(ANY, vec![Verb::Delete]),
        8 => on(ANY, vec![
            Verb::Names(NameChange::Set), Verb::Names(NameChange::Add), Verb::Names(NameChange::Remove),
        ]),
        2 => on(ANY, vec![Verb::SetMetadata]),
        2 => on(LAYER, vec![Verb::SetLayerData]),
        4 => on(IMAGE, vec![Verb::SetImageData]),
        4 => on(CONTAINER, vec![Verb::SetContainerData, Verb::SetContainerData, Verb::SetContainerFile]),
        4 => ask(ANY, vec![Q::Lookup, Q::Exists, Q::Names, Q::Metadata]),
        3 => ask(LAYER, vec![
            Q::Layer, Q::ImagesByTopLayer, Q::LayersByDiffDigest, Q::LayerSize, Q::ListLayerData, Q::LayerData,
        ]),
        3 => ask(IMAGE, vec![
            Q::Image, Q::ImagesByDigest, Q::ListImageData, Q::ImageData, Q::ImageDataSize, Q::ImageDataDigest,
        ]),
        3 => ask(CONTAINER, vec![
            Q::Container, Q::ListContainerData, Q::ContainerData, Q::ContainerDataSize, Q::ContainerDataDigest,
            Q::ContainerFile,
        ]),
        1 => ask(OWN_LAYER, vec![Q::ContainerByLayer, Q::Container]),
        1 => ask(MOUNTABLE, vec![Q::Mounted]),
        6 => on(MOUNTABLE, vec![Verb::Mount, Verb::Mount, Verb::Unmount]),
        2 => on(IMAGE, vec![Verb::MountImage, Verb::UnmountImage]),
        1 => on(ANY, vec![Verb::GarbageCollect, Verb::GarbageCollect, Verb::Shutdown]),
    ]
}

/// One call.
pub(crate) fn plan(ids: Ids) -> impl Strategy<Value = Plan> {
    let items = vec((item(), data()), 0..3);
    let files = vec((0..5u8, proptest::option::weighted(0.8, data())), 0..4);
    let shape = (
        verb(),
        proptest::bool::weighted(0.15),
        (new_id(ids), new_id(ids)),
        prop_oneof![3 => vec(0..NAMES.len(), 0..2), 2 => vec(0..NAMES.len(), 0..4)],
        0..4u8,
        item(),
        data(),
        items,
        files,
        any::<(bool, bool)>(),
        proptest::bool::weighted(0.1),
    );
    shape.prop_map(
        |((verb, key), base, ids, names, text, item, data, items, files, flags, rare)| Plan {
            verb,
            key,
            base,
            ids,
            names,
            text,
            item,
            data,
            items,
            files,
            flags,
            rare,
        },
    )
}

impl Plan {
    /// The call that this is, in a store as the model says.
    pub(crate) fn resolve(&self, model: &Model) -> Operation {
        let key = self.key.resolve(model);
        let lacking = self.key.lacks(model);
        let below = (!self.base && !lacking).then(|| key.clone());
        let item = ITEMS[self.item].to_owned();
        let (first, second) = self.flags;
        // Without a thing to do it to, make one.
        let verb = match (&self.key, self.verb) {
            (_, Verb::PutLayer | Verb::CreateLayer | Verb::CreateImage | Verb::CreateContainer) => self.verb,
            (Key::There(Kind::Layer, ..), _) if lacking => Verb::PutLayer,
            (Key::There(Kind::Image, ..), _) if lacking => Verb::CreateImage,
            (Key::There(..), _) if lacking => Verb::CreateContainer,
            _ => self.verb,
        };
        match verb {
            Verb::CreateLayer => Operation::CreateLayer {
                parent: below,
                new: self.new_item(),
                writeable: first,
            },
            Verb::PutLayer => Operation::PutLayer {
                parent: below,
                new: self.new_item(),
                blob: self.blob(),
            },
            Verb::CreateImage => Operation::CreateImage {
                layer: below,
                new: self.new_item(),
            },
            Verb::CreateContainer => Operation::CreateContainer {
                image: below,
                new: self.new_item(),
                layer_id: self.ids.1.text(),
            },
            Verb::DeleteLayer => Operation::DeleteLayer(key),
            Verb::DeleteImage => Operation::DeleteImage {
                key,
                commit: !self.rare,
            },
            Verb::DeleteContainer if takes_from_below_a_mount(model, &key) => Operation::GarbageCollect,
            Verb::DeleteContainer => Operation::DeleteContainer(key),
            Verb::Delete if takes_from_below_a_mount(model, &key) => Operation::GarbageCollect,
            Verb::Delete => Operation::Delete(key),
            Verb::Names(change) => Operation::Names {
                key,
                change,
                names: self.names.iter().map(|name| NAMES[*name].to_owned()).collect(),
            },
            Verb::SetMetadata => Operation::SetMetadata {
                key,
                metadata: self.metadata(),
            },
            Verb::SetLayerData => Operation::SetLayerData {
                key,
                item,
                data: self.data,
            },
            Verb::SetImageData => Operation::SetImageData {
                key,
                item,
                data: self.data,
            },
            Verb::SetContainerData => Operation::SetContainerData {
                key,
                item,
                data: self.data,
            },
            Verb::SetContainerFile => Operation::SetContainerFile {
                key,
                file: self.file(),
                data: self.data,
            },
            Verb::Ask(what) => Operation::Ask {
                what,
                item: self.asked(what, &key, model),
                key,
            },
            Verb::Mount if shows_another_layer(model, model.mounted_layer(&key).ok()) => {
                Operation::GarbageCollect
            }
            Verb::Mount => Operation::Mount(key),
            Verb::Unmount => Operation::Unmount {
                key,
                force: self.rare,
            },
            Verb::MountImage if shows_another_layer(model, layer_of_image(model, &key)) => {
                Operation::GarbageCollect
            }
            Verb::MountImage => Operation::MountImage(key),
            Verb::UnmountImage => Operation::UnmountImage {
                key,
                force: self.rare,
            },
            Verb::GarbageCollect => Operation::GarbageCollect,
            Verb::Shutdown if self.rare => Operation::Wipe,
            Verb::Shutdown => Operation::Shutdown { force: second },
        }
    }

    fn metadata(&self) -> String {
        if self.text == 0 {
            String::new()
        } else {
            format!("metadata {} <&>\u{2028}", self.text)
        }
    }

    fn file(&self) -> String {
        FILES[self.item % FILES.len()].to_owned()
    }

    fn new_item(&self) -> New {
        let flags = (self.text == 1).then(|| ("flag".to_owned(), "value".to_owned()));
        New {
            id: self.ids.0.text(),
            names: self.names.iter().map(|name| NAMES[*name].to_owned()).collect(),
            metadata: self.metadata(),
            flags: flags.into_iter().collect(),
            items: self
                .items
                .iter()
                .map(|(item, data)| (ITEMS[*item].to_owned(), *data))
                .collect(),
            volatile: self.text == 2,
        }
    }

    fn blob(&self) -> Blob {
        let files: BTreeMap<String, Option<Data>> = self
            .files
            .iter()
            .map(|(name, data)| (format!("file-{name}"), *data))
            .collect();
        let cut = self.rare && !files.is_empty();
        Blob {
            files,
            gzip: self.flags.0,
            cut,
            ..Blob::default()
        }
    }

    /// What is asked about, besides the key.
    fn asked(&self, what: Question, key: &str, model: &Model) -> String {
        match what {
            Question::ImagesByDigest => {
                let image = model.images.find(key);
                let digests = image.map(crate::model::Image::digests).unwrap_or_default();
                digests.last().cloned().unwrap_or_else(|| digest(""))
            }
            Question::LayersByDiffDigest => {
                let diff = model.layers.find(key).and_then(|layer| layer.diff.as_ref());
                digest(diff.map_or(&[][..], |diff| &diff.tar))
            }
            Question::ContainerFile => {
                let files = model.containers.find(key).map(|container| &container.files);
                let there = files.and_then(|files| files.keys().next()).filter(|_| !self.base);
                there.cloned().unwrap_or_else(|| self.file())
            }
            _ => self.asked_item(what, key, model),
        }
    }

    /// A big data key, mostly one that there is.
    fn asked_item(&self, what: Question, key: &str, model: &Model) -> String {
        let common = match what {
            Question::LayerData => model.layers.find(key).map(Item::common),
            Question::ImageData | Question::ImageDataSize | Question::ImageDataDigest => {
                model.images.find(key).map(Item::common)
            }
            _ => model.containers.find(key).map(Item::common),
        };
        let there = common.map(|common| common.items.as_slice()).unwrap_or_default();
        match self.item.checked_rem(there.len()) {
            Some(index) if !self.base => there[index].0.clone(),
            _ => ITEMS[self.item].to_owned(),
        }
    }
}

fn layer_of_image(model: &Model, key: &str) -> Option<String> {
    model.images.find(key)?.layer.clone()
}

/// Whether a mount of this layer shows a layer that has the ID of one which is gone: layers are found by their IDs. That is
/// not asked about.
fn shows_another_layer(model: &Model, layer: Option<String>) -> bool {
    let layer = layer.and_then(|id| model.layers.get(&id));
    layer.is_some_and(|layer| model.stands_on_others(layer))
}

/// Whether deleting this takes a layer away from below one that is mounted, or may be, which is not asked about (the layer
/// of a container can be that of an image too). What such a mount shows then is the kernel's business, and a mount that is
/// there is not made anew.
fn takes_from_below_a_mount(model: &Model, key: &str) -> bool {
    let mounted = || {
        let layers = model.layers.0.iter();
        layers.filter(|layer| layer.mounts > 0 || layer.cut_mount)
    };
    let births = [
        model.layers.find(key),
        model
            .containers
            .find(key)
            .and_then(|container| model.layers.get(&container.layer)),
    ];
    let mut births = births
        .into_iter()
        .flatten()
        .filter_map(|layer| layer.chain.last());
    births
        .any(|birth| mounted().any(|layer| layer.chain.last() != Some(birth) && layer.chain.contains(birth)))
}

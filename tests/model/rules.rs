//! What calls do to a store and return: the rules, and nothing about how they are kept.

use serde_json::{Value, json};

use crate::model::{Common, Container, Diff, Image, Item, Items, Layer, Model, dedupe};
use crate::operation::{Blob, Data, NameChange, New, Operation, Outcome, digest};

/// A value, or the kinds of errors of which any will do: where several things are wrong, which one is told first is
/// not defined.
pub(crate) type Expected = Result<Value, Vec<&'static str>>;

/// IDs that can be no directory's name.
const UNSAFE_IDS: &[&str] = &[".", "..", "a/b"];
/// IDs that no layer can have, because a directory of the store has that name.
const RESERVED_IDS: &[&str] = &["tmp"];
/// The same for directories of the overlay driver.
const RESERVED_BY_OVERLAY: &[&str] = &["l", "staging", "tempdirs"];

/// Keys of big data items that cannot be a file's name, or would share one with another key.
const REFUSED_KEYS: &[&str] = &["", ".", "..", "abc/", "???"];

pub(crate) fn fail<T>(kind: &'static str) -> Result<T, Vec<&'static str>> {
    Err(vec![kind])
}

fn done() -> Expected {
    Ok(json!(null))
}

/// The choice that the store made where the caller left it one.
fn chosen(asked: &str, seen: Option<&Value>) -> Result<String, Vec<&'static str>> {
    if !asked.is_empty() {
        return Ok(asked.to_owned());
    }
    let id = seen.and_then(Value::as_str).unwrap_or_default();
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if id.len() != 64 || !id.bytes().all(hex) {
        return fail("(64 hexadecimal digits)");
    }
    Ok(id.to_owned())
}

fn check_new<T: Item>(items: &Items<T>, new: &New, problems: &mut Vec<&'static str>) {
    if UNSAFE_IDS.contains(&new.id.as_str()) {
        problems.push("UnsafePath");
    }
    if items.get(&new.id).is_some() {
        problems.push("DuplicateId");
    }
    if new.names.iter().any(|name| items.by_name(name).is_some()) {
        problems.push("DuplicateName");
    }
    let refused = |(key, _): &(String, Data)| REFUSED_KEYS.contains(&key.as_str());
    if new.items.iter().any(refused) {
        problems.push("InvalidBigDataName");
    }
}

fn common(new: &New, id: String) -> Common {
    let mut common = Common {
        id,
        names: new.names.clone(),
        metadata: new.metadata.clone(),
        flags: new
            .flags
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect(),
        items: Vec::new(),
    };
    dedupe(&mut common.names);
    for (key, data) in &new.items {
        common.set_item(key, data.bytes());
    }
    common
}

impl Model {
    /// Makes the call. `seen` is what a real store returned, for what it was free to choose.
    pub(crate) fn apply(&mut self, operation: &Operation, seen: Option<&Outcome>) -> Expected {
        let seen = seen.and_then(|outcome| outcome.as_ref().ok());
        match operation {
            Operation::CreateLayer { parent, new, .. } => {
                let (common, below) = self.new_layer(parent.as_deref(), new, seen)?;
                let id = common.id.clone();
                self.add_layer(common, below, None);
                Ok(json!(id))
            }
            Operation::PutLayer { parent, new, blob } => self.put_layer(parent.as_deref(), new, blob, seen),
            Operation::PutImageLayer { parent, blob } => self.put_image_layer(parent.as_deref(), blob),
            Operation::ApplyDiff { key, blob } => self.apply_diff(key, blob),
            Operation::CreateImage { layer, new } => self.create_image(layer.as_deref(), new, seen),
            Operation::CreateContainer { image, new, layer_id } => {
                self.create_container(image.as_deref(), new, layer_id, seen)
            }
            Operation::CreateMapped { .. } | Operation::PutMapped { .. } => {
                fail("(a call that the model does not know)")
            }
            Operation::DeleteLayer(key) => self.delete_layer(key),
            Operation::DeleteImage { key, commit } => self.delete_image(key, *commit),
            Operation::DeleteContainer(key) => {
                let Some(id) = self.containers.find_id(key) else {
                    return fail("NotAContainer");
                };
                self.remove_container(&id);
                done()
            }
            Operation::Delete(key) => self.delete(key),
            Operation::Names { key, change, names } => self.change_names(key, *change, names),
            Operation::SetMetadata { key, metadata } => {
                let common = self.any_mut(key).map_or_else(|| fail("NotAnId"), Ok)?;
                common.metadata.clone_from(metadata);
                done()
            }
            Operation::SetLayerData { key, item, data } => {
                set_item(&mut self.layers, "LayerUnknown", key, item, *data).map(|_| json!(null))
            }
            Operation::SetImageData { key, item, data } => {
                set_item(&mut self.images, "ImageUnknown", key, item, *data)?.settle_digest();
                done()
            }
            Operation::SetContainerData { key, item, data } => {
                set_item(&mut self.containers, "ContainerUnknown", key, item, *data).map(|_| json!(null))
            }
            Operation::SetContainerFile { key, file, data } => {
                let container = self.container_directory(key)?;
                if file.contains("..") {
                    return fail("UnsafePath");
                }
                container.files.insert(file.clone(), data.bytes());
                done()
            }
            Operation::Ask { what, key, item } => self.ask(*what, key, item),
            Operation::Mount(key) => {
                let id = self.mounted_layer(key)?;
                self.mount(&id)
            }
            Operation::Unmount { key, force } => {
                let id = self.mounted_layer(key)?;
                Ok(json!(self.unmount(&id, *force)))
            }
            Operation::MountImage(key) => {
                let image = self.images.find(key).map_or_else(|| fail("ImageUnknown"), Ok)?;
                match self.usable_top(image)? {
                    Some(top) => self.mount(&top),
                    None => fail("LayerUnknown"),
                }
            }
            Operation::UnmountImage { key, force } => {
                let image = self.images.find(key).map_or_else(|| fail("ImageUnknown"), Ok)?;
                let top = image.layer.clone().unwrap_or_default();
                if self.layers.get(&top).is_none() {
                    return fail("LayerUnknown");
                }
                Ok(json!(self.unmount(&top, *force)))
            }
            Operation::GarbageCollect => done(),
            Operation::Wipe => {
                self.layers.0.clear();
                self.images.0.clear();
                self.containers.0.clear();
                done()
            }
            Operation::Shutdown { force } => {
                let mut mounted = Vec::new();
                for layer in self.layers.0.iter_mut().filter(|layer| layer.mounts > 0) {
                    mounted.push(layer.common.id.clone());
                    if *force {
                        layer.mounts = 0;
                    }
                }
                if !mounted.is_empty() && !force {
                    return fail("LayerUsedByContainer");
                }
                mounted.sort();
                Ok(json!(mounted))
            }
        }
    }

    // ---- creation ----

    fn new_layer(
        &self,
        parent: Option<&str>,
        new: &New,
        seen: Option<&Value>,
    ) -> Result<(Common, Option<String>), Vec<&'static str>> {
        let mut problems = Vec::new();
        check_new(&self.layers, new, &mut problems);
        self.check_layer_id(&new.id, &mut problems);
        let below = parent.and_then(|key| self.layers.find_id(key));
        if parent.is_some() && below.is_none() {
            problems.push("LayerUnknown");
        }
        if below
            .as_ref()
            .is_some_and(|id| self.containers.by_layer(id).is_some())
        {
            problems.push("ParentIsContainer");
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok((common(new, chosen(&new.id, seen)?), below))
    }

    fn add_layer(&mut self, common: Common, parent: Option<String>, blob: Option<&Blob>) {
        let below = parent.as_ref().and_then(|id| self.layers.get(id));
        let (mut files, mut chain, mut ids) = below.map_or_else(Default::default, |below| {
            (below.files.clone(), below.chain.clone(), below.ids.clone())
        });
        self.births += 1;
        chain.push(self.births);
        ids.push(common.id.clone());
        if let Some(blob) = blob {
            blob.change(&mut files);
        }
        let diff = blob.map(Diff::of);
        self.layers.0.push(Layer {
            common,
            parent,
            diff,
            mounts: 0,
            cut_mount: false,
            files,
            chain,
            ids,
        });
    }

    fn put_layer(&mut self, parent: Option<&str>, new: &New, blob: &Blob, seen: Option<&Value>) -> Expected {
        let mut id_seen = seen.and_then(|seen| seen.get(0)).cloned();
        if blob.cut {
            // Its name is not known.
            id_seen = Some(json!("0".repeat(64)));
        }
        let found = self.new_layer(parent, new, id_seen.as_ref());
        if blob.cut {
            let mut problems = found.err().unwrap_or_default();
            problems.extend(["InvalidArchive", "Io"]);
            return Err(problems);
        }
        let (common, below) = found?;
        self.check_below(below.as_deref(), blob)?;
        let size = blob.size();
        let id = common.id.clone();
        self.add_layer(common, below, Some(blob));
        Ok(json!([id, size]))
    }

    /// What a layer hides is looked for in all layers below it, which are to be there.
    fn check_below(&self, parent: Option<&str>, blob: &Blob) -> Result<(), Vec<&'static str>> {
        let hides = blob.files.values().any(Option::is_none);
        let parent = parent.and_then(|id| self.layers.get(id));
        match parent.is_some_and(|parent| hides && !self.is_whole(parent)) {
            true => fail("CorruptMetadata"),
            false => Ok(()),
        }
    }

    fn put_image_layer(&mut self, parent: Option<&str>, blob: &Blob) -> Expected {
        let below = parent.and_then(|key| self.layers.find_id(key));
        if parent.is_some() && below.is_none() {
            return fail("LayerUnknown");
        }
        let hex = |bytes: &[u8]| digest(bytes).trim_start_matches("sha256:").to_owned();
        let diff = hex(&blob.tar());
        let id = match &below {
            Some(parent) => hex(format!("{parent}+{diff}").as_bytes()),
            None => diff,
        };
        if self.layers.get(&id).is_none() {
            self.check_below(below.as_deref(), blob)?;
            let own = Common {
                id: id.clone(),
                ..Common::default()
            };
            self.add_layer(own, below, Some(blob));
        }
        Ok(json!(id))
    }

    /// The layers above show what they showed, as no test asks.
    fn apply_diff(&mut self, key: &str, blob: &Blob) -> Expected {
        let Some(id) = self.layers.find_id(key) else {
            return fail("LayerUnknown");
        };
        if blob.cut {
            return Err(vec!["InvalidArchive", "Io"]);
        }
        if let Some(layer) = self.layers.get_mut(&id) {
            if layer.diff.is_some() {
                self.mixed.insert(id);
            }
            blob.change(&mut layer.files);
            layer.diff = Some(Diff::of(blob));
        }
        Ok(json!(blob.size()))
    }

    fn create_image(&mut self, layer: Option<&str>, new: &New, seen: Option<&Value>) -> Expected {
        let mut problems = Vec::new();
        check_new(&self.images, new, &mut problems);
        let top = layer.and_then(|key| self.layers.find_id(key));
        if layer.is_some() && top.is_none() {
            problems.push("LayerUnknown");
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let id = chosen(&new.id, seen)?;
        let mut image = Image {
            common: common(new, id.clone()),
            layer: top,
            ..Image::default()
        };
        image.settle_digest();
        self.images.0.push(image);
        Ok(json!(id))
    }

    fn check_layer_id(&self, id: &str, problems: &mut Vec<&'static str>) {
        if RESERVED_IDS.contains(&id) || self.stacked && RESERVED_BY_OVERLAY.contains(&id) {
            problems.push("UnsafePath");
        }
    }

    fn create_container(
        &mut self,
        image: Option<&str>,
        new: &New,
        layer_id: &str,
        seen: Option<&Value>,
    ) -> Expected {
        let mut problems = Vec::new();
        check_new(&self.containers, new, &mut problems);
        if UNSAFE_IDS.contains(&layer_id) {
            problems.push("UnsafePath");
        }
        self.check_layer_id(layer_id, &mut problems);
        if self.layers.get(layer_id).is_some() {
            problems.push("DuplicateId");
        }
        let found = image.and_then(|key| self.images.find(key));
        if image.is_some() && found.is_none() {
            problems.push("ImageUnknown");
        }
        let top = match found.map(|image| self.usable_top(image)) {
            Some(Ok(top)) => top,
            Some(Err(kinds)) => {
                problems.extend(kinds);
                None
            }
            None => None,
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        let image = found.map(|image| image.common.id.clone());
        let part = |index: usize| seen.and_then(|seen| seen.get(index));
        let (id, layer) = (chosen(&new.id, part(0))?, chosen(layer_id, part(1))?);
        let own = Common {
            id: layer.clone(),
            ..Common::default()
        };
        self.add_layer(own, top, None);
        let mut container = Container {
            common: common(new, id.clone()),
            image,
            layer: layer.clone(),
            ..Container::default()
        };
        let flags = &mut container.common.flags;
        for label in ["ProcessLabel", "MountLabel"] {
            flags.insert(label.into(), json!(""));
        }
        if new.volatile || self.transient {
            flags.insert("Volatile".into(), json!(true));
        }
        self.containers.0.push(container);
        Ok(json!([id, layer]))
    }

    /// The image's layer as a base of others. One whose parent is nowhere does not count.
    fn usable_top(&self, image: &Image) -> Result<Option<String>, Vec<&'static str>> {
        let Some(top) = &image.layer else { return Ok(None) };
        let layer = self.layers.get(top).map_or_else(|| fail("LayerUnknown"), Ok)?;
        match &layer.parent {
            Some(parent) if self.layers.get(parent).is_none() => fail("LayerUnknown"),
            _ => Ok(Some(top.clone())),
        }
    }

    // ---- deletion ----

    fn delete_layer(&mut self, key: &str) -> Expected {
        let Some(id) = self.layers.find_id(key) else {
            return fail("NotALayer");
        };
        let mut problems = Vec::new();
        if self
            .layers
            .0
            .iter()
            .any(|layer| layer.parent.as_ref() == Some(&id))
        {
            problems.push("LayerHasChildren");
        }
        if self
            .images
            .0
            .iter()
            .any(|image| image.layer.as_ref() == Some(&id))
        {
            problems.push("LayerUsedByImage");
        }
        if self.containers.by_layer(&id).is_some() {
            problems.push("LayerUsedByContainer");
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        self.layers.remove(&id);
        done()
    }

    fn delete_image(&mut self, key: &str, commit: bool) -> Expected {
        let Some(image) = self.images.find(key) else {
            return fail("NotAnImage");
        };
        let id = image.common.id.clone();
        if self
            .containers
            .0
            .iter()
            .any(|user| user.image.as_ref() == Some(&id))
        {
            return fail("ImageUsedByContainer");
        }
        // From the top down, as long as nothing else needs the layer.
        let mut doomed: Vec<String> = Vec::new();
        let mut next = image.layer.clone();
        while let Some(layer) = next.as_ref().and_then(|id| self.layers.get(id)) {
            let own = &layer.common.id;
            let other_image = |other: &&Image| other.common.id != id && other.layer.as_ref() == Some(own);
            let other_child =
                |child: &&Layer| child.parent.as_ref() == Some(own) && !doomed.contains(&child.common.id);
            if self.containers.by_layer(own).is_some()
                || self.images.0.iter().any(|other| other_image(&other))
                || self.layers.0.iter().any(|child| other_child(&child))
            {
                break;
            }
            doomed.push(own.clone());
            next = layer.parent.clone();
        }
        if commit {
            self.images.remove(&id);
            doomed.iter().for_each(|layer| self.layers.remove(layer));
        }
        Ok(json!(doomed))
    }

    fn remove_container(&mut self, id: &str) {
        let layer = self.containers.get(id).map(|container| container.layer.clone());
        self.layers.remove(&layer.unwrap_or_default());
        self.containers.remove(id);
    }

    fn delete(&mut self, key: &str) -> Expected {
        if let Some(container) = self.containers.find(key) {
            let id = container.common.id.clone();
            if self.layers.get(&container.layer).is_none() {
                return fail("NotALayer");
            }
            self.remove_container(&id);
        } else if let Some(id) = self.images.find_id(key) {
            self.images.remove(&id);
        } else if let Some(id) = self.layers.find_id(key) {
            self.layers.remove(&id);
        } else {
            return fail("LayerUnknown");
        }
        done()
    }

    // ---- names, metadata, data ----

    fn change_names(&mut self, key: &str, change: NameChange, names: &[String]) -> Expected {
        fn change_in<T: Item>(items: &mut Items<T>, key: &str, change: NameChange, names: &[String]) -> bool {
            let Some(item) = items.find(key) else { return false };
            let (id, old) = (item.common().id.clone(), item.common().names.clone());
            let new = match change {
                NameChange::Set => names.to_vec(),
                NameChange::Add => [names, &old].concat(),
                NameChange::Remove => old.into_iter().filter(|name| !names.contains(name)).collect(),
            };
            items.rename(&id, new);
            true
        }
        let found = change_in(&mut self.layers, key, change, names)
            || change_in(&mut self.images, key, change, names)
            || change_in(&mut self.containers, key, change, names);
        if found { done() } else { fail("LayerUnknown") }
    }

    /// The layer, else image, else container that the key means.
    pub(crate) fn any(&self, key: &str) -> Option<&Common> {
        let layer = self.layers.find(key).map(Item::common);
        let image = || self.images.find(key).map(Item::common);
        let container = || self.containers.find(key).map(Item::common);
        layer.or_else(image).or_else(container)
    }

    fn any_mut(&mut self, key: &str) -> Option<&mut Common> {
        if let Some(id) = self.layers.find_id(key) {
            return self.layers.get_mut(&id).map(Item::common_mut);
        }
        if let Some(id) = self.images.find_id(key) {
            return self.images.get_mut(&id).map(Item::common_mut);
        }
        let id = self.containers.find_id(key)?;
        self.containers.get_mut(&id).map(Item::common_mut)
    }

    pub(crate) fn container_directory(&mut self, key: &str) -> Result<&mut Container, Vec<&'static str>> {
        let id = self.containers.find_id(key);
        let found = id.and_then(|id| self.containers.get_mut(&id));
        let container = found.map_or_else(|| fail("ContainerUnknown"), Ok)?;
        container.has_directory = true;
        Ok(container)
    }
}

fn set_item<'a, T: Item>(
    items: &'a mut Items<T>,
    unknown: &'static str,
    key: &str,
    item: &str,
    data: Data,
) -> Result<&'a mut T, Vec<&'static str>> {
    let id = items.find_id(key);
    let mut problems = Vec::new();
    if id.is_none() {
        problems.push(unknown);
    }
    if REFUSED_KEYS.contains(&item) {
        problems.push("InvalidBigDataName");
    }
    match id.and_then(|id| items.get_mut(&id)) {
        Some(found) if problems.is_empty() => {
            found.common_mut().set_item(item, data.bytes());
            Ok(found)
        }
        _ => Err(problems),
    }
}

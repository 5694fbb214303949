//! What all layers say about link IDs, for when a link ID is not found in `l/`.
//!
//! A crash of the machine, or a backup without symbolic links, loses `link` files and entries of `l/`. Which layer a link
//! ID belongs to is then known from, in this order:
//!
//! 1. its symbolic link in `l/`;
//! 2. the layer's `link` file;
//! 3. a layer above, whose `lower` and `lower-layers` name the same layers in the same order;
//! 4. a layer above, whose `lower` names after the link ID exactly what the one layer has that lacks a link ID.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::driver::contract::EntryKind;
use crate::driver::overlay::layout::{self, LINKS};
use crate::driver::overlay::link_files::{exists, read_link_name, read_lower, read_lower_layers};
use crate::error::{IoContext as _, Result};
use crate::sys::{at, list_dir_if_there};

/// Index of an overlay directory, and the ID of a layer in it.
pub(super) type Place = (usize, String);

/// The files of all layers in some overlay directories.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) homes: Vec<SurveyedHome>,
    /// The layers of link IDs.
    places: BTreeMap<String, Place>,
}

/// The files of all layers in one overlay directory.
#[derive(Debug)]
pub(super) struct SurveyedHome {
    pub(super) dir: PathBuf,
    pub(super) layers: BTreeMap<String, SurveyedLayer>,
    /// Names in `l/` and the IDs that they lead to; `None` if they lead elsewhere.
    pub(super) links: BTreeMap<Vec<u8>, Option<String>>,
}

/// The files of one layer, as far as they can be read.
#[derive(Debug)]
pub(super) struct SurveyedLayer {
    /// Its link ID.
    pub(super) link: Option<String>,
    /// The link IDs of the layers below.
    pub(super) lower: List,
    /// The IDs of the layers below.
    pub(super) lower_layers: List,
    /// The layer was made whole: its link ID is written before what this is seen from.
    pub(super) whole: bool,
}

/// A list of layers below.
#[derive(Debug)]
pub(super) enum List {
    Missing,
    Unreadable,
    Of(Vec<String>),
}

impl List {
    /// The names; none if there is no list that can be read.
    pub(super) fn names(&self) -> &[String] {
        match self {
            Self::Of(names) => names,
            Self::Missing | Self::Unreadable => &[],
        }
    }

    fn read(content: Result<Option<String>>, parse: fn(&str) -> Result<Vec<&str>>) -> Result<Self> {
        let parsed = content.and_then(|content| {
            let Some(content) = content else {
                return Ok(Self::Missing);
            };
            Ok(Self::Of(
                parse(&content)?.into_iter().map(str::to_owned).collect(),
            ))
        });
        Ok(unless_damaged(parsed)?.unwrap_or(Self::Unreadable))
    }
}

impl Survey {
    /// Reads everything in the overlay directories `homes`.
    pub(super) fn of<'a>(homes: impl Iterator<Item = &'a Path>) -> Result<Self> {
        let homes: Vec<SurveyedHome> = homes.map(SurveyedHome::read).collect::<Result<_>>()?;
        let mut survey = Self {
            homes,
            places: BTreeMap::new(),
        };
        survey.places = survey.written();
        let found = survey.by_both_lists();
        survey.add(found);
        let found = survey.by_position();
        survey.add(found);
        Ok(survey)
    }

    /// The ID of the layer that has the link ID `name`.
    pub(super) fn id_of(&self, name: &str) -> Option<&str> {
        self.places.get(name).map(|(_home, id)| id.as_str())
    }

    /// The link ID of a layer.
    pub(super) fn link_of(&self, home: usize, id: &str) -> Option<&str> {
        let written = self.layer(home, id).and_then(|layer| layer.link.as_deref());
        let found = || {
            self.places
                .iter()
                .find(|(_name, place)| **place == (home, id.to_owned()))
        };
        written.or_else(|| found().map(|(name, _place)| name.as_str()))
    }

    /// Where the layer `id` is: in the first directory that has it.
    pub(super) fn home_of(&self, id: &str) -> Option<usize> {
        self.homes.iter().position(|home| home.layers.contains_key(id))
    }

    fn layer(&self, home: usize, id: &str) -> Option<&SurveyedLayer> {
        self.homes.get(home)?.layers.get(id)
    }

    fn layers(&self) -> impl Iterator<Item = (usize, &str, &SurveyedLayer)> {
        let homes = self.homes.iter().enumerate();
        homes.flat_map(|(home, all)| {
            all.layers
                .iter()
                .map(move |(id, layer)| (home, id.as_str(), layer))
        })
    }

    fn add(&mut self, found: BTreeMap<String, Place>) {
        for (name, place) in found {
            self.places.entry(name).or_insert(place);
        }
    }

    /// What `l/` and the `link` files say.
    fn written(&self) -> BTreeMap<String, Place> {
        let mut places = BTreeMap::new();
        for (index, home) in self.homes.iter().enumerate() {
            for (name, id) in &home.links {
                if let (Ok(name), Some(id)) = (std::str::from_utf8(name), id)
                    && home.layers.contains_key(id)
                {
                    places.entry(name.to_owned()).or_insert((index, id.clone()));
                }
            }
        }
        for (home, id, layer) in self.layers() {
            if let Some(link) = &layer.link {
                places.entry(link.clone()).or_insert((home, id.to_owned()));
            }
        }
        places
    }

    /// Unknown link IDs of layers whose two lists agree in length.
    fn by_both_lists(&self) -> BTreeMap<String, Place> {
        let mut found = BTreeMap::new();
        for (_home, _id, layer) in self.layers() {
            let (names, ids) = (layer.lower.names(), layer.lower_layers.names());
            if names.len() != ids.len() {
                continue;
            }
            for (name, id) in names.iter().zip(ids) {
                if !self.places.contains_key(name)
                    && let Some(home) = self.home_of(id)
                    && self.link_of(home, id).is_none()
                {
                    found.insert(name.clone(), (home, id.clone()));
                }
            }
        }
        found
    }

    /// Unknown link IDs, each of the only layer that it can be.
    fn by_position(&self) -> BTreeMap<String, Place> {
        let unknown = self.unknown();
        let mut found = BTreeMap::new();
        for (name, below) in &unknown {
            let rivals = unknown.values().filter(|other| *other == below).count();
            let mut candidates = self
                .nameless()
                .filter(|(.., layer)| layer.lower.names() == *below);
            if let (Some((home, id, _layer)), None, 1) = (candidates.next(), candidates.next(), rivals) {
                found.insert((*name).to_owned(), (home, id.to_owned()));
            }
        }
        found
    }

    /// The layers without a link ID.
    fn nameless(&self) -> impl Iterator<Item = (usize, &str, &SurveyedLayer)> {
        let whole = self.layers().filter(|(.., layer)| layer.whole);
        whole.filter(|(home, id, _layer)| self.link_of(*home, id).is_none())
    }

    /// The link IDs that belong to no layer, and those that follow them in `lower` files.
    fn unknown(&self) -> BTreeMap<&str, &[String]> {
        let mut unknown = BTreeMap::new();
        for (_home, _id, layer) in self.layers() {
            let names = layer.lower.names();
            for (position, name) in names.iter().enumerate() {
                if !self.places.contains_key(name) {
                    unknown.insert(name.as_str(), names.get(position + 1..).unwrap_or_default());
                }
            }
        }
        unknown
    }

    /// Gives layers in the first `writable` directories that have lost their link ID a new one. Not those that may be what
    /// an unknown link ID stands for.
    pub(super) fn name_nameless(&mut self, writable: usize) -> Result<()> {
        let unknown = self.unknown();
        let lost: Vec<Place> = self
            .nameless()
            .filter(|(home, _id, layer)| {
                *home < writable && !unknown.values().any(|below| layer.lower.names() == *below)
            })
            .map(|(home, id, _layer)| (home, id.to_owned()))
            .collect();
        for place in lost {
            self.places.insert(layout::new_link()?, place);
        }
        Ok(())
    }
}

impl SurveyedHome {
    fn read(dir: &Path) -> Result<Self> {
        let mut layers = BTreeMap::new();
        // An additional store may have no layers of this driver.
        for entry in list_dir_if_there(dir)? {
            let entry = entry?;
            let Ok(id) = entry.file_name().into_string() else {
                continue;
            };
            let is_dir = entry.file_type().at("listing", dir)?.is_dir();
            if layout::kind_of(&id, is_dir) == EntryKind::Layer {
                layers.insert(id, SurveyedLayer::read(&entry.path())?);
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            layers,
            links: read_links(dir)?,
        })
    }
}

/// The symbolic links in `l/`, as [`SurveyedHome::links`].
pub(super) fn read_links(home: &Path) -> Result<BTreeMap<Vec<u8>, Option<String>>> {
    let links = home.join(LINKS);
    let dir = match at::open_dir(&links) {
        Err(Errno::NOENT) => return Ok(BTreeMap::new()),
        dir => dir.at("opening", &links)?,
    };
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(&links).at("listing", &links)? {
        let name = entry.at("listing", &links)?.file_name();
        match at::read_link_at(dir.as_fd(), name.as_bytes()) {
            Ok(target) => {
                let id = layout::parse_link_target(&target).map(str::to_owned);
                found.insert(name.as_bytes().to_owned(), id);
            }
            Err(Errno::NOENT) => {}
            Err(error) if error != Errno::INVAL => return Err(error).at("reading link", links.join(name)),
            Err(error) => {
                tracing::warn!(link = ?name, %error, "an entry of the directory of link IDs is no symbolic link");
            }
        }
    }
    Ok(found)
}

impl SurveyedLayer {
    fn read(dir: &Path) -> Result<Self> {
        let link = unless_damaged(read_link_name(dir))?.flatten();
        let lower = List::read(read_lower(dir), layout::parse_lower)?;
        let lower_layers = List::read(read_lower_layers(dir), layout::parse_lower_layers)?;
        let listed = !lower.names().is_empty() || !lower_layers.names().is_empty();
        Ok(Self {
            link,
            lower,
            lower_layers,
            whole: listed || exists(&dir.join("empty"))?,
        })
    }
}

/// What was read; `None` if it is damaged. What could not be looked at may be whole: another one would be written in its place.
fn unless_damaged<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.may_pass() => Err(error),
        Err(error) => {
            tracing::warn!("{}", error.chain());
            Ok(None)
        }
    }
}

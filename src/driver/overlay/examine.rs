//! Whether the files that say how layers stand on each other agree with the records, and how they are made to.
//!
//! A layer of which another one is the copy with other owners stands between that and the layers below it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::driver::contract::{FoundLayer, Standing, StandingDamage};
use crate::driver::overlay::layer::make_link;
use crate::driver::overlay::layout::{self, LINKS, LOWER, LOWER_LAYERS};
use crate::driver::overlay::survey::{List, Survey, SurveyedLayer};
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::sys::atomic;

/// The file of a layer's link ID.
const LINK: &str = "link";

/// What is wrong with these files of the layers `standings`, in the overlay directories `homes`.
pub(super) fn examine<'a>(
    homes: impl Iterator<Item = &'a Path>,
    standings: &[Standing],
) -> Result<Vec<StandingDamage>> {
    let survey = Survey::of(homes)?;
    let mut found = Vec::new();
    for standing in standings {
        let Some(home) = survey.home_of(&standing.id) else {
            continue;
        };
        let Some(layer) = survey
            .homes
            .get(home)
            .and_then(|home| home.layers.get(&standing.id))
        else {
            continue;
        };
        // One that stands on a layer whose files are lost cannot be mended, and is told of otherwise.
        if standing.below.iter().any(|id| survey.home_of(id).is_none()) {
            continue;
        }
        let mut note = |file: &'static str, reason: String| {
            let id = standing.id.clone();
            found.push(StandingDamage { id, file, reason });
        };
        if let Some(reason) = link_damage(&survey, home, &standing.id, layer) {
            note(LINK, reason);
        }
        if let Some(reason) = list_damage(&survey, standing, &layer.lower_layers, Some) {
            note(LOWER_LAYERS, reason);
        }
        if let Some(reason) = list_damage(&survey, standing, &layer.lower, |link| survey.id_of(link)) {
            note(LOWER, reason);
        }
        if matches!(layer.lower, List::Missing) && !standing.below.is_empty() {
            note(LOWER, "it is missing".into());
        }
    }
    Ok(found)
}

/// The layers in the first `writable` of the overlay directories `homes`, and what they stand on.
pub(super) fn found_layers<'a>(
    homes: impl Iterator<Item = &'a Path>,
    writable: usize,
) -> Result<Vec<FoundLayer>> {
    let survey = Survey::of(homes)?;
    let mut found = Vec::new();
    for (index, home) in survey.homes.iter().enumerate().take(writable) {
        for (id, layer) in &home.layers {
            let by_link = |links: &[String]| {
                let ids = links.iter().map(|link| survey.id_of(link).map(str::to_owned));
                ids.collect::<Option<Vec<String>>>()
            };
            let below = match (&layer.lower_layers, &layer.lower) {
                (List::Of(ids), _) if !ids.is_empty() => Some(ids.clone()),
                (_, List::Of(links)) => by_link(links),
                (List::Missing | List::Of(_), List::Missing) => Some(Vec::new()),
                _ => None,
            };
            found.push(FoundLayer {
                id: id.clone(),
                dir: home.dir.join(id),
                in_image_store: Some(index > 0),
                below,
            });
        }
    }
    Ok(found)
}

fn link_damage(survey: &Survey, home: usize, id: &str, layer: &SurveyedLayer) -> Option<String> {
    let Some(link) = &layer.link else {
        return Some("it is missing or cannot be read".into());
    };
    let links: Option<&BTreeMap<_, _>> = survey.homes.get(home).map(|home| &home.links);
    match links.and_then(|links| links.get(link.as_bytes())) {
        Some(Some(target)) if target == id => None,
        Some(_) => Some(format!("{LINKS}/{link} leads elsewhere")),
        None => {
            let home = survey.homes.get(home);
            let is_there = home.is_some_and(|home| is_no_link(&home.dir.join(LINKS).join(link)));
            let what = if is_there {
                "is no symbolic link"
            } else {
                "is missing"
            };
            Some(format!("{LINKS}/{link} {what}"))
        }
    }
}

/// Whether there is something that is no symbolic link.
fn is_no_link(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| !found.is_symlink())
}

fn list_damage<'a>(
    survey: &Survey,
    standing: &Standing,
    list: &'a List,
    id_of: impl Fn(&'a str) -> Option<&'a str>,
) -> Option<String> {
    let names = match list {
        List::Missing => return None,
        List::Unreadable => return Some("it cannot be read".into()),
        List::Of(names) => names,
    };
    let mut ids = Vec::with_capacity(names.len());
    for name in names {
        match id_of(name) {
            Some(id) => ids.push(id),
            None => return Some(format!("it names {name:?}, which is no layer")),
        }
    }
    let is_below = |ids: &[&str]| ids.iter().eq(standing.below.iter());
    let is_copy = |ids: &[&str]| {
        let original = ids.split_first();
        original.is_some_and(|(original, below)| is_below(below) && survey.home_of(original).is_some())
    };
    (!is_below(&ids) && !is_copy(&ids)).then(|| {
        let at = ids
            .iter()
            .zip(&standing.below)
            .position(|(found, below)| found != below);
        match at {
            Some(at) => format!(
                "it names {:?}, where the record says {:?}",
                ids[at], standing.below[at]
            ),
            None => format!(
                "it names {} layers, where the records say {}",
                ids.len(),
                standing.below.len()
            ),
        }
    })
}

/// Removes the lists of a layer that stands on nothing, if that is certain.
fn mend_lowest(dir: &Path, standing: &Standing, layer: &SurveyedLayer) -> Result<()> {
    for (name, list) in [(LOWER, &layer.lower), (LOWER_LAYERS, &layer.lower_layers)] {
        if matches!(list, List::Missing) {
            continue;
        }
        if !standing.is_lowest {
            return Err(ErrorKind::CorruptMetadata.err(format!(
                "layer {:?} stands on layers, of which the records say nothing: they may not be complete",
                standing.id
            )));
        }
        let path = dir.join(name);
        std::fs::remove_file(&path).at("removing", path)?;
    }
    Ok(())
}

/// Makes these files of a layer anew. The caller holds the layer store's lock exclusively.
pub(super) fn mend<'a>(
    homes: impl Iterator<Item = &'a Path>,
    writable: usize,
    standing: &Standing,
) -> Result<()> {
    let homes: Vec<&Path> = homes.collect();
    let mut survey = Survey::of(homes.iter().copied())?;
    survey.name_nameless(writable)?;
    let id = &standing.id;
    let unknown =
        |id: &str| ErrorKind::LayerUnknown.err(format!("mending layer {:?} on layer {id:?}", standing.id));
    let home = survey
        .home_of(id)
        .filter(|home| *home < writable)
        .ok_or_else(|| unknown(id))?;
    let dir = homes
        .get(home)
        .map(|home| home.join(id))
        .ok_or_else(|| unknown(id))?;
    // Not that of another layer, which keeps it.
    let own = survey
        .link_of(home, id)
        .filter(|link| survey.id_of(link) == Some(id.as_str()))
        // What is in the way of it stays.
        .filter(|link| {
            !dir.parent()
                .is_some_and(|home| is_no_link(&home.join(LINKS).join(link)))
        });
    let link = match own {
        Some(link) => link.to_owned(),
        None => layout::new_link()?,
    };
    if let Some(surveyed) = survey.homes.get(home) {
        // One that leads elsewhere is in the way.
        if let Some(None) = surveyed.links.get(link.as_bytes()) {
            let path = surveyed.dir.join(LINKS).join(&link);
            std::fs::remove_file(&path).at("removing", path)?;
        }
        make_link(&surveyed.dir, &link, id)?;
    }
    atomic::write_file(&dir.join(LINK), link.as_bytes(), 0o644, true)?;
    let Some((parent, below)) = standing.below.split_first() else {
        let layer = survey.homes.get(home).and_then(|home| home.layers.get(id));
        return layer.map_or(Ok(()), |layer| mend_lowest(&dir, standing, layer));
    };
    let mut links = Vec::new();
    for id in &standing.below {
        let link = survey.home_of(id).and_then(|home| survey.link_of(home, id));
        links.push(link.ok_or_else(|| unknown(id))?);
    }
    if let Some((first, rest)) = links.split_first() {
        let lower = layout::format_lower(first, rest.iter().copied())?;
        atomic::write_file(&dir.join(LOWER), lower.as_bytes(), 0o644, true)?;
    }
    if let Some(lower_layers) = layout::format_lower_layers(parent, below)? {
        atomic::write_file(&dir.join(LOWER_LAYERS), lower_layers.as_bytes(), 0o644, true)?;
    }
    Ok(())
}

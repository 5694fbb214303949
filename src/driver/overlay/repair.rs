//! Repairs link IDs and lists of layers below: every layer has a `link` file and a symbolic link of that name in `l/`, and
//! a layer on others has `lower` and `lower-layers`.
//!
//! Each is made again from the others ([`Survey`]); a link ID that nothing knows any more is replaced by a new one. Entries
//! that cannot be read do not stop the repair of the others; the caller looks again for what it needs.
//!
//! Needs no lock: two processes may repair at the same time, and a layer that is being created is left alone until it has
//! its link ID.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::driver::overlay::layout::{self, LINKS, LOWER, LOWER_LAYERS};
use crate::driver::overlay::link_files::exists;
use crate::driver::overlay::survey::{List, Survey, SurveyedHome, SurveyedLayer, read_links};
use crate::error::{IoContext as _, Result};
use crate::sys::{at, atomic};

/// Repairs the first `writable` of the overlay directories `homes` as far as possible. Fails only if one cannot be read or
/// written at all.
pub(super) fn repair<'a>(homes: impl Iterator<Item = &'a Path>, writable: usize) -> Result<Survey> {
    let mut survey = Survey::of(homes)?;
    survey.name_nameless(writable)?;
    for (index, home) in survey.homes.iter().take(writable).enumerate() {
        let links = open_links(&home.dir)?;
        remove_dangling(&home.dir)?;
        for (id, layer) in &home.layers {
            if let Some(link) = survey.link_of(index, id) {
                put_back_link(home, id, layer, link, links.as_fd())?;
            }
            put_back_lists(&survey, &home.dir.join(id), layer)?;
        }
    }
    Ok(survey)
}

fn open_links(home: &Path) -> Result<OwnedFd> {
    let links = home.join(LINKS);
    match at::open_dir(&links) {
        Err(Errno::NOENT) => {
            std::fs::create_dir(&links).at("creating", &links)?;
            at::open_dir(&links)
        }
        opened => opened,
    }
    .at("opening", links)
}

/// The symbolic links in `l/` that lead to no layer.
pub(super) fn dangling(home: &Path) -> Result<Vec<PathBuf>> {
    let dir = home.join(LINKS);
    let mut found = Vec::new();
    for (name, id) in read_links(home)? {
        let leads_to_layer = match &id {
            Some(id) => exists(&home.join(id))?,
            None => false,
        };
        if !leads_to_layer {
            found.push(dir.join(OsStr::from_bytes(&name)));
        }
    }
    Ok(found)
}

/// Removes them.
pub(super) fn remove_dangling(home: &Path) -> Result<()> {
    for link in dangling(home)? {
        tracing::warn!(link = %link.display(), "removing a link that leads to no layer");
        match rustix::fs::unlink(&link) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error).at("removing", link),
        }
    }
    Ok(())
}

/// Puts back the `link` file of a layer and its symbolic link.
fn put_back_link(
    home: &SurveyedHome,
    id: &str,
    layer: &SurveyedLayer,
    link: &str,
    links: BorrowedFd<'_>,
) -> Result<()> {
    match rustix::fs::symlinkat(layout::link_target(id), links, link) {
        Ok(()) => tracing::warn!(layer = id, link, "put back a lost link"),
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error).at("creating link in", home.dir.join(LINKS)),
    }
    // Layers that have a `link` file keep it: two links to one layer do no harm.
    if layer.link.is_none() {
        tracing::warn!(layer = id, link, "put back a lost link file");
        let path = home.dir.join(id).join("link");
        atomic::write_file(&path, link.as_bytes(), 0o644, false)?;
    }
    Ok(())
}

/// Puts back a missing `lower-layers` or `lower` file.
fn put_back_lists(survey: &Survey, dir: &Path, layer: &SurveyedLayer) -> Result<()> {
    let (name, content) = match (&layer.lower, &layer.lower_layers) {
        (List::Of(links), List::Missing) => {
            let ids: Option<Vec<String>> = links
                .iter()
                .map(|link| survey.id_of(link).map(str::to_owned))
                .collect();
            let Some((parent, below)) = ids.as_deref().and_then(<[String]>::split_first) else {
                return Ok(());
            };
            (LOWER_LAYERS, layout::format_lower_layers(parent, below)?)
        }
        (List::Missing, List::Of(ids)) => {
            let link = |id: &String| survey.link_of(survey.home_of(id)?, id);
            let links: Option<Vec<&str>> = ids.iter().map(link).collect();
            let Some((parent, below)) = links.as_deref().and_then(<[&str]>::split_first) else {
                return Ok(());
            };
            (LOWER, Some(layout::format_lower(parent, below.iter().copied())?))
        }
        _ => return Ok(()),
    };
    let Some(content) = content else {
        return Ok(());
    };
    let path = dir.join(name);
    tracing::warn!(path = %path.display(), "put back a missing list of the layers below");
    atomic::write_file(&path, content.as_bytes(), 0o644, false).map(drop)
}

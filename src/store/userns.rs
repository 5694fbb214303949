//! Automatic user namespaces: how many IDs a container needs, and which ones it gets.
//!
//! The size is found out before any lock is held for long. The IDs are chosen under `userns.lock`, which every process
//! holds until its container is recorded.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::bridge;
use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::idmap::id_set::{IdSet, allocate};
use crate::idmap::users::{self, UserFile};
use crate::idmap::{IdMap, IdMappings};
use crate::options::AutoUserNs;
use crate::store::Store;
use crate::store::access::Needs;
use crate::store::layer_store::locked::files_of;
use crate::store::views::Container;
use crate::sys::{at, privilege};

/// The largest file with users that is read. The file of a machine with a million users has some 50 MiB.
const MAX_FILE: u64 = 64 << 20;

/// Smallest and largest size where `storage.conf` says nothing.
const MIN_SIZE: u32 = 1024;
const MAX_SIZE: u32 = 65536;

/// Whose ranges root uses where `storage.conf` says nothing.
const ROOT_USER: &str = "containers";

/// The mappings that `/etc/subuid` and `/etc/subgid` grant to a user, by name or by the number that `/etc/passwd` has for
/// it: consecutively from container ID 0 on. The user `ALL` has the ranges of every user, as in the Go library. Takes no lock.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a user without ranges, and for a file that is damaged, too large or no regular file;
/// [`ErrorKind::Io`] for one that cannot be read.
///
/// # Cancellation
/// No effect.
pub async fn sub_id_mappings(user: &str, group: &str) -> Result<IdMappings> {
    let (user, group) = (user.to_owned(), group.to_owned());
    bridge::run(move || sub_ids(&user, &group)).await
}

fn sub_ids(user: &str, group: &str) -> Result<IdMappings> {
    let read = |path: &str, name: &str| {
        let text = read_host_file(Path::new(path))?;
        let number = user_number(name);
        users::sub_ids(&String::from_utf8_lossy(&text), path, name, number.as_deref())
    };
    let (uids, gids) = (read("/etc/subuid", user)?, read("/etc/subgid", group)?);
    let none = |what: String| Err(ErrorKind::InvalidInput.err(what));
    if uids.is_empty() {
        return none(format!("no subuid ranges found for user {user:?} in /etc/subuid"));
    }
    if gids.is_empty() {
        return none(format!(
            "no subgid ranges found for group {group:?} in /etc/subgid"
        ));
    }
    Ok(IdMappings { uids, gids })
}

fn user_number(name: &str) -> Option<String> {
    let passwd = read_host_file(Path::new("/etc/passwd")).ok()?;
    users::user_number(&String::from_utf8_lossy(&passwd), name)
}

/// Reads a file of the host that should be a regular one.
fn read_host_file(path: &Path) -> Result<Vec<u8>> {
    let file = at::open_regular(path).at("opening", path)?;
    read_all(file, &path.display().to_string())
}

fn read_all(file: File, name: &str) -> Result<Vec<u8>> {
    let size = file.metadata().during(format!("looking at {name}"))?.len();
    let too_large = || {
        ErrorKind::InvalidInput.err(format!(
            "{name} has more than {MAX_FILE} bytes, too many for a file with users"
        ))
    };
    if size > MAX_FILE {
        return Err(too_large());
    }
    let mut text = Vec::new();
    let read = file.take(MAX_FILE + 1).read_to_end(&mut text);
    match read.during(format!("reading {name}"))? {
        length if length as u64 > MAX_FILE => Err(too_large()),
        _ => Ok(text),
    }
}

/// Reads a file of an image whose root directory is `root`; `None` if the image does not have it. No link leads out, and
/// nothing is opened that is no regular file.
fn read_image_file(root: BorrowedFd<'_>, path: &str) -> Result<Option<Vec<u8>>> {
    let found = at::open_in_root(
        root,
        path.as_bytes(),
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let found = match found {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        found => found.during(format!("opening {path} of an image"))?,
    };
    let stat = rustix::fs::fstat(&found).during(format!("looking at {path} of an image"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(ErrorKind::InvalidInput.err(format!("{path} of an image is not a regular file")));
    }
    let reopened = at::open_in_root(
        root,
        path.as_bytes(),
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let file = reopened.during(format!("opening {path} of an image"))?;
    read_all(File::from(file), &format!("{path} of an image")).map(Some)
}

/// How many IDs the users and groups of an image need.
fn ids_of_users(root: BorrowedFd<'_>, options: &AutoUserNs) -> Result<u32> {
    let mut needed = 0;
    for (given, path, kind) in [
        (&options.passwd_file, "/etc/passwd", UserFile::Passwd),
        (&options.group_file, "/etc/group", UserFile::Group),
    ] {
        let text = match given {
            None => read_image_file(root, path)?,
            Some(path) => match read_host_file(path) {
                Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => None,
                read => Some(read?),
            },
        };
        needed = needed.max(text.map_or(0, |text| users::ids_needed(&text, kind)));
    }
    Ok(needed)
}

/// The IDs that automatic user namespaces may use.
struct Available {
    uids: IdSet,
    gids: IdSet,
    /// Why there are none.
    reason: Option<Error>,
}

/// Whose ranges they are, if this process is not privileged.
fn own_name() -> Option<String> {
    let given = std::env::var("USER").ok().filter(|user| !user.is_empty());
    given.or_else(|| {
        // Compat: the variable tells programs of the Go library who has set up their namespace.
        let outer = std::env::var("_CONTAINERS_ROOTLESS_UID").ok();
        let outer = outer.and_then(|uid| uid.parse().ok());
        let real = || rustix::process::getuid().as_raw();
        let number = match privilege::is_root() {
            true => outer.unwrap_or_else(real),
            false => rustix::process::geteuid().as_raw(),
        };
        let passwd = read_host_file(Path::new("/etc/passwd")).ok()?;
        users::user_name(&String::from_utf8_lossy(&passwd), number)
    })
}

fn available(root_user: Option<&str>) -> Available {
    let rootless = privilege::is_rootless();
    let user = match rootless {
        true => own_name().unwrap_or_default(),
        false => root_user
            .filter(|user| !user.is_empty())
            .unwrap_or(ROOT_USER)
            .to_owned(),
    };
    let (mappings, reason) = match sub_ids(&user, &user) {
        Ok(mappings) => (mappings, None),
        Err(error) => (
            IdMappings::default(),
            Some(error.context(format!("finding the ID ranges of user {user:?}"))),
        ),
    };
    let ids = |maps: &[IdMap]| {
        let on_host = IdSet::on_host(maps);
        match rootless {
            // In the namespace 0 is the user, and the ranges come one after the other.
            true => std::iter::once(1..on_host.size() + 1).collect(),
            false => on_host,
        }
    };
    Available {
        uids: ids(&mappings.uids),
        gids: ids(&mappings.gids),
        reason,
    }
}

impl Store {
    /// How many IDs a container has in an automatic user namespace. Before `userns.lock` is taken.
    pub(super) async fn auto_userns_size(&self, image: Option<&str>, options: &AutoUserNs) -> Result<u32> {
        if options.size > 0 {
            return Ok(options.size);
        }
        let set = &self.inner.options;
        let or = |value: u32, default| if value == 0 { default } else { value };
        let mut size = or(set.auto_userns_min_size, MIN_SIZE)
            .max(options.initial_size)
            .max(1);
        if let Some(image) = image {
            size = size.max(self.ids_of_image(image, options).await?);
        }
        let largest = or(set.auto_userns_max_size, MAX_SIZE);
        if size > largest {
            let what = format!(
                "the container needs a user namespace with size {size} that is bigger than the maximum value allowed with userns=auto {largest}"
            );
            return Err(ErrorKind::InvalidMappings.err(what));
        }
        Ok(size)
    }

    async fn ids_of_image(&self, image: &str, options: &AutoUserNs) -> Result<u32> {
        let image = self.image(image).await?;
        let Some(top) = image.top_layer() else {
            return Ok(0);
        };
        let layers = self.layers_up_to(Some(top)).await?;
        let ids = layers
            .iter()
            .flat_map(|layer| layer.uids().iter().chain(layer.gids()));
        let owners = ids.max().map_or(0, |id| id.saturating_add(1));
        let (top, asked) = (top.to_owned(), options.clone());
        let root = self
            .step(Needs::LAYERS.with_graph(), move |held| {
                let driver = &held.layers()?.driver;
                files_of(&top, driver.mount_private(&top))
            })
            .await?;
        let users = bridge::run(move || ids_of_users(root.as_fd(), &asked)).await;
        let users = users.context(|| format!("finding out the users of image {:?}", image.id()))?;
        Ok(users.max(owners))
    }

    /// Chooses the IDs of a container in an automatic user namespace of `size`. Under `userns.lock`.
    pub(super) async fn allocate_userns(&self, size: u32, options: AutoUserNs) -> Result<IdMappings> {
        let containers = self.containers().await?;
        let user = self.inner.options.root_auto_userns_user.clone();
        bridge::run(move || {
            let used = |maps: fn(&Container) -> &[IdMap]| -> Vec<IdMap> {
                containers.iter().flat_map(maps).copied().collect()
            };
            let Available { uids, gids, reason } = available(user.as_deref());
            let uids = allocate(
                size,
                &uids,
                &used(Container::uid_map),
                &options.additional_uid_mappings,
            );
            let gids = allocate(
                size,
                &gids,
                &used(Container::gid_map),
                &options.additional_gid_mappings,
            );
            match (uids, gids) {
                (Some(uids), Some(gids)) => Ok(IdMappings { uids, gids }),
                _ => {
                    let why = reason.map_or_else(String::new, |reason| format!(": {}", reason.chain()));
                    Err(ErrorKind::NoAvailableIds.err(format!("choosing {size} IDs for a container{why}")))
                }
            }
        })
        .await
    }
}

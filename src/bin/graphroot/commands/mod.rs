//! Every command, in the order in which the usage lists them. The parser, the usage texts, the completion scripts and
//! the manual pages use these tables.

mod check;
mod convert;
mod copy;
mod create;
mod data;
mod delete;
mod diff;
mod examine;
mod heal;
mod image_usage;
mod layer_tree;
mod list;
#[cfg(feature = "pull")]
mod login;
mod mount;
mod names;
mod service;
#[cfg(feature = "pull")]
mod transfer;
mod unshare;

use crate::call::Call;
use crate::command::Command;
use crate::flags::{
    ADD_NAME, BZIP2, CHOWN, DEBUG, FORCE_SHUTDOWN, FORCE_UNMOUNT, GZIP, HASH_METHOD, HELP, IS_CONTAINER,
    IS_IMAGE, IS_LAYER, JSON, MOUNT_OPTIONS, MOUNT_READ_ONLY, NEW_NAME, NO_NAMES, OMIT_NAMES, QUICK,
    QUIET_IDS, REMOVE_NAME, TEST, TREE, UNCOMPRESSED, XZ, check as check_flags, convert as convert_flags,
    file, heal as heal_flags, new,
};
#[cfg(feature = "pull")]
use crate::flags::{QUIET_TRANSFER, login as login_flags, transfer as transfer_flags};
use crate::global_arguments::GlobalArguments;
use crate::help::{Help, Occasion};
use crate::mflag::Flags;
use crate::model;
use crate::outcome::{DONE, Outcome};
use crate::output::Output;

const ANY: Option<usize> = None;

macro_rules! command {
    ($names:expr, $arguments:literal, $usage:literal, $min:literal, $max:expr, [$($flag:expr),*], $run:path, [$($example:literal),*]) => {
        Command {
            names: &$names,
            arguments: $arguments,
            usage: $usage,
            min_args: $min,
            max_args: $max,
            flags: &[$($flag),*],
            examples: &[$($example),*],
            notes: &[],
            opens_store: true,
            run: |call, out| Box::pin($run(call, out)),
        }
    };
}

/// The name of a command that is spelled similarly.
pub(crate) fn similar(name: &str) -> Option<&'static str> {
    let names = all().filter_map(|command| command.names.first().copied());
    names
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(edits, known)| *edits <= 2 && 2 * edits < known.chars().count())
        .min()
        .map(|(_, known)| known)
}

/// The command of this name.
pub(crate) fn find(name: &str) -> Option<&'static Command> {
    all().find(|command| command.names.contains(&name))
}

/// The commands of containers-storage.
#[rustfmt::skip]
pub(crate) static COMMANDS: [Command; 61] = [
    command!(["check"], "", "Check storage consistency", 0, Some(0),
        [JSON, check_flags::MAX, check_flags::REPAIR, check_flags::FORCE, check_flags::QUICK, check_flags::DRY_RUN], check::check, ["graphroot check --quick"]),
    command!(["config"], "[configurationFile]", "Print storage library configuration as JSON", 0, Some(1),
        [], service::config, ["graphroot config"]),
    command!(["container"], "[options [...]] containerNameOrID [...]", "Examine a container", 1, ANY,
        [JSON], examine::container, ["graphroot container --json web"]),
    command!(["list-container-data", "listcontainerdata"], "[options [...]] containerNameOrID",
        "List data items that are attached to an container", 1, Some(1), [JSON], data::list_container, []),
    command!(["get-container-data", "getcontainerdata"], "[options [...]] containerNameOrID dataName",
        "Get data that is attached to an container", 2, Some(2), [file::WRITE], data::get_container, []),
    command!(["get-container-data-size", "getcontainerdatasize"], "[options [...]] containerNameOrID dataName",
        "Get size of data that is attached to an container", 2, Some(2), [], data::container_size, []),
    command!(["get-container-data-digest", "getcontainerdatadigest"], "[options [...]] containerNameOrID dataName",
        "Get digest of data that is attached to an container", 2, Some(2), [], data::container_digest, []),
    command!(["set-container-data", "setcontainerdata"], "[options [...]] containerNameOrID dataName",
        "Set data that is attached to an container", 2, Some(2), [file::READ], data::set_container, []),
    command!(["get-container-dir", "getcontainerdir"], "[options [...]] containerNameOrID",
        "Find the container's associated data directory", 1, Some(1), [], data::container_dir, []),
    command!(["get-container-run-dir", "getcontainerrundir"], "[options [...]] containerNameOrID",
        "Find the container's associated runtime directory", 1, Some(1), [], data::container_run_dir, []),
    command!(["container-parent-owners"], "[options [...]] containerNameOrID [...]",
        "Compute the set of unmapped parent UIDs and GIDs of the container", 1, ANY,
        [JSON], examine::container_parent_owners, []),
    command!(["containers"], "[options [...]]", "List containers", 0, Some(0),
        [JSON], list::containers, ["graphroot containers --json"]),
    command!(["copy"], "[options [...]] [sourceLayerNameOrID:]/path [...] targetLayerNameOrID:/path",
        "Copy files or directories into a layer, possibly from another layer", 2, ANY,
        [CHOWN, JSON], copy::copy, ["graphroot copy --chown 1000:1000 ./site web-layer:/srv/www"]),
    command!(["create-storage-layer"], "[options [...]] [parentLayerNameOrID]",
        "Create a new layer only in the storage driver", 0, Some(1),
        [new::LABEL, new::LAYER_ID, new::READ_ONLY, JSON, new::HOST_UIDS, new::HOST_GIDS, new::UIDS, new::GIDS,
         new::SUB_UIDS, new::SUB_GIDS], create::storage_layer, []),
    command!(["create-layer", "createlayer"], "[options [...]] [parentLayerNameOrID]", "Create a new layer", 0, Some(1),
        [new::LABEL, new::LAYER_NAME, new::LAYER_ID, new::READ_ONLY, JSON, new::HOST_UIDS, new::HOST_GIDS, new::UIDS,
         new::GIDS, new::SUB_UIDS, new::SUB_GIDS], create::layer, ["graphroot create-layer --name work base"]),
    command!(["import-layer", "importlayer"], "[options [...]] [parentLayerNameOrID]", "Import a new layer", 0, Some(1),
        [new::LABEL, new::LAYER_NAME, new::LAYER_ID, new::READ_ONLY, JSON, file::INSTEAD_OF_STDIN, new::HOST_UIDS,
         new::HOST_GIDS, new::UIDS, new::GIDS, new::SUB_UIDS, new::SUB_GIDS], create::import_layer,
        ["graphroot import-layer --name base -f layer.tar.gz", "zstd -dc layer.tar.zst | graphroot import-layer base"]),
    Command {
        notes: &[
            "The image is a record without a manifest and a config, as containers-storage makes it: it can be mounted and",
            "containers can be made of it, but it cannot be pushed. A complete image comes from an archive (with the feature",
            "'pull': graphroot pull docker-archive:FILE) or, in a program, from graphroot::ImageBuilder.",
        ],
        ..command!(["create-image", "createimage"], "[options [...]] topLayerNameOrID", "Create a new image using layers",
            0, Some(1), [new::IMAGE_NAME, new::IMAGE_ID, new::DIGEST, new::METADATA, new::METADATA_FILE, JSON],
            create::image, ["graphroot create-image --name localhost/demo base"])
    },
    command!(["create-container", "createcontainer"], "[options [...]] parentImageNameOrID",
        "Create a new container from an image", 1, Some(1),
        [new::CONTAINER_NAME, new::VOLATILE, new::CONTAINER_ID, new::METADATA, new::METADATA_FILE, JSON, new::HOST_UIDS,
         new::HOST_GIDS, new::UIDS, new::GIDS, new::SUB_UIDS, new::SUB_GIDS], create::container,
        ["graphroot create-container --name web localhost/demo"]),
    Command {
        notes: &["Hash functions: crc (CRC-64), sha256, and size, which compares files of the same size without hashing them."],
        ..command!(["dedup"], "", "Dedup all images", 0, Some(0), [JSON, HASH_METHOD], service::dedup,
            ["graphroot dedup --hash-method sha256"])
    },
    command!(["delete"], "[LayerOrImageOrContainerNameOrID [...]]",
        "Delete a layer or image or container, with no safety checks", 1, ANY, [JSON], delete::anything, []),
    command!(["delete-layer", "deletelayer"], "[LayerNameOrID [...]]", "Delete a layer, with safety checks", 1, ANY,
        [JSON], delete::layer, []),
    command!(["delete-image", "deleteimage"], "[ImageNameOrID [...]]", "Delete an image, with safety checks", 1, ANY,
        [TEST, JSON], delete::image, ["graphroot delete-image --test localhost/demo"]),
    command!(["delete-container", "deletecontainer"], "[ContainerNameOrID [...]]",
        "Delete a container, with safety checks", 1, ANY, [JSON], delete::container, []),
    command!(["changes"], "[options [...]] layerNameOrID [referenceLayerNameOrID]", "Compare two layers", 1, Some(2),
        [JSON], diff::changes, ["graphroot changes web-layer"]),
    command!(["diffsize", "diff-size"], "[options [...]] layerNameOrID [referenceLayerNameOrID]", "Compare two layers",
        1, Some(2), [], diff::size, []),
    command!(["diff"], "[options [...]] layerNameOrID [referenceLayerNameOrID]", "Compare two layers", 1, Some(2),
        [file::INSTEAD_OF_STDOUT, UNCOMPRESSED, GZIP, BZIP2, XZ], diff::diff, ["graphroot diff -u -f base.tar base"]),
    command!(["applydiff", "apply-diff"], "[options [...]] layerNameOrID [referenceLayerNameOrID]",
        "Apply a diff to a layer", 1, Some(1), [file::INSTEAD_OF_STDIN], diff::apply, []),
    command!(["applydiff-using-staging-dir"], "layerNameOrID directory",
        "Apply a diff to a layer using a staging directory", 2, Some(2), [], diff::apply_staged,
        ["graphroot applydiff-using-staging-dir web-layer /srv/rootfs"]),
    command!(["exists"], "[LayerOrImageOrContainerNameOrID [...]]",
        "Check if a layer or image or container exists", 1, ANY,
        [NO_NAMES, IS_LAYER, IS_IMAGE, IS_CONTAINER, JSON], examine::exists, ["graphroot exists --quiet --image localhost/demo"]),
    command!(["gc"], "", "Perform garbage collection", 0, Some(0), [JSON], service::gc, []),
    command!(["image"], "[options [...]] imageNameOrID [...]", "Examine an image", 1, ANY,
        [JSON], examine::image, ["graphroot image localhost/demo"]),
    command!(["list-image-data", "listimagedata"], "[options [...]] imageNameOrID",
        "List data items that are attached to an image", 1, Some(1), [JSON], data::list_image, []),
    command!(["get-image-data", "getimagedata"], "[options [...]] imageNameOrID dataName",
        "Get data that is attached to an image", 2, Some(2), [file::WRITE], data::get_image,
        ["graphroot get-image-data localhost/demo manifest"]),
    command!(["get-image-data-size", "getimagedatasize"], "[options [...]] imageNameOrID dataName",
        "Get size of data that is attached to an image", 2, Some(2), [], data::image_size, []),
    command!(["get-image-data-digest", "getimagedatadigest"], "[options [...]] imageNameOrID dataName",
        "Get digest of data that is attached to an image", 2, Some(2), [], data::image_digest, []),
    command!(["set-image-data", "setimagedata"], "[options [...]] imageNameOrID dataName",
        "Set data that is attached to an image (with sometimes wrong digest)", 2, Some(2),
        [file::READ], data::set_image, []),
    command!(["get-image-dir", "getimagedir"], "[options [...]] imageNameOrID",
        "Find the image's associated data directory", 1, Some(1), [], data::image_dir, []),
    command!(["get-image-run-dir", "getimagerundir"], "[options [...]] imageNameOrID",
        "Find the image's associated runtime directory", 1, Some(1), [], data::image_run_dir, []),
    command!(["images"], "[options [...]]", "List images", 0, Some(0), [JSON, QUIET_IDS], list::images, ["graphroot images -q"]),
    command!(["images-by-digest"], "[options [...]] DIGEST", "List images by digest", 1, Some(1),
        [JSON, QUIET_IDS], list::images_by_digest, []),
    command!(["layer"], "[options [...]] layerNameOrID [...]", "Examine a layer", 1, ANY,
        [JSON], examine::layer, ["graphroot layer --json base"]),
    command!(["layer-parent-owners"], "[options [...]] layerNameOrID [...]",
        "Compute the set of unmapped parent UIDs and GIDs of the layer", 1, ANY,
        [JSON], examine::layer_parent_owners, []),
    command!(["list-layer-data", "listlayerdata"], "[options [...]] layerNameOrID",
        "List data items that are attached to a layer", 1, Some(1), [JSON], data::list_layer, []),
    command!(["get-layer-data", "getlayerdata"], "[options [...]] layerID dataName",
        "Get data that is attached to a layer", 2, Some(2), [file::WRITE], data::get_layer, []),
    command!(["set-layer-data", "setlayerdata"], "[options [...]] layerID dataName",
        "Set data that is attached to a layer", 2, Some(2), [file::READ], data::set_layer, []),
    command!(["layers"], "[options [...]]", "List layers", 0, Some(0),
        [TREE, QUICK, JSON], list::layers, ["graphroot layers --tree", "graphroot layers --json"]),
    command!(["storage-layers"], "[options [...]]", "List storage layers", 0, Some(0),
        [JSON], list::storage_layers, []),
    command!(["metadata"], "[LayerOrImageOrContainerNameOrID [...]]",
        "Retrieve layer, image, or container metadata", 1, ANY, [OMIT_NAMES, JSON], names::metadata, []),
    command!(["set-metadata", "setmetadata"], "[options [...]] layerOrImageOrContainerNameOrID",
        "Set layer, image, or container metadata", 1, Some(1),
        [new::METADATA, new::METADATA_FILE], names::set_metadata, []),
    command!(["mount"], "[options [...]] LayerOrContainerNameOrID", "Mount a layer or container", 1, ANY,
        [MOUNT_OPTIONS, new::LABEL, MOUNT_READ_ONLY, JSON], mount::mount, ["cd $(graphroot mount web)"]),
    command!(["unmount", "umount"], "LayerOrContainerNameOrID", "Unmount an image, layer or container", 1, ANY,
        [JSON, FORCE_UNMOUNT], mount::unmount, []),
    command!(["mounted"], "LayerOrContainerNameOrID", "Check if a file system is mounted", 1, ANY,
        [JSON], mount::mounted, []),
    command!(["get-names", "getnames"], "[options [...]] imageOrContainerNameOrID",
        "Get layer, image, or container name or names", 1, Some(1), [JSON], names::get, []),
    command!(["add-names", "addnames"], "[options [...]] imageOrContainerNameOrID",
        "Add layer, image, or container name or names", 1, ANY, [ADD_NAME, JSON], names::add,
        ["graphroot add-names --name localhost/demo:v2 localhost/demo"]),
    command!(["remove-names", "removenames"], "[options [...]] imageOrContainerNameOrID",
        "Remove layer, image, or container name or names", 1, ANY, [REMOVE_NAME, JSON], names::remove, []),
    command!(["set-names", "setnames"], "[options [...]] imageOrContainerNameOrID",
        "Set layer, image, or container name or names", 1, ANY, [NEW_NAME, JSON], names::set, []),
    command!(["shutdown"], "", "Shut down layer storage", 0, Some(0), [JSON, FORCE_SHUTDOWN], service::shutdown, []),
    command!(["status"], "", "Check on graph driver status", 0, Some(0), [JSON], service::status, []),
    command!(["unshare"], "[command [...]]", "Run a command in a user namespace", 0, ANY,
        [], unshare::unshare, ["graphroot unshare id -u"]),
    command!(["version"], "", "Return containers-storage version information", 0, Some(0),
        [JSON], service::version, []),
    command!(["wipe"], "", "Wipe all layers, images, and containers", 0, Some(0), [JSON], service::wipe, []),
];

/// The commands that containers-storage does not have.
#[rustfmt::skip]
pub(crate) static EXTRA_COMMANDS: &[Command] = &[
    #[cfg(feature = "pull")]
    command!(["pull"], "[options [...]] image [...]", "Pull images from registries, OCI layouts, directories and archives", 1, ANY,
        [JSON, QUIET_TRANSFER, transfer_flags::NAME, transfer_flags::PLATFORM, transfer_flags::AUTH_FILE, transfer_flags::TLS_VERIFY, transfer_flags::CERT_DIR, transfer_flags::PLAIN_HTTP, transfer_flags::POLICY, transfer_flags::KEEP_PARTIAL,
        transfer_flags::DOWNLOADS], transfer::pull,
        ["graphroot pull app:1", "graphroot pull docker://registry.example/app:1 oci:DIRECTORY:app",
         "graphroot pull --name app:1 docker-archive:saved.tar", "graphroot pull oci-archive:image.tar:app",
         "graphroot pull --name app:1 dir:DIRECTORY", "graphroot pull --json --keep-partial docker://registry.example/app"]),
    #[cfg(feature = "pull")]
    command!(["push"], "[options [...]] imageNameOrID destination", "Push an image to a registry, an OCI layout, a directory or an archive", 2, Some(2),
        [JSON, QUIET_TRANSFER, transfer_flags::AUTH_FILE, transfer_flags::TLS_VERIFY, transfer_flags::CERT_DIR, transfer_flags::PLAIN_HTTP, transfer_flags::COMPRESSION, transfer_flags::LEVEL], transfer::push,
        ["graphroot push app:1 docker://registry.example/app:1", "graphroot push app:1 oci:DIRECTORY:app",
         "graphroot push app:1 dir:DIRECTORY", "graphroot push app:1 oci-archive:image.tar:app", "graphroot push app:1 docker-archive:saved.tar:app:1",
         "graphroot push --compression zstd:chunked app:1 docker://registry.example/app:1"]),
    #[cfg(feature = "pull")]
    Command {
        opens_store: false,
        ..command!(["login"], "[options [...]] [registry]", "Log in to a registry", 0, Some(1),
            [transfer_flags::AUTH_FILE, login_flags::COMPAT_AUTH_FILE, transfer_flags::CERT_DIR, transfer_flags::TLS_VERIFY, transfer_flags::PLAIN_HTTP,
             login_flags::USERNAME, login_flags::PASSWORD, login_flags::PASSWORD_STDIN, login_flags::GET_LOGIN, login_flags::VERBOSE], login::login,
            ["graphroot login registry.example", "graphroot login --get-login registry.example",
             "graphroot login -u user --password-stdin registry.example/team < password"])
    },
    #[cfg(feature = "pull")]
    Command {
        opens_store: false,
        ..command!(["logout"], "[options [...]] [registry]", "Log out of a registry", 0, Some(1),
            [transfer_flags::AUTH_FILE, login_flags::COMPAT_AUTH_FILE, login_flags::ALL], login::logout,
            ["graphroot logout registry.example", "graphroot logout --all"])
    },
    #[cfg(feature = "pull")]
    command!(["heal"], "[options [...]] [layerOrImageNameOrID [...]]", "Make damaged and missing layers of images anew, in place; containers that are mounted show them when they are mounted again", 0, ANY,
        [JSON, heal_flags::FROM, heal_flags::FROM_STORE, transfer_flags::AUTH_FILE, transfer_flags::TLS_VERIFY, transfer_flags::CERT_DIR, transfer_flags::PLAIN_HTTP, transfer_flags::PLATFORM], heal::heal,
        ["graphroot heal", "graphroot heal --from oci:DIRECTORY:app localhost/app", "graphroot heal --from-store /srv/other"]),
    #[cfg(not(feature = "pull"))]
    command!(["heal"], "[options [...]] [layerOrImageNameOrID [...]]", "Make damaged and missing layers of images anew, in place; containers that are mounted show them when they are mounted again", 0, ANY,
        [JSON, heal_flags::FROM_STORE], heal::heal, ["graphroot heal --from-store /srv/other localhost/demo"]),
    command!(["convert"], "[options [...]] newRoot", "Copy layers, images and containers into a storage tree with another driver", 1, Some(1),
        [JSON, convert_flags::TO, convert_flags::OPTION, convert_flags::RUN, convert_flags::IMAGE, convert_flags::CONTAINER, convert_flags::NO_CONTAINERS, convert_flags::REFRESH, convert_flags::DRY_RUN], convert::convert,
        ["graphroot convert --to overlay /srv/containers/storage", "graphroot -s vfs convert --to btrfs --image localhost/app --container app /mnt/storage"]),
    command!(["tree"], "[options [...]]", "Show images with their layers and containers, and what belongs to no image", 0, Some(0),
        [JSON], image_usage::tree, ["graphroot tree"]),
    command!(["du"], "[options [...]]", "Show the space that each image takes, its own and shared", 0, Some(0),
        [JSON], image_usage::du, ["graphroot du --json"]),
    Command {
        opens_store: false,
        ..command!(["locks"], "[options [...]]", "Show which processes hold the store's locks", 0, Some(0),
            [JSON], service::locks, ["graphroot locks"])
    },
    Command {
        opens_store: false,
        ..command!(["help"], "[command]", "Print the usage of the program or of one of its commands", 0, Some(1),
            [], help, ["graphroot help import-layer"])
    },
    Command {
        opens_store: false,
        ..command!(["completions"], "bash|elvish|fish|powershell|zsh", "Print a completion script for a shell",
            1, Some(1), [], completions, ["graphroot completions bash > /etc/bash_completion.d/graphroot"])
    },
    Command {
        opens_store: false,
        ..command!(["man"], "[command]", "Print the manual page of the program or of one of its commands", 0, Some(1),
            [], man, ["graphroot man import-layer | man -l -"])
    },
];

fn all() -> impl Iterator<Item = &'static Command> {
    COMMANDS.iter().chain(EXTRA_COMMANDS)
}

async fn completions(call: &Call, out: &mut Output) -> Outcome {
    out.raw(&model::completions(all(), call.arg(0))?)?;
    DONE
}

async fn help(call: &Call, out: &mut Output) -> Outcome {
    let help = Help::new(&call.program, &COMMANDS, EXTRA_COMMANDS);
    let mut flags = Flags::default();
    GlobalArguments::from_flags(&call.flags).add_to(&mut flags, call.flags.is_on(&DEBUG));
    match call.optional(0) {
        None => {
            flags.add(HELP);
            help.program(out, &flags, Occasion::HelpCommand)?;
        }
        Some(name) => {
            let command = find(name).ok_or_else(|| format!("{name}: unrecognized command"))?;
            for flag in command.flags {
                flags.add(*flag);
            }
            help.command(out, name, command, &flags, Occasion::HelpCommand)?;
        }
    }
    DONE
}

async fn man(call: &Call, out: &mut Output) -> Outcome {
    let page = match call.optional(0) {
        None => model::program_page(all())?,
        Some(name) => {
            let command = find(name).ok_or_else(|| format!("{name}: unrecognized command"))?;
            model::command_page(command)?
        }
    };
    out.raw(&page)?;
    DONE
}

//! The script's operations through the library.

use std::io::Cursor;
use std::time::SystemTime;

use graphroot::{
    Compression, Container, ContainerOptions, DiffOptions, Digest, Flag, IdMap, IdMappingOptions, Image,
    ImageOptions, Layer, LayerOptions, ParentOwners, Store,
};
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt as _;

use super::answer::{Answer, Outcome};
use super::archives::Archives;
use super::names::Names;
use super::op::{Kind, New, Op, Packing};

/// Runs one operation.
pub(super) async fn run(store: &Store, op: &Op, names: &Names, archives: &Archives) -> Outcome {
    let id = |text: &str| names.id(text);
    Ok(match op {
        Op::CreateLayer(new) => {
            let (parent, options) = layer_options(new, names);
            layer(&store.create_layer(parent.as_deref(), options).await?)
        }
        Op::ImportLayer(new, archive) => {
            let (parent, options) = layer_options(new, names);
            let archive = Cursor::new(archives.bytes(archive));
            layer(&store.put_layer(parent.as_deref(), options, archive).await?.layer)
        }
        Op::ApplyDiff(to, archive) => {
            store
                .apply_diff(&id(to), Cursor::new(archives.bytes(archive)))
                .await?;
            Answer::Nothing
        }
        Op::CreateImage(new) => {
            let mut options = ImageOptions::default();
            options.id = new_id(new);
            options.names = strings(&new.names);
            options.metadata = new.metadata.into();
            options.digest = new.digest.map(|digest| digest.parse()).transpose()?;
            image(&store.create_image(new.on.map(id).as_deref(), options).await?)
        }
        Op::CreateContainer(new) => {
            let mut options = ContainerOptions::default();
            options.id = new_id(new);
            options.names = strings(&new.names);
            options.metadata = new.metadata.into();
            options.volatile = new.volatile;
            options.id_mappings = mappings(new);
            container(&store.create_container(new.on.map(id).as_deref(), options).await?)
        }

        // As the command does, by the ID that the key stands for.
        Op::Names(key) => Answer::List(store.names(&store.lookup(&id(key)).await?).await?),
        Op::SetNames(key, list) => {
            let item = store.lookup(&id(key)).await?;
            store.set_names(&item, *list).await?;
            Answer::List(store.names(&item).await?)
        }
        Op::AddNames(key, list) => {
            let item = store.lookup(&id(key)).await?;
            store.add_names(&item, *list).await?;
            Answer::List(store.names(&item).await?)
        }
        Op::RemoveNames(key, list) => {
            let item = store.lookup(&id(key)).await?;
            store.remove_names(&item, *list).await?;
            Answer::List(store.names(&item).await?)
        }
        Op::Metadata(key) => Answer::Text(store.metadata(&id(key)).await?),
        Op::SetMetadata(key, text) => done(store.set_metadata(&id(key), *text).await)?,

        Op::Exists(key) => Answer::Truth(store.exists(&id(key)).await?),
        Op::Show(Kind::Layer, key) => layer(&store.layer(&id(key)).await?),
        Op::Show(Kind::Image, key) => image(&store.image(&id(key)).await?),
        Op::Show(Kind::Container, key) => container(&store.container(&id(key)).await?),
        Op::List(Kind::Layer) => all(&store.layers().await?, layer),
        Op::List(Kind::Image) => all(&store.images().await?, image),
        Op::List(Kind::Container) => all(&store.containers().await?, container),
        Op::ImagesByDigest(digest) => {
            let digest: Digest = digest.parse()?;
            all(&store.images_by_digest(&digest).await?, image)
        }
        Op::Size(Kind::Container, key) => number(store.container_size(&id(key)).await?),
        Op::Size(_, key) => number(store.image_size(&id(key)).await?),
        Op::ParentOwners(Kind::Container, key) => owners(&store.container_parent_owners(&id(key)).await?),
        Op::ParentOwners(_, key) => owners(&store.layer_parent_owners(&id(key)).await?),
        Op::Directory(key) => path(&store.container_directory(&id(key)).await?),
        Op::RunDirectory(key) => path(&store.container_run_directory(&id(key)).await?),

        Op::ListData(Kind::Layer, key) => Answer::List(store.list_layer_big_data(&id(key)).await?),
        Op::ListData(Kind::Image, key) => Answer::List(store.list_image_big_data(&id(key)).await?),
        Op::ListData(Kind::Container, key) => Answer::List(store.list_container_big_data(&id(key)).await?),
        Op::GetData(Kind::Layer, key, item) => {
            let mut data = Vec::new();
            let mut reader = store.layer_big_data(&id(key), item).await?;
            reader.read_to_end(&mut data).await.unwrap();
            bytes(data)
        }
        Op::GetData(Kind::Image, key, item) => bytes(store.image_big_data(&id(key), item).await?.into()),
        Op::GetData(Kind::Container, key, item) => {
            bytes(store.container_big_data(&id(key), item).await?.into())
        }
        Op::SetData(Kind::Layer, key, item, data) => {
            done(store.set_layer_big_data(&id(key), item, Cursor::new(*data)).await)?
        }
        Op::SetData(Kind::Image, key, item, data) => {
            let digest = Some((|data| Ok(Digest::sha256(data))) as graphroot::ManifestDigest);
            done(store.set_image_big_data(&id(key), item, *data, digest).await)?
        }
        Op::SetData(Kind::Container, key, item, data) => {
            done(store.set_container_big_data(&id(key), item, *data).await)?
        }
        Op::DataSize(Kind::Container, key, item) => {
            number(store.container_big_data_size(&id(key), item).await?)
        }
        Op::DataSize(_, key, item) => number(store.image_big_data_size(&id(key), item).await?),
        Op::DataDigest(Kind::Container, key, item) => {
            Answer::Text(store.container_big_data_digest(&id(key), item).await?.to_string())
        }
        Op::DataDigest(_, key, item) => {
            Answer::Text(store.image_big_data_digest(&id(key), item).await?.to_string())
        }

        Op::Mount(key) => path(&store.mount(&id(key), Default::default()).await?),
        Op::MountImage(key) => path(&store.mount_image(&id(key), Default::default()).await?),
        Op::Unmount(key) => Answer::Truth(store.unmount(&id(key)).await? > 0),
        Op::UnmountForced(key) => {
            store.unmount_all(&id(key)).await?;
            Answer::Truth(false)
        }
        // As the command does, which does not say whether an image is still mounted.
        Op::UnmountImage(key) => {
            if let Err(first) = store.unmount(&id(key)).await
                && store.unmount_image(&id(key)).await.is_err()
            {
                return Err(first.into());
            }
            Answer::Nothing
        }
        Op::Mounted(key) => Answer::Truth(store.mounted(&id(key)).await? > 0),

        Op::Changes(to, from) => {
            let changes = store.changes(from.map(id).as_deref(), &id(to)).await?;
            super::answer::changes(serde_json::to_value(changes).unwrap())
        }
        Op::DiffSize(to, from) => number(store.diff_size(from.map(id).as_deref(), &id(to)).await?),
        Op::Diff(to, from, packing) => {
            let options = match packing {
                Packing::Uncompressed => DiffOptions::uncompressed(),
                Packing::Gzip => DiffOptions::compressed(Compression::Gzip),
                Packing::Recorded => DiffOptions::default(),
            };
            let mut stream = store.diff(from.map(id).as_deref(), &id(to), options).await?;
            let mut data = Vec::new();
            match stream.read_to_end(&mut data).await {
                Ok(_) => archives.plain(data).await,
                Err(error) => return Err(super::answer::Failure::of_text(&error.to_string())),
            }
        }

        Op::Delete(key) => done(store.delete(&id(key)).await)?,
        Op::DeleteLayer(key) => done(store.delete_layer(&id(key)).await)?,
        Op::TestDeleteImage(key) => Answer::List(store.layers_deleted_with_image(&id(key)).await?),
        Op::DeleteImage(key) => Answer::List(store.delete_image(&id(key)).await?),
        Op::DeleteContainer(key) => done(store.delete_container(&id(key)).await)?,
        Op::Shutdown => done(store.shutdown().await)?,
        Op::ShutdownForced => done(store.shutdown_force().await.map(drop))?,
        Op::Wipe => done(store.wipe().await)?,

        Op::Edit(..) | Op::DateDeletions(_) | Op::Checkpoint(_) => Answer::Nothing,
    })
}

fn done(result: graphroot::Result<()>) -> Outcome {
    result?;
    Ok(Answer::Nothing)
}

fn number(value: u64) -> Answer {
    Answer::Number(value.try_into().unwrap())
}

fn path(path: &std::path::Path) -> Answer {
    Answer::Text(path.to_str().unwrap().to_owned())
}

fn bytes(data: Vec<u8>) -> Answer {
    Answer::Bytes(data, Compression::None)
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// The ID to ask for: names of random IDs ask for none.
fn new_id(new: &New) -> Option<String> {
    (!new.id.starts_with('@')).then(|| new.id.to_owned())
}

fn mappings(new: &New) -> IdMappingOptions {
    new.maps.map_or_else(IdMappingOptions::default, |(uid, gid)| {
        let map = |host| vec![IdMap::new(0, host, 65536)];
        IdMappingOptions::mapped(map(uid), map(gid))
    })
}

fn layer_options(new: &New, names: &Names) -> (Option<String>, LayerOptions) {
    let mut options = LayerOptions::default().writeable(!new.read_only);
    options.id = new_id(new);
    options.names = strings(&new.names);
    options.id_mappings = mappings(new);
    (new.on.map(|below| names.id(below)), options)
}

fn all<T>(items: &[T], show: fn(&T) -> Answer) -> Answer {
    let rows = items.iter().map(|item| match show(item) {
        Answer::Json(row) => row,
        other => unreachable!("{other:?}"),
    });
    Answer::Json(rows.collect())
}

fn owners(owners: &ParentOwners) -> Answer {
    Answer::Json(json!({"UIDs": owners.uids, "GIDs": owners.gids}))
}

fn digest(digest: Option<Digest>) -> Value {
    digest.map_or(Value::Null, |digest| digest.to_string().into())
}

fn time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).unwrap().to_string()
}

fn flags(flags: std::collections::BTreeMap<String, Flag>) -> Value {
    let rows = flags.into_iter().map(|(name, flag)| {
        let value = match flag {
            Flag::Bool(truth) => truth.into(),
            Flag::Text(text) => text.into(),
            Flag::List(list) => list.into(),
            other => unreachable!("{other:?}"),
        };
        (name, value)
    });
    Value::Object(rows.collect::<Map<_, _>>())
}

/// The record of a layer as the Go library's command prints it.
fn layer(layer: &Layer) -> Answer {
    Answer::Json(json!({
        "id": layer.id(),
        "names": layer.names(),
        "parent": layer.parent(),
        "metadata": layer.metadata(),
        "mountlabel": layer.mount_label(),
        "created": time(layer.created()),
        "compressed-diff-digest": digest(layer.compressed_digest()),
        "compressed-size": layer.compressed_size(),
        "diff-digest": digest(layer.uncompressed_digest()),
        "diff-size": layer.uncompressed_size(),
        "toc-digest": digest(layer.toc_digest()),
        "compression": layer.compression().as_i64(),
        "uidset": layer.uids(),
        "gidset": layer.gids(),
        "uidmap": layer.uid_map(),
        "gidmap": layer.gid_map(),
        "flags": flags(layer.flags()),
        "big-data-names": layer.big_data_names(),
    }))
}

fn sizes_and_digests(
    keys: &[String],
    size: impl Fn(&str) -> Option<u64>,
    data_digest: impl Fn(&str) -> Option<Digest>,
) -> (Value, Value) {
    let sizes: Map<_, _> = keys.iter().map(|key| (key.clone(), size(key).into())).collect();
    let digests: Map<_, _> = keys
        .iter()
        .map(|key| (key.clone(), digest(data_digest(key))))
        .collect();
    (sizes.into(), digests.into())
}

/// The record of an image as the Go library's command prints it.
fn image(image: &Image) -> Answer {
    let (sizes, digests) = sizes_and_digests(
        image.big_data_names(),
        |key| image.big_data_size(key),
        |key| image.big_data_digest(key),
    );
    Answer::Json(json!({
        "id": image.id(),
        "digest": digest(image.digest()),
        "names": image.names(),
        "names-history": image.names_history(),
        "layer": image.top_layer(),
        "mapped-layers": image.mapped_top_layers(),
        "metadata": image.metadata(),
        "big-data-names": image.big_data_names(),
        "big-data-sizes": sizes,
        "big-data-digests": digests,
        "created": time(image.created()),
        "flags": flags(image.flags()),
    }))
}

/// The record of a container as the Go library's command prints it.
fn container(container: &Container) -> Answer {
    let (sizes, digests) = sizes_and_digests(
        container.big_data_names(),
        |key| container.big_data_size(key),
        |key| container.big_data_digest(key),
    );
    Answer::Json(json!({
        "id": container.id(),
        "names": container.names(),
        "image": container.image_id(),
        "layer": container.layer_id(),
        "metadata": container.metadata(),
        "big-data-names": container.big_data_names(),
        "big-data-sizes": sizes,
        "big-data-digests": digests,
        "created": time(container.created()),
        "uidmap": container.uid_map(),
        "gidmap": container.gid_map(),
        "flags": flags(container.flags()),
    }))
}

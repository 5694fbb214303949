//! Big data of layers, images and containers, and the directories of images and containers.

use tokio::io::AsyncReadExt as _;

use crate::call::Call;
use crate::flags::file;
use crate::input::Input;
use crate::outcome::{DONE, Outcome, stream_failure};
use crate::output::{DataOutput, Output};

fn list(call: &Call, out: &mut Output, keys: &[String]) -> Outcome {
    if call.json() {
        out.json_or_null(keys)?;
        return DONE;
    }
    for key in keys {
        out.line(key)?;
    }
    DONE
}

pub(crate) async fn list_layer(call: &Call, out: &mut Output) -> Outcome {
    let keys = call.store()?.list_layer_big_data(call.arg(0)).await?;
    list(call, out, &keys)
}

pub(crate) async fn list_image(call: &Call, out: &mut Output) -> Outcome {
    let keys = call.store()?.list_image_big_data(call.arg(0)).await?;
    list(call, out, &keys)
}

pub(crate) async fn list_container(call: &Call, out: &mut Output) -> Outcome {
    let keys = call.store()?.list_container_big_data(call.arg(0)).await?;
    list(call, out, &keys)
}

pub(crate) async fn get_layer(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let layer = store.layer(call.arg(0)).await?;
    let mut output = DataOutput::new(call.flags.text(&file::WRITE), out)?;
    let mut data = store.layer_big_data(layer.id(), call.arg(1)).await?;
    let mut chunk = Vec::with_capacity(128 * 1024);
    loop {
        chunk.clear();
        let read = data.read_buf(&mut chunk).await;
        if read.map_err(stream_failure)? == 0 {
            return DONE;
        }
        output.write(&chunk)?;
    }
}

pub(crate) async fn get_image(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let image = store.image(call.arg(0)).await?;
    let mut output = DataOutput::new(call.flags.text(&file::WRITE), out)?;
    output.write(&store.image_big_data(image.id(), call.arg(1)).await?)?;
    DONE
}

pub(crate) async fn get_container(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let container = store.container(call.arg(0)).await?;
    let mut output = DataOutput::new(call.flags.text(&file::WRITE), out)?;
    output.write(&store.container_big_data(container.id(), call.arg(1)).await?)?;
    DONE
}

pub(crate) async fn image_size(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let image = store.image(call.arg(0)).await?;
    let size = store.image_big_data_size(image.id(), call.arg(1)).await?;
    out.line(size.to_string())?;
    DONE
}

pub(crate) async fn container_size(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let container = store.container(call.arg(0)).await?;
    let size = store.container_big_data_size(container.id(), call.arg(1)).await?;
    out.line(size.to_string())?;
    DONE
}

pub(crate) async fn image_digest(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let image = store.image(call.arg(0)).await?;
    let digest = store.image_big_data_digest(image.id(), call.arg(1)).await?;
    out.line(digest.as_str())?;
    DONE
}

pub(crate) async fn container_digest(call: &Call, out: &mut Output) -> Outcome {
    let store = call.store()?;
    let container = store.container(call.arg(0)).await?;
    let digest = store
        .container_big_data_digest(container.id(), call.arg(1))
        .await?;
    out.line(digest.as_str())?;
    DONE
}

pub(crate) async fn set_layer(call: &Call, _out: &mut Output) -> Outcome {
    let store = call.store()?;
    let layer = store.layer(call.arg(0)).await?;
    let data = Input::open(call, &file::READ, "Storing")?;
    store.set_layer_big_data(layer.id(), call.arg(1), data).await?;
    DONE
}

pub(crate) async fn set_image(call: &Call, _out: &mut Output) -> Outcome {
    let store = call.store()?;
    let image = store.image(call.arg(0)).await?;
    let data = call.read_input(&file::READ)?;
    // As in containers-storage, the digest of a manifest is that of all its bytes, which is wrong for signed manifests
    // of schema 1.
    store
        .set_image_big_data(image.id(), call.arg(1), data, None)
        .await?;
    DONE
}

pub(crate) async fn set_container(call: &Call, _out: &mut Output) -> Outcome {
    let store = call.store()?;
    let container = store.container(call.arg(0)).await?;
    let data = call.read_input(&file::READ)?;
    store
        .set_container_big_data(container.id(), call.arg(1), data)
        .await?;
    DONE
}

fn directory(out: &mut Output, path: &std::path::Path) -> Outcome {
    out.line(path.to_string_lossy())?;
    DONE
}

pub(crate) async fn image_dir(call: &Call, out: &mut Output) -> Outcome {
    directory(out, &call.store()?.image_directory(call.arg(0)).await?)
}

pub(crate) async fn image_run_dir(call: &Call, out: &mut Output) -> Outcome {
    directory(out, &call.store()?.image_run_directory(call.arg(0)).await?)
}

pub(crate) async fn container_dir(call: &Call, out: &mut Output) -> Outcome {
    directory(out, &call.store()?.container_directory(call.arg(0)).await?)
}

pub(crate) async fn container_run_dir(call: &Call, out: &mut Output) -> Outcome {
    directory(out, &call.store()?.container_run_directory(call.arg(0)).await?)
}

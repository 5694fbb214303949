//! Whether big data items are there, can be read, and are as recorded.

use bytes::Bytes;
use tokio::io::AsyncReadExt as _;

use crate::bridge;
use crate::digest::Hasher;
use crate::error::{Error, ErrorKind, Result};
use crate::record::big_data::Items;
use crate::store::big_data::BigDataReader;
use crate::store::check::finding::{DataProblem, Problem};

/// Bytes that are read at a time.
const READ_SIZE: usize = 64 * 1024;

fn problem(key: &str, problem: DataProblem) -> Problem {
    let key = key.to_owned();
    Problem::Data { key, problem }
}

/// Why something cannot be read, if that is wrong with it.
///
/// # Errors
/// What says nothing of it: an item that a check was not able to look at is not damaged.
pub(super) fn reason(error: Error) -> Result<String> {
    match error.is_passing() {
        true => Err(error),
        false => Ok(error.chain()),
    }
}

fn failure(key: &str, error: Error) -> Result<Problem> {
    let found = match error.kind() {
        ErrorKind::NotFound => DataProblem::Missing,
        _ => DataProblem::Unreadable {
            reason: reason(error)?,
        },
    };
    Ok(problem(key, found))
}

/// Whether an item is not there.
pub(super) fn is_missing(problem: &Problem) -> bool {
    matches!(
        problem,
        Problem::Data {
            problem: DataProblem::Missing,
            ..
        }
    )
}

/// What is wrong with an item of a layer, of which the record tells neither size nor digest.
pub(super) async fn of_layer(key: &str, opened: Result<BigDataReader>) -> Result<Option<Problem>> {
    let mut reader = match opened {
        Ok(reader) => reader,
        Err(error) => return failure(key, error).map(Some),
    };
    let mut buffer = vec![0; READ_SIZE];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) => {
                let unreadable = DataProblem::Unreadable {
                    reason: error.to_string(),
                };
                reason(Error::io("reading an item", error))?;
                return Ok(Some(problem(key, unreadable)));
            }
        }
    }
}

/// What is wrong with an item of an image or container. What the record does not tell is not compared.
pub(super) async fn of_record<R: Items>(
    row: &R,
    key: &str,
    content: Result<Bytes>,
) -> Result<Option<Problem>> {
    let content = match content {
        Ok(content) => content,
        Err(error) => return failure(key, error).map(Some),
    };
    let (_, sizes, digests) = row.items();
    let found = content.len() as u64;
    if let Some(expected) = sizes.get(key).copied()
        && u64::try_from(expected) != Ok(found)
    {
        return Ok(Some(problem(key, DataProblem::Size { expected, found })));
    }
    let Some(expected) = digests.get(key).and_then(|digest| digest.valid()).cloned() else {
        return Ok(None);
    };
    if has_own_digest(key, &content) {
        return Ok(None);
    }
    let like = expected.clone();
    let hash = move || {
        let mut hasher = Hasher::like(&like);
        hasher.update(&content);
        Ok(hasher.finish())
    };
    let found = bridge::run(hash).await?;
    let is_same = found == expected;
    Ok((!is_same).then(|| problem(key, DataProblem::Digest { expected, found })))
}

/// Whether the digest of an item is not that of its bytes: that of a manifest of the first schema leaves out signatures.
fn has_own_digest(key: &str, content: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Schema {
        #[serde(rename = "schemaVersion")]
        version: i64,
    }
    let schema = || serde_json::from_slice::<Schema>(content);
    key.starts_with("manifest") && schema().is_ok_and(|schema| schema.version == 1)
}

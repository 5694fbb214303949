//! Answers of registries: short bodies, and errors in the words of the registry.

use bytes::{Bytes, BytesMut};
use reqwest::{Response, StatusCode};

use super::manifest::MAX_DOCUMENT;
use super::retry::Failure;
use crate::error::ErrorKind;

/// The failure for an answer that is no success.
pub(crate) async fn refused(response: Response, what: &str) -> Failure {
    #[derive(serde::Deserialize)]
    struct Answer {
        errors: Vec<Cause>,
    }
    #[derive(serde::Deserialize)]
    struct Cause {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let (status, headers) = (response.status(), response.headers().clone());
    let causes = match read_all(response, what).await {
        Ok(body) => serde_json::from_slice::<Answer>(&body)
            .map(|answer| answer.errors)
            .unwrap_or_default(),
        Err(_unreadable) => Vec::new(),
    };
    let causes: Vec<String> = causes
        .iter()
        .take(3)
        .map(|cause| format!(", {} ({})", printable(&cause.code), printable(&cause.message)))
        .collect();
    let what = format!("{what}: the registry answers {status}{}", causes.concat());
    let error = match status {
        StatusCode::NOT_FOUND => ErrorKind::NotFound.err(what),
        _ => ErrorKind::Registry.err(what),
    };
    Failure::of_status(error, status, &headers)
}

/// A text of the registry, fit for a message.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// A whole body of at most [`MAX_DOCUMENT`] bytes.
pub(crate) async fn read_all(mut response: Response, what: &str) -> Result<Bytes, Failure> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| Failure::of_connection(what, error))?
    {
        if (body.len() + chunk.len()) as u64 > MAX_DOCUMENT {
            let what = format!("{what}: the answer is longer than {MAX_DOCUMENT} bytes");
            return Err(ErrorKind::Registry.err(what).into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

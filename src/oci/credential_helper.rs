//! Credential helpers: the programs `docker-credential-NAME` that keep credentials, in a keyring for example.
//!
//! The protocol is that of docker-credential-helpers: the action is the argument, input and output are text or JSON, and a
//! failure is a status with a message on standard output.

use std::collections::BTreeMap;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::registry_options::Credentials;
use crate::error::{Error, ErrorKind, IoContext as _, Result};

/// The longest answer that is read.
const MAX_ANSWER: u64 = 1 << 20;

/// A helper.
///
/// # Cancellation
/// Dropping the future of any call kills the program.
#[derive(Debug)]
pub(crate) struct Helper {
    program: String,
    /// How long one call may take.
    limit: Duration,
}

impl Helper {
    pub(crate) fn new(name: &str, limit: Duration) -> Self {
        Self {
            program: format!("docker-credential-{name}"),
            limit,
        }
    }

    /// The credentials for a server, if it has some.
    pub(crate) async fn get(&self, server: &str) -> Result<Option<Credentials>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            username: Option<String>,
            secret: Option<String>,
        }
        let Some(answer) = self.call("get", server.as_bytes()).await? else {
            return Ok(None);
        };
        let answer: Answer = self.parse(&answer)?;
        let secret = answer.secret.unwrap_or_default();
        Ok(match answer.username.as_deref() {
            Some("<token>") => Some(Credentials::IdentityToken(secret)),
            None | Some("") if secret.is_empty() => None,
            username => Some(Credentials::password(username.unwrap_or_default(), secret)),
        })
    }

    /// Has it keep a name and a password for a server.
    pub(crate) async fn store(&self, server: &str, username: &str, password: &str) -> Result<()> {
        let input = json!({"ServerURL": server, "Username": username, "Secret": password});
        match self.call("store", input.to_string().as_bytes()).await? {
            Some(_) => Ok(()),
            None => Err(ErrorKind::Registry.err(format!("{} does not store credentials", self.program))),
        }
    }

    /// Has it forget what it has for a server. Returns whether it had something.
    pub(crate) async fn erase(&self, server: &str) -> Result<bool> {
        Ok(self.call("erase", server.as_bytes()).await?.is_some())
    }

    /// The servers that it has something for, with the names of the users.
    pub(crate) async fn list(&self) -> Result<BTreeMap<String, String>> {
        // Every helper reads something.
        let answer = self.call("list", b"unused").await?;
        let listed: Option<_> = answer.map_or(Ok(None), |answer| self.parse(&answer))?;
        Ok(listed.unwrap_or_default())
    }

    fn parse<T: for<'a> Deserialize<'a>>(&self, answer: &[u8]) -> Result<T> {
        // The parser's error may quote a secret.
        serde_json::from_slice(answer).map_err(|_secret| {
            ErrorKind::InvalidInput.err(format!("{} does not answer with credentials", self.program))
        })
    }

    /// Runs it for one action. `None`: it says that it has no such credentials.
    async fn call(&self, action: &str, input: &[u8]) -> Result<Option<Vec<u8>>> {
        let Self { program, limit } = self;
        // Who configures a helper names a program of the search path, not any file.
        if program.contains('/') {
            return Err(ErrorKind::InvalidInput.err(format!("{program:?} is no name of a credential helper")));
        }
        let called = tokio::time::timeout(*limit, run(program, action, input)).await;
        let called = called
            .unwrap_or_else(|_elapsed| Err(ErrorKind::Registry.err(format!("no answer within {limit:?}"))));
        let (status, answer) = called.map_err(|error| error.context(format!("{program} {action}")))?;
        if status.success() {
            return Ok(Some(answer));
        }
        // So every helper says that it has none; its other messages may hold secrets.
        match String::from_utf8_lossy(&answer).trim() {
            "credentials not found in native keychain" => Ok(None),
            _ => Err(ErrorKind::Registry.err(format!("{program} {action}: {status}"))),
        }
    }
}

async fn run(program: &str, action: &str, input: &[u8]) -> Result<(ExitStatus, Vec<u8>)> {
    let mut child = tokio::process::Command::new(program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .at("starting", program)?;
    if let Some(mut stdin) = child.stdin.take()
        && let Err(error) = stdin.write_all(input).await
        // A helper that does not read its input may answer all the same.
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        return Err(Error::io("writing to the helper", error));
    }
    let mut answer = Vec::new();
    if let Some(output) = child.stdout.take() {
        let mut output = output.take(MAX_ANSWER);
        output
            .read_to_end(&mut answer)
            .await
            .map_err(|error| Error::io("reading from the helper", error))?;
    }
    let status = child
        .wait()
        .await
        .map_err(|error| Error::io("waiting for the helper", error))?;
    Ok((status, answer))
}

//! Directories with the certificates for one registry, as Podman and Docker have them in `certs.d`.

use std::io;
use std::path::{Path, PathBuf};

use super::files;
use super::registry_options::{ClientIdentity, RegistryOptions, TlsOptions, Transport};
use crate::config::{self, Environment};
use crate::error::{ErrorKind, IoContext as _, Result};

/// Larger files hold no certificate.
const MAX_SIZE: u64 = 1 << 20;

/// The directories in which each registry may have one, the most important first.
pub(crate) fn directories(environment: &Environment) -> Result<Vec<PathBuf>> {
    let uid = environment.uid();
    let user = config::user_dir(environment)?;
    let mut all: Vec<PathBuf> = user.into_iter().map(|dir| dir.join("certs.d")).collect();
    for system in ["etc/containers", "usr/share/containers"] {
        let system = environment.system(system);
        match uid {
            0 => all.push(system.join("certs.rootful.d")),
            uid => {
                let rootless = system.join("certs.rootless.d");
                all.extend([rootless.join(uid.to_string()), rootless]);
            }
        }
        all.push(system.join("certs.d"));
    }
    all.push(environment.system("etc/docker/certs.d"));
    Ok(all)
}

/// How connections to a registry (`HOST[:PORT]`) are encrypted, with the certificates that its directory has. Registries that
/// are not said to be insecure, and for which there are certificates, speak TLS, also on this machine. Blocking.
pub(crate) fn tls_of(
    options: &RegistryOptions,
    registry: &str,
    insecure: Option<bool>,
) -> Result<TlsOptions> {
    let tls = options.tls_of(registry, insecure);
    if options.tls_by_registry.contains_key(registry) {
        return Ok(tls);
    }
    let (transport, before) = (tls.transport, tls.root_certificates.len());
    let has_identity = tls.identity.is_some();
    let tls = add(tls, options, registry)?;
    let are_there = options.certificate_directory.is_some()
        || tls.root_certificates.len() > before
        || tls.identity.is_some() != has_identity;
    let undecided = options.tls_verify.is_none() && insecure.is_none() && transport == Transport::Plain;
    match undecided && are_there {
        true => Ok(tls.transport(Transport::Tls)),
        false => Ok(tls),
    }
}

/// Adds what the directory for a registry has to `tls`.
fn add(tls: TlsOptions, options: &RegistryOptions, registry: &str) -> Result<TlsOptions> {
    if let Some(dir) = &options.certificate_directory {
        let entries = std::fs::read_dir(dir).at("listing certificates", dir)?;
        return add_all(tls, dir, entries);
    }
    // The name becomes part of a path.
    if registry.contains('/') || matches!(registry, "" | "." | "..") {
        return Ok(tls);
    }
    for base in &options.certificate_directories {
        let dir = base.join(registry);
        match std::fs::read_dir(&dir) {
            Ok(entries) => return add_all(tls, &dir, entries),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                tracing::debug!(dir = %dir.display(), "a directory of certificates may not be read");
            }
            Err(error) => return Err(error).at("listing certificates", &dir),
        }
    }
    Ok(tls)
}

fn add_all(mut tls: TlsOptions, dir: &Path, entries: std::fs::ReadDir) -> Result<TlsOptions> {
    let mut names = Vec::new();
    for entry in entries {
        // Others are none of these files.
        names.extend(entry.at("listing certificates", dir)?.file_name().into_string());
    }
    names.sort();
    let has = |name: &str| names.iter().any(|other| other == name);
    let lacks = |what: String| Err(ErrorKind::InvalidInput.err(what).at(dir));
    for name in &names {
        if name.ends_with(".crt") {
            tls = tls.root_certificate(read(&dir.join(name))?);
        }
        if let Some(base) = name.strip_suffix(".cert") {
            let key = format!("{base}.key");
            if !has(&key) {
                return lacks(format!(
                    "missing key {key} for client certificate {name}. Note that CA certificates should use the extension \
                     .crt"
                ));
            }
            // Of several the first one is shown.
            if tls.identity.is_none() {
                let identity = ClientIdentity::from_pem(read(&dir.join(name))?, read(&dir.join(key))?);
                tls = tls.identity(Some(identity));
            }
        }
        if let Some(base) = name.strip_suffix(".key") {
            let certificate = format!("{base}.cert");
            if !has(&certificate) {
                return lacks(format!("missing client certificate {certificate} for key {name}"));
            }
        }
    }
    Ok(tls)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    files::read_small_now(path, MAX_SIZE)
}

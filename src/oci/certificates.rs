//! Directories with the certificates for one registry, as Podman and Docker have them in `certs.d`.

use std::io;
use std::path::{Path, PathBuf};

use super::files;
use super::registry_options::{ClientIdentity, RegistryOptions, TlsOptions};
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

/// How connections to a registry (`HOST[:PORT]`) are encrypted, with the certificates that its directory has. Blocking.
pub(crate) fn tls_of(
    options: &RegistryOptions,
    registry: &str,
    insecure: Option<bool>,
) -> Result<TlsOptions> {
    if let Some(own) = options.tls_by_registry.get(registry) {
        return Ok(own.clone());
    }
    let mut tls = options.tls.clone();
    let found = add(&mut tls, options, registry)?;
    Ok(tls.transport(options.transport_of(registry, insecure, found)))
}

/// Adds what the directory for a registry has to `tls`. Whether there is something.
fn add(tls: &mut TlsOptions, options: &RegistryOptions, registry: &str) -> Result<bool> {
    if let Some(dir) = &options.certificate_directory {
        let entries = std::fs::read_dir(dir).at("listing certificates", dir)?;
        return add_all(tls, dir, entries).map(|_found| true);
    }
    // The name becomes part of a path.
    if registry.contains('/') || matches!(registry, "" | "." | "..") {
        return Ok(false);
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
    Ok(false)
}

fn add_all(tls: &mut TlsOptions, dir: &Path, entries: std::fs::ReadDir) -> Result<bool> {
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
            tls.root_certificates.push(read(&dir.join(name))?.into());
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
                tls.identity = Some(identity);
            }
        }
        if let Some(base) = name.strip_suffix(".key") {
            let certificate = format!("{base}.cert");
            if !has(&certificate) {
                return lacks(format!("missing client certificate {certificate} for key {name}"));
            }
        }
    }
    let is_certificate = |name: &String| name.ends_with(".crt") || name.ends_with(".cert");
    Ok(names.iter().any(is_certificate))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    files::read_small_now(path, MAX_SIZE)
}

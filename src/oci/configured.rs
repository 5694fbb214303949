//! Registries as they are configured on this machine.

use super::certificates;
use super::registries_conf::RegistriesConf;
use super::registry_options::RegistryOptions;
#[cfg(feature = "signatures")]
use super::signatures::storage::SignatureStorage;
use crate::bridge;
use crate::config::Loader;
use crate::error::Result;

impl RegistryOptions {
    /// As the newest Podman reaches registries for this user on this machine: with
    /// [`registries.conf`](RegistriesConf::load), and the certificates in `certs.d` beside it and in `/etc/docker`; with the
    /// feature `signatures` also the signatures where `registries.d` says. What
    /// goes beyond that (credentials in files, proxies by `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`) is the default anyway.
    ///
    /// # Errors
    /// As [`RegistriesConf::load`], of all these files.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn default_for_user() -> Result<Self> {
        let loader = Loader::for_process();
        let certificate_directories = {
            let environment = loader.environment.clone();
            bridge::run(move || certificates::directories(&environment)).await?
        };
        Ok(Self {
            #[cfg(feature = "signatures")]
            signature_storage: SignatureStorage::load_with(loader.clone()).await?,
            registries_conf: RegistriesConf::load_with(loader).await?,
            certificate_directories,
            ..Self::default()
        })
    }
}

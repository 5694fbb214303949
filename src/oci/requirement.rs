//! What `policy.json` asks of an image, as containers-policy.json(5) says. Pure.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::Value;

use super::signed_identity::SignedIdentity;
use super::unique_json::{Fields, Refusal, UniqueJson};

/// What is asked of an image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Requirement {
    Nothing,
    Reject,
    /// A signature with one of these OpenPGP keys.
    SignedBy {
        /// `None`: of a type that no program verifies.
        keys: Option<Keys>,
        identity: SignedIdentity,
    },
    /// A signature that sigstore's programs have made.
    SigstoreSigned {
        by: Signer,
        /// Keys of the log in which it has to be.
        log: Option<Keys>,
        identity: SignedIdentity,
    },
    /// Which no program verifies.
    SignedBaseLayer,
}

/// Whose signature is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Signer {
    /// That of one of these keys.
    Keys(Keys),
    /// That of a key of which a certificate of Fulcio says whose it is.
    Fulcio {
        /// Certificates of authorities.
        authorities: Keys,
        issuer: String,
        email: String,
    },
    /// That of a key of which a certificate of an authority of one's own says whose it is.
    Pki {
        roots: Keys,
        intermediates: Option<Keys>,
        /// At least one of these is given; what is given has to be in the certificate.
        email: Option<String>,
        hostname: Option<String>,
    },
}

/// Public keys, or certificates.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    Files(Vec<PathBuf>),
    Data(Vec<Vec<u8>>),
}

impl<'de> Deserialize<'de> for Requirement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let UniqueJson(value) = UniqueJson::deserialize(deserializer)?;
        Self::parse(value).map_err(D::Error::custom)
    }
}

impl Requirement {
    /// What it is called in a policy.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Nothing => "insecureAcceptAnything",
            Self::Reject => "reject",
            Self::SignedBy { .. } => "signedBy",
            Self::SigstoreSigned { .. } => "sigstoreSigned",
            Self::SignedBaseLayer => "signedBaseLayer",
        }
    }

    fn parse(value: Value) -> Result<Self, Refusal> {
        let mut fields = Fields::of(value)?;
        let kind = fields.take("type").unwrap_or_default();
        let kind = kind.as_str().unwrap_or_default();
        // A misspelled key is named before the one that is missing instead.
        fields.only(match kind {
            "insecureAcceptAnything" | "reject" => &[],
            "signedBy" => &["keyType", "keyPath", "keyPaths", "keyData", "signedIdentity"],
            "sigstoreSigned" => SIGSTORE_SIGNED,
            "signedBaseLayer" => &["baseLayerIdentity"],
            other => return Err(format!("Unknown policy requirement type {other:?}")),
        })?;
        match kind {
            "reject" => Ok(Self::Reject),
            "signedBy" => signed_by(&mut fields),
            "sigstoreSigned" => sigstore_signed(&mut fields),
            "signedBaseLayer" => {
                SignedIdentity::parse(fields.need("baseLayerIdentity")?)?;
                Ok(Self::SignedBaseLayer)
            }
            _ => Ok(Self::Nothing),
        }
    }
}

fn identity(fields: &mut Fields) -> Result<SignedIdentity, Refusal> {
    let given = fields.take("signedIdentity");
    given.map_or(Ok(SignedIdentity::RepoDigestOrExact), SignedIdentity::parse)
}

fn text(value: &Value, name: &str) -> Result<String, Refusal> {
    let text = value.as_str().filter(|text| !text.is_empty());
    let text = text.ok_or_else(|| format!("{name:?} is no text"))?;
    Ok(text.to_owned())
}

fn data(value: &Value, name: &str) -> Result<Vec<u8>, Refusal> {
    let decoded = STANDARD.decode(text(value, name)?);
    decoded.map_err(|_reason| format!("{name:?} is not in base64"))
}

fn list<T>(
    value: &Value,
    name: &str,
    each: impl Fn(&Value, &str) -> Result<T, Refusal>,
) -> Result<Vec<T>, Refusal> {
    let all = value.as_array().filter(|all| !all.is_empty());
    let all = all.ok_or_else(|| format!("{name:?} contains no entries"))?;
    all.iter().map(|value| each(value, name)).collect()
}

/// The keys of `sigstoreSigned`.
const SIGSTORE_SIGNED: &[&str] = &[
    "keyPath",
    "keyPaths",
    "keyData",
    "keyDatas",
    "fulcio",
    "pki",
    "rekorPublicKeyPath",
    "rekorPublicKeyPaths",
    "rekorPublicKeyData",
    "rekorPublicKeyDatas",
    "signedIdentity",
];

/// How keys are given: what follows the prefix of the field's name.
const ONE: &[&str] = &["Path", "Data"];
const OPENPGP: &[&str] = &["Path", "Paths", "Data"];
const ANY: &[&str] = &["Path", "Paths", "Data", "Datas"];

/// The fields of the keys that are there.
fn keys(fields: &mut Fields, prefix: &str, suffixes: &[&str]) -> Result<Vec<Keys>, Refusal> {
    let mut found = Vec::new();
    for suffix in suffixes {
        let name = &format!("{prefix}{suffix}");
        let Some(value) = fields.take(name) else {
            continue;
        };
        found.push(match *suffix {
            "Path" => Keys::Files(vec![text(&value, name)?.into()]),
            "Paths" => {
                let files = list(&value, name, text)?;
                Keys::Files(files.into_iter().map(PathBuf::from).collect())
            }
            "Data" => Keys::Data(vec![data(&value, name)?]),
            _ => Keys::Data(list(&value, name, data)?),
        });
    }
    Ok(found)
}

fn signed_by(fields: &mut Fields) -> Result<Requirement, Refusal> {
    let kind = fields.take("keyType").unwrap_or_default();
    let is_gpg = match kind.as_str().unwrap_or_default() {
        "GPGKeys" => true,
        "signedByGPGKeys" | "X509Certificates" | "signedByX509CAs" => false,
        other => return Err(format!("invalid keyType {other:?}")),
    };
    let mut found = keys(fields, "key", OPENPGP)?;
    let (Some(keys), true) = (found.pop(), found.is_empty()) else {
        return Err("Exactly one of keyPath, keyPaths and keyData must be specified".to_owned());
    };
    Ok(Requirement::SignedBy {
        keys: is_gpg.then_some(keys),
        identity: identity(fields)?,
    })
}

fn sigstore_signed(fields: &mut Fields) -> Result<Requirement, Refusal> {
    let mut found: Vec<Signer> = keys(fields, "key", ANY)?.into_iter().map(Signer::Keys).collect();
    found.extend(fields.take("fulcio").map(fulcio).transpose()?);
    found.extend(fields.take("pki").map(pki).transpose()?);
    let (Some(by), true) = (found.pop(), found.is_empty()) else {
        let what = "exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio, and pki must be specified";
        return Err(what.to_owned());
    };
    let mut log = keys(fields, "rekorPublicKey", ANY)?;
    if log.len() > 1 {
        return Err("at most one source of keys of Rekor can be specified".to_owned());
    }
    let log = log.pop();
    match (&by, &log) {
        (Signer::Fulcio { .. }, None) => {
            return Err("a key of Rekor must be specified if fulcio is used".to_owned());
        }
        (Signer::Pki { .. }, Some(_)) => return Err("keys of Rekor are not supported for pki".to_owned()),
        _ => {}
    }
    Ok(Requirement::SigstoreSigned {
        by,
        log,
        identity: identity(fields)?,
    })
}

/// What says which certificates of Fulcio are good.
fn fulcio(value: Value) -> Result<Signer, Refusal> {
    let mut fields = Fields::of(value)?;
    fields.only(&["caPath", "caData", "oidcIssuer", "subjectEmail"])?;
    let mut found = keys(&mut fields, "ca", ONE)?;
    let (Some(authorities), true) = (found.pop(), found.is_empty()) else {
        return Err("exactly one of caPath and caData must be specified".to_owned());
    };
    let [issuer, email] = ["oidcIssuer", "subjectEmail"].map(|name| {
        let value = fields.need(name)?;
        text(&value, name)
    });
    let (issuer, email) = (issuer?, email?);
    Ok(Signer::Fulcio {
        authorities,
        issuer,
        email,
    })
}

/// What says which certificates of a PKI are good.
fn pki(value: Value) -> Result<Signer, Refusal> {
    let mut fields = Fields::of(value)?;
    fields.only(&[
        "caRootsPath",
        "caRootsData",
        "caIntermediatesPath",
        "caIntermediatesData",
        "subjectEmail",
        "subjectHostname",
    ])?;
    let mut roots = keys(&mut fields, "caRoots", ONE)?;
    let (Some(roots), true) = (roots.pop(), roots.is_empty()) else {
        return Err("exactly one of caRootsPath and caRootsData must be specified".to_owned());
    };
    let mut intermediates = keys(&mut fields, "caIntermediates", ONE)?;
    if intermediates.len() > 1 {
        return Err("caIntermediatesPath and caIntermediatesData cannot be used simultaneously".to_owned());
    }
    let [email, hostname] = ["subjectEmail", "subjectHostname"].map(|name| {
        let value = fields.take(name);
        value.map(|value| text(&value, name)).transpose()
    });
    let (email, hostname) = (email?, hostname?);
    if email.is_none() && hostname.is_none() {
        return Err("at least one of subjectEmail and subjectHostname must be specified".to_owned());
    }
    Ok(Signer::Pki {
        roots,
        intermediates: intermediates.pop(),
        email,
        hostname,
    })
}

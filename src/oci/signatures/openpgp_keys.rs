//! OpenPGP keys of policies, and which of them are good for what: with the rules of GnuPG. A key that is revoked or expired now
//! signs nothing, whenever the signature was made. What several files say of one key counts together.

use std::io::Read as _;

use pgp::armor::Dearmor;
use pgp::composed::{PublicOrSecret, SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{KeyFlags, Packet, PacketParser, PublicKey, Signature, SignatureType, SubpacketData};
use pgp::types::{Duration, Fingerprint, KeyDetails, Tag, Timestamp};

use crate::oci::unique_json::Refusal;

/// How far clocks may differ, in seconds.
pub(super) const CLOCK_SKEW: u32 = 300;

/// The line before an armored key or revocation.
const ARMOR: &[u8] = b"-----BEGIN PGP PUBLIC KEY BLOCK-----";
/// The line behind it.
const ARMOR_END: &[u8] = b"-----END PGP PUBLIC KEY BLOCK-----";

/// All keys of a requirement, each once.
#[derive(Debug)]
pub(super) struct Keyring(Vec<Key>);

/// A key with all that is said of it.
#[derive(Debug)]
pub(super) struct Key(SignedPublicKey);

impl Keyring {
    /// The keys in files: not armored, or in one or several armored blocks. Revocations may stand beside the keys.
    pub(super) fn parse(files: &[Vec<u8>]) -> Result<Self, Refusal> {
        let refuse = |why: &dyn std::fmt::Display| format!("reading public keys: {why}");
        let mut keyring = Self(Vec::new());
        let mut signatures = Vec::new();
        for file in files {
            for packets in packets(file).map_err(|error| refuse(&error))? {
                let keys = PublicOrSecret::from_bytes_many(&*packets)
                    .and_then(|keys| keys.collect::<Result<Vec<_>, _>>());
                for key in keys.map_err(|error| refuse(&error))? {
                    if let PublicOrSecret::Public(key) = key {
                        keyring.add(key);
                    }
                }
                signatures.extend(PacketParser::new(&*packets).filter_map(|packet| match packet {
                    Ok(Packet::Signature(signature)) => Some(signature),
                    _ => None,
                }));
            }
        }
        // Also those that stand elsewhere than behind what they are about.
        for signature in &signatures {
            for key in &mut keyring.0 {
                key.add(signature);
            }
        }
        Ok(keyring)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Key> {
        self.0.iter()
    }

    /// Adds a key, or what a copy says of one that is known.
    fn add(&mut self, new: SignedPublicKey) {
        let fingerprint = new.primary_key.fingerprint();
        let mut known = self.0.iter_mut();
        match known.find(|known| known.fingerprint() == fingerprint) {
            Some(known) => known.merge(new),
            None => self.0.push(Key(new)),
        }
    }
}

/// The packets in a file: one piece, or one for each armored block.
fn packets(file: &[u8]) -> std::io::Result<Vec<Vec<u8>>> {
    let begins_line = |at: usize| {
        at.checked_sub(1)
            .is_none_or(|before| file.get(before) == Some(&b'\n'))
    };
    let starts: Vec<usize> = file
        .windows(ARMOR.len())
        .enumerate()
        .filter_map(|(at, window)| (window == ARMOR && begins_line(at)).then_some(at))
        .collect();
    if starts.is_empty() {
        return Ok(vec![file.to_vec()]);
    }
    let ends = starts.iter().skip(1).copied().chain([file.len()]);
    let blocks = starts.iter().zip(ends).map(|(start, end)| {
        let block = file.get(*start..end).unwrap_or_default();
        let mut lines = block.windows(ARMOR_END.len());
        let block = match lines.position(|window| window == ARMOR_END) {
            Some(at) => block.get(..at + ARMOR_END.len()).unwrap_or_default(),
            None => block,
        };
        let mut packets = Vec::new();
        Dearmor::new(block).read_to_end(&mut packets)?;
        Ok(packets)
    });
    blocks.collect()
}

impl Key {
    pub(super) fn primary(&self) -> &PublicKey {
        &self.0.primary_key
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        self.0.primary_key.fingerprint()
    }

    pub(super) fn subkeys(&self) -> &[SignedPublicSubKey] {
        &self.0.public_subkeys
    }

    /// Adds what another copy says.
    fn merge(&mut self, other: SignedPublicKey) {
        let Self(known) = self;
        let (own, more) = (&mut known.details, other.details);
        own.revocation_signatures.extend(more.revocation_signatures);
        own.direct_signatures.extend(more.direct_signatures);
        for user in more.users {
            match own.users.iter_mut().find(|own| own.id.id() == user.id.id()) {
                Some(own) => own.signatures.extend(user.signatures),
                None => own.users.push(user),
            }
        }
        for subkey in other.public_subkeys {
            let fingerprint = subkey.key.fingerprint();
            let mut subkeys = known.public_subkeys.iter_mut();
            match subkeys.find(|own| own.key.fingerprint() == fingerprint) {
                Some(own) => own.signatures.extend(subkey.signatures),
                None => known.public_subkeys.push(subkey),
            }
        }
    }

    /// Adds a signature that is about the key or one of its subkeys, if it is.
    fn add(&mut self, signature: &Signature) {
        let Self(key) = self;
        let is_of_key = || signature.verify_key(&key.primary_key).is_ok();
        match signature.typ() {
            Some(SignatureType::KeyRevocation) if is_of_key() => {
                key.details.revocation_signatures.push(signature.clone());
            }
            Some(SignatureType::Key) if is_of_key() => {
                key.details.direct_signatures.push(signature.clone());
            }
            Some(SignatureType::SubkeyRevocation) => {
                for subkey in &mut key.public_subkeys {
                    let revoked = signature.verify_subkey_binding(&key.primary_key, &subkey.key);
                    if revoked.is_ok() {
                        subkey.signatures.push(signature.clone());
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether the primary key is good for signatures now.
    pub(super) fn check(&self, now: Timestamp) -> Result<(), Refusal> {
        let flags = self.check_primary(now)?;
        // Keys of old programs do not say what they are for: everything.
        may_sign(flags.as_ref().is_none_or(KeyFlags::sign))
    }

    /// Whether the primary key is good now, and what for, if it says that.
    fn check_primary(&self, now: Timestamp) -> Result<Option<KeyFlags>, Refusal> {
        let Self(SignedPublicKey {
            primary_key: primary,
            details,
            ..
        }) = self;
        // Whoever configured the key has put it there: it need not be verified to count.
        if !details.revocation_signatures.is_empty() {
            return Err("the key is revoked".to_owned());
        }
        let born = primary.created_at();
        let direct = details.direct_signatures.iter();
        let direct =
            direct.filter(|one| one.typ() == Some(SignatureType::Key) && one.verify_key(primary).is_ok());
        let direct = direct.filter(|one| is_named(one, primary));
        let direct = newest(direct, born, now);
        let of_users = details.users.iter().filter_map(|user| {
            let own = user.signatures.iter();
            let own = own.filter(|one| one.verify_certification(primary, Tag::UserId, &user.id).is_ok());
            let own = own.filter(|one| is_named(one, primary));
            let latest = newest(own, born, now)?;
            // Revoked otherwise.
            latest.is_certification().then_some(latest)
        });
        let of_users: Vec<&Signature> = of_users.collect();
        // GnuPG takes no key without a user.
        if of_users.is_empty() {
            return Err("the key has no valid signature of its own for a user".to_owned());
        }
        if born.as_secs() > now.as_secs().saturating_add(CLOCK_SKEW) {
            return Err("the key is from the future".to_owned());
        }
        let lasts = first_said(direct, &of_users, |one| {
            one.key_expiration_time().filter(|lasts| lasts.as_secs() != 0)
        });
        match is_past(born, lasts, now) {
            true => Err("the key has expired".to_owned()),
            false => Ok(first_said(direct, &of_users, flags_of)),
        }
    }

    /// Whether a subkey is good for signatures now.
    pub(super) fn check_subkey(&self, subkey: &SignedPublicSubKey, now: Timestamp) -> Result<(), Refusal> {
        self.check_primary(now)?;
        let primary = self.primary();
        let is = |one: &Signature, kind: SignatureType| one.typ() == Some(kind);
        if subkey
            .signatures
            .iter()
            .any(|one| is(one, SignatureType::SubkeyRevocation))
        {
            return Err("the subkey is revoked".to_owned());
        }
        let bindings = subkey.signatures.iter().filter(|one| {
            is(one, SignatureType::SubkeyBinding)
                && is_named(one, primary)
                && one.verify_subkey_binding(primary, &subkey.key).is_ok()
        });
        let binding = newest(bindings, subkey.key.created_at(), now)
            .ok_or_else(|| "the subkey does not belong to the key".to_owned())?;
        may_sign(flags_of(binding).is_some_and(|flags| flags.sign()))?;
        let back = binding.embedded_signature();
        let is_mutual = back.is_some_and(|back| {
            is_sound(back) && back.verify_primary_key_binding(&subkey.key, primary).is_ok()
        });
        if !is_mutual {
            return Err("the subkey has not signed the key".to_owned());
        }
        match is_past(subkey.key.created_at(), binding.key_expiration_time(), now) {
            true => Err("the subkey has expired".to_owned()),
            false => Ok(()),
        }
    }
}

fn may_sign(may: bool) -> Result<(), Refusal> {
    match may {
        true => Ok(()),
        false => Err("it is not for signatures".to_owned()),
    }
}

/// Whether a time is over that begins at `from`; none and zero last for ever.
pub(super) fn is_past(from: Timestamp, lasts: Option<Duration>, now: Timestamp) -> bool {
    let lasts = lasts.map_or(0, Duration::as_secs);
    lasts != 0 && from.as_secs().saturating_add(lasts) <= now.as_secs()
}

/// Whether a signature has a part that has to be understood and is not, wherever it stands.
pub(super) fn has_unknown_critical(signature: &Signature) -> bool {
    let config = signature.config().into_iter();
    let mut parts = config.flat_map(|config| config.hashed_subpackets().chain(config.unhashed_subpackets()));
    parts.any(|part| {
        let is_unknown = matches!(
            part.data,
            SubpacketData::Other(..)
                | SubpacketData::Experimental(..)
                | SubpacketData::Notation(_)
                | SubpacketData::SignatureTarget(..)
                | SubpacketData::IntendedRecipientFingerprint(_)
                | SubpacketData::SignersUserID(_)
        );
        part.is_critical && is_unknown
    })
}

/// Whether a signature says that it was made by this key, and names no other one. GnuPG verifies it with the key that is named:
/// by its fingerprint where the signature covers that, else by its ID.
pub(super) fn is_named(signature: &Signature, key: &impl KeyDetails) -> bool {
    let covered = signature.config().into_iter();
    let fingerprints = covered
        .flat_map(|config| config.hashed_subpackets())
        .filter_map(|part| match &part.data {
            SubpacketData::IssuerFingerprint(fingerprint) => Some(*fingerprint == key.fingerprint()),
            _ => None,
        });
    let ids = signature.issuer_key_id().into_iter();
    let mut named = ids
        .map(|id| *id == key.legacy_key_id())
        .chain(fingerprints)
        .peekable();
    named.peek().is_some() && named.all(|is_it| is_it)
}

/// Whether a signature of a key counts.
fn is_sound(signature: &Signature) -> bool {
    signature.hash_alg() != Some(HashAlgorithm::Md5) && !has_unknown_critical(signature)
}

/// What a signature says its key is for.
fn flags_of(signature: &Signature) -> Option<KeyFlags> {
    let config = signature.config()?;
    config.hashed_subpackets().find_map(|part| match &part.data {
        SubpacketData::KeyFlags(flags) => Some(flags.clone()),
        _ => None,
    })
}

/// What is said by the key's signature of itself, or else by the newest of a user that says it.
fn first_said<T>(
    direct: Option<&Signature>,
    of_users: &[&Signature],
    part: impl Fn(&Signature) -> Option<T>,
) -> Option<T> {
    direct.and_then(&part).or_else(|| {
        let saying = of_users.iter().filter(|one| part(one).is_some());
        // Of several that are as new the first.
        let newest = saying
            .rev()
            .max_by_key(|one| one.created().map_or(0, Timestamp::as_secs));
        newest.and_then(|one| part(one))
    })
}

/// The newest of some signatures of a key, made at `born`, that are in force.
fn newest<'a>(
    signatures: impl Iterator<Item = &'a Signature>,
    born: Timestamp,
    now: Timestamp,
) -> Option<&'a Signature> {
    let latest = now.as_secs().saturating_add(CLOCK_SKEW);
    signatures
        .filter(|one| is_sound(one))
        .filter(|one| {
            one.created()
                .is_some_and(|created| born <= created && created.as_secs() <= latest)
        })
        .filter(|one| {
            let created = one.created().unwrap_or(now);
            !is_past(created, one.signature_expiration_time(), now)
        })
        .max_by_key(|one| one.created().map_or(0, Timestamp::as_secs))
}

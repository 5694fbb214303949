//! OpenPGP signatures that no program makes, and keys with such signatures: what Skopeo makes of the same ones.

use std::io::Write as _;
use std::path::PathBuf;

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::json;

use crate::signed::{Signed, with_default};
use crate::support::needs;

const SIGNATURE: u8 = 2;
const ONE_PASS: u8 = 4;
const PUBLIC_KEY: u8 = 6;
const COMPRESSED: u8 = 8;
const LITERAL: u8 = 11;
const USER: u8 = 13;
const SUBKEY: u8 = 14;

const OF_DATA: u8 = 0;
const OF_USER: u8 = 0x13;
const OF_SUBKEY: u8 = 0x18;
const OF_PRIMARY: u8 = 0x19;

/// When the keys were made, and their signatures, in seconds since 1970.
const BORN: u32 = 1_600_000_000;

fn packet(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[0xc0 | tag, 0xff][..], &length, body].concat()
}

fn subpacket(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u8::try_from(body.len() + 1).unwrap();
    assert!(length < 192);
    [&[length, kind][..], body].concat()
}

fn created() -> Vec<u8> {
    subpacket(2, &BORN.to_be_bytes())
}

/// A number as OpenPGP writes it.
fn number(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let bytes = &bytes[zeros..];
    let bits = bytes.len() * 8 - bytes.first().map_or(0, |byte| byte.leading_zeros() as usize);
    [&u16::try_from(bits).unwrap().to_be_bytes()[..], bytes].concat()
}

fn literal(content: &[u8]) -> Vec<u8> {
    packet(LITERAL, &[b"b\0\0\0\0\0", content].concat())
}

fn compressed(message: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(vec![1], flate2::Compression::default());
    encoder.write_all(message).unwrap();
    packet(COMPRESSED, &encoder.finish().unwrap())
}

struct Key {
    pair: Ed25519KeyPair,
    body: Vec<u8>,
    fingerprint: Vec<u8>,
}

impl Key {
    fn new(seed: u8) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let curve = [0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];
        let public = number(&[&[0x40], pair.public_key().as_ref()].concat());
        let body = [&[4][..], &BORN.to_be_bytes(), &[22, 9], &curve, &public].concat();
        let mut key = Self {
            pair,
            body,
            fingerprint: Vec::new(),
        };
        key.fingerprint = digest(&SHA1_FOR_LEGACY_USE_ONLY, &key.hashed()).as_ref().to_vec();
        key
    }

    fn hashed(&self) -> Vec<u8> {
        let length = u16::try_from(self.body.len()).unwrap().to_be_bytes();
        [&[0x99][..], &length, &self.body].concat()
    }

    fn id(&self) -> &[u8] {
        &self.fingerprint[12..]
    }

    /// The subpacket that names the key by its ID.
    fn by_id(&self) -> Vec<u8> {
        subpacket(16, self.id())
    }

    /// The one that names it by its fingerprint.
    fn by_fingerprint(&self) -> Vec<u8> {
        subpacket(33, &[&[4], &*self.fingerprint].concat())
    }

    fn sign(&self, kind: u8, data: &[u8], covered: &[u8], other: &[u8]) -> Vec<u8> {
        let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
        let head = [&[4, kind, 22, 8][..], &length(covered), covered].concat();
        let end = [&[4, 0xff, 0, 0][..], &length(&head)].concat();
        let hash = digest(&SHA256, &[data, &head, &end].concat());
        let signature = self.pair.sign(hash.as_ref());
        let (r, s) = signature.as_ref().split_at(32);
        let body = [
            &*head,
            &length(other),
            other,
            &hash.as_ref()[..2],
            &number(r),
            &number(s),
        ];
        packet(SIGNATURE, &body.concat())
    }

    /// The key with a user, whom it has signed.
    fn public(&self, named: &[u8]) -> Vec<u8> {
        let user = b"x <x@example>";
        let data = [&*self.hashed(), &[0xb4, 0, 0, 0, 13], user].concat();
        let signature = self.sign(OF_USER, &data, &created(), named);
        [packet(PUBLIC_KEY, &self.body), packet(USER, user), signature].concat()
    }

    /// That a key is its subkey, for signatures.
    fn owning(&self, subkey: &Self) -> Vec<u8> {
        let data = [self.hashed(), subkey.hashed()].concat();
        let mutual = subkey.sign(OF_PRIMARY, &data, &created(), &subkey.by_id());
        // Without the tag and the length of the length.
        let length = u32::try_from(mutual.len() - 6 + 1).unwrap().to_be_bytes();
        let embedded = [&[0xff][..], &length, &[32], &mutual[6..]].concat();
        let covered = [created(), subpacket(27, &[2]), embedded].concat();
        let binding = self.sign(OF_SUBKEY, &data, &covered, &self.by_id());
        [packet(SUBKEY, &subkey.body), binding].concat()
    }

    fn message(&self, content: &[u8], covered: &[u8], other: &[u8]) -> Vec<u8> {
        let covered = [&*created(), covered].concat();
        let one_pass = [&[3, OF_DATA, 8, 22], self.id(), &[1]].concat();
        let signature = self.sign(OF_DATA, content, &covered, other);
        [packet(ONE_PASS, &one_pass), literal(content), signature].concat()
    }
}

fn payload(digest: &str, name: &str) -> Vec<u8> {
    let payload = json!({
        "critical": {
            "type": "atomic container signature",
            "image": {"docker-manifest-digest": digest},
            "identity": {"docker-reference": name},
        },
        "optional": {},
    });
    payload.to_string().into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_signatures_are_judged_as_by_skopeo() {
    needs!("gpg", "docker-registry");
    let Some(signed) = Signed::start_beside_newest() else {
        return;
    };
    let (a, b) = (Key::new(1), Key::new(2));
    let file = |name: &str, content: Vec<u8>| -> PathBuf {
        let file = signed.root.path().join(name);
        std::fs::write(&file, content).unwrap();
        file
    };
    let of_a = file("a", a.public(&a.by_id()));
    let of_b = file("b", b.public(&b.by_id()));
    let unnamed = file("unnamed", a.public(&[]));
    let manifest = signed.fetched("unsigned");
    let content = payload(&signed.manifest, &signed.name("app"));
    let by = |covered: &[u8], other: &[u8]| a.message(&content, covered, other);
    let both = [a.by_fingerprint(), a.by_id()];
    let good = by(&both[0], &both[1]);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let long = |name: &str, algorithm: &'static ring::digest::Algorithm| {
        let digest = format!("{name}:{}", hex(digest(algorithm, &manifest).as_ref()));
        a.message(&payload(&digest, &signed.name("app")), &both[0], &both[1])
    };
    let with_unnamed = [&unnamed];
    let shared = Key::new(3);
    let owner = |name: &str, key: &Key| file(name, [key.public(&key.by_id()), key.owning(&shared)].concat());
    let (first, second) = (owner("first", &a), owner("second", &b));
    let with_first = [&first];
    let with_owners = [&first, &second];
    let by_shared = shared.message(&content, &[], &shared.by_id());
    let with_a = [&of_a];
    let with_both = [&of_a, &of_b];
    let cases: Vec<(&str, Vec<u8>, &[&PathBuf], bool)> = vec![
        ("as GnuPG makes it", good.clone(), &with_a, true),
        ("named by fingerprint", by(&both[0], &[]), &with_a, true),
        ("named by ID", by(&[], &both[1]), &with_a, true),
        ("named by an ID that is covered", by(&both[1], &[]), &with_a, true),
        ("not named", by(&[], &[]), &with_a, false),
        (
            "a fingerprint that is not covered",
            by(&[], &both[0]),
            &with_a,
            false,
        ),
        ("another ID", by(&[], &b.by_id()), &with_both, false),
        (
            "another fingerprint",
            by(&b.by_fingerprint(), &both[1]),
            &with_both,
            false,
        ),
        ("no ID", by(&[], &subpacket(16, &[0; 8])), &with_a, false),
        (
            "a user whose signature names no key",
            good.clone(),
            &with_unnamed,
            false,
        ),
        ("compressed", compressed(&good), &with_a, true),
        ("compressed twice", compressed(&compressed(&good)), &with_a, true),
        (
            "compressed with something behind it",
            compressed(&[&*good, &literal(b"x")].concat()),
            &with_a,
            false,
        ),
        ("by a subkey", by_shared.clone(), &with_first, true),
        ("by a subkey of two keys", by_shared, &with_owners, false),
        (
            "a longer digest",
            long("sha512", &ring::digest::SHA512),
            &with_a,
            false,
        ),
        (
            "a long digest",
            long("sha384", &ring::digest::SHA384),
            &with_a,
            false,
        ),
        ("the usual digest", long("sha256", &SHA256), &with_a, true),
    ];
    let store = signed.root.open().await;
    for (name, signature, keys, is_good) in cases {
        signed.put("app", 1, &[b"\0simple-signing\n", &*signature].concat());
        let policy = with_default(&json!([{"type": "signedBy", "keyType": "GPGKeys", "keyPaths": keys}]));
        let image = signed.docker("app");
        let (copies, said) = signed.skopeo_copies(&policy, &image);
        assert_eq!(copies, is_good, "{name}: {said}");
        let pulled = signed.pull(&store, &policy, &image).await;
        assert_eq!(pulled.is_ok(), is_good, "{name}: {pulled:?}");
    }
}

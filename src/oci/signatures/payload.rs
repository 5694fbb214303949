//! What is signed: the digest of a manifest and a name. Pure.

use serde_json::Value;

use crate::digest::Digest;
use crate::oci::unique_json::{Fields, Refusal};

/// What a payload says it is.
pub(super) const SIMPLE: &str = "atomic container signature";
pub(super) const SIGSTORE: &str = "cosign container image signature";

/// Timestamps are numbers of 64 bits.
const SECONDS: std::ops::Range<f64> = -9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0;

/// The parts of a payload that count.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Payload {
    pub(super) digest: Digest,
    pub(super) name: String,
}

impl Payload {
    /// Reads a payload that says it is of this kind.
    pub(super) fn parse(bytes: &[u8], kind: &str) -> Result<Self, Refusal> {
        let mut fields = Fields::parse(bytes)?;
        let mut critical = Fields::of(fields.need("critical")?)?;
        let optional = fields.need("optional")?;
        fields.end()?;
        // Sigstore's programs write that where there is nothing.
        if !(kind == SIGSTORE && optional.is_null()) {
            let mut optional = Fields::of(optional)?;
            if !matches!(
                optional.take("creator"),
                None | Some(Value::String(_) | Value::Null)
            ) {
                return Err("optional.creator is no text".to_owned());
            }
            let is_whole = |number: &serde_json::Number| {
                number
                    .as_f64()
                    .is_some_and(|number| number.fract() == 0.0 && SECONDS.contains(&number))
            };
            match optional.take("timestamp") {
                None | Some(Value::Null) => {}
                Some(Value::Number(number)) if is_whole(&number) => {}
                Some(_) => return Err("Field optional.timestamp is not an integer".to_owned()),
            }
        }
        let found = critical.need_text("type")?;
        if found != kind {
            return Err(format!("Unrecognized signature type {found}"));
        }
        let mut image = Fields::of(critical.need("image")?)?;
        let digest = image.need_text("docker-manifest-digest")?;
        let digest = digest
            .parse()
            .map_err(|error| format!("invalid docker-manifest-digest value {digest:?}: {error}"))?;
        image.end()?;
        let mut identity = Fields::of(critical.need("identity")?)?;
        let name = identity.need_text("docker-reference")?;
        identity.end()?;
        critical.end()?;
        Ok(Self { digest, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_read_strictly() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let good = |kind: &str, optional: &str| {
            format!(
                r#"{{"critical":{{"type":"{kind}","image":{{"docker-manifest-digest":"{digest}"}},"identity":{{"docker-reference":"a.example/x:t"}}}},"optional":{optional}}}"#
            )
        };
        let parse = |text: &str, kind| Payload::parse(text.as_bytes(), kind);
        for (kind, optional, accepted) in [
            (SIMPLE, "{}", true),
            (SIMPLE, r#"{"creator":"x","timestamp":5,"other":[1]}"#, true),
            (SIMPLE, "null", false),
            (SIGSTORE, "null", true),
            (SIGSTORE, r#"{"timestamp":5.5}"#, false),
            (SIGSTORE, r#"{"timestamp":"5"}"#, false),
            (SIGSTORE, r#"{"timestamp":-9223372036854775808}"#, true),
            (SIGSTORE, r#"{"timestamp":9223372036854775808}"#, false),
            (SIMPLE, r#"{"timestamp":1e300}"#, false),
            (SIGSTORE, r#"{"creator":5}"#, false),
        ] {
            let text = good(kind, optional);
            assert_eq!(parse(&text, kind).is_ok(), accepted, "{text}");
        }
        let text = good(SIMPLE, "{}");
        assert_eq!(parse(&text, SIMPLE).unwrap().name, "a.example/x:t");
        assert!(parse(&text, SIGSTORE).is_err());
        for (from, to) in [
            (r#""type""#, r#""Type""#),
            (r#""identity""#, r#""type":"x","identity""#),
            ("sha256:a", "sha256:"),
            (r#""optional":{}"#, r#""optional":{},"x":1"#),
            (r#""docker-reference""#, r#""x":1,"docker-reference""#),
        ] {
            assert!(parse(&text.replace(from, to), SIMPLE).is_err(), "{to}");
        }
        assert!(parse(&format!("{text}x"), SIMPLE).is_err());
    }
}

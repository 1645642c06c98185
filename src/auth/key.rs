//! One key: `ortus_<id>_<secret>`, its role and terms, and what is kept of it.
//!
//! The secret has 256 random bits, so its SHA-256 is kept and not a hash that is slow on purpose, such as Argon2: those make up
//! for passwords that can be guessed, and would let anybody occupy a core for each request. The id is public: it names the key
//! in lists, in the audit log and to the table, which so compares one hash, in constant time.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;
use subtle::ConstantTimeEq;

const PREFIX: &str = "ortus_";
const ID_BYTES: usize = 5;
const SECRET_BYTES: usize = 32;
/// Longer texts are no keys.
const KEY_CHARS: usize = PREFIX.len() + 2 * ID_BYTES + 1 + 2 * SECRET_BYTES;

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Predictions and their jobs, and looking at everything.
    Infer,
    /// Everything.
    Admin,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Infer => "infer",
            Role::Admin => "admin",
        }
    }
}

/// The public name of a key: ten hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct KeyId(Arc<str>);

impl KeyId {
    /// `None` where it is no id.
    pub fn parse(text: &str) -> Option<KeyId> {
        (text.len() == 2 * ID_BYTES && is_hex(text)).then(|| KeyId(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same as a number.
    pub fn number(&self) -> u64 {
        // Ten digits fit: see `parse`.
        u64::from_str_radix(&self.0, 16).unwrap_or_default()
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<KeyId, D::Error> {
        let text = String::deserialize(deserializer)?;
        KeyId::parse(&text).ok_or_else(|| serde::de::Error::custom("an id has ten hexadecimal digits"))
    }
}

/// SHA-256 of a whole key, or of a session's token. Shown nowhere.
#[derive(Clone, Copy)]
pub(super) struct Hash([u8; 32]);

impl Hash {
    pub(super) fn of(text: &str) -> Hash {
        Hash(Sha256::digest(text.as_bytes()).into())
    }

    /// In a time that does not depend on where they differ.
    pub(super) fn is(&self, other: &Hash) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
        let text = String::deserialize(deserializer)?;
        from_hex(&text).map(Hash).ok_or_else(|| serde::de::Error::custom("a hash has 64 hexadecimal digits"))
    }
}

/// What a key is given.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    pub role: Role,
    /// For people; may be empty.
    pub name: String,
    /// Milliseconds since 1970; `None` = never.
    pub expires_ms: Option<u64>,
    pub requests_per_minute: Option<u32>,
    /// Bytes of a request's body on the wire.
    pub max_body_bytes: Option<u64>,
}

/// What is kept of a key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    pub id: KeyId,
    pub role: Role,
    #[serde(default)]
    pub name: String,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body_bytes: Option<u64>,
    pub(super) sha256: Hash,
}

impl KeyRecord {
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|at| at <= now_ms)
    }
}

/// A key that was just made: the only moment at which its text is known.
pub struct NewKey {
    pub record: KeyRecord,
    text: String,
}

impl NewKey {
    /// # Errors
    /// Where the system has no random numbers.
    pub fn make(terms: Terms, now_ms: u64) -> std::io::Result<NewKey> {
        let (id, secret) = (hex(&random::<ID_BYTES>()?), random_hex()?);
        let text = format!("{PREFIX}{id}_{secret}");
        let Terms { role, name, expires_ms, requests_per_minute, max_body_bytes } = terms;
        let (id, sha256) = (KeyId(id.into()), Hash::of(&text));
        let record =
            KeyRecord { id, role, name, created_ms: now_ms, expires_ms, requests_per_minute, max_body_bytes, sha256 };
        Ok(NewKey { record, text })
    }

    /// The key itself, for whoever made it.
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").field("record", &self.record).finish_non_exhaustive()
    }
}

/// The id that a key names, where it has the form of one.
pub(super) fn id_of(key: &str) -> Option<&str> {
    let rest = key.strip_prefix(PREFIX).filter(|_| key.len() == KEY_CHARS)?;
    let (id, secret) = rest.split_once('_')?;
    (id.len() == 2 * ID_BYTES && is_hex(id) && is_hex(secret)).then_some(id)
}

/// 256 random bits as 64 hexadecimal digits.
pub(super) fn random_hex() -> std::io::Result<String> {
    Ok(hex(&random::<SECRET_BYTES>()?))
}

/// Of the system's own generator.
fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // Up to 256 bytes come whole.
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if got == N { Ok(bytes) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !is_hex(text) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> Terms {
        Terms { role: Role::Infer, name: "n".into(), expires_ms: None, requests_per_minute: None, max_body_bytes: None }
    }

    #[test]
    fn a_key_names_its_id_and_no_other_text_is_a_key() {
        let key = NewKey::make(terms(), 0).unwrap();
        let text = key.reveal();
        assert_eq!(id_of(text), Some(key.record.id.as_str()));
        assert!(Hash::of(text).is(&key.record.sha256) && !Hash::of(&text.to_uppercase()).is(&key.record.sha256));
        for wrong in ["", "ortus_", &text[1..], &text[..text.len() - 1], &format!("{text}0"), &text.to_uppercase()] {
            assert_eq!(id_of(wrong), None, "{wrong}");
        }
        assert_ne!(text, NewKey::make(terms(), 0).unwrap().reveal());
    }

    #[test]
    fn what_is_kept_and_shown_of_a_key_is_not_the_key() {
        let key = NewKey::make(terms(), 0).unwrap();
        let secret = key.reveal().rsplit('_').next().unwrap();
        let kept = serde_json::to_string(&key.record).unwrap();
        assert!(!kept.contains(secret) && !format!("{key:?} {:?}", key.record).contains(secret));
        let read: KeyRecord = serde_json::from_str(&kept).unwrap();
        assert!(read.sha256.is(&key.record.sha256) && read.id == key.record.id);
    }

    #[test]
    fn a_key_expires_at_its_time() {
        let mut record = NewKey::make(terms(), 0).unwrap().record;
        assert!(!record.is_expired(u64::MAX));
        record.expires_ms = Some(10);
        assert!(!record.is_expired(9) && record.is_expired(10));
    }
}

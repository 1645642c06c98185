//! Who is signed in to the dashboard: tokens that stand for a key, in memory, so that a restart ends all of them.

use super::key::{Hash, KeyId, random_hex};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long one stays signed in.
pub(super) const LIFETIME: Duration = Duration::from_secs(12 * 3600);
const SESSIONS_MAX: usize = 1024;

#[derive(Debug)]
struct Session {
    key: KeyId,
    hash: Hash,
    until: Instant,
}

/// By the first digits of the token, which are its name; the rest is compared as keys are.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    sessions: HashMap<String, Session>,
}

const NAME_CHARS: usize = 16;

fn name_of(token: &str) -> Option<&str> {
    token.get(..NAME_CHARS).filter(|_| token.len() == 64)
}

impl Sessions {
    /// A token for the key; where there are too many, the oldest session ends.
    pub(super) fn begin(&mut self, key: KeyId, now: Instant) -> std::io::Result<String> {
        let token = random_hex()?;
        self.sessions.retain(|_, session| session.until > now);
        if self.sessions.len() >= SESSIONS_MAX {
            let oldest = self.sessions.iter().min_by_key(|(_, session)| session.until).map(|(name, _)| name.clone());
            oldest.and_then(|name| self.sessions.remove(&name));
        }
        let session = Session { key, hash: Hash::of(&token), until: now + LIFETIME };
        self.sessions.insert(name_of(&token).unwrap_or_default().to_owned(), session);
        Ok(token)
    }

    /// The key that the token stands for.
    pub(super) fn key(&self, token: &str, now: Instant) -> Option<KeyId> {
        let session = self.sessions.get(name_of(token)?)?;
        (session.until > now && session.hash.is(&Hash::of(token))).then(|| session.key.clone())
    }

    /// Ends the session, for all who have its token.
    pub(super) fn end(&mut self, token: &str, now: Instant) {
        if self.key(token, now).is_some()
            && let Some(name) = name_of(token)
        {
            self.sessions.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_by_time_and_by_signing_out_and_only_by_its_whole_token() {
        let (start, key) = (Instant::now(), KeyId::parse("0123456789").unwrap());
        let mut sessions = Sessions::default();
        let token = sessions.begin(key.clone(), start).unwrap();
        assert_eq!(sessions.key(&token, start), Some(key.clone()));
        let half = format!("{}{}", &token[..NAME_CHARS], "0".repeat(64 - NAME_CHARS));
        sessions.end(&half, start);
        for wrong in ["", "é", &half, &token[..63]] {
            assert_eq!(sessions.key(wrong, start), None);
        }
        assert_eq!(sessions.key(&token, start + LIFETIME), None);
        assert_eq!(sessions.key(&token, start), Some(key));
        sessions.end(&token, start);
        assert_eq!(sessions.key(&token, start), None);
    }

    #[test]
    fn sessions_are_bounded_and_the_oldest_ends() {
        let (start, key) = (Instant::now(), KeyId::parse("0123456789").unwrap());
        let mut sessions = Sessions::default();
        let first = sessions.begin(key.clone(), start).unwrap();
        let last = (1..=SESSIONS_MAX as u64)
            .map(|s| sessions.begin(key.clone(), start + Duration::from_secs(s)).unwrap())
            .last();
        assert_eq!(sessions.sessions.len(), SESSIONS_MAX);
        assert!(sessions.key(&first, start).is_none() && sessions.key(&last.unwrap(), start).is_some());
    }
}

//! The keys in force, and every decision on who comes in.
//!
//! Invariants: where one file once had keys, callers need one until the process ends, whatever becomes of the file; a file that
//! cannot be read changes nothing; a right key is let in however many wrong ones come from its address.

use super::audit::AuditLog;
use super::file::{KeyFile, KeyFileError, Stamp};
use super::key::{Hash, KeyId, KeyRecord, Role, id_of};
use super::limiter::{Bucket, Guess, Guesses};
use super::sessions::Sessions;
use super::settings::AuthSettings;
use crate::tasks::Tasks;
use crate::telemetry::now_ms;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Wrong keys of the sign-in page from one address in a minute that are answered as such.
const SIGN_INS_MAX: u32 = 5;

/// Who asks, known by a key.
#[derive(Debug, Clone)]
pub struct Caller {
    pub id: KeyId,
    pub role: Role,
    /// Bytes of a body that this key may send; `None` = what holds for all.
    pub max_body_bytes: Option<u64>,
    /// Of who came by the dashboard's cookie.
    session: Option<Session>,
}

/// A token that shows itself to nobody.
#[derive(Clone)]
struct Session(Arc<str>);

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

/// Why somebody is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No key, or one that is wrong, expired or revoked: which of them is nobody's business.
    #[error("the key is wrong, expired or revoked; make one with `ortus key create`")]
    Wrong,
    /// Too many wrong keys from this address.
    #[error(
        "more wrong keys came from this address than limits.max_wrong_keys a minute; a right one is let in at any time"
    )]
    TooManyWrong {
        retry_after: Duration,
        /// Whether this is the first that is refused so in this minute.
        is_first: bool,
    },
    /// The key is right and its requests of this minute are used up.
    #[error("this key may send {per_minute} requests a minute")]
    TooOften { per_minute: u32, retry_after: Duration },
}

/// The one place that knows who may come in. Clones are the same.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    file: Option<KeyFile>,
    is_on: AtomicBool,
    table: RwLock<Arc<Table>>,
    guesses: Mutex<Guesses>,
    sign_ins: Mutex<Guesses>,
    sessions: Mutex<Sessions>,
    audit: AuditLog,
}

#[derive(Default)]
struct Table {
    keys: HashMap<KeyId, Arc<Entry>>,
    /// Of the file that it was read from.
    stamp: Stamp,
}

struct Entry {
    record: KeyRecord,
    bucket: Option<Mutex<Bucket>>,
}

impl Gate {
    /// The keys of the store at `models_dir`.
    ///
    /// # Errors
    /// Where the file is there and cannot be read: to go on without it would let everybody in.
    pub fn open(settings: &AuthSettings, models_dir: &Path, tasks: Tasks) -> Result<Gate, KeyFileError> {
        let file = KeyFile::new(settings.path(models_dir));
        let audit = AuditLog::new(Some(models_dir.join(".ortus/audit.log")), tasks);
        let stamp = file.stamp().map_err(KeyFileError::Read)?;
        let records = file.read()?;
        let is_on = settings.require || !records.is_empty();
        let table = Table::of(records, stamp, &Table::default());
        Ok(Gate::new(Some(file), is_on, table, settings.max_wrong_keys, audit))
    }

    /// Asks nobody for a key and writes nothing down: for measurements in one process.
    pub fn none(tasks: Tasks) -> Gate {
        Gate::new(None, false, Table::default(), 0, AuditLog::new(None, tasks))
    }

    fn new(file: Option<KeyFile>, is_on: bool, table: Table, wrong_max: u32, audit: AuditLog) -> Gate {
        let now = Instant::now();
        Gate(Arc::new(Inner {
            file,
            is_on: is_on.into(),
            table: RwLock::new(Arc::new(table)),
            guesses: Mutex::new(Guesses::new(wrong_max, now)),
            sign_ins: Mutex::new(Guesses::new(SIGN_INS_MAX, now)),
            sessions: Mutex::default(),
            audit,
        }))
    }

    /// Looks once a second whether the file has changed, until the process stops.
    pub fn start(&self, tasks: &Tasks) {
        if self.0.file.is_none() {
            return;
        }
        let (gate, stopping, owner) = (self.clone(), tasks.stopping().clone(), tasks.clone());
        tasks.spawn("keys", async move {
            // A file that cannot be read is complained of once.
            let mut bad = None;
            loop {
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(LOOK) => {}
                }
                let gate = gate.clone();
                let Ok(result) = owner.spawn_blocking(move || gate.reload()).await else { return };
                match result {
                    Ok(Some(keys)) => tracing::info!(keys, "the keys were read again: {keys} are in force"),
                    Ok(None) => {}
                    Err(error) => {
                        let text = error.to_string();
                        if bad.as_ref() != Some(&text) {
                            tracing::error!(error = text, "the keys stay as they were: {text}");
                        }
                        bad = Some(text);
                        continue;
                    }
                }
                bad = None;
            }
        });
    }

    /// Reads the file where it has changed; gives how many keys there are now. Blocks.
    ///
    /// # Errors
    /// Where it cannot be read; nothing has changed then.
    pub fn reload(&self) -> Result<Option<usize>, KeyFileError> {
        let Some(file) = &self.0.file else { return Ok(None) };
        // Before the contents: what is written between the two is seen the next time.
        let stamp = file.stamp().map_err(KeyFileError::Read)?;
        let before = self.table();
        if stamp == before.stamp {
            return Ok(None);
        }
        let table = Table::of(file.read()?, stamp, &before);
        let keys = table.keys.len();
        *self.0.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        if keys > 0 {
            self.0.is_on.store(true, Ordering::Release);
        }
        Ok(Some(keys))
    }

    fn table(&self) -> Arc<Table> {
        self.0.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether callers need a key.
    pub fn is_on(&self) -> bool {
        self.0.is_on.load(Ordering::Acquire)
    }

    pub fn audit(&self) -> &AuditLog {
        &self.0.audit
    }

    /// Lets the bearer of `key` in, and counts the request.
    ///
    /// # Errors
    /// See [`Denied`].
    pub fn check(&self, key: &str, from: Option<IpAddr>, now: Instant) -> Result<Caller, Denied> {
        match self.entry_of(key) {
            Some(entry) => entry.admit(now, None),
            None => Err(wrong(&self.0.guesses, from, now)),
        }
    }

    /// Lets somebody in by the token of [`Gate::sign_in`], and counts the request.
    ///
    /// # Errors
    /// See [`Denied`].
    pub fn check_session(&self, token: &str, now: Instant) -> Result<Caller, Denied> {
        let id = self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner).key(token, now);
        let entry = id.and_then(|id| self.table().usable(&id)).ok_or(Denied::Wrong)?;
        entry.admit(now, Some(Session(token.into())))
    }

    /// Begins a session of the bearer of `key`; gives its token.
    ///
    /// # Errors
    /// See [`Denied`]; the system without random numbers reads as a wrong key.
    pub fn sign_in(&self, key: &str, from: Option<IpAddr>, now: Instant) -> Result<(Caller, String), Denied> {
        let entry = self.entry_of(key).ok_or_else(|| wrong(&self.0.sign_ins, from, now))?;
        let begun = self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner).begin(entry.record.id.clone(), now);
        let token = begun.map_err(|_| Denied::Wrong)?;
        Ok((entry.caller(Some(Session(token.as_str().into()))), token))
    }

    pub fn sign_out(&self, token: &str, now: Instant) {
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner).end(token, now);
    }

    /// Whether who was let in would be let in again: for answers that do not end.
    pub fn still_admits(&self, caller: &Caller, now: Instant) -> bool {
        let is_open = caller.session.as_ref().is_none_or(|session| {
            self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner).key(&session.0, now).is_some()
        });
        is_open && self.table().usable(&caller.id).is_some()
    }

    /// How long a session lasts.
    pub fn session_lifetime() -> Duration {
        super::sessions::LIFETIME
    }

    fn entry_of(&self, key: &str) -> Option<Arc<Entry>> {
        let id = KeyId::parse(id_of(key)?)?;
        let entry = self.table().usable(&id)?;
        entry.record.sha256.is(&Hash::of(key)).then_some(entry)
    }
}

/// Counts a wrong key.
fn wrong(guesses: &Mutex<Guesses>, from: Option<IpAddr>, now: Instant) -> Denied {
    let from = from.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    match guesses.lock().unwrap_or_else(PoisonError::into_inner).count(from, now) {
        Guess::Few => Denied::Wrong,
        Guess::First(retry_after) => Denied::TooManyWrong { retry_after, is_first: true },
        Guess::Many(retry_after) => Denied::TooManyWrong { retry_after, is_first: false },
    }
}

impl Table {
    /// A key that was there before goes on with the requests that it had left.
    fn of(records: Vec<KeyRecord>, stamp: Stamp, before: &Table) -> Table {
        let now = Instant::now();
        let entry = |record: KeyRecord| {
            let same = before.keys.get(&record.id).filter(|entry| {
                entry.record.requests_per_minute == record.requests_per_minute
                    && entry.record.role == record.role
                    && entry.record.expires_ms == record.expires_ms
                    && entry.record.max_body_bytes == record.max_body_bytes
                    && entry.record.sha256.is(&record.sha256)
            });
            let entry = same.cloned().unwrap_or_else(|| {
                let bucket = record.requests_per_minute.map(|per_minute| Mutex::new(Bucket::new(per_minute, now)));
                Arc::new(Entry { record: record.clone(), bucket })
            });
            (record.id, entry)
        };
        Table { keys: records.into_iter().map(entry).collect(), stamp }
    }

    fn usable(&self, id: &KeyId) -> Option<Arc<Entry>> {
        self.keys.get(id).filter(|entry| !entry.record.is_expired(now_ms())).cloned()
    }
}

impl Entry {
    fn caller(&self, session: Option<Session>) -> Caller {
        let KeyRecord { id, role, max_body_bytes, .. } = &self.record;
        Caller { id: id.clone(), role: *role, max_body_bytes: *max_body_bytes, session }
    }

    fn admit(&self, now: Instant, session: Option<Session>) -> Result<Caller, Denied> {
        if let Some(bucket) = &self.bucket {
            let taken = bucket.lock().unwrap_or_else(PoisonError::into_inner).take(now);
            let per_minute = self.record.requests_per_minute.unwrap_or_default();
            taken.map_err(|retry_after| Denied::TooOften { per_minute, retry_after })?;
        }
        Ok(self.caller(session))
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::{NewKey, Terms};
    use super::*;

    struct Fixture {
        folder: tempfile::TempDir,
        settings: AuthSettings,
    }

    fn fixture() -> Fixture {
        Fixture {
            folder: tempfile::tempdir().unwrap(),
            settings: AuthSettings { max_wrong_keys: 2, ..Default::default() },
        }
    }

    impl Fixture {
        fn file(&self) -> KeyFile {
            KeyFile::new(self.settings.path(self.folder.path()))
        }

        fn make(&self, role: Role, requests_per_minute: Option<u32>, expires_ms: Option<u64>) -> NewKey {
            let terms = Terms { role, name: String::new(), expires_ms, requests_per_minute, max_body_bytes: Some(9) };
            let key = NewKey::make(terms, 0).unwrap();
            self.file().add(key.record.clone()).unwrap();
            key
        }

        fn gate(&self) -> Gate {
            Gate::open(&self.settings, self.folder.path(), Tasks::new()).unwrap()
        }
    }

    #[test]
    fn without_keys_nobody_needs_one_unless_they_are_required() {
        let fixture = fixture();
        assert!(!fixture.gate().is_on());
        let settings = AuthSettings { require: true, ..Default::default() };
        assert!(Gate::open(&settings, fixture.folder.path(), Tasks::new()).unwrap().is_on());
        fixture.make(Role::Infer, None, Some(1));
        assert!(fixture.gate().is_on(), "an expired key opens nothing");
    }

    #[test]
    fn a_right_key_is_let_in_and_wrong_revoked_and_expired_ones_are_not() {
        let (fixture, now) = (fixture(), Instant::now());
        let (admin, old) = (fixture.make(Role::Admin, None, None), fixture.make(Role::Admin, None, Some(1)));
        let gate = fixture.gate();
        let caller = gate.check(admin.reveal(), None, now).unwrap();
        assert_eq!((caller.role, caller.max_body_bytes, &caller.id), (Role::Admin, Some(9), &admin.record.id));
        let other_secret = format!("{}{}", &admin.reveal()[..17], &old.reveal()[17..]);
        for wrong in [old.reveal(), "", &other_secret] {
            let from = Some(IpAddr::from([wrong.len() as u8, 0, 0, 1]));
            assert_eq!(gate.check(wrong, from, now).unwrap_err(), Denied::Wrong);
        }
        fixture.file().revoke(&admin.record.id).unwrap();
        assert!(gate.still_admits(&caller, now));
        assert_eq!(gate.reload().unwrap(), Some(1));
        assert_eq!(gate.check(admin.reveal(), None, now).unwrap_err(), Denied::Wrong);
        assert!(!gate.still_admits(&caller, now));
        assert_eq!(gate.reload().unwrap(), None);
    }

    #[test]
    fn a_first_key_closes_the_gate_and_nothing_opens_it_again() {
        let fixture = fixture();
        let gate = fixture.gate();
        let key = fixture.make(Role::Infer, None, None);
        gate.reload().unwrap();
        assert!(gate.is_on() && gate.check(key.reveal(), None, Instant::now()).is_ok());
        let path = fixture.settings.path(fixture.folder.path());
        std::fs::write(&path, "not JSON").unwrap();
        assert!(gate.reload().is_err() && gate.check(key.reveal(), None, Instant::now()).is_ok());
        std::fs::remove_file(&path).unwrap();
        gate.reload().unwrap();
        assert!(gate.is_on() && gate.check(key.reveal(), None, Instant::now()).is_err());
        std::fs::write(&path, "not JSON").unwrap();
        assert!(Gate::open(&fixture.settings, fixture.folder.path(), Tasks::new()).is_err());
    }

    #[test]
    fn f82_guesses_are_refused_and_the_right_key_is_let_in_all_the_same() {
        let (fixture, now) = (fixture(), Instant::now());
        let key = fixture.make(Role::Infer, None, None);
        let gate = fixture.gate();
        let first = |denied: Denied| matches!(denied, Denied::TooManyWrong { is_first: true, .. });
        let denied: Vec<_> = (0..4).map(|_| gate.check("wrong", None, now).unwrap_err()).collect();
        assert_eq!(denied[..2], [Denied::Wrong, Denied::Wrong]);
        assert!(first(denied[2].clone()) && !first(denied[3].clone()));
        assert!(gate.check(key.reveal(), None, now).is_ok());
        let denied: Vec<_> = (0..6).map(|_| gate.sign_in("wrong", None, now).unwrap_err()).collect();
        assert!(denied[..5].iter().all(|denied| *denied == Denied::Wrong) && first(denied[5].clone()));
        assert!(gate.sign_in(key.reveal(), None, now).is_ok());
    }

    #[test]
    fn a_key_has_its_own_rate_also_after_the_file_was_read_again() {
        let (fixture, now) = (fixture(), Instant::now());
        let (slow, free) = (fixture.make(Role::Infer, Some(2), None), fixture.make(Role::Infer, None, None));
        let gate = fixture.gate();
        assert!(gate.check(slow.reveal(), None, now).is_ok() && gate.check(slow.reveal(), None, now).is_ok());
        fixture.make(Role::Infer, None, None);
        assert_eq!(gate.reload().unwrap(), Some(3));
        assert!(matches!(gate.check(slow.reveal(), None, now), Err(Denied::TooOften { per_minute: 2, .. })));
        assert!(gate.check(free.reveal(), None, now).is_ok());
    }

    #[test]
    fn a_session_is_its_keys_and_ends_with_it() {
        let (fixture, now) = (fixture(), Instant::now());
        let (one, two) = (fixture.make(Role::Infer, None, None), fixture.make(Role::Admin, None, None));
        let gate = fixture.gate();
        let (caller, token) = gate.sign_in(one.reveal(), None, now).unwrap();
        assert_eq!(gate.check_session(&token, now).unwrap().id, one.record.id);
        assert!(gate.still_admits(&caller, now) && !format!("{caller:?}").contains(&token));
        gate.sign_out(&token, now);
        assert!(gate.check_session(&token, now).is_err() && !gate.still_admits(&caller, now));
        let (_, token) = gate.sign_in(two.reveal(), None, now).unwrap();
        fixture.file().revoke(&two.record.id).unwrap();
        gate.reload().unwrap();
        assert!(gate.check_session(&token, now).is_err());
    }
}

//! How requests wait for an instance, where a model's configuration says it: levels of urgency, and how long and how many.
//!
//! Pure data: `queue` and `handle` act on it.

use std::collections::BTreeMap;
use std::time::Duration;

/// Priority of a request that names none, where the model states no levels.
const DEFAULT_PRIORITY: u8 = 5;
/// The least urgent priority, where the model states no levels; 1 is the most urgent.
const LOWEST_PRIORITY: u8 = 9;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct WaitingSettings {
    /// `None`: 1 to 9, and 5 where a request names none.
    pub levels: Option<Levels>,
    /// Of all levels but those in `of_level`; `None`: a request waits until its own deadline.
    pub policy: Option<WaitingPolicy>,
    pub of_level: BTreeMap<u8, WaitingPolicy>,
}

/// Levels of urgency: 1 is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// At least 1.
    pub count: u8,
    /// Of a request that names none; from 1 to `count`.
    pub default: u8,
}

/// What a request of one level may wait, and how many of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WaitingPolicy {
    /// How long a request may wait for an instance; `None`: until its deadline.
    pub timeout: Option<Duration>,
    pub on_timeout: OnTimeout,
    /// Whether a request may bring a shorter timeout.
    pub allows_own_timeout: bool,
    /// Requests of the level that may wait.
    pub max_waiting: Option<usize>,
}

/// What becomes of a request that has waited for as long as it may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnTimeout {
    /// It is answered that its time has passed.
    #[default]
    Reject,
    /// It goes behind all of its level that have not waited as long.
    Delay,
}

impl WaitingSettings {
    fn levels(&self) -> Levels {
        self.levels.unwrap_or(Levels { count: LOWEST_PRIORITY, default: DEFAULT_PRIORITY })
    }

    /// The level of a request of this priority: 0 is the default, what lies beyond the last level is of the last.
    pub fn level(&self, priority: u8) -> u8 {
        let levels = self.levels();
        if priority == 0 { levels.default } else { priority.min(levels.count.max(1)) }
    }

    /// What holds for a level; `None` where nothing is said of it.
    pub fn policy(&self, level: u8) -> Option<&WaitingPolicy> {
        self.of_level.get(&level).or(self.policy.as_ref())
    }
}

impl WaitingPolicy {
    /// How long a request that brings this timeout may wait; `None`: until its deadline.
    pub(super) fn limit(&self, own: Option<Duration>) -> Option<Duration> {
        let own = own.filter(|_| self.allows_own_timeout);
        self.timeout.into_iter().chain(own).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_has_a_level_of_the_model() {
        #[track_caller]
        fn check(levels: Option<Levels>, rows: &[(u8, u8)]) {
            let settings = WaitingSettings { levels, ..WaitingSettings::default() };
            for (priority, level) in rows {
                assert_eq!(settings.level(*priority), *level, "{priority}");
            }
        }
        check(None, &[(0, 5), (1, 1), (9, 9), (10, 9), (255, 9)]);
        check(Some(Levels { count: 3, default: 2 }), &[(0, 2), (1, 1), (3, 3), (4, 3), (255, 3)]);
        check(Some(Levels { count: 255, default: 100 }), &[(0, 100), (42, 42), (255, 255)]);
    }

    #[test]
    fn a_request_may_shorten_its_wait_where_it_is_allowed_to() {
        let (short, long) = (Duration::from_micros(1), Duration::from_micros(2));
        let policy = |timeout, allows_own_timeout| WaitingPolicy { timeout, allows_own_timeout, ..Default::default() };
        assert_eq!(policy(Some(long), true).limit(Some(short)), Some(short));
        assert_eq!(policy(Some(short), true).limit(Some(long)), Some(short));
        assert_eq!(policy(Some(long), false).limit(Some(short)), Some(long));
        assert_eq!(policy(None, true).limit(Some(short)), Some(short));
        assert_eq!(policy(None, false).limit(Some(short)), None);
        assert_eq!(policy(Some(long), true).limit(None), Some(long));
    }

    #[test]
    fn a_level_has_its_own_policy_before_the_common_one() {
        let policy = |max_waiting| WaitingPolicy { max_waiting: Some(max_waiting), ..WaitingPolicy::default() };
        let settings = WaitingSettings { levels: None, policy: Some(policy(1)), of_level: [(2, policy(2))].into() };
        assert_eq!(settings.policy(1), Some(&policy(1)));
        assert_eq!(settings.policy(2), Some(&policy(2)));
        assert_eq!(WaitingSettings::default().policy(1), None);
    }
}

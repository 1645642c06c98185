//! Decides which versions are loaded, kept and unloaded, as a pure function of the policy, the disk and what is known.
//!
//! Invariants: a version that serves and is unchanged is never touched; nothing that serves is given up for a version
//! that did not load; a version that failed is tried again only when its files changed or somebody asks. Knows no clock,
//! lock, file or runtime; [`super::ModelManager`] carries a [`Plan`] out.

use super::choice::Choice;
use super::{Version, VersionPolicy};
use std::collections::{BTreeMap, BTreeSet};

/// What a version's files looked like; equal where nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint(pub(super) u64);

/// What became of a version so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// The files that the version serves from, where it serves.
    pub(super) serving: Option<Fingerprint>,
    /// The files that failed to load, where the last try failed.
    pub(super) failed: Option<Fingerprint>,
}

/// Why a plan is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// The folder was looked at: load what is new or changed.
    Refresh,
    /// Somebody asked: also try again what failed.
    Load,
    Unload,
}

/// What to do, in this order: load, then unload; retire only where every load succeeded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// New or changed; where an older state of the same version serves, it does so until the new one is ready.
    pub(super) load: Vec<Version>,
    /// Serve on.
    pub(super) keep: Vec<Version>,
    /// No longer on disk, or asked to go.
    pub(super) unload: Vec<Version>,
    /// Superseded by what is loaded.
    pub(super) retire: Vec<Version>,
    /// Named by the policy and not on disk.
    pub(super) missing: Vec<Version>,
}

/// The versions of `on_disk` that the policy asks for.
pub(super) fn select(policy: &VersionPolicy, on_disk: impl DoubleEndedIterator<Item = Version>) -> BTreeSet<Version> {
    match policy {
        VersionPolicy::Latest(count) => on_disk.rev().take(count.get()).collect(),
        VersionPolicy::All => on_disk.collect(),
        VersionPolicy::Specific(versions) => on_disk.filter(|version| versions.contains(version)).collect(),
    }
}

/// What is served where somebody chose a version: that one, while it is there and nothing above what there was when it was
/// chosen has come; else what the policy says.
pub(super) fn in_force(
    policy: &VersionPolicy,
    choice: Option<Choice>,
    on_disk: &BTreeSet<Version>,
) -> (VersionPolicy, Option<Version>) {
    let holds = |choice: &Choice| {
        on_disk.contains(&choice.version) && on_disk.last().is_some_and(|highest| *highest <= choice.newest)
    };
    match choice.filter(holds) {
        Some(Choice { version, .. }) => (VersionPolicy::Specific([version].into()), Some(version)),
        None => (policy.clone(), None),
    }
}

/// The highest version below `present`: what there is to go back to.
pub(super) fn below(present: Option<Version>, on_disk: &BTreeSet<Version>) -> Option<Version> {
    on_disk.range(..present?).next_back().copied()
}

/// The number of a version that comes: above all that the model has or had when a version was chosen. `None` where there is
/// no such number.
pub(super) fn next_number(known: impl Iterator<Item = Version>, choice: Option<Choice>) -> Option<Version> {
    match known.chain(choice.map(|choice| choice.newest)).max() {
        Some(highest) => highest.0.checked_add(1).map(Version),
        None => Some(Version(1)),
    }
}

/// `on_disk` is what the folder holds, in its present state.
pub(super) fn plan(
    policy: &VersionPolicy,
    on_disk: &BTreeMap<Version, Fingerprint>,
    known: &BTreeMap<Version, Known>,
    command: Command,
) -> Plan {
    let serving = |version: &Version| known.get(version).and_then(|known| known.serving);
    let serves: Vec<Version> = known.keys().copied().filter(|version| serving(version).is_some()).collect();
    if command == Command::Unload {
        return Plan { unload: serves, ..Plan::default() };
    }
    let wanted = select(policy, on_disk.keys().copied());
    let mut plan = Plan::default();
    if let VersionPolicy::Specific(versions) = policy {
        plan.missing = versions.iter().copied().filter(|version| !on_disk.contains_key(version)).collect();
    }
    let mut complete = plan.missing.is_empty();
    for &version in &wanted {
        let files = on_disk.get(&version).copied();
        let failed = known.get(&version).and_then(|known| known.failed);
        if serving(&version).is_some() && serving(&version) == files {
            plan.keep.push(version);
        } else if failed.is_some() && failed == files && command == Command::Refresh {
            // Its present files do not load: what served before goes on.
            complete = false;
            if serving(&version).is_some() {
                plan.keep.push(version);
            }
        } else {
            plan.load.push(version);
        }
    }
    for version in serves {
        if !on_disk.contains_key(&version) {
            plan.unload.push(version);
        } else if !wanted.contains(&version) {
            if complete { plan.retire.push(version) } else { plan.keep.push(version) }
        }
    }
    plan.keep.sort_unstable();
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::num::NonZeroUsize;

    fn versions(list: &[u64]) -> Vec<Version> {
        list.iter().copied().map(Version).collect()
    }

    /// One row: the disk and the known versions as (version, fingerprint), failed ones with a fingerprint below 0.
    #[track_caller]
    fn check(
        policy: VersionPolicy,
        disk: &[(u64, u64)],
        known: &[(u64, i64)],
        command: Command,
        expected: [&[u64]; 4],
    ) {
        let on_disk = disk.iter().map(|&(version, files)| (Version(version), Fingerprint(files))).collect();
        let mut map: BTreeMap<Version, Known> = BTreeMap::new();
        for &(version, files) in known {
            let entry = map.entry(Version(version)).or_default();
            let print = Some(Fingerprint(files.unsigned_abs()));
            if files < 0 { entry.failed = print } else { entry.serving = print }
        }
        let plan = plan(&policy, &on_disk, &map, command);
        let got = [plan.load, plan.keep, plan.unload, plan.retire];
        assert_eq!(got, expected.map(versions), "load, keep, unload, retire");
    }

    fn latest(count: usize) -> VersionPolicy {
        VersionPolicy::Latest(NonZeroUsize::new(count).unwrap())
    }

    #[test]
    fn versions_follow_the_policy() {
        use Command::{Load, Refresh, Unload};
        let specific = |list: &[u64]| VersionPolicy::Specific(versions(list).into_iter().collect());
        check(latest(1), &[(1, 1), (3, 1)], &[], Refresh, [&[3], &[], &[], &[]]);
        check(latest(2), &[(1, 1), (2, 1), (3, 1)], &[], Refresh, [&[2, 3], &[], &[], &[]]);
        check(VersionPolicy::All, &[(1, 1), (3, 1)], &[(3, 1)], Refresh, [&[1], &[3], &[], &[]]);
        check(specific(&[1]), &[(1, 1), (3, 1)], &[], Load, [&[1], &[], &[], &[]]);
        // A new version comes: the old one is retired once the new one is ready.
        check(latest(1), &[(1, 1), (2, 1)], &[(1, 1)], Refresh, [&[2], &[], &[], &[1]]);
        // The new one failed: the old one stays, and the new one is tried again only when asked or changed.
        check(latest(1), &[(1, 1), (2, 1)], &[(1, 1), (2, -1)], Refresh, [&[], &[1], &[], &[]]);
        check(latest(1), &[(1, 1), (2, 1)], &[(1, 1), (2, -1)], Load, [&[2], &[], &[], &[1]]);
        check(latest(1), &[(1, 1), (2, 9)], &[(1, 1), (2, -1)], Refresh, [&[2], &[], &[], &[1]]);
        // Changed in place, and changed to something that failed.
        check(latest(1), &[(1, 2)], &[(1, 1)], Refresh, [&[1], &[], &[], &[]]);
        check(latest(1), &[(1, 2)], &[(1, 1), (1, -2)], Refresh, [&[], &[1], &[], &[]]);
        // Put back as it was after a failed change.
        check(latest(1), &[(1, 1)], &[(1, 1), (1, -2)], Load, [&[], &[1], &[], &[]]);
        check(latest(1), &[], &[(1, 1)], Refresh, [&[], &[], &[1], &[]]);
        check(specific(&[4]), &[(1, 1)], &[(1, 1)], Refresh, [&[], &[1], &[], &[]]);
        check(latest(1), &[(1, 1), (2, 1)], &[(1, 1), (2, 1)], Unload, [&[], &[], &[1, 2], &[]]);
    }

    fn any_policy() -> impl Strategy<Value = VersionPolicy> {
        prop_oneof![
            (1usize..4).prop_map(latest),
            Just(VersionPolicy::All),
            proptest::collection::btree_set((0u64..6).prop_map(Version), 1..4).prop_map(VersionPolicy::Specific),
        ]
    }

    fn any_disk() -> impl Strategy<Value = BTreeMap<Version, Fingerprint>> {
        proptest::collection::btree_map((0u64..6).prop_map(Version), (0u64..3).prop_map(Fingerprint), 0..6)
    }

    proptest! {
        /// Random disks one after another, each load succeeding or failing at random, against the room's invariants.
        #[test]
        fn what_serves_is_never_given_up_for_what_does_not_load(
            steps in proptest::collection::vec((any_policy(), any_disk(), any::<bool>(), any::<u8>()), 1..12),
        ) {
            let mut known: BTreeMap<Version, Known> = BTreeMap::new();
            for (policy, disk, asked, luck) in steps {
                let command = if asked { Command::Load } else { Command::Refresh };
                let plan = plan(&policy, &disk, &known, command);
                let serving: BTreeSet<Version> =
                    known.iter().filter(|(_, known)| known.serving.is_some()).map(|(version, _)| *version).collect();
                let wanted = select(&policy, disk.keys().copied());

                // Every serving version has exactly one fate, and only wanted versions are loaded.
                for version in &serving {
                    let fates = [&plan.load, &plan.keep, &plan.unload, &plan.retire];
                    prop_assert_eq!(fates.iter().filter(|list| list.contains(version)).count(), 1);
                }
                prop_assert!(plan.load.iter().all(|version| wanted.contains(version)));
                prop_assert!(plan.keep.iter().all(|version| serving.contains(version)));

                let mut all_loaded = true;
                for version in &plan.load {
                    let entry = known.entry(*version).or_default();
                    if luck & (1 << version.0) == 0 {
                        *entry = Known { serving: disk.get(version).copied(), failed: None };
                    } else {
                        entry.failed = disk.get(version).copied();
                        all_loaded = false;
                    }
                }
                for version in plan.unload.iter().chain(plan.retire.iter().filter(|_| all_loaded)) {
                    known.remove(version);
                }
                // A model that served and is still on disk in that version still serves something.
                if serving.iter().any(|version| disk.contains_key(version)) {
                    prop_assert!(known.values().any(|known| known.serving.is_some()));
                }
                // With nothing changed, looking again changes nothing.
                let again = super::plan(&policy, &disk, &known, Command::Refresh);
                prop_assert!(again.load.is_empty() && again.unload.is_empty());
                if all_loaded {
                    prop_assert!(again.retire.is_empty());
                }
            }
        }
    }
}

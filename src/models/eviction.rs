//! Decides which models make room for another, as a pure function of their sizes and last uses.
//!
//! Invariants: only idle models go, the least recently used first, and none without need; what is decided fits the
//! budget. Knows no clock, lock or session; [`super::ModelManager`] carries a [`Decision`] out.

/// Whether a model can make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Idle,
    /// Has requests, or is being loaded or changed: will be idle at some time.
    Busy,
    /// Does not go for others: it could not be loaded again, or it serves while its successor is loaded.
    Kept,
}

/// A model that holds memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tenant<K> {
    pub(super) key: K,
    pub(super) bytes: u64,
    /// Larger is later.
    pub(super) last_used: u64,
    pub(super) standing: Standing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision<K> {
    Fits,
    /// These go, in this order.
    Evict(Vec<K>),
    /// Those in the way are busy.
    Wait,
    /// It would not fit if all others that can go were gone: at most so many bytes could be free.
    TooLarge {
        room: u64,
    },
}

/// How `demand` bytes come within `budget`.
pub(super) fn decide<K: Clone>(tenants: &[Tenant<K>], demand: u64, budget: u64) -> Decision<K> {
    let sum = |standings: &[Standing]| {
        let held = tenants.iter().filter(|tenant| standings.contains(&tenant.standing)).map(|tenant| tenant.bytes);
        held.fold(0, u64::saturating_add)
    };
    let kept = sum(&[Standing::Kept]);
    if kept.saturating_add(demand) > budget {
        return Decision::TooLarge { room: budget.saturating_sub(kept) };
    }
    let stays = sum(&[Standing::Kept, Standing::Busy]).saturating_add(demand);
    if stays > budget {
        return Decision::Wait;
    }
    let mut idle: Vec<&Tenant<K>> = tenants.iter().filter(|tenant| tenant.standing == Standing::Idle).collect();
    idle.sort_by_key(|tenant| tenant.last_used);
    let mut total = idle.iter().fold(stays, |sum, tenant| sum.saturating_add(tenant.bytes));
    let mut chosen: Vec<&Tenant<K>> = Vec::new();
    for tenant in idle {
        if total <= budget {
            break;
        }
        total = total.saturating_sub(tenant.bytes);
        chosen.push(tenant);
    }
    // A large one at the end may have made the sacrifice of smaller ones needless: the latest used of them stay.
    let mut needed: Vec<K> = Vec::with_capacity(chosen.len());
    for tenant in chosen.iter().rev() {
        if total.saturating_add(tenant.bytes) <= budget {
            total = total.saturating_add(tenant.bytes);
        } else {
            needed.push(tenant.key.clone());
        }
    }
    needed.reverse();
    if needed.is_empty() { Decision::Fits } else { Decision::Evict(needed) }
}

#[cfg(test)]
mod tests {
    use super::Standing::{Busy, Idle, Kept};
    use super::*;
    use proptest::prelude::*;

    fn tenants(list: &[(u64, Standing)]) -> Vec<Tenant<usize>> {
        let tenant = |(index, &(bytes, standing)): (usize, &(u64, Standing))| Tenant {
            key: index,
            bytes,
            last_used: index as u64,
            standing,
        };
        list.iter().enumerate().map(tenant).collect()
    }

    #[test]
    fn the_least_recently_used_go_first() {
        type Row<'a> = (&'a [(u64, Standing)], u64, Decision<usize>);
        let rows: &[Row] = &[
            (&[], 10, Decision::Fits),
            (&[], 101, Decision::TooLarge { room: 100 }),
            (&[(50, Idle), (50, Idle)], 0, Decision::Fits),
            (&[(50, Idle), (50, Idle)], 10, Decision::Evict(vec![0])),
            (&[(50, Idle), (50, Idle)], 60, Decision::Evict(vec![0, 1])),
            (&[(50, Busy), (50, Idle)], 50, Decision::Evict(vec![1])),
            (&[(50, Busy), (50, Idle)], 60, Decision::Wait),
            (&[(50, Kept), (50, Idle)], 60, Decision::TooLarge { room: 50 }),
            (&[(50, Kept), (50, Idle)], 50, Decision::Evict(vec![1])),
            // The small one would not have been enough, and the large one alone is.
            (&[(5, Idle), (95, Idle)], 90, Decision::Evict(vec![1])),
            (&[(5, Idle), (5, Idle), (90, Idle)], 95, Decision::Evict(vec![0, 2])),
            // The budget was made smaller than what is loaded.
            (&[(80, Idle), (80, Idle)], 10, Decision::Evict(vec![0])),
            (&[(u64::MAX, Busy), (u64::MAX, Idle)], 1, Decision::Wait),
        ];
        for (list, demand, expected) in rows {
            assert_eq!(&decide(&tenants(list), *demand, 100), expected, "{list:?} + {demand}");
        }
    }

    fn any_tenants() -> impl Strategy<Value = Vec<Tenant<usize>>> {
        let one = (0u64..60, 0u64..5, prop_oneof![Just(Idle), Just(Busy), Just(Kept)]);
        proptest::collection::vec(one, 0..12).prop_map(|list| {
            let tenant = |(key, (bytes, last_used, standing))| Tenant { key, bytes, last_used, standing };
            list.into_iter().enumerate().map(tenant).collect()
        })
    }

    proptest! {
        #[test]
        fn what_is_decided_fits_and_nobody_goes_without_need(
            tenants in any_tenants(), demand in 0u64..200, budget in 0u64..200,
        ) {
            let of = |keep: &dyn Fn(&Tenant<usize>) -> bool| -> u64 {
                tenants.iter().filter(|tenant| keep(tenant)).map(|tenant| tenant.bytes).sum()
            };
            match decide(&tenants, demand, budget) {
                Decision::Fits => prop_assert!(of(&|_| true) + demand <= budget),
                Decision::Evict(gone) => {
                    prop_assert!(of(&|tenant| !gone.contains(&tenant.key)) + demand <= budget);
                    for key in &gone {
                        prop_assert_eq!(tenants[*key].standing, Idle);
                        // Without this one it would not fit.
                        prop_assert!(of(&|tenant| !gone.contains(&tenant.key) || tenant.key == *key) + demand > budget);
                    }
                    // Whoever is spared and was used earlier than one that goes is too small to take its place.
                    let latest = gone.iter().map(|key| tenants[*key].last_used).max().unwrap();
                    for spared in tenants.iter().filter(|tenant| {
                        tenant.standing == Idle && !gone.contains(&tenant.key) && tenant.last_used < latest
                    }) {
                        let with = of(&|tenant| !gone.contains(&tenant.key)) - spared.bytes;
                        let back = gone.iter().filter(|key| tenants[**key].last_used > spared.last_used);
                        for key in back {
                            prop_assert!(with + tenants[*key].bytes + demand > budget);
                        }
                    }
                }
                Decision::Wait => {
                    prop_assert!(of(&|tenant| tenant.standing != Idle) + demand > budget);
                    prop_assert!(of(&|tenant| tenant.standing == Kept) + demand <= budget);
                }
                Decision::TooLarge { room } => {
                    prop_assert!(of(&|tenant| tenant.standing == Kept) + demand > budget);
                    prop_assert!(room < demand || demand == 0);
                }
            }
        }
    }
}

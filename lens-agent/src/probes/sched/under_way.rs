//! Waits that have not ended: who ran meanwhile, as `walk` finds it in the kernel for those that have.

use lens_common::{
    limits::RUNS,
    sched::{Hole, Ring, Run, Runs, Throttled, Waiting},
};

use crate::probes::Holder;

/// The throttlings that `waiting` may have waited through, oldest first.
pub(super) fn holes_of(waiting: &Waiting, throttled: Option<&Throttled>) -> Vec<Hole> {
    let mut holes = Vec::new();
    if let Some(known) = throttled {
        holes.extend(known.holes.iter().filter(|hole| hole.until != 0));
        let grown = waiting.throttled_ns.saturating_sub(known.seen_ns);
        if grown != 0 {
            // It has ended, and nobody of the group has come onto the CPU since.
            let from = if known.since != 0 {
                known.since
            } else {
                known.last_ran
            };
            holes.push(Hole {
                from,
                until: from + grown,
            });
        }
    }
    if waiting.throttled_at != 0 {
        holes.push(Hole {
            from: waiting.throttled_at,
            until: waiting.now,
        });
    }
    holes
}

/// Who ran while `waiting` waited, back to when it was queued; what `walk` does in the kernel.
pub(super) fn walk_back(
    waiting: &Waiting,
    holes: &[Hole],
    runs: Option<&Runs>,
    add: &mut impl FnMut(Holder, u64),
) {
    let queued = waiting.queued_at;
    let mut upto = waiting.now.max(queued);
    let mask = RUNS - 1;
    if let Some(runs) = runs {
        let mut run = Run {
            by: runs.running,
            end: waiting.now,
            task_end: waiting.task_now,
        };
        let head = |ring: &Ring| usize::try_from(ring.head).unwrap_or_default() & mask;
        let near = &runs.near;
        let (newest, ring) = if near.runs[(head(near) + 1) & mask].end > queued {
            // Longer ago than that. The newest interval is not in there yet.
            (Some(near.runs[head(near)]), &runs.far)
        } else {
            (None, near)
        };
        let backwards = (0..RUNS - 1).map(|back| ring.runs[head(ring).wrapping_sub(back) & mask]);
        for before in newest.into_iter().chain(backwards) {
            if before.end == 0 || upto == queued {
                break;
            }
            let from = before.end.clamp(queued, upto);
            let held: u64 = holes.iter().map(|h| overlap(h, from, upto)).sum();
            let ran = (upto - from).saturating_sub(held);
            let whole = run.end.saturating_sub(before.end);
            let on_cpu = run.task_end.saturating_sub(before.task_end);
            let stolen = stolen(whole, on_cpu, ran);
            add(Holder::Quota, (upto - from) - ran);
            add(Holder::Kernel, stolen);
            add(Holder::from_kernel(run.by), ran - stolen);
            upto = from;
            run = before;
        }
    }
    add(Holder::Unattributed, upto - queued);
}

/// How much of the part `ran` of an interval interrupts and a hypervisor took, if they took evenly
/// of all of it.
fn stolen(whole: u64, on_cpu: u64, ran: u64) -> u64 {
    let stolen = u128::from(whole.saturating_sub(on_cpu));
    let part = (stolen * u128::from(ran)).checked_div(u128::from(whole));
    u64::try_from(part.unwrap_or_default())
        .unwrap_or(ran)
        .min(ran)
}

fn overlap(hole: &Hole, from: u64, until: u64) -> u64 {
    hole.until.min(until).saturating_sub(hole.from.max(from))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn runs(intervals: &[(u64, u64)], running: u64) -> Runs {
        let mut ring = [Run::default(); RUNS];
        for (i, (by, end)) in intervals.iter().enumerate() {
            ring[i] = Run {
                by: *by,
                end: *end,
                task_end: *end,
            };
        }
        let near = Ring {
            head: intervals.len() as u64 - 1,
            runs: ring,
        };
        Runs {
            running,
            tid: 0,
            generation: 0,
            epoch: 0,
            random: 0,
            stretch_ns: 0,
            near,
            far: near,
        }
    }

    #[track_caller]
    fn check(waiting: Waiting, holes: &[Hole], runs: &Runs, want: &[(Holder, u64)]) {
        let waiting = Waiting {
            task_now: waiting.now,
            ..waiting
        };
        let mut seen: BTreeMap<Holder, u64> = BTreeMap::new();
        walk_back(&waiting, holes, Some(runs), &mut |holder, ns| {
            *seen.entry(holder).or_default() += ns;
        });
        seen.retain(|_, ns| *ns != 0);
        assert_eq!(seen, want.iter().copied().collect());
        assert_eq!(seen.values().sum::<u64>(), waiting.now - waiting.queued_at);
    }

    #[test]
    fn a_wait_under_way_is_walked_back_to_where_it_began() {
        let ring = runs(&[(7, 100), (8, 200), (7, 300)], 9);
        let waiting = Waiting {
            queued_at: 150,
            now: 400,
            ..Waiting::default()
        };
        let behind = |id| Holder::Cgroup(id);
        check(
            waiting,
            &[],
            &ring,
            &[(behind(9), 100), (behind(7), 100), (behind(8), 50)],
        );
    }

    #[test]
    fn what_the_ring_has_forgotten_is_not_attributed() {
        let ring = runs(&[(7, 100), (8, 200)], 9);
        let waiting = Waiting {
            queued_at: 50,
            now: 250,
            ..Waiting::default()
        };
        check(
            waiting,
            &[],
            &ring,
            &[
                (Holder::Cgroup(9), 50),
                (Holder::Cgroup(8), 100),
                (Holder::Unattributed, 50),
            ],
        );
    }

    #[test]
    fn a_ring_that_has_moved_on_blames_who_ran_then() {
        let ring = runs(&[(7, 100), (8, 200), (7, 300)], 9);
        let waiting = Waiting {
            queued_at: 50,
            now: 180,
            ..Waiting::default()
        };
        check(
            waiting,
            &[],
            &ring,
            &[(Holder::Cgroup(8), 80), (Holder::Unattributed, 50)],
        );
    }

    #[test]
    fn a_throttled_group_waits_for_its_own_quota() {
        let ring = runs(&[(7, 100)], 9);
        let waiting = Waiting {
            queued_at: 150,
            now: 400,
            throttled_at: 250,
            ..Waiting::default()
        };
        check(
            waiting,
            &holes_of(&waiting, None),
            &ring,
            &[(Holder::Quota, 150), (Holder::Cgroup(9), 100)],
        );
    }

    #[test]
    fn a_wait_through_several_throttlings_waits_for_all_of_them() {
        let ring = runs(&[(7, 1000), (8, 2000)], 9);
        let waiting = Waiting {
            queued_at: 1100,
            now: 3000,
            throttled_at: 2900,
            throttled_ns: 650,
            ..Waiting::default()
        };
        let mut known = Throttled {
            seen_ns: 550,
            since: 2400,
            ..Throttled::default()
        };
        let hole = |from, until| Hole { from, until };
        (known.holes[0], known.holes[1]) = (hole(900, 1200), hole(1500, 1750));
        // 100 + 250 that are known, 100 that ended unseen, 100 under way.
        check(
            waiting,
            &holes_of(&waiting, Some(&known)),
            &ring,
            &[
                (Holder::Quota, 550),
                (Holder::Cgroup(8), 550),
                (Holder::Cgroup(9), 800),
            ],
        );
    }
}

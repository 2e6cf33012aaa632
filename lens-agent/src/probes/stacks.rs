//! What an object has seen at which stacks, taken out at each reading; so its tables hold what came
//! since the last one, and stacks that are still in use.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use aya::maps::{HashMap, MapData};
use lens_common::stacks::{FRAMES, Place, Seen, Stack};
use serde::{Deserialize, Serialize};

use super::{
    NamedSample, NamedStack, ProbeError,
    object::{Object, ObjectError, Plan},
    profile::PERIOD_NS,
};
use crate::base::text;

/// What was seen of one process at one place in its code and in the kernel's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackSample {
    /// The cgroup's id.
    pub cgroup: u64,
    /// The process.
    pub tgid: u32,
    /// By what its address space is known again: see [`Place::space`].
    pub space: u64,
    /// The process's name.
    pub comm: String,
    /// How often.
    pub samples: u64,
    /// Time, where it was measured.
    pub ns: u64,
    /// Return addresses in user code, the innermost first.
    pub user: Vec<u64>,
    /// The same in the kernel.
    pub kernel: Vec<u64>,
}

impl StackSample {
    /// The same of CPU time, with names.
    pub fn named(&self, cgroup: Arc<str>, stack: NamedStack) -> NamedSample {
        NamedSample {
            cgroup,
            tgid: self.tgid,
            comm: self.comm.as_str().into(),
            times: self.samples,
            ns: self.samples * PERIOD_NS,
            stack,
        }
    }
}

/// A [`Place`] and a [`Seen`] in words.
const PLACE: usize = size_of::<Place>() / 8;
const SEEN: usize = size_of::<Seen>() / 8;

/// The maps of one object.
#[derive(Debug)]
pub(super) struct Stacks {
    object: &'static str,
    seen: HashMap<MapData, [u64; PLACE], [u64; SEEN]>,
    frames: HashMap<MapData, u64, Stack>,
    /// Stacks that were of use since they were last looked through.
    used: BTreeSet<u64>,
    /// Stacks that were of none then. If they still are, they go; at first they may just have been made.
    unused: BTreeSet<u64>,
    /// Stacks that were taken out, where programs may still hold their keys.
    gone: Option<BTreeMap<u64, Vec<u64>>>,
}

/// Stacks that are remembered; when there are more, they are forgotten.
const REMEMBERED: usize = 1 << 16;

impl Stacks {
    /// Says where the programs find what they need.
    pub(super) fn plan(plan: &mut Plan<'_>) -> Result<(), ObjectError> {
        plan.offset("TASK_TGID", "task_struct", "tgid")?;
        plan.offset("TASK_LEADER", "task_struct", "group_leader")?;
        plan.offset("TASK_COMM", "task_struct", "comm")?;
        plan.offset("TASK_MM", "task_struct", "mm")?;
        plan.offset("MM_START_STACK", "mm_struct", "start_stack")?;
        plan.per_cpu("STACK_SCRATCH", 1);
        Ok(())
    }

    /// Takes the maps, before the programs are loaded.
    pub(super) fn of(object: &mut Object) -> Result<Self, ObjectError> {
        Ok(Self {
            object: object.name(),
            seen: object.take_map("SEEN")?,
            frames: object.take_map("STACKS")?,
            used: BTreeSet::new(),
            unused: BTreeSet::new(),
            gone: None,
        })
    }

    /// The same for programs that hold keys of stacks for longer than a reading, and that may take very
    /// many of them: stacks are taken out at each reading, and remembered here.
    pub(super) fn remembering(object: &mut Object) -> Result<Self, ObjectError> {
        Ok(Self {
            gone: Some(BTreeMap::new()),
            ..Self::of(object)?
        })
    }

    /// Takes out what was seen since the last time, the most frequent first, and stacks that are of no use
    /// any more.
    pub(super) fn take(&mut self) -> Result<Vec<StackSample>, ProbeError> {
        let found = self.take_seen()?;
        self.drop_unused();
        Ok(found)
    }

    /// The same, but all stacks stay.
    pub(super) fn take_seen(&mut self) -> Result<Vec<StackSample>, ProbeError> {
        let object = self.object;
        let wrong = |why: aya::maps::MapError| ProbeError::Read {
            probe: object,
            why: format!("stacks: {why}"),
        };
        self.take_stacks();
        let places: Vec<_> = self.seen.keys().collect::<Result<_, _>>().map_err(wrong)?;
        let mut found = Vec::new();
        for place in places {
            let Ok(seen) = self.seen.get(&place, 0) else {
                continue;
            };
            // What is seen between these two lines is lost: 99 times a second they would have to meet.
            let _ = self.seen.remove(&place);
            let [cgroup, tgid, space, user, kernel] = place;
            let [samples, ns, comm @ ..] = seen;
            self.used.extend([user, kernel]);
            found.push(StackSample {
                cgroup,
                tgid: u32::try_from(tgid).unwrap_or_default(),
                space,
                comm: text::clean_bytes(comm.map(u64::to_ne_bytes).as_flattened()),
                samples,
                ns,
                user: self.frames_of(user),
                kernel: self.frames_of(kernel),
            });
        }
        found.sort_by_key(|sample| std::cmp::Reverse((sample.ns, sample.samples)));
        Ok(found)
    }

    /// None of a stack that went just when it came back; the next sample brings it again.
    pub(super) fn frames_of(&self, stack: u64) -> Vec<u64> {
        if stack == 0 {
            return Vec::new();
        }
        if let Some(known) = self.gone.as_ref().and_then(|gone| gone.get(&stack)) {
            return known.clone();
        }
        let frames = self.frames.get(&stack, 0).unwrap_or([0; FRAMES]);
        frames.into_iter().take_while(|at| *at != 0).collect()
    }

    /// Where they are remembered, all of them.
    fn take_stacks(&mut self) {
        let Some(mut gone) = self.gone.take() else {
            return;
        };
        let kept: Vec<u64> = self.frames.keys().flatten().collect();
        for stack in kept {
            if gone.len() >= REMEMBERED {
                gone.clear();
            }
            gone.entry(stack).or_insert_with(|| self.frames_of(stack));
            // Whoever was there first. A key says all of its stack: whoever holds it still finds it here.
            let _ = self.frames.remove(&stack);
        }
        self.gone = Some(gone);
    }

    fn drop_unused(&mut self) {
        let used = std::mem::take(&mut self.used);
        let kept: Vec<u64> = self.frames.keys().flatten().collect();
        let mut unused = BTreeSet::new();
        for stack in kept.into_iter().filter(|stack| !used.contains(stack)) {
            if self.unused.contains(&stack) {
                // Whoever was there first.
                let _ = self.frames.remove(&stack);
            } else {
                unused.insert(stack);
            }
        }
        self.unused = unused;
    }
}

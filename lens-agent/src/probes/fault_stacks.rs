//! Where page faults come from: the reader of the faultstacks object, which the memory probe loads
//! when it is asked to.

use std::collections::BTreeSet;

use aya::maps::{HashMap, MapData};
use lens_common::memory::{FRAMES, Stack};
use serde::{Deserialize, Serialize};

use super::{
    ObjectError, ProbeError, Setup,
    object::{Losses, Object, Plan, bytes},
    targets::{Targets, cgroup_constants},
};
use crate::base::quality::Quality;

/// Sampled page faults of one process at one place in its code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultStack {
    /// The cgroup's id.
    pub cgroup: u64,
    /// The process.
    pub tgid: u32,
    /// Faults that were looked at.
    pub samples: u64,
    /// Return addresses, the innermost first.
    pub frames: Vec<u64>,
}

/// The object that takes stacks.
#[derive(Debug)]
pub(super) struct FaultStacks {
    object: Object,
    losses: Losses,
    /// By cgroup, process and stack.
    samples: HashMap<MapData, [u64; 3], u64>,
    frames: HashMap<MapData, u64, Stack>,
    /// What the reading before found to be of no use: a cgroup that is no target, a stack that no
    /// sample names. If it still is, it goes; at first it may just have been made.
    useless: BTreeSet<u64>,
    one_in: u32,
}

impl FaultStacks {
    /// Loads and attaches it.
    pub(super) fn start(setup: &Setup<'_>, one_in: u32) -> Result<Self, ObjectError> {
        // Twice the number fits.
        let one_in = one_in.min(1 << 20);
        let types = setup.types;
        let mut plan = Plan::new("faultstacks", bytes!("faultstacks"), types, setup.machine);
        cgroup_constants(&mut plan, types, setup.watched)?;
        plan.share("TARGETS", setup.pins);
        plan.offset("TASK_TGID", "task_struct", "tgid")?;
        plan.constant("SAMPLE_ONE_IN", one_in)
            .per_cpu("COUNTDOWN", 1);
        let mut object = plan.load()?;
        let wrong = |why: aya::maps::MapError| ObjectError::Load {
            object: "faultstacks",
            why: why.to_string(),
        };
        let samples = HashMap::try_from(object.take_map("SAMPLE")?).map_err(wrong)?;
        let frames = HashMap::try_from(object.take_map("STACK")?).map_err(wrong)?;
        object.attach("page_fault_user", types)?;
        Ok(Self {
            losses: Losses::of(&object)?,
            object,
            samples,
            frames,
            useless: BTreeSet::new(),
            one_in,
        })
    }

    /// What was sampled so far; the most frequent first.
    pub(super) fn read(
        &mut self,
        targets: &Targets,
        quality: &mut Quality,
    ) -> Result<Vec<FaultStack>, ProbeError> {
        let wrong = |why: aya::maps::MapError| ProbeError::Read {
            probe: "memory",
            why: format!("fault stacks: {why}"),
        };
        self.losses.tell(quality);
        quality
            .sampled
            .insert("memory.fault_stacks".to_owned(), u64::from(self.one_in));
        let mut found = Vec::new();
        let mut gone = Vec::new();
        let mut used = BTreeSet::new();
        let mut useless = BTreeSet::new();
        for sample in &self.samples {
            let (key, samples) = sample.map_err(wrong)?;
            let [cgroup, tgid, stack] = key;
            used.insert(stack);
            if !targets.live().contains_key(&cgroup) {
                useless.insert(cgroup);
                if self.useless.contains(&cgroup) {
                    gone.push(key);
                }
                continue;
            }
            // Without frames if it went just when it came back; the next sample brings it again.
            let frames = self.frames.get(&stack, 0).unwrap_or([0; FRAMES]);
            found.push(FaultStack {
                cgroup,
                tgid: u32::try_from(tgid).unwrap_or_default(),
                samples,
                frames: frames.into_iter().take_while(|at| *at != 0).collect(),
            });
        }
        for key in gone {
            // Whoever was there first.
            let _ = self.samples.remove(&key);
        }
        self.drop_unused(&used, &mut useless);
        self.useless = useless;
        found.sort_by_key(|stack| std::cmp::Reverse(stack.samples));
        Ok(found)
    }

    fn drop_unused(&mut self, used: &BTreeSet<u64>, useless: &mut BTreeSet<u64>) {
        let kept: Vec<u64> = self.frames.keys().flatten().collect();
        for stack in kept {
            if used.contains(&stack) {
                continue;
            }
            if self.useless.contains(&stack) {
                // Whoever was there first.
                let _ = self.frames.remove(&stack);
            } else {
                useless.insert(stack);
            }
        }
    }

    pub(super) fn object(&mut self) -> &mut Object {
        &mut self.object
    }
}

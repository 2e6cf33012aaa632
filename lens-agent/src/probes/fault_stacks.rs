//! Where page faults come from: the reader of the faultstacks object, which the memory probe loads
//! when it is asked to.

use aya::maps::{HashMap, MapData, StackTraceMap};
use lens_common::memory::FaultKey;
use serde::{Deserialize, Serialize};

use super::{
    ObjectError, ProbeError, Setup,
    object::{Losses, Object, Plan, ProgramCost, bytes},
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
    samples: HashMap<MapData, [u64; 2], u64>,
    frames: StackTraceMap<MapData>,
    one_in: u32,
}

impl FaultStacks {
    /// Loads and attaches it.
    pub(super) fn start(setup: &Setup<'_>, one_in: u32) -> Result<Self, ObjectError> {
        // Twice the number fits.
        let one_in = one_in.min(1 << 20);
        let types = setup.types;
        let mut plan = Plan::new("faultstacks", bytes!("faultstacks"), types, setup.cpus);
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
        let frames = StackTraceMap::try_from(object.take_map("STACK")?).map_err(wrong)?;
        object.attach("page_fault_user", types)?;
        Ok(Self {
            losses: Losses::of(&object)?,
            object,
            samples,
            frames,
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
        for (map, n) in self.losses.all() {
            quality.lost.insert(map, n);
        }
        quality
            .sampled
            .insert("memory.fault_stacks".to_owned(), u64::from(self.one_in));
        let mut found = Vec::new();
        let mut gone = Vec::new();
        for sample in &self.samples {
            let (key, samples) = sample.map_err(wrong)?;
            let of = FaultKey::from_words(key);
            if !targets.live().contains_key(&of.cgroup) {
                gone.push(key);
                continue;
            }
            let Ok(stack) = self.frames.get(&of.stack, 0) else {
                continue;
            };
            found.push(FaultStack {
                cgroup: of.cgroup,
                tgid: of.tgid,
                samples,
                frames: stack.frames().iter().map(|frame| frame.ip).collect(),
            });
        }
        for key in gone {
            // Whoever was there first.
            let _ = self.samples.remove(&key);
        }
        found.sort_by_key(|stack| std::cmp::Reverse(stack.samples));
        Ok(found)
    }

    /// What its program has cost so far.
    pub(super) fn costs(&self) -> Vec<ProgramCost> {
        self.object.costs()
    }
}

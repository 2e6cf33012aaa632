//! From an incident to who did it, to whom, because of what.
//!
//! [`mechanisms`] propose explanations of a [`Case`], [`claim`] checks their statements against
//! what was counted, [`evidence`] weighs what holds, and [`offline`] puts the answer together.

mod actor;
pub mod agent_loop;
pub mod brief;
pub mod case;
pub mod category;
pub mod claim;
mod desk;
pub mod evidence;
pub mod insight;
pub mod mechanisms;
pub mod offline;
pub mod scene;
mod strategy;
mod triage;
mod words;

#[cfg(test)]
pub(crate) mod world;

pub use self::{
    case::Case, category::Category, insight::Insight, strategy::Strategy, triage::Triage,
};

//! From an incident to who did it, to whom, because of what.
//!
//! [`mechanisms`] propose explanations of a [`Case`], [`claim`] checks their statements against
//! what was counted, [`evidence`] weighs what holds, and [`offline`] puts the answer together.

pub mod case;
pub mod category;
pub mod claim;
pub mod evidence;
pub mod insight;
pub mod mechanisms;
pub mod offline;

pub use self::{case::Case, category::Category, insight::Insight};

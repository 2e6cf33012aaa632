//! Every task is a supervised child: it is restarted after a failure or a panic, within a budget
//! and with back-off; when the budget is used up, that costs this child alone.
//!
//! ```text
//! Supervisor "agent"
//!   child "store"            permanent: restarted however it ends
//!   group "investigations"   cancelling it cancels what is below it
//!     child "inv-17"         temporary: never restarted, leaves the tree when it ends
//! ```
//!
//! The tree is drawn by calling [`Supervisor::group`] and [`Supervisor::child`], and can be looked
//! at ([`Supervisor::tree`]). Time spans here are tokio's, so that paused time drives the tests;
//! the [`Clock`](crate::base::clock::Clock) gives the times that people read.

mod attempt;
mod budget;
mod child;
mod supervisor;
mod tree;

pub use budget::Budget;
pub use child::{Child, Policy, Spec};
pub use supervisor::{Stopped, Supervisor};
pub use tree::{Failure, Kind, Node, State};

#[cfg(test)]
mod tests;

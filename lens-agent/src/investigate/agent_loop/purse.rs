//! What one investigation may still take, shared by its coordinator and operators.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    base::clock::Clock,
    llm::{
        Reply, Tokens,
        budget::{Allowance, Budget, Refused},
    },
};

/// The purse.
#[derive(Debug)]
pub struct Purse {
    budget: Arc<Mutex<Budget>>,
    allowance: Mutex<Allowance>,
    clock: Arc<dyn Clock>,
}

impl Purse {
    /// Takes an investigation out of the budget, if it allows one.
    pub fn open(budget: Arc<Mutex<Budget>>, clock: Arc<dyn Clock>) -> Result<Self, Refused> {
        let allowance = lock(&budget).begin(clock.now())?;
        Ok(Self {
            budget,
            allowance: Mutex::new(allowance),
            clock,
        })
    }

    /// Whether the model may be asked once more; how long that may take.
    pub fn turn(&self) -> Result<std::time::Duration, Refused> {
        let now = self.clock.now();
        let mut allowance = lock(&self.allowance);
        lock(&self.budget).turn(&mut allowance, now)?;
        Ok(allowance.left(now))
    }

    /// Notes what a reply took.
    pub fn took(&self, reply: &Reply) {
        lock(&self.budget).took(&mut lock(&self.allowance), reply.tokens, reply.cost_usd);
    }

    /// What was taken so far.
    pub fn spent(&self) -> (Tokens, f64) {
        let allowance = lock(&self.allowance);
        (allowance.tokens(), allowance.usd())
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

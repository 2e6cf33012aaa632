//! A process of a test.

use std::process::Child;

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};

/// It is killed with this value.
#[derive(Debug)]
pub(crate) struct Process(pub(crate) Child);

impl Process {
    /// Ends it as systemd does, and says its exit code.
    pub(crate) fn stop(&mut self) -> Result<Option<i32>> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        Ok(self.0.wait()?.code())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//! `/proc/loadavg`: how many threads ran, wanted to run, or waited uninterruptibly.

use serde::{Deserialize, Serialize};

use super::{ReadError, Root};

/// `/proc/loadavg` (proc(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadAvg {
    /// Averaged over 1 minute.
    pub load1: f64,
    /// Averaged over 5 minutes.
    pub load5: f64,
    /// Averaged over 15 minutes.
    pub load15: f64,
    /// Threads that run or wait for a CPU at this moment.
    pub runnable: u64,
    /// Threads there are.
    pub threads: u64,
}

/// Reads it.
pub fn read(root: &Root, buffer: &mut Vec<u8>) -> Result<LoadAvg, ReadError> {
    let text = root.read("proc/loadavg", buffer)?;
    let line = text.first_line();
    let mut fields = line.fields();
    let (load1, load5, load15) = (
        fields.number("load1")?,
        fields.number("load5")?,
        fields.number("load15")?,
    );
    let tasks = fields.word("tasks")?;
    let (runnable, threads) = tasks
        .split_once('/')
        .and_then(|(runnable, threads)| Some((runnable.parse().ok()?, threads.parse().ok()?)))
        .ok_or_else(|| line.error("tasks", "`runnable/threads`", tasks))?;
    Ok(LoadAvg {
        load1,
        load5,
        load15,
        runnable,
        threads,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::text::tests::root_with;

    #[test]
    fn load_and_threads() {
        let (_dir, root) = root_with(&[("proc/loadavg", "0.05 1.14 2.09 1/83 6870\n")]);
        let load = read(&root, &mut Vec::new()).unwrap();
        assert_eq!(
            load,
            LoadAvg {
                load1: 0.05,
                load5: 1.14,
                load15: 2.09,
                runnable: 1,
                threads: 83
            }
        );
        let (_dir, root) = root_with(&[("proc/loadavg", "0.05 1.14 2.09 83 6870\n")]);
        let error = read(&root, &mut Vec::new()).unwrap_err().to_string();
        assert!(
            error.ends_with(":1: tasks: `83` is not `runnable/threads`"),
            "{error}"
        );
    }
}

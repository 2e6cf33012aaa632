//! Pressure stall information: how long tasks waited for a resource.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ReadError, Root, root::unless_gone, text::Fields};

/// One line of a pressure file (Documentation/accounting/psi.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// Share of the last 10 s, 0 to 100, as the kernel averages it.
    pub avg10_percent: f64,
    /// Microseconds of stall in all.
    pub total_us: u64,
}

/// One pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks that were not idle waited. For CPU: absent before Linux 5.13, and always 0 for
    /// the whole host.
    pub full: Option<Stall>,
}

/// Reads a pressure file; `None` where the kernel has none, or has it off.
pub fn read(
    root: &Root,
    path: impl AsRef<Path>,
    buffer: &mut Vec<u8>,
) -> Result<Option<Pressure>, ReadError> {
    let text = match unless_gone(root.read(path, buffer)) {
        Ok(Some(text)) => text,
        Ok(None) => return Ok(None),
        Err(error) if error.is_off() => return Ok(None),
        Err(error) => return Err(error),
    };
    let (mut some, mut full) = (None, None);
    for line in text.lines() {
        let mut fields = line.fields();
        match fields.word("key")? {
            "some" => some = Some(stall(&mut fields)?),
            "full" => full = Some(stall(&mut fields)?),
            _ => {}
        }
    }
    Ok(Some(Pressure {
        some: text.required("some", some)?,
        full,
    }))
}

fn stall(fields: &mut Fields<'_>) -> Result<Stall, ReadError> {
    let avg10_percent = fields.assigned("avg10")?;
    let total_us = fields.skip(2).assigned("total")?;
    Ok(Stall {
        avg10_percent,
        total_us,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::text::tests::root_with;

    #[test]
    fn some_and_full() {
        let text = "some avg10=0.36 avg60=0.11 avg300=0.11 total=2256786\n\
            full avg10=12.50 avg60=0.10 avg300=0.10 total=2090433\n";
        let (_dir, root) = root_with(&[("proc/pressure/io", text)]);
        let io = read(&root, "proc/pressure/io", &mut Vec::new())
            .unwrap()
            .unwrap();
        assert_eq!(io.some.total_us, 2_256_786);
        assert_eq!(
            io.full,
            Some(Stall {
                avg10_percent: 12.5,
                total_us: 2_090_433
            })
        );
        assert_eq!(
            read(&root, "proc/pressure/irq", &mut Vec::new()).unwrap(),
            None
        );
    }

    #[test]
    fn an_error_names_the_field() {
        let (_dir, root) = root_with(&[("p", "some avg10=0.00 avg60=0.00 avg300=0.00 total=x\n")]);
        let error = read(&root, "p", &mut Vec::new()).unwrap_err().to_string();
        assert!(
            error.ends_with("p:1: total: `total=x` is not a number"),
            "{error}"
        );
    }
}

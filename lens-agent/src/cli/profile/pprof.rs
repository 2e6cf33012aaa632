//! What `pprof` reads: the part of its `profile.proto` that is needed, with its field numbers.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use flate2::{Compression, write::GzEncoder};
use prost::Message as _;

use crate::probes::{Frame, NamedSample, ProfileKind, Profiled, profile::PERIOD_NS};

#[derive(Clone, PartialEq, prost::Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sample {
    /// The innermost first.
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
    #[prost(int64, tag = "3")]
    number: i64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
    #[prost(bool, tag = "7")]
    has_functions: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

/// Writes it, compressed.
pub(super) fn write(profiled: &Profiled, to: &mut impl Write) -> io::Result<()> {
    let mut gz = GzEncoder::new(to, Compression::default());
    gz.write_all(&profile(profiled).encode_to_vec())?;
    gz.finish()?;
    Ok(())
}

fn profile(profiled: &Profiled) -> Profile {
    let mut made = Making::default();
    // The first text is the empty one.
    made.text("");
    let (times, time) = match profiled.kind {
        ProfileKind::Cpu => ("samples", "cpu"),
        ProfileKind::OffCpu => ("sleeps", "off_cpu"),
    };
    let mut value = |kind: &str, unit: &str| ValueType {
        kind: made.text(kind),
        unit: made.text(unit),
    };
    let kinds = [value(times, "count"), value(time, "nanoseconds")];
    let sample = profiled.samples.iter().map(|s| made.sample(s)).collect();
    Profile {
        sample_type: kinds.to_vec(),
        sample,
        duration_nanos: i64::try_from(profiled.elapsed.as_nanos()).unwrap_or(i64::MAX),
        period_type: Some(kinds[1]),
        period: match profiled.kind {
            ProfileKind::Cpu => signed(PERIOD_NS),
            ProfileKind::OffCpu => 1,
        },
        ..made.profile
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A profile under way, and where in it things are.
#[derive(Default)]
struct Making {
    profile: Profile,
    texts: HashMap<String, i64>,
    mappings: HashMap<String, u64>,
    functions: HashMap<(i64, i64), u64>,
    locations: HashMap<(u64, u64, i64), u64>,
}

impl Making {
    fn text(&mut self, text: &str) -> i64 {
        if let Some(known) = self.texts.get(text) {
            return *known;
        }
        let table = &mut self.profile.string_table;
        let at = signed(table.len() as u64);
        table.push(text.to_owned());
        self.texts.insert(text.to_owned(), at);
        at
    }

    fn sample(&mut self, sample: &NamedSample) -> Sample {
        let frames = sample.stack.frames.iter().rev();
        let mut location_id: Vec<u64> = frames.map(|frame| self.location(frame)).collect();
        if sample.stack.truncated && !sample.stack.gone {
            location_id.push(self.location(&Frame {
                name: "[truncated]".into(),
                ..Frame::default()
            }));
        }
        let mut label = |key: &str, text: &str, number: u64| Label {
            key: self.text(key),
            text: self.text(text),
            number: signed(number),
        };
        Sample {
            location_id,
            value: vec![signed(sample.times), signed(sample.ns)],
            label: vec![
                label("cgroup", &sample.cgroup, 0),
                label("comm", &sample.comm, 0),
                label("pid", "", sample.tgid.into()),
            ],
        }
    }

    fn location(&mut self, frame: &Frame) -> u64 {
        let mapping_id = match (&frame.module, frame.kernel) {
            (Some(module), _) => self.mapping(module),
            (None, true) => self.mapping("[kernel]"),
            (None, false) => 0,
        };
        let name = self.text(&frame.name);
        let filename = self.text(frame.file.as_deref().unwrap_or_default());
        let next = self.profile.function.len() as u64 + 1;
        let function_id = *self.functions.entry((name, filename)).or_insert(next);
        if function_id == next {
            self.profile.function.push(Function {
                id: next,
                name,
                system_name: name,
                filename,
            });
        }
        let line = frame.line.map_or(0, i64::from);
        let next = self.profile.location.len() as u64 + 1;
        let key = (mapping_id, function_id, line);
        let id = *self.locations.entry(key).or_insert(next);
        if id == next {
            self.profile.location.push(Location {
                id,
                mapping_id,
                line: vec![Line { function_id, line }],
            });
        }
        id
    }

    fn mapping(&mut self, module: &str) -> u64 {
        if let Some(known) = self.mappings.get(module) {
            return *known;
        }
        let filename = self.text(module);
        let id = self.profile.mapping.len() as u64 + 1;
        self.profile.mapping.push(Mapping {
            id,
            filename,
            has_functions: true,
        });
        self.mappings.insert(module.to_owned(), id);
        id
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::cli::profile::flame::tests::profiled;

    #[test]
    fn what_is_written_can_be_read_again() {
        let mut bytes = Vec::new();
        write(&profiled(), &mut bytes).unwrap();
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&bytes[..])
            .read_to_end(&mut plain)
            .unwrap();
        let read = Profile::decode(&plain[..]).unwrap();
        let text = |at: i64| &*read.string_table[usize::try_from(at).unwrap()];
        assert_eq!(text(0), "");
        assert_eq!(text(read.sample_type[1].unit), "nanoseconds");
        assert_eq!(read.sample[0].value, [30, 300_000_000]);
        let names: Vec<_> = read.sample[1]
            .location_id
            .iter()
            .map(|id| {
                let location = read.location.iter().find(|l| l.id == *id).unwrap();
                let function = location.line[0].function_id;
                text(
                    read.function
                        .iter()
                        .find(|f| f.id == function)
                        .unwrap()
                        .name,
                )
            })
            .collect();
        assert_eq!(names, ["lost", "[truncated]"], "the innermost first");
        assert_eq!(read.mapping.len(), 2, "the program, and the kernel");
        let cgroup = read.sample[0].label[0];
        assert_eq!((text(cgroup.key), text(cgroup.text)), ("cgroup", "/shop"));
    }
}

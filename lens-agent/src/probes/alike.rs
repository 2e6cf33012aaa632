//! Names like one that is not there.

/// Names that are suggested.
const SUGGESTED: usize = 5;

/// How an error goes on that says that a name is not there, among so many.
pub(super) fn suggestion(near: &[String], all: usize) -> String {
    if all == 0 {
        return "; it names no functions at all (it is stripped)".to_owned();
    }
    if near.is_empty() {
        return format!(", among {all} that it names");
    }
    format!("; did you mean {}?", near.join(", "))
}

/// Names like `name`: those that hold all its parts, then those that differ by a few letters.
pub(super) fn near(name: &str, names: &[&str]) -> Vec<String> {
    let parts: Vec<String> = name
        .split("::")
        .map(|part| part.trim_matches(|c: char| !c.is_alphanumeric() && c != '_'))
        .filter(|part| part.len() > 2)
        .map(str::to_lowercase)
        .collect();
    let mut ranked: Vec<(usize, &str)> = names
        .iter()
        .filter_map(|candidate| {
            let lower = candidate.to_lowercase();
            if !parts.is_empty() && parts.iter().all(|part| lower.contains(part.as_str())) {
                return Some((candidate.len(), *candidate));
            }
            let few = name.len() / 3;
            let distance = distance(name, candidate, few)?;
            Some((distance, *candidate))
        })
        .collect();
    ranked.sort_unstable();
    ranked.dedup();
    let named = ranked.into_iter().take(SUGGESTED);
    named
        .map(|(_, candidate)| format!("`{candidate}`"))
        .collect()
}

/// How many letters must be changed, put in or left out to make one of the other; `None` above
/// `most`.
fn distance(a: &str, b: &str, most: usize) -> Option<usize> {
    if a.len().abs_diff(b.len()) > most {
        return None;
    }
    let b: Vec<u8> = b.bytes().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().filter(|d| *d <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_inside_mangled_ones() {
        let names = [
            "_ZN4shop4cart3addEv",
            "_ZN4shop4cart6removeEv",
            "handle_request",
            "main",
        ];
        assert_eq!(near("shop::cart::add", &names), ["`_ZN4shop4cart3addEv`"]);
        assert_eq!(near("handle_requst", &names), ["`handle_request`"]);
        assert_eq!(near("Handle", &names), ["`handle_request`"]);
        assert!(near("nothing_alike_at_all", &names).is_empty());
    }
}

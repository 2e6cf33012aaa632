//! A model's own words may say only what claims that hold say: every number and every cgroup in
//! them must occur there.

use super::claim::Claim;
use crate::base::{snapshot::By, text::clean_text};

/// A number may be rounded: this much off is the same.
const ROUNDED: f64 = 0.06;

/// The longest text that is kept, in characters.
const LONGEST: usize = 600;
/// Shorter last parts of a path are words like others.
const NAME: usize = 3;

/// `text` without hostile characters, if every number and every cgroup in it occurs in `claims`.
/// `known` are the paths of all cgroups: of one that no claim names, the last part counts too.
pub(super) fn borne_out(text: &str, claims: &[Claim], known: &[&str]) -> Option<String> {
    let text = clean_text(text, LONGEST);
    let claimed: Vec<f64> = claims.iter().flat_map(numbers_of).collect();
    let names: Vec<String> = claims.iter().flat_map(names_of).collect();
    let bare = without_names(&text, &names);
    let stranger = |path: &&str| {
        let last = path.rsplit('/').next().unwrap_or_default();
        last.len() >= NAME && !names.iter().any(|n| n == path) && has_word(&bare, last)
    };
    let holds = paths(&text).all(|path| names.iter().any(|n| n == path))
        && !known.iter().any(stranger)
        && numbers(&bare)?
            .iter()
            .all(|n| claimed.iter().any(|c| is_same(*n, *c)));
    holds.then_some(text)
}

fn numbers_of(claim: &Claim) -> Vec<f64> {
    let mut found = numbers(&claim.text).unwrap_or_default();
    for evidence in &claim.evidence {
        found.extend([evidence.seen, evidence.value]);
    }
    found
}

fn names_of(claim: &Claim) -> Vec<String> {
    let mut names = Vec::new();
    for evidence in &claim.evidence {
        names.push(evidence.scope.to_string());
        if let Some(By::Cgroup(path)) = &evidence.by {
            names.push(path.to_string());
        }
    }
    names
}

/// Digits in a cgroup's name are no number.
fn without_names(text: &str, names: &[String]) -> String {
    let mut names: Vec<&String> = names.iter().filter(|n| n.len() > 1).collect();
    names.sort_by_key(|n| std::cmp::Reverse(n.len()));
    names.into_iter().fold(text.to_owned(), |text, name| {
        text.replace(name.as_str(), " ")
    })
}

/// Numbers in `text`; thousands may be separated by commas. `None` if something is written with
/// digits and is no number that can be read.
fn numbers(text: &str) -> Option<Vec<f64>> {
    let is_part = |c: char| c.is_numeric() || c == '.' || c == ',';
    text.split(|c| !is_part(c))
        .map(|word| word.trim_matches(['.', ',']))
        .filter(|word| !word.is_empty())
        .map(|word| word.replace(',', "").parse().ok())
        .collect()
}

/// Paths in `text`: what begins with a slash that stands behind no letter or digit, so that `ms/s`
/// is none.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    let is_end = |c: char| c.is_whitespace() || "\"'`()[]{}<>,;*=".contains(c);
    text.match_indices('/').filter_map(move |(at, _)| {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || "/-_.".contains(c)) {
            return None;
        }
        let rest = &text[at..];
        let path = &rest[..rest.find(is_end).unwrap_or(rest.len())];
        let path = path.trim_end_matches(['.', ':', '!', '?', '/']);
        (path.len() > 1).then_some(path)
    })
}

/// Whether `word` stands in `text`, and not as a part of another word.
fn has_word(text: &str, word: &str) -> bool {
    let is_inner = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_inner) && !after.is_some_and(is_inner)
    })
}

/// The same number, rounded, or in the larger unit: seconds for milliseconds, MiB for bytes.
fn is_same(said: f64, claimed: f64) -> bool {
    let near = |a: f64, b: f64| (a - b).abs() <= ROUNDED * b.abs();
    [1.0, 1e3, 1_048_576.0]
        .iter()
        .any(|unit| near(said, claimed / unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{scope::Scope, snapshot::SnapshotId},
        investigate::claim::{Evidence, Kind, Relation},
    };

    fn claims() -> Vec<Claim> {
        let scope = Scope::cgroup("/shop/cart-7f3a");
        let evidence = Evidence {
            snapshot: SnapshotId::new(1, "scheduler", &scope),
            scope,
            metric: "runq_wait_ms_per_sec".to_owned(),
            by: Some("/batch".into()),
            relation: Relation::More,
            value: 9.0,
            seen: 412.3,
            holds: true,
        };
        let text = "/shop/cart-7f3a waited 412 ms/s (usual: under 9); 71 % of it behind /batch.";
        vec![Claim {
            kind: Kind::Pair,
            text: text.to_owned(),
            evidence: vec![evidence],
        }]
    }

    #[test]
    fn only_claimed_numbers_and_names_pass() {
        let known = ["/shop/cart-7f3a", "/batch", "/innocent", "/shop/redis"];
        let check = |text: &str| borne_out(text, &claims(), &known).is_some();
        assert!(check(
            "/shop/cart-7f3a waits 412 ms/s because /batch holds the CPU."
        ));
        assert!(check(
            "/shop/cart-7f3a waits 0.41 s each second, 71% of it behind /batch."
        ));
        assert!(
            !check("/shop/cart-7f3a waits 900 ms/s because of /batch."),
            "a number"
        );
        assert!(
            !check("/shop/cart-7f3a waits because of /innocent."),
            "a name"
        );
        for hidden in [
            "cgroup=/innocent does it.",
            "**/innocent** does it.",
            "redis does it.",
            "It waits ９００ ms/s.",
            "It waits 9.9.9 ms/s.",
        ] {
            assert!(!check(hidden), "{hidden}");
        }
        assert!(check("It waits for a CPU."), "nothing to bear out");
    }

    #[test]
    fn what_a_terminal_would_obey_goes() {
        let said = borne_out("It waits.\u{1b}]a;x\u{7}", &claims(), &[]).unwrap();
        assert_eq!(said, "It waits.?]a;x?");
        let long = borne_out(&"a ".repeat(10_000), &claims(), &[]).unwrap();
        assert_eq!(long.chars().count(), LONGEST);
    }
}

//! Which cgroups were asked for.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// A pattern that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{glob}` is no cgroup pattern: {why}; `*` matches within a segment of the path, `**` across segments"
)]
pub struct GlobError {
    glob: String,
    why: String,
}

/// Patterns over whole cgroup paths: `*` within a segment, `**` across. None matches everything.
#[derive(Clone, Debug, Default)]
pub struct Globs {
    set: GlobSet,
    patterns: Vec<String>,
}

impl Globs {
    /// Compiles the patterns.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, GlobError> {
        let mut set = GlobSetBuilder::new();
        let mut kept = Vec::new();
        for glob in patterns.iter().map(AsRef::as_ref) {
            let error = |why: String| GlobError {
                glob: glob.to_owned(),
                why,
            };
            if !glob.starts_with('/') && !glob.starts_with("**") {
                return Err(error("a cgroup path begins with `/`".to_owned()));
            }
            let compiled = GlobBuilder::new(glob).literal_separator(true).build();
            set.add(compiled.map_err(|why| error(why.kind().to_string()))?);
            kept.push(glob.to_owned());
        }
        let set = set.build().map_err(|why| GlobError {
            glob: why.glob().unwrap_or_default().to_owned(),
            why: why.kind().to_string(),
        })?;
        Ok(Self {
            set,
            patterns: kept,
        })
    }

    /// Whether nothing was asked for in particular.
    pub fn is_everything(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether the cgroup at `path` was asked for.
    pub fn matches(&self, path: &str) -> bool {
        self.is_everything() || self.set.is_match(path)
    }

    /// Whether any cgroup made right below `path` is asked for, whatever its name.
    pub fn matches_children_of(&self, path: &str) -> bool {
        // A name that no pattern spells out.
        self.matches(&format!("{}/\u{1}", path.trim_end_matches('/')))
    }

    /// The patterns that match none of `paths`.
    pub fn unmatched<S: AsRef<str>>(&self, paths: impl Iterator<Item = S>) -> Vec<String> {
        let mut matched = vec![false; self.patterns.len()];
        for path in paths {
            for i in self.set.matches(path.as_ref()) {
                matched[i] = true;
            }
        }
        self.patterns
            .iter()
            .zip(matched)
            .filter(|(_, m)| !m)
            .map(|(p, _)| p.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_within_a_segment() {
        let globs = Globs::new(&["/shop/*"]).unwrap();
        assert!(globs.matches("/shop/cart"));
        assert!(!globs.matches("/shop"));
        assert!(!globs.matches("/shop/cart/web"));
        assert!(globs.matches_children_of("/shop"));
        assert!(!globs.matches_children_of("/shop/cart"));
        let globs = Globs::new(&["/shop/**"]).unwrap();
        assert!(globs.matches("/shop/cart/web") && globs.matches_children_of("/shop/cart"));
    }

    #[test]
    fn no_pattern_is_everything_and_a_bad_one_is_an_error() {
        let none: [&str; 0] = [];
        assert!(Globs::new(&none).unwrap().matches("/"));
        assert!(
            Globs::new(&["/a["])
                .unwrap_err()
                .to_string()
                .contains("`/a[`")
        );
        assert!(
            Globs::new(&["shop"])
                .unwrap_err()
                .to_string()
                .contains("begins with `/`")
        );
    }

    #[test]
    fn patterns_that_match_nothing_are_named() {
        let globs = Globs::new(&["/a", "/b/*"]).unwrap();
        assert_eq!(globs.unmatched(["/a", "/c"].into_iter()), ["/b/*"]);
    }
}

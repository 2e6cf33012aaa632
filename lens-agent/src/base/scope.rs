//! Where a number belongs.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The host, or one cgroup by its path in the hierarchy that lens watches (`/` is the root cgroup).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// The whole machine.
    Host,
    /// One cgroup.
    Cgroup(Arc<str>),
}

impl Scope {
    /// The scope of the cgroup at `path`, which begins with `/`.
    pub fn cgroup(path: impl Into<Arc<str>>) -> Self {
        Self::Cgroup(path.into())
    }

    /// The cgroup's path, if it is one.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Host => None,
            Self::Cgroup(path) => Some(path),
        }
    }

    /// `host`, or the path.
    pub fn as_str(&self) -> &str {
        self.path().unwrap_or("host")
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A scope that is neither `host` nor a path.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no scope: say `host`, or a cgroup path that begins with `/`")]
pub struct ScopeError(String);

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "host" => Ok(Self::Host),
            path if path.starts_with('/') => Ok(Self::cgroup(path)),
            other => Err(ScopeError(other.to_owned())),
        }
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// One metric in one scope over time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SeriesKey {
    /// Where.
    pub scope: Scope,
    /// The metric's name.
    pub metric: Arc<str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_cgroup_is_not_the_host() {
        assert_eq!("host".parse::<Scope>().unwrap(), Scope::Host);
        assert_eq!("/".parse::<Scope>().unwrap(), Scope::cgroup("/"));
        assert!("shop".parse::<Scope>().is_err());
        assert_eq!(
            serde_json::to_string(&Scope::cgroup("/a/b")).unwrap(),
            "\"/a/b\""
        );
    }
}

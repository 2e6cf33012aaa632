//! What deploy/ holds: the image, the manifests, the unit and the settings, each checked by those
//! who will read it. Needs root, and the binary that `cargo xtask build` builds.

#[cfg(test)]
mod container;
#[cfg(test)]
mod image;
#[cfg(test)]
mod manifest;
#[cfg(test)]
mod network;
#[cfg(test)]
mod pod;
#[cfg(test)]
mod settings;
#[cfg(test)]
mod tools;
#[cfg(test)]
mod unit;

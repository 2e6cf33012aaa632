//! What the built binary does for somebody who isn't root, and what its server answers.

#[cfg(test)]
mod aimock;
#[cfg(test)]
mod command_line;
#[cfg(test)]
mod door;
#[cfg(test)]
mod found;
#[cfg(test)]
mod metrics;

//! Who ran meanwhile.

//! Names from the kernel are hostile: cleaned here, once, at the edge.

/// The longest name that is kept, in characters.
pub const MAX_NAME: usize = 256;

/// `raw` without control, zero-width and direction-changing characters, at most [`MAX_NAME`] long.
pub fn clean(raw: &str) -> String {
    clean_text(raw, MAX_NAME)
}

/// The same for a text of at most `longest` characters.
pub fn clean_text(raw: &str, longest: usize) -> String {
    raw.chars()
        .map(|c| if is_hostile(c) { '?' } else { c })
        .take(longest)
        .collect()
}

/// The same for bytes up to the first NUL, as the kernel keeps `comm`.
pub fn clean_bytes(raw: &[u8]) -> String {
    let end = raw.iter().position(|b| *b == 0).unwrap_or(raw.len());
    clean(&String::from_utf8_lossy(&raw[..end]))
}

fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_direction_characters_go() {
        assert_eq!(clean("a\u{1b}[31mb\nc\u{202e}d"), "a?[31mb?c?d");
        assert_eq!(clean_bytes(b"nginx\0junk"), "nginx");
        assert_eq!(clean(&"x".repeat(1000)).len(), MAX_NAME);
    }
}

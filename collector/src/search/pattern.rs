//! Wildcards: `*` stands for any text, `?` for one character; case does not matter.
//!
//! Linear in the text for each part between two stars that has no `?`, and never worse than the text's length times the
//! part's; both are bounded.

/// Characters of a pattern.
pub const PATTERN_CHARS_MAX: usize = 1_024;
/// Bytes of a text that are looked at. Recorders keep no argument list that is longer.
pub const TEXT_BYTES_MAX: usize = 64 << 10;

/// Signs that are meant as such lie here while a query is read, each by its code: of Unicode's private use.
const LITERALS: std::ops::Range<u32> = 0xe100..0xe180;
/// Stands before a `-` that begins a value.
pub(super) const AGO: char = '\u{e003}';
/// Stands for one character within a part.
const ANY: char = '\u{e002}';

/// A pattern that texts are held against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// What lies between the stars, in lowercase. One: the whole text.
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    text: String,
    has_any: bool,
}

impl Pattern {
    /// Of a text with wildcards.
    pub fn with_wildcards(text: &str) -> Self {
        let part = |part: &str| {
            let has_any = part.contains('?');
            let part = part.replace('?', &ANY.to_string());
            Part { text: lowercase(&literal(&part)), has_any }
        };
        let mut parts: Vec<Part> = text.split('*').map(part).collect();
        // Several stars are as one: of what lies between, the first and the last say where the text begins and ends.
        let last = parts.len() - 1;
        let mut at = 0;
        parts.retain(|part| {
            at += 1;
            at == 1 || at == last + 1 || !part.text.is_empty()
        });
        Self { parts }
    }

    /// The text and no other.
    pub fn exactly(text: &str) -> Self {
        Self { parts: vec![Part { text: lowercase(&literal(text)), has_any: false }] }
    }

    /// The text, whatever is before and after it.
    pub fn containing(text: &str) -> Self {
        let empty = || Part { text: String::new(), has_any: false };
        let part = Part { text: lowercase(&literal(text)), has_any: false };
        Self { parts: vec![empty(), part, empty()] }
    }

    /// The same, with more after it.
    pub(super) fn and_more(mut self) -> Self {
        if self.parts.last().is_some_and(|last| !last.text.is_empty()) {
            self.parts.push(Part { text: String::new(), has_any: false });
        }
        self
    }

    /// Whether the text fits.
    pub fn fits(&self, text: &str) -> bool {
        let text = lowercase(cut(text));
        let [first, between @ .., last] = self.parts.as_slice() else {
            return self.parts.first().is_some_and(|whole| whole.begins(&text) == Some(text.len()));
        };
        let Some(mut at) = first.begins(&text) else { return false };
        for part in between {
            let Some(end) = part.first_end_in(&text[at..]) else { return false };
            at += end;
        }
        last.ends(&text[at..])
    }
}

impl Part {
    /// Where it ends in a text that begins with it.
    fn begins(&self, text: &str) -> Option<usize> {
        if !self.has_any {
            return text.starts_with(&self.text).then_some(self.text.len());
        }
        let mut there = text.chars();
        let fits = self.text.chars().all(|wanted| there.next().is_some_and(|c| wanted == ANY || wanted == c));
        fits.then(|| text.len() - there.as_str().len())
    }

    /// Where it first ends in a text.
    fn first_end_in(&self, text: &str) -> Option<usize> {
        if !self.has_any {
            return text.find(&self.text).map(|at| at + self.text.len());
        }
        text.char_indices().find_map(|(at, _)| self.begins(&text[at..]).map(|end| at + end))
    }

    fn ends(&self, text: &str) -> bool {
        if !self.has_any {
            return text.ends_with(&self.text);
        }
        let chars = self.text.chars().count();
        let beginning = text.char_indices().rev().nth(chars - 1).map(|(at, _)| at);
        beginning.is_some_and(|at| self.begins(&text[at..]) == Some(text.len() - at))
    }
}

/// A sign of ASCII that is meant as such, in the text that the grammar reads.
pub(super) fn as_literal(sign: char) -> char {
    char::from_u32(LITERALS.start + u32::from(sign)).filter(|_| sign.is_ascii()).unwrap_or(sign)
}

/// What stands for a sign that is meant as such becomes that sign.
pub(super) fn meant(c: char) -> Option<char> {
    let code = u32::from(c);
    LITERALS.contains(&code).then(|| char::from_u32(code - LITERALS.start))?
}

/// The text that is meant: what was written to be no wildcard is none.
pub(super) fn literal(text: &str) -> String {
    text.chars().filter(|c| *c != AGO).map(|c| meant(c).unwrap_or(c)).collect()
}

/// Whether the text, as it was read in a query, has wildcards.
pub(super) fn has_wildcards(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// Character by character: what ends a word does not change it, as it would by the rules for Greek.
fn lowercase(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).collect()
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_fit_or_do_not() {
        for (pattern, fitting, others) in [
            ("winscp.exe", &["winscp.exe", "WinSCP.EXE"][..], &["winscp", "xwinscp.exe", "winscp.exe "][..]),
            ("win*", &["win", "WINSCP"], &["awin", ""]),
            ("*scp*", &["scp", "winscp.exe"], &["sc", ""]),
            ("a*b*c", &["abc", "a1b2c", "abcbc"], &["ab", "acb", "cba"]),
            ("a**b", &["ab", "axxb"], &["a", "ba"]),
            ("ab*ba", &["abba", "ab ba"], &["aba", "ab"]),
            ("?at", &["cat", "HAT", "éat"], &["at", "chat"]),
            ("*?", &["a", "ab"], &[""]),
            ("*a?c*", &["xabcx", "a0c"], &["ac", "abb"]),
            ("x*?y", &["xay", "xaay"], &["xy"]),
            ("*", &["", "anything"], &[]),
            ("", &[""], &["a"]),
        ] {
            let compiled = Pattern::with_wildcards(pattern);
            for text in fitting {
                assert!(compiled.fits(text), "{pattern} fits {text}");
            }
            for text in others {
                assert!(!compiled.fits(text), "{pattern} does not fit {text}");
            }
        }
        assert!(Pattern::exactly("a*").fits("A*") && !Pattern::exactly("a*").fits("ab"));
        assert!(Pattern::containing("b?").fits("ab?c") && !Pattern::containing("b?").fits("abc"));
        assert!(
            Pattern::exactly("a b").and_more().fits("a bc")
                && !Pattern::exactly("a b").and_more().fits("xa b")
        );
        let star = format!("a{}*", as_literal('*'));
        assert!(Pattern::with_wildcards(&star).fits("a*b") && !Pattern::with_wildcards(&star).fits("ab"));
    }

    /// What a pattern means, by trying everything.
    fn plainly(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), _) => (0..=text.len()).any(|at| plainly(rest, &text[at..])),
            (Some(('?', pattern)), Some((_, text))) => plainly(pattern, text),
            (Some((wanted, pattern)), Some((c, text))) => wanted == c && plainly(pattern, text),
            _ => false,
        }
    }

    #[test]
    fn it_fits_what_trying_everything_does() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut some = |of: &[char], most: usize| -> Vec<char> {
            let count = random.usize(0..=most);
            std::iter::repeat_with(|| of[random.usize(..of.len())]).take(count).collect()
        };
        for _ in 0..50_000 {
            let (pattern, text) = (some(&['a', 'b', '*', '?'], 7), some(&['a', 'b', 'é'], 8));
            let compiled = Pattern::with_wildcards(&pattern.iter().collect::<String>());
            let shown: String = text.iter().collect();
            assert_eq!(compiled.fits(&shown), plainly(&pattern, &text), "{pattern:?} {shown}");
        }
    }
}

//! Commands typed by hand: words on a line, with quotes, as Redis splits them.

use super::request::Span;

/// Splits `line` into words, appending their unescaped bytes to `words` and their places to `spans`.
/// Returns false if a quote is not closed, or closed within a word.
///
/// `"…"` knows `\n \r \t \b \a \xHH` and any escaped byte; `'…'` knows `\'`.
pub(super) fn split(line: &[u8], words: &mut Vec<u8>, spans: &mut Vec<Span>) -> bool {
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return true;
        }
        let start = words.len();
        match word(rest, words) {
            Some(after) => rest = after,
            None => return false,
        }
        spans.push(Span::new(start, words.len() - start));
    }
}

/// Takes one word from the front of `rest`; returns what follows it, or nothing if its quotes are wrong.
fn word<'a>(mut rest: &'a [u8], words: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        match rest {
            [] => return Some(rest),
            [byte, ..] if byte.is_ascii_whitespace() || *byte == 0 => return Some(&rest[1..]),
            [b'"', after @ ..] => return closed(double_quoted(after, words)?),
            [b'\'', after @ ..] => return closed(single_quoted(after, words)?),
            [byte, after @ ..] => {
                words.push(*byte);
                rest = after;
            }
        }
    }
}

/// A closing quote ends the word: what follows must be a space or nothing.
fn closed(rest: &[u8]) -> Option<&[u8]> {
    rest.first().is_none_or(u8::is_ascii_whitespace).then_some(rest)
}

fn double_quoted<'a>(mut rest: &'a [u8], words: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        let (byte, after) = match rest {
            [] => return None,
            [b'"', after @ ..] => return Some(after),
            [b'\\', b'x', high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                (hex(*high) << 4 | hex(*low), after)
            }
            [b'\\', escaped, after @ ..] => (unescape(*escaped), after),
            [byte, after @ ..] => (*byte, after),
        };
        words.push(byte);
        rest = after;
    }
}

fn single_quoted<'a>(mut rest: &'a [u8], words: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        let (byte, after) = match rest {
            [] => return None,
            [b'\'', after @ ..] => return Some(after),
            [b'\\', b'\'', after @ ..] => (b'\'', after),
            [byte, after @ ..] => (*byte, after),
        };
        words.push(byte);
        rest = after;
    }
}

const fn unescape(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    }
}

const fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Option<Vec<String>> {
        let (mut bytes, mut spans) = (Vec::new(), Vec::new());
        let whole = split(line.as_bytes(), &mut bytes, &mut spans);
        let text = |span: &Span| String::from_utf8_lossy(span.of(&bytes)).into_owned();
        whole.then(|| spans.iter().map(text).collect())
    }

    #[test]
    fn words_are_split_at_spaces_and_quotes_protect_them() {
        assert_eq!(words("  set  k 'a b'\t\"c\\x41\\n\" ").unwrap(), ["set", "k", "a b", "cA\n"]);
        assert_eq!(words("'it\\'s' \"\"").unwrap(), ["it's", ""]);
        assert_eq!(words("").unwrap(), [""; 0]);
    }

    #[test]
    fn an_open_quote_or_one_closed_within_a_word_is_refused() {
        for line in ["\"a", "'a", "\"a\"b", "'a'b", "\"a\\"] {
            assert_eq!(words(line), None, "{line}");
        }
    }
}

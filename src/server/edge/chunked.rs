//! Reads a chunked body as it arrives (RFC 9112, section 7.1). Pure.

use super::framing::{LONGEST_HEAD, Refusal, refusal};

/// The longest line with the size of a chunk, its extensions included.
const LONGEST_SIZE: usize = 256;

const NO_CHUNK: Refusal = refusal(
    400,
    "a chunk begins with its size in hexadecimal digits, and lines end with CR LF",
);

/// The part of a chunked body that has arrived.
#[derive(Debug, Default)]
pub struct Chunked {
    body: Vec<u8>,
    next: Next,
    /// Bytes of the fields behind the last chunk, which are ignored.
    trailer: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Next {
    #[default]
    Size,
    /// This many bytes of a chunk.
    Data(usize),
    EndOfData,
    Trailer,
}

impl Chunked {
    /// The bytes of the body so far.
    pub fn len(&self) -> usize {
        self.body.len()
    }

    /// Takes the body's bytes out of the input. Returns the body once it is whole.
    pub fn take(
        &mut self,
        input: &mut Vec<u8>,
        longest: usize,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let mut at = 0;
        let whole = self.advance(input, &mut at, longest);
        input.drain(..at);
        Ok(whole?.then(|| std::mem::take(&mut self.body)))
    }

    /// True at the end.
    fn advance(&mut self, input: &[u8], at: &mut usize, longest: usize) -> Result<bool, Refusal> {
        loop {
            let rest = &input[*at..];
            match self.next {
                Next::Size => {
                    let Some(line) = line(rest, LONGEST_SIZE, NO_CHUNK)? else {
                        return Ok(false);
                    };
                    *at += line.len() + 2;
                    let size = size(line)?;
                    if size > longest - self.body.len() {
                        return Err(refusal(413, "the body is too large"));
                    }
                    self.next = match size {
                        0 => Next::Trailer,
                        size => Next::Data(size),
                    };
                }
                Next::Data(left) => {
                    let some = left.min(rest.len());
                    self.body.extend_from_slice(&rest[..some]);
                    *at += some;
                    if some < left {
                        self.next = Next::Data(left - some);
                        return Ok(false);
                    }
                    self.next = Next::EndOfData;
                }
                Next::EndOfData => match rest {
                    [b'\r', b'\n', ..] => {
                        *at += 2;
                        self.next = Next::Size;
                    }
                    [] | [b'\r'] => return Ok(false),
                    _ => return Err(NO_CHUNK),
                },
                Next::Trailer => {
                    let left = LONGEST_HEAD - self.trailer;
                    let too_long = refusal(431, "the trailer section is too long");
                    let Some(line) = line(rest, left, too_long)? else {
                        return Ok(false);
                    };
                    *at += line.len() + 2;
                    self.trailer = (self.trailer + line.len() + 2).min(LONGEST_HEAD);
                    if line.is_empty() {
                        return Ok(true);
                    }
                    // A trailer field, which is ignored.
                    if !line.contains(&b':') || line[0].is_ascii_whitespace() {
                        return Err(refusal(400, "a trailer is not a valid field"));
                    }
                }
            }
        }
    }
}

/// The next line without its end, once it is complete.
fn line(input: &[u8], longest: usize, too_long: Refusal) -> Result<Option<&[u8]>, Refusal> {
    let within = &input[..input.len().min(longest)];
    for (at, byte) in within.iter().enumerate() {
        match byte {
            b'\r' => {
                return match input.get(at + 1) {
                    Some(b'\n') => Ok(Some(&input[..at])),
                    Some(_) => Err(NO_CHUNK),
                    None => Ok(None),
                };
            }
            b'\t' | b' '..=b'~' | 0x80.. => {}
            _ => return Err(NO_CHUNK),
        }
    }
    match within.len() < longest {
        true => Ok(None),
        false => Err(too_long),
    }
}

/// The size of a chunk. Extensions behind a semicolon are ignored.
fn size(line: &[u8]) -> Result<usize, Refusal> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (digits, extensions) = line.split_at(digits);
    let has_end = extensions.is_empty() || extensions.trim_ascii_start().starts_with(b";");
    let text = std::str::from_utf8(digits).map_err(|_| NO_CHUNK)?;
    match digits.len() {
        1..=16 if has_end => usize::from_str_radix(text, 16).map_err(|_| NO_CHUNK),
        _ => Err(NO_CHUNK),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Option<String>, String), u16> {
        let mut input = text.as_bytes().to_vec();
        let body = Chunked::default()
            .take(&mut input, 100)
            .map_err(|refusal| refusal.status)?;
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ok((body.map(text), text(input)))
    }

    #[test]
    fn chunks_are_one_body_and_what_follows_is_left() {
        for (given, body, rest) in [
            ("0\r\n\r\n", "", ""),
            ("3\r\nabc\r\n0\r\n\r\nGET", "abc", "GET"),
            (
                "3;a=b\r\nabc\r\n2 ; x=\"y\"\r\nde\r\n00\r\nX: y\r\n\r\n",
                "abcde",
                "",
            ),
            (
                "00000000000000a\r\n0123456789\r\n0\r\n\r\n",
                "0123456789",
                "",
            ),
            ("4\r\n\r\n\r\n\r\n0\r\n\r\n", "\r\n\r\n", ""),
        ] {
            let whole = Ok((Some(body.to_owned()), rest.to_owned()));
            assert_eq!(read(given), whole, "{given:?}");
            // In pieces of one byte as well.
            let (mut chunked, mut input, mut got) = (Chunked::default(), Vec::new(), None);
            let mut bytes = given.bytes();
            while got.is_none() {
                input.push(bytes.next().unwrap());
                got = chunked.take(&mut input, 100).unwrap();
            }
            assert_eq!(got.unwrap(), body.as_bytes(), "{given:?}");
            assert_eq!(bytes.collect::<Vec<_>>(), rest.as_bytes(), "{given:?}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (given, status) in [
            ("\r\n", 400),
            ("x\r\n", 400),
            ("-1\r\n", 400),
            ("+1\r\na\r\n", 400),
            ("0x1\r\na\r\n", 400),
            (" 1\r\na\r\n", 400),
            ("1 a\r\na\r\n", 400),
            ("1\na\n0\n\n", 400),
            ("1\ra\r", 400),
            ("1;\n\r\na", 400),
            ("1\r\nab\r\n", 400),
            ("1\r\na\n0\r\n\r\n", 400),
            ("11111111111111111\r\n", 400),
            ("0\r\nno field\r\n\r\n", 400),
            ("0\r\n folded: x\r\n\r\n", 400),
            ("65\r\n", 413),
            ("ffffffffffffffff\r\n", 413),
        ] {
            assert_eq!(read(given), Err(status), "{given:?}");
        }
        assert_eq!(read(&format!("1;{}", "x".repeat(300))), Err(400));
        let trailer = "X: y\r\n".repeat(LONGEST_HEAD / 6 + 1);
        assert_eq!(read(&format!("0\r\n{trailer}\r\n")), Err(431));
    }
}

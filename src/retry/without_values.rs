//! The text of a statement without the values in it.

use super::tokens::{Token, Tokens, after_blanks};

/// Returns the text of a statement with `?` for each constant, without comments, and with one blank
/// for several: for people to read, and to tell whether two texts are the same statement. At most
/// `longest` bytes of it, and then an ellipsis. One in which nothing is left is shown as [`EMPTY`],
/// unless it was cut before.
pub(crate) fn without_values(sql: &str, longest: usize) -> String {
    let mut text = String::with_capacity(sql.len().min(longest + ELLIPSIS.len()));
    let mut tokens = Tokens(sql);
    loop {
        let before = tokens.0;
        let start = after_blanks(before);
        let Some(token) = tokens.next() else {
            return match text.is_empty() {
                true if sql.ends_with(ELLIPSIS) => ELLIPSIS.into(),
                true => EMPTY.into(),
                false => text,
            };
        };
        if start.len() < before.len() && !text.is_empty() {
            text.push(' ');
        }
        let whole = &start[..start.len() - tokens.0.len()];
        match token {
            // With `standard_conforming_strings` off, it may end elsewhere.
            Token::Literal(literal)
                if !literal.starts_with(['E', 'e', '$']) && literal.contains('\\') =>
            {
                text.push('?');
                text.push_str(ELLIPSIS);
                return text;
            }
            // The number of a parameter.
            Token::Literal(number)
                if text.ends_with('$') && number.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                text.push_str(number);
            }
            // A number with a fraction is several tokens.
            Token::Literal(_) if text.ends_with("?.") => {
                text.pop();
            }
            Token::Literal(_) => text.push('?'),
            Token::Word(_) | Token::Quoted(_) | Token::Sign(_) => text.push_str(whole),
        }
        if text.len() > longest {
            let end = (0..=longest).rev().find(|at| text.is_char_boundary(*at));
            text.truncate(end.unwrap_or_default());
            text.push_str(ELLIPSIS);
            return text;
        }
    }
}

const ELLIPSIS: &str = "…";
/// Programs send such texts to see whether the server answers.
const EMPTY: &str = "(empty)";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn constants_and_comments_are_left_out() {
        for (sql, expected) in [
            ("", "(empty)"),
            (" /* secret */ -- secret", "(empty)"),
            ("/* long, and cut…", "…"),
            ("SELECT a FROM b…", "SELECT a FROM b…"),
            ("SELECT 'a…", "SELECT ?"),
            ("SELECT 1", "SELECT ?"),
            ("  SELECT  a,\n\t$1 -- who\n FROM t", "SELECT a, $1 FROM t"),
            (
                "SELECT 'it''s', E'a\\'b', $$x$$, $t$y$t$",
                "SELECT ?, ?, ?, ?",
            ),
            ("SELECT \"a 1\", b1 FROM t2", "SELECT \"a 1\", b1 FROM t2"),
            ("/* secret */ UPDATE t SET a=-1.5e3", "UPDATE t SET a=-?"),
            ("SELECT $12::int + 3", "SELECT $12::int + ?"),
            ("SELECT 'not ended", "SELECT ?"),
            ("SELECT 'a\\', secret, '", "SELECT ?…"),
            ("SELECT N'a\\', secret, '", "SELECT ?…"),
            ("SELECT e'a\\', hidden', b", "SELECT ?, b"),
            ("SELECT $E'secret'", "SELECT $?"),
            ("SELECT $1$$secret$$", "SELECT $1?"),
            ("SELECT 1$$a secret b$$, c", "SELECT ??, c"),
            ("SELECT é FROM größe", "SELECT é FROM größe"),
        ] {
            assert_eq!(without_values(sql, 100), expected, "{sql}");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(without_values("SELECT ééé", 8), "SELECT …");
        assert_eq!(without_values("SELECT ééé", 9), "SELECT é…");
    }

    proptest! {
        #[test]
        fn whatever_the_text_no_string_shows(before in "[a-z ,()$0-9-]{0,20}", after in "[^']{0,20}") {
            let sql = format!("{before} 'hunter2' {after}");
            // What looks like a comment before it hides it, too.
            prop_assert!(!without_values(&sql, 1000).contains("hunter2"));
        }

        #[test]
        fn any_text_is_taken(sql in any::<String>(), longest in 0..50_usize) {
            let most = (longest + 2 * ELLIPSIS.len()).max(EMPTY.len());
            prop_assert!(without_values(&sql, longest).len() <= most);
        }
    }
}

//! `$(NAME)` in commands, arguments and environment values.
//!
//! A reference to a name that is known becomes its value; an unknown one stays as it is, so that a typo shows up in the
//! container; `$$` is a literal `$` (the way to write a reference that must not be expanded). The source of the rule is
//! the Kubernetes documentation on dependent environment variables.

/// Expands `text` with `lookup`.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            // Neither a reference nor an escape: the dollar stands for itself, with what follows it.
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn table() {
        let lookup = |name: &str| match name {
            "A" => Some("a".to_string()),
            "EMPTY" => Some(String::new()),
            "REF" => Some("$(A)".to_string()),
            _ => None,
        };
        for (text, expect) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "a"),
            ("x$(A)y$(A)", "xaya"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$a"),
            ("$$$$(A)", "$$(A)"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("$", "$"),
            ("$$", "$"),
            ("$(EMPTY)", ""),
            ("$(REF)", "$(A)"),
            ("$()", "$()"),
            ("é$(A)é", "éaé"),
        ] {
            assert_eq!(expand(text, lookup), expect, "{text}");
        }
    }
}

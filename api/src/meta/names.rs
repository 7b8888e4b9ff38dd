//! The rules for names: DNS labels, subdomains, qualified names, label values, environment names and the like.
//!
//! Each rule returns the complaints (empty = valid) in the words that clients of Kubernetes know. Sources: RFC 1123,
//! RFC 1035 and the Kubernetes API conventions on names.

const DNS1123_LABEL_MAX: usize = 63;
const DNS1123_SUBDOMAIN_MAX: usize = 253;
const QUALIFIED_NAME_MAX: usize = 63;
const LABEL_VALUE_MAX: usize = 63;

const DNS1123_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS1123_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS1123_SUBDOMAIN_UNDERSCORE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
const DNS1035_LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const WILDCARD_SUBDOMAIN: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED_NAME: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const ENV_VAR: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";
const CONFIG_MAP_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const C_IDENTIFIER: &str = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";

/// Names of objects are told their limit in characters ...
fn too_long(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// ... keys and values of labels in bytes.
fn too_many_bytes(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn lower_alnum(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn ends_ok(text: &str, edge: fn(u8) -> bool, inner: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => edge(*first) && edge(*last) && bytes.iter().all(|c| edge(*c) || inner(*c)),
        _ => false,
    }
}

fn is_label(text: &str) -> bool {
    ends_ok(text, lower_alnum, |c| c == b'-')
}

/// An RFC 1123 label: at most 63 of `a-z0-9-`.
pub fn dns1123_label(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > DNS1123_LABEL_MAX {
        errs.push(too_long(DNS1123_LABEL_MAX));
    }
    if !is_label(value) {
        // What would do as a subdomain only has a dot too many: say just that.
        errs.push(if is_subdomain(value) { "must not contain dots".into() } else { DNS1123_LABEL.into() });
    }
    errs
}

fn is_subdomain(value: &str) -> bool {
    !value.is_empty() && value.split('.').all(is_label)
}

/// An RFC 1123 subdomain: labels joined by dots, at most 253.
pub fn dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        errs.push(too_long(DNS1123_SUBDOMAIN_MAX));
    }
    if !is_subdomain(value) {
        errs.push(DNS1123_SUBDOMAIN.into());
    }
    errs
}

/// As [`dns1123_subdomain`], and `_` inside labels.
pub fn dns1123_subdomain_with_underscore(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        errs.push(too_long(DNS1123_SUBDOMAIN_MAX));
    }
    let ok = !value.is_empty() && value.split('.').all(|l| ends_ok(l, lower_alnum, |c| c == b'-' || c == b'_'));
    if !ok {
        errs.push(DNS1123_SUBDOMAIN_UNDERSCORE.into());
    }
    errs
}

/// An RFC 1035 label: as RFC 1123's, beginning with a letter.
pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > DNS1123_LABEL_MAX {
        errs.push(too_long(DNS1123_LABEL_MAX));
    }
    if !(is_label(value) && value.as_bytes()[0].is_ascii_lowercase()) {
        errs.push(DNS1035_LABEL.into());
    }
    errs
}

/// `*.` and a subdomain.
pub fn wildcard_dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        errs.push(too_long(DNS1123_SUBDOMAIN_MAX));
    }
    if !value.strip_prefix("*.").is_some_and(is_subdomain) {
        errs.push(WILDCARD_SUBDOMAIN.into());
    }
    errs
}

fn is_qualified_part(value: &str) -> bool {
    ends_ok(value, |c| c.is_ascii_alphanumeric(), |c| matches!(c, b'-' | b'_' | b'.'))
}

/// `[prefix/]name`, the form of label and annotation keys.
pub fn qualified_name(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                errs.push("prefix part must be non-empty".into());
            } else {
                errs.extend(dns1123_subdomain(prefix).into_iter().map(|e| format!("prefix part {e}")));
            }
            *name
        }
        _ => {
            errs.push(format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                QUALIFIED_NAME
            ));
            return errs;
        }
    };
    if name.is_empty() {
        errs.push("name part must be non-empty".into());
    } else if name.len() > QUALIFIED_NAME_MAX {
        errs.push(format!("name part {}", too_many_bytes(QUALIFIED_NAME_MAX)));
    }
    if !is_qualified_part(name) {
        errs.push(format!("name part {QUALIFIED_NAME}"));
    }
    errs
}

/// A label's value: empty, or at most 63 of `A-Za-z0-9-_.` with alphanumeric ends.
pub fn label_value(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > LABEL_VALUE_MAX {
        errs.push(too_many_bytes(LABEL_VALUE_MAX));
    }
    if !value.is_empty() && !is_qualified_part(value) {
        errs.push(LABEL_VALUE.into());
    }
    errs
}

/// The name of an environment variable: printable ASCII without `=`.
pub fn env_var_name(value: &str) -> Vec<String> {
    let ok = !value.is_empty() && value.bytes().all(|c| (0x20..=0x7e).contains(&c) && c != b'=');
    if ok { Vec::new() } else { vec![ENV_VAR.into()] }
}

/// A key of a ConfigMap or a Secret, which may become a file name.
pub fn config_map_key(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        errs.push(too_long(DNS1123_SUBDOMAIN_MAX));
    }
    if value.is_empty() || !value.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.')) {
        errs.push(CONFIG_MAP_KEY.into());
    }
    match value {
        "." => errs.push("must not be '.'".into()),
        ".." => errs.push("must not be '..'".into()),
        _ if value.starts_with("..") => errs.push("must not start with '..'".into()),
        _ => {}
    }
    errs
}

pub fn c_identifier(value: &str) -> Vec<String> {
    let ok = value.bytes().next().is_some_and(|c| c.is_ascii_alphabetic() || c == b'_')
        && value.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    if ok { Vec::new() } else { vec![C_IDENTIFIER.into()] }
}

/// A port's name (RFC 6335 with Kubernetes' limits): at most 15 of `a-z0-9-`, at least one letter.
pub fn port_name(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > 15 {
        errs.push("must be no more than 15 characters".to_string());
    }
    if !value.bytes().all(|c| lower_alnum(c) || c == b'-') {
        errs.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !value.bytes().any(|c| c.is_ascii_lowercase()) {
        errs.push("must contain at least one letter (a-z)".into());
    }
    if value.contains("--") {
        errs.push("must not contain consecutive hyphens".into());
    }
    if value.starts_with('-') || value.ends_with('-') {
        errs.push("must not begin or end with a hyphen".into());
    }
    errs
}

/// A port's number.
pub fn port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) { Vec::new() } else { vec!["must be between 1 and 65535, inclusive".into()] }
}

/// What may follow a slash in a path: not `.`, `..`, and neither `/` nor `%` inside.
pub fn path_segment(value: &str) -> Vec<String> {
    match value {
        "." | ".." => vec![format!("may not be '{value}'")],
        _ => ["/", "%"].iter().filter(|c| value.contains(**c)).map(|c| format!("may not contain '{c}'")).collect(),
    }
}

/// For `generateName`: a suffix completes what may end with a dash here.
pub fn mask_trailing_dash(value: &str) -> String {
    match value.strip_suffix('-') {
        Some(stem) if !stem.is_empty() => {
            let mut masked: String = stem.to_string();
            masked.pop();
            masked.push('a');
            masked
        }
        _ => value.to_string(),
    }
}

/// A header of HTTP.
pub fn http_header_name(value: &str) -> Vec<String> {
    let ok = !value.is_empty() && value.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
    if ok {
        return Vec::new();
    }
    vec!["a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')".into()]
}

/// A domain, a slash, a path: who a controller is.
pub fn domain_prefixed_path(value: &str) -> Vec<String> {
    let Some((domain, path)) = value.split_once('/').filter(|(d, p)| !d.is_empty() && !p.is_empty()) else {
        return vec!["must be a domain-prefixed path (such as \"acme.io/foo\")".into()];
    };
    let mut errs = dns1123_subdomain(domain);
    let segment = |c: u8| c.is_ascii_alphanumeric() || b"/:@%_.~!$&'()*+,;=-".contains(&c);
    if !path.bytes().all(segment) {
        errs.push("Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')".into());
    }
    errs
}

/// An IP address of either family, in its one proper form.
pub fn ip(value: &str) -> Vec<String> {
    if value.parse::<std::net::IpAddr>().is_ok() {
        return Vec::new();
    }
    vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()]
}

/// An address and a prefix length.
pub fn cidr(value: &str) -> Vec<String> {
    let ok = value.split_once('/').is_some_and(|(address, bits)| {
        let max = match address.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V4(_)) => 32,
            Ok(std::net::IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        bits.bytes().all(|c| c.is_ascii_digit()) && bits.parse::<u8>().is_ok_and(|b| b <= max)
    });
    if ok { Vec::new() } else { vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".into()] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let check = |rule: fn(&str) -> Vec<String>, value: &str, ok: bool| {
            assert_eq!(rule(value).is_empty(), ok, "{value:?}: {:?}", rule(value));
        };
        for (value, ok) in [("a", true), ("a-b", true), ("", false), ("-a", false), ("A", false), ("a.b", false)] {
            check(dns1123_label, value, ok);
        }
        for (value, ok) in [("a.b", true), ("a..b", false), ("", false), (".a", false)] {
            check(dns1123_subdomain, value, ok);
        }
        for (value, ok) in [("a", true), ("1a", false), ("", false)] {
            check(dns1035_label, value, ok);
        }
        for (value, ok) in [("a/b", true), ("/b", false), ("a/", false), ("a/b/c", false), ("A_b.c", true)] {
            check(qualified_name, value, ok);
        }
        for (value, ok) in [("", true), ("x_Y.z", true), ("-x", false)] {
            check(label_value, value, ok);
        }
        for (value, ok) in [("http", true), ("80", false), ("a--b", false), ("waytoolongportname", false)] {
            check(port_name, value, ok);
        }
        for (value, ok) in [("A", true), ("a=b", false), ("", false), ("a b", true)] {
            check(env_var_name, value, ok);
        }
    }
}

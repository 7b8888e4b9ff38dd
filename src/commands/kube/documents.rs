//! Files of objects, each document with its file and line, so that whatever is wrong with it can be told where it stands.
//!
//! Everything is read before anything is sent: a file that does not parse leaves the cluster as it was.

use super::locate::line_of;
use anyhow::{Context as _, bail};
use serde_json::Value;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// A document of a file.
#[derive(Clone, Debug)]
pub struct Document {
    /// The file's path; `stdin` for `-`.
    pub file: String,
    /// The line of the file, from 1, on which `text` begins.
    pub line: usize,
    pub text: String,
    pub value: Value,
}

impl Document {
    /// `file:line` of a field (`spec.template.spec.containers[0].image`), or of the document when the field is not in it.
    pub fn place(&self, field: &str) -> String {
        let offset = line_of(&self.text, field).unwrap_or_else(|| first_line(&self.text));
        format!("{}:{}", self.file, self.line + offset)
    }
}

/// The first line that says something, from 0.
fn first_line(text: &str) -> usize {
    text.lines().position(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#')).unwrap_or(0)
}

/// Reads files, folders (their .yaml, .yml and .json files, in order of name) and `-`. All that is wrong is told at once.
pub fn read_all(paths: &[PathBuf], recursive: bool) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    let mut wrong = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("reading stdin")?;
            take(parse("stdin", &text), &mut documents, &mut wrong);
            continue;
        }
        for file in files(path, recursive)? {
            let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            take(parse(&file.display().to_string(), &text), &mut documents, &mut wrong);
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    if documents.is_empty() {
        bail!("no objects found in {}", paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "));
    }
    Ok(documents)
}

fn take(parsed: Result<Vec<Document>, Vec<String>>, documents: &mut Vec<Document>, wrong: &mut Vec<String>) {
    match parsed {
        Ok(found) => documents.extend(found),
        Err(errors) => wrong.extend(errors),
    }
}

/// The files that a path means.
fn files(path: &Path, recursive: bool) -> anyhow::Result<Vec<PathBuf>> {
    let about = || format!("the path {:?} cannot be read", path.display().to_string());
    if !std::fs::metadata(path).with_context(about)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(path).with_context(about)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        let is_ours = entry.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if entry.is_dir() {
            if recursive {
                found.extend(files(&entry, true)?);
            }
        } else if is_ours {
            found.push(entry);
        }
    }
    Ok(found)
}

/// The documents of a text; the items of a `List` are documents of their own. Empty documents are left out.
fn parse(file: &str, text: &str) -> Result<Vec<Document>, Vec<String>> {
    let (mut found, mut wrong) = (Vec::new(), Vec::new());
    for (line, part) in split(text) {
        let options = serde_yaml::options! { legacy_octal_numbers: true, with_snippet: false };
        if part.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) {
            continue;
        }
        match serde_yaml::from_str_with_options::<Value>(&part, options) {
            Ok(Value::Null) => {}
            Ok(value) if value["kind"] == "List" && value["items"].is_array() => {
                for item in value["items"].as_array().into_iter().flatten() {
                    found.push(Document { file: file.into(), line, text: part.clone(), value: item.clone() });
                }
            }
            Ok(value) if value.is_object() => found.push(Document { file: file.into(), line, text: part, value }),
            Ok(_) => wrong
                .push(format!("{file}:{}: an object was expected, with apiVersion and kind", line + first_line(&part))),
            Err(error) => {
                let at = error.location().map_or(0, |l| (l.line() as usize).saturating_sub(1));
                wrong.push(format!("{file}:{}: {}", line + at, without_place(&error.to_string())));
            }
        }
    }
    if wrong.is_empty() { Ok(found) } else { Err(wrong) }
}

/// Documents between lines of `---`, with the line (from 1) on which each begins.
fn split(text: &str) -> Vec<(usize, String)> {
    let mut parts = vec![(1, String::new())];
    for (index, line) in text.lines().enumerate() {
        let is_mark = line == "---" || line.starts_with("--- ") || line.starts_with("---\t");
        if is_mark {
            parts.push((index + 2, String::new()));
        } else if let Some((_, part)) = parts.last_mut() {
            part.push_str(line);
            part.push('\n');
        }
    }
    parts
}

/// A parser's message without its own line numbers, which count from the document and not from the file.
fn without_place(message: &str) -> String {
    let first = message.lines().next().unwrap_or_default();
    let cut = first.find(" at line ").unwrap_or(first.len());
    let text = first[..cut].trim_end_matches(':');
    match text.strip_prefix("error: ").unwrap_or(text).split_once(": ") {
        Some((place, rest)) if place.starts_with("line ") => rest.to_owned(),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_know_their_lines() {
        let text = "# first\napiVersion: v1\nkind: ConfigMap\n---\n# nothing\n---\nkind: List\nitems:\n- kind: A\n- kind: B\n---\n\nkind: C\nspec:\n  x: 1\n";
        let found = parse("f.yaml", text).unwrap();
        let kinds: Vec<_> = found.iter().map(|d| d.value["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["ConfigMap", "A", "B", "C"]);
        assert_eq!(found[0].place(""), "f.yaml:2");
        assert_eq!(found[3].place(""), "f.yaml:13");
        assert_eq!(found[3].place("spec.x"), "f.yaml:15");
    }

    /// A file from somebody else may be made to grow when it is read.
    #[test]
    fn a_file_that_grows_is_refused() {
        let mut laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_string();
        for n in 1..12 {
            laughs.push_str(&format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(",")));
        }
        for text in [laughs, "[".repeat(500_000), "- ".repeat(500_000)] {
            let began = std::time::Instant::now();
            assert!(parse("f.yaml", &text).is_err(), "{}", &text[..40]);
            assert!(began.elapsed() < std::time::Duration::from_secs(5));
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let check = |text: &str, expect: &[&str]| {
            let errors = parse("f.yaml", text).unwrap_err();
            assert_eq!(errors.len(), expect.len(), "{errors:?}");
            for (error, start) in errors.iter().zip(expect) {
                assert!(error.starts_with(start), "{error} does not begin with {start}");
            }
        };
        check("kind: A\n---\nkind: B\nkind: C\n", &["f.yaml:4: "]);
        check("just words\n", &["f.yaml:1: an object was expected"]);
        check("a: [1\n---\nb: {\n", &["f.yaml:", "f.yaml:"]);
        check("a: 1\n b: 2\n", &["f.yaml:2: "]);
    }
}

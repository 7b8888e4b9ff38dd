//! A session as a script.
//!
//! ```text
//! # a comment
//! > conf.yaml          a file, until a line that is a dot; it may be run when it begins with #!
//! data: {}
//! .
//! $ get pods           must succeed and say each of the lines below, on its output or beside it
//! < input              a line of the command's input
//! web-1
//! - web-2              must not be said
//! $! get pod nobody    must fail
//! $7 exec web -- x     must end with this code
//! $~ get pods          is tried again until it succeeds and says so
//! ```

use crate::kubectl::Kubectl;
use crate::local::{text, wait_until};
use anyhow::{Context as _, bail, ensure};
use std::os::unix::fs::PermissionsExt as _;

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Well,
    Refused,
    Code(i32),
    Eventually,
}

struct Step<'s> {
    end: End,
    line: &'s str,
    input: String,
    said: Vec<&'s str>,
    unsaid: Vec<&'s str>,
}

/// Plays a whole script.
pub fn play(k: &Kubectl, script: &str) -> anyhow::Result<()> {
    let mut lines = script.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("> ") {
            let content: Vec<_> = lines.by_ref().take_while(|line| *line != ".").collect();
            if let Some(folder) = k.local.dir.join(name).parent() {
                std::fs::create_dir_all(folder)?;
            }
            let path = k.local.file(name, content.join("\n") + "\n")?;
            if content.first().is_some_and(|first| first.starts_with("#!")) {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
            }
        } else if let Some(command) = line.strip_prefix('$') {
            let mut step = Step::parse(command)?;
            while let Some(line) = lines.next_if(|line| !line.starts_with(['$', '>', '#'])) {
                match (line.strip_prefix("< "), line.strip_prefix("- ")) {
                    _ if line.is_empty() => {}
                    (Some(input), _) => step.input += &format!("{input}\n"),
                    (_, Some(unsaid)) => step.unsaid.push(unsaid),
                    _ => step.said.push(line),
                }
            }
            step.play(k).with_context(|| format!("kubectl {}", step.line))?;
        } else {
            ensure!(line.is_empty() || line.starts_with('#'), "a line that is none of a script: {line}");
        }
    }
    Ok(())
}

impl<'s> Step<'s> {
    fn parse(command: &'s str) -> anyhow::Result<Step<'s>> {
        let (mode, line) = command.split_once(' ').context("a command behind the $")?;
        let end = match mode {
            "" => End::Well,
            "!" => End::Refused,
            "~" => End::Eventually,
            code => End::Code(code.parse().with_context(|| format!("the mode {code:?}"))?),
        };
        Ok(Step { end, line, input: String::new(), said: Vec::new(), unsaid: Vec::new() })
    }

    fn play(&self, k: &Kubectl) -> anyhow::Result<()> {
        if self.end != End::Eventually {
            return self.once(k);
        }
        let mut last = None;
        let waited = wait_until("it says what it should", || {
            last = self.once(k).err();
            Ok(last.is_none())
        });
        match (waited, last) {
            (Err(waited), Some(last)) => Err(last.context(waited)),
            (waited, _) => waited,
        }
    }

    fn once(&self, k: &Kubectl) -> anyhow::Result<()> {
        let output = k.output(self.line, &self.input)?;
        let said = text(&output.stdout) + &text(&output.stderr);
        let code = output.status.code();
        let ended = match self.end {
            End::Well | End::Eventually => code == Some(0),
            End::Refused => code.is_some_and(|code| code != 0),
            End::Code(wanted) => code == Some(wanted),
        };
        ensure!(ended, "it ended with {code:?}, and said:\n{said}");
        if let Some(part) = self.said.iter().find(|part| !said.contains(**part)) {
            bail!("it does not say {part:?}:\n{said}");
        }
        if let Some(part) = self.unsaid.iter().find(|part| said.contains(**part)) {
            bail!("it says {part:?}:\n{said}");
        }
        Ok(())
    }
}

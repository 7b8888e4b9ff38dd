//! Clients that we did not write: the kubectls of this machine, against a cluster of real processes.

use crate::local::{Local, PATIENCE, text, wait_until};
use anyhow::{Context as _, ensure};
use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

/// The kubectls of this machine, the oldest first: what `SKIFF_KUBECTL` names (paths with `:` between), else the one in the `PATH`. A run that must be
/// complete fails without one.
pub fn all() -> Vec<String> {
    let found: Vec<String> = match std::env::var("SKIFF_KUBECTL") {
        Ok(paths) => paths.split(':').filter(|path| !path.is_empty()).map(str::to_owned).collect(),
        Err(_) => vec!["kubectl".to_owned()],
    };
    let works = |path: &String| {
        Command::new(path).args(["version", "--client"]).output().is_ok_and(|output| output.status.success())
    };
    let found: Vec<String> = found.into_iter().filter(works).collect();
    if found.is_empty() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "no kubectl; name one by SKIFF_KUBECTL");
        eprintln!("without kubectl: name one by SKIFF_KUBECTL");
    }
    found
}

/// A kubectl, the cluster and the namespace that it works in.
pub struct Kubectl<'l> {
    pub local: &'l Local,
    program: String,
    namespace: String,
}

/// A client's process; killed when dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Waits until the client ends by itself; its exit code.
    pub fn code(mut self) -> anyhow::Result<Option<i32>> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status.code());
            }
            ensure!(begun.elapsed() < PATIENCE, "the client does not end");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// The words of a command line. Single quotes hold a word with blanks together.
pub fn words(line: &str) -> Vec<String> {
    let (mut words, mut quoted, mut word) = (Vec::new(), false, None::<String>);
    for letter in line.chars() {
        match letter {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' | '\n' if !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

impl<'l> Kubectl<'l> {
    /// The newest kubectl that is here, in a namespace that need not be there yet.
    pub fn newest(local: &'l Local, namespace: &str) -> anyhow::Result<Kubectl<'l>> {
        Ok(Kubectl::of(local, &all().pop().context("there is no kubectl")?, namespace))
    }

    /// This kubectl.
    pub fn of(local: &'l Local, program: &str, namespace: &str) -> Kubectl<'l> {
        Kubectl { local, program: program.to_owned(), namespace: namespace.to_owned() }
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.env("KUBECONFIG", self.local.dir.join("kubeconfig")).current_dir(&self.local.dir);
        // A scenario writes this script before it edits.
        command.env("KUBE_EDITOR", self.local.dir.join("editor"));
        command.args(["--namespace", &self.namespace]).args(words(line)).stdin(Stdio::null());
        command
    }

    /// Runs a command line, with an input; whatever becomes of it.
    pub fn output(&self, line: &str, input: &str) -> anyhow::Result<Output> {
        let mut command = self.command(line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting kubectl {line}"))?;
        let mut stdin = child.stdin.take().context("an input")?;
        let input = input.to_owned();
        // A command that reads no input closes it.
        let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output()?;
        let _ = writer.join();
        Ok(output)
    }

    /// Runs a command line that must succeed; its output.
    pub fn run(&self, line: &str) -> anyhow::Result<String> {
        self.pipe(line, "")
    }

    /// The same with an input.
    pub fn pipe(&self, line: &str, input: &str) -> anyhow::Result<String> {
        let output = self.output(line, input)?;
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        ensure!(output.status.success(), "kubectl {line}: {}\n{out}{err}", output.status);
        Ok(out)
    }

    /// Runs a command line that must succeed and say all of this, on its output or beside it.
    pub fn says(&self, line: &str, expect: &[&str]) -> anyhow::Result<String> {
        let output = self.output(line, "")?;
        let said = text(&output.stdout) + &text(&output.stderr);
        ensure!(output.status.success(), "kubectl {line}: {}\n{said}", output.status);
        for part in expect {
            ensure!(said.contains(part), "kubectl {line} does not say {part:?}:\n{said}");
        }
        Ok(said)
    }

    /// Runs a command line that must fail and say all of this.
    pub fn refused(&self, line: &str, expect: &[&str]) -> anyhow::Result<String> {
        let output = self.output(line, "")?;
        let said = text(&output.stdout) + &text(&output.stderr);
        ensure!(!output.status.success(), "kubectl {line} should fail, but said:\n{said}");
        for part in expect {
            ensure!(said.contains(part), "kubectl {line} is refused, but does not say {part:?}:\n{said}");
        }
        Ok(said)
    }

    /// Looks until a command succeeds and says what it should; what it said.
    pub fn until(&self, line: &str, good: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let mut last = String::new();
        let waited = wait_until(&format!("kubectl {line} says what it should"), || {
            let output = self.output(line, "")?;
            last = text(&output.stdout) + &text(&output.stderr);
            Ok(output.status.success() && good(&last))
        });
        waited.with_context(|| format!("it says:\n{last}"))?;
        Ok(last)
    }

    /// Starts a command that goes on.
    pub fn spawn(&self, line: &str) -> anyhow::Result<Running> {
        let mut command = self.command(line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Running(command.spawn().with_context(|| format!("starting kubectl {line}"))?))
    }
}

//! Tokens stand in no process's arguments: every user of a machine may read those (`ps`), while an environment is its owner's.
//!
//! A server or an agent that was started with a token on its command line begins itself again, with the token in its environment; the process
//! stays the same one for whoever started it. The environment is emptied of it once it was read, so that no child gets it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;

/// The options that hold a secret, and the variables that may hold it as well. Several of one are joined by commas.
pub const TOKEN: (&str, &str) = ("--token", "SKIFF_TOKEN");
pub const BOOTSTRAP_TOKENS: (&str, &str) = ("--bootstrap-token", "SKIFF_BOOTSTRAP_TOKENS");

/// Begins this process again if its arguments hold a secret. Call it while there is one thread.
///
/// # Errors
/// The program could not be run again.
pub fn leave_the_arguments() -> std::io::Result<()> {
    let Some((arguments, secrets)) = apart(std::env::args_os().skip(1)) else { return Ok(()) };
    let mut again = std::process::Command::new(std::env::current_exe()?);
    Err(again.args(arguments).envs(secrets).exec())
}

/// Forgets the secrets in the environment; what they were is in the options by now. Call it while there is one thread.
pub fn leave_the_environment() {
    for (_, variable) in [TOKEN, BOOTSTRAP_TOKENS] {
        // SAFETY: nobody else reads or writes the environment: there is no other thread yet.
        unsafe { std::env::remove_var(variable) };
    }
}

type Apart = (Vec<OsString>, Vec<(&'static str, OsString)>);

/// Arguments without secrets, and the secrets by variable; None where there is nothing to hide.
fn apart(arguments: impl Iterator<Item = OsString>) -> Option<Apart> {
    let mut arguments = arguments.peekable();
    if !arguments.peek().is_some_and(|verb| verb == "server" || verb == "agent") {
        return None;
    }
    let (mut rest, mut secrets) = (Vec::new(), Vec::<(&'static str, OsString)>::new());
    while let Some(argument) = arguments.next() {
        let found = [TOKEN, BOOTSTRAP_TOKENS].into_iter().find_map(|(option, variable)| {
            let behind = argument.as_bytes().strip_prefix(option.as_bytes())?;
            match behind.strip_prefix(b"=") {
                Some(value) => Some((variable, Some(OsStr::from_bytes(value).to_owned()))),
                None => behind.is_empty().then_some((variable, None)),
            }
        });
        let Some((variable, value)) = found else {
            rest.push(argument);
            continue;
        };
        let Some(value) = value.or_else(|| arguments.next()) else {
            // The option alone: the command line says what is missing.
            rest.push(argument);
            continue;
        };
        match secrets.iter_mut().find(|(known, _)| *known == variable) {
            Some((_, values)) => {
                values.push(",");
                values.push(&value);
            }
            None => secrets.push((variable, value)),
        }
    }
    (!secrets.is_empty()).then_some((rest, secrets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_told_from_the_rest() {
        let check = |line: &str, expect: Option<(&str, &str)>| {
            let told = apart(line.split(' ').map(OsString::from)).map(|(rest, secrets)| {
                let text = |t: &OsString| t.to_string_lossy().into_owned();
                let secrets: Vec<_> =
                    secrets.iter().map(|(variable, value)| format!("{variable}:{}", text(value))).collect();
                (rest.iter().map(text).collect::<Vec<_>>().join(" "), secrets.join(" "))
            });
            assert_eq!(told.as_ref().map(|(a, b)| (a.as_str(), b.as_str())), expect, "{line}");
        };
        check("server --name s1", None);
        check("agent --server a:1 --token Kx", Some(("agent --server a:1", "SKIFF_TOKEN:Kx")));
        check("agent --token=Kx --server a:1", Some(("agent --server a:1", "SKIFF_TOKEN:Kx")));
        check(
            "server --bootstrap-token a --bootstrap-token=b --token c",
            Some(("server", "SKIFF_BOOTSTRAP_TOKENS:a,b SKIFF_TOKEN:c")),
        );
        check("server --token-auth-file f", None);
        check("agent --token", None);
        check("get --token x", None);
    }
}

//! Asking a supervisor over its socket.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::frame;
use crate::spec::{Answer, Request};

/// A supervisor's slowest answer is a restart of a node that ends slowly.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Sends one request and waits for its answer.
pub fn ask(socket: &Path, request: &Request) -> Result<Answer> {
    let mut stream = UnixStream::connect(socket).with_context(|| {
        format!(
            "reach the local cluster's supervisor at {}: it is not running (start it with skiff up)",
            socket.display()
        )
    })?;
    let talk = || -> io::Result<Answer> {
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        frame::write(&mut stream, request)?;
        frame::read(&mut stream)
    };
    match { talk }().with_context(|| format!("ask the supervisor at {}", socket.display()))? {
        Answer::Failed(why) => bail!(why),
        answer => Ok(answer),
    }
}

//! Some connections, driven by one thread that waits for all of them at once.

use super::wire::{Connection, Done};
use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::time::{Duration, Instant};

const SCRATCH_BYTES: usize = 256 << 10;
/// How long a single call may take.
const CALL_MAX: Duration = Duration::from_secs(30);

pub struct Pool {
    pub connections: Vec<Connection>,
    scratch: Vec<u8>,
}

impl Pool {
    pub fn new(addr: &str, connections: usize) -> anyhow::Result<Pool> {
        let connections = (0..connections.max(1)).map(|_| Connection::new(addr)).collect::<anyhow::Result<_>>()?;
        Ok(Pool { connections, scratch: vec![0; SCRATCH_BYTES] })
    }

    /// Sends what there is to send, waits up to `wait` for something to come, and takes in what has: answers go to `done`, with the number
    /// of their connection, and messages of streams to `message`.
    pub fn turn(
        &mut self,
        wait: Duration,
        done: &mut Vec<(usize, Done)>,
        message: &mut dyn FnMut(usize, &[u8]),
    ) -> anyhow::Result<()> {
        let mut fds = Vec::with_capacity(self.connections.len());
        for connection in &mut self.connections {
            if connection.has_output() {
                connection.flush()?;
            }
        }
        for connection in &self.connections {
            let output = if connection.has_output() { PollFlags::POLLOUT } else { PollFlags::empty() };
            fds.push(PollFd::new(connection.fd(), PollFlags::POLLIN | output));
        }
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, wait) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e).context("waiting for the server"),
        }
        let ready: Vec<_> =
            fds.iter().map(|fd| fd.revents().is_some_and(|e| e.intersects(!PollFlags::POLLOUT))).collect();
        let mut answers = Vec::new();
        for (i, _) in ready.into_iter().enumerate().filter(|(_, ready)| *ready) {
            self.connections[i].receive(&mut self.scratch, &mut answers, message)?;
            done.extend(answers.drain(..).map(|answer| (i, answer)));
        }
        Ok(())
    }

    /// One call, and its answer. Nothing else may be under way.
    pub fn ask(&mut self, path: &'static str, message: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.connections[0].call(path, 0, message);
        let (begun, mut done) = (Instant::now(), Vec::new());
        while done.is_empty() {
            anyhow::ensure!(begun.elapsed() < CALL_MAX, "{path} was not answered in {} s", CALL_MAX.as_secs());
            self.turn(Duration::from_millis(100), &mut done, &mut |_, _| {})?;
        }
        let answer = done.pop().and_then(|(_, done)| done.answer);
        answer.with_context(|| format!("the server answered {path} with an error"))
    }
}

//! The terminal of a command in a container: keys go to it as they are pressed, and it knows the window's size.

use anyhow::Context as _;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io::{IsTerminal as _, stdin};

/// The terminal in raw mode; as it was again when this is dropped.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// None when stdin is no terminal.
    pub fn enter() -> anyhow::Result<Option<Raw>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin()).context("reading the terminal's settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin(), SetArg::TCSANOW, &raw).context("putting the terminal into raw mode")?;
        Ok(Some(Raw { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// Columns and rows of the window; None when there is none.
pub fn size() -> Option<(u16, u16)> {
    let mut window = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize to the pointer, which is valid for the call; descriptor 1 need not be a terminal.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut window) };
    (result == 0 && window.ws_col > 0).then_some((window.ws_col, window.ws_row))
}

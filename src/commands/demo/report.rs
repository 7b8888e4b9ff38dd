//! What was measured, and what had to hold.

use std::time::Duration;

/// Says what happens now.
pub fn step(text: &str) {
    tell!("\n==> {text}");
}

struct Line {
    what: String,
    measured: String,
    wanted: String,
    held: bool,
}

/// The lines of the table at the end.
#[derive(Default)]
pub struct Report {
    lines: Vec<Line>,
}

impl Report {
    fn add(&mut self, what: &str, measured: String, wanted: String, held: bool) {
        tell!(
            "    {} {what}: {measured}{}",
            if held { "ok  " } else { "FAIL" },
            if held { String::new() } else { format!(" (wanted: {wanted})") }
        );
        self.lines.push(Line { what: what.to_owned(), measured, wanted, held });
    }

    /// A time, with what it may be at most.
    pub fn time(&mut self, what: &str, took: Duration, most: Option<Duration>) {
        let seconds = |d: Duration| format!("{:.2} s", d.as_secs_f64());
        let wanted = most.map_or(String::new(), |m| format!("at most {}", seconds(m)));
        self.add(what, seconds(took), wanted, most.is_none_or(|m| took <= m));
    }

    /// A count that has to be exactly so.
    pub fn exactly(&mut self, what: &str, measured: u64, wanted: u64) {
        self.add(what, measured.to_string(), wanted.to_string(), measured == wanted);
    }

    /// A count for information.
    pub fn count(&mut self, what: &str, measured: u64) {
        self.add(what, measured.to_string(), String::new(), true);
    }

    pub fn check(&mut self, what: &str, held: bool, measured: impl Into<String>) {
        self.add(what, measured.into(), "yes".into(), held);
    }

    /// The demo could not go on.
    pub fn broken(&mut self, why: &str) {
        self.add("the demo went on to the end", why.to_owned(), "yes".into(), false);
    }

    pub fn failed(&self) -> bool {
        self.lines.iter().any(|l| !l.held)
    }

    pub fn print(&self) {
        let width = self.lines.iter().map(|l| l.what.chars().count()).max().unwrap_or(0);
        tell!("\n{:<width$}  {:<24} WANTED", "MEASURED", "");
        for line in &self.lines {
            let mark = if line.held { "" } else { "   <-- FAILED" };
            tell!("{:<width$}  {:<24} {}{mark}", line.what, line.measured, line.wanted);
        }
        let failed = self.lines.iter().filter(|l| !l.held).count();
        match failed {
            0 => tell!("\nall {} checks held", self.lines.len()),
            n => tell!("\n{n} of {} checks failed", self.lines.len()),
        }
    }
}

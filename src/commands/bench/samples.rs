//! Samples of one quantity, and the table that they end in.

use std::time::Duration;

/// What was measured, in the order in which it was measured; times are milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn add(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1000.0);
    }

    /// The smallest sample that at least `share` (0 to 1) of all samples do not exceed: the nearest-rank percentile. Zero when there are none.
    fn percentile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil().max(1.0) as usize;
        sorted.get(rank - 1).copied().unwrap_or(0.0)
    }
}

/// One line for each quantity.
#[derive(Default)]
pub struct Table {
    lines: Vec<[String; 5]>,
}

impl Table {
    /// A quantity that was sampled.
    pub fn times(&mut self, what: &str, samples: &Samples) {
        let ms = |share: f64| format!("{:.0} ms", samples.percentile(share));
        self.line([what.into(), samples.0.len().to_string(), ms(0.5), ms(0.99), ms(1.0)]);
    }

    /// A quantity that was measured once.
    pub fn once(&mut self, what: &str, measured: String) {
        self.line([what.into(), "1".into(), measured, String::new(), String::new()]);
    }

    fn line(&mut self, line: [String; 5]) {
        tell!("    {}: n={} p50 {} p99 {} max {}", line[0], line[1], line[2], line[3], line[4]);
        self.lines.push(line);
    }

    pub fn print(&self) {
        let width = self.lines.iter().map(|l| l[0].chars().count()).max().unwrap_or(0);
        tell!("\n{:<width$}  {:>4}  {:>20}  {:>9}  {:>9}", "MEASURED", "N", "P50", "P99", "MAX");
        for [what, n, p50, p99, max] in &self.lines {
            tell!("{what:<width$}  {n:>4}  {p50:>20}  {p99:>9}  {max:>9}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let check = |values: &[f64], share: f64, expect: f64| {
            assert_eq!(Samples(values.to_vec()).percentile(share), expect, "{values:?} at {share}");
        };
        check(&[], 0.5, 0.0);
        check(&[7.0], 0.99, 7.0);
        check(&[3.0, 1.0, 2.0], 0.5, 2.0);
        check(&[4.0, 1.0, 2.0, 3.0], 0.5, 2.0);
        check(&(1..=100).map(f64::from).collect::<Vec<_>>(), 0.99, 99.0);
        check(&(1..=100).map(f64::from).collect::<Vec<_>>(), 1.0, 100.0);
    }
}

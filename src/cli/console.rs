//! Where things are printed: results on stdout, progress and log on stderr.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::failure::{Code, Failure, Result};
use crate::progress::Progress;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables and text.
    Human,
    /// One JSON object (or one per line where results stream).
    Json,
}

/// Output settings of one run of the program.
pub struct Console {
    /// How results are printed.
    pub format: Format,
    quiet: bool,
    verbose: bool,
    /// Bars with colour and escape codes are allowed on stderr.
    terminal: bool,
    color: bool,
    bar: Mutex<Option<Phase>>,
}

struct Phase {
    bar: ProgressBar,
    label: String,
    begun: Instant,
}

impl Console {
    /// Looks at stderr and `NO_COLOR`.
    pub fn new(format: Format, quiet: bool, verbose: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Console {
            format,
            quiet,
            verbose,
            terminal,
            color: terminal && !no_color,
            bar: Mutex::new(None),
        }
    }

    /// Whether results are JSON.
    pub fn json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints text as it is to stdout and flushes it.
    ///
    /// # Errors
    /// stdout cannot be written. A reader that went away (`| head`) ends the program quietly.
    pub fn print(&self, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(Failure::new(Code::Ok, "")),
            Err(e) => Err(Failure::from_error(Code::Unexpected, &e)),
        }
    }

    /// Prints a line to stdout.
    ///
    /// # Errors
    /// As [`Console::print`].
    pub fn line(&self, text: &str) -> Result<()> {
        self.print(&format!("{text}\n"))
    }

    /// Prints a value as JSON to stdout, indented.
    ///
    /// # Errors
    /// As [`Console::print`].
    pub fn json_value(&self, value: &impl serde::Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|e| Failure::from_error(Code::Unexpected, &e))?;
        self.line(&text)
    }

    /// A line on stderr, unless `-q`.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.to_stderr(text);
        }
    }

    /// Text on stderr as it comes, dimmed on a terminal that has colors.
    pub fn aside(&self, text: &str) {
        let mut err = std::io::stderr().lock();
        let written = match self.color {
            true => write!(err, "\x1b[2m{text}\x1b[0m"),
            false => write!(err, "{text}"),
        };
        // Nothing can be done when stderr is gone.
        let _ = written.and_then(|()| err.flush());
    }

    /// A line on stderr with `-v`.
    pub fn detail(&self, text: &str) {
        if self.verbose {
            self.to_stderr(text);
        }
    }

    /// A line on stderr, always.
    pub fn warn(&self, text: &str) {
        self.to_stderr(&format!("warning: {text}"));
    }

    /// Ends the bar and prints a failure. One without a message (a reader of stdout that went away) prints nothing.
    pub fn failure(&self, failure: &Failure) {
        if let Some(phase) = self.bar.lock().ok().and_then(|mut slot| slot.take()) {
            phase.bar.finish_and_clear();
        }
        if !failure.message.is_empty() {
            self.to_stderr(failure.render().trim_end());
        }
    }

    fn to_stderr(&self, text: &str) {
        let print = || {
            // Nothing can be done when stderr is gone.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        };
        match self.bar.lock() {
            Ok(guard) => match guard.as_ref() {
                Some(phase) => phase.bar.suspend(print),
                None => print(),
            },
            Err(_) => print(),
        }
    }

    fn style(&self, unit: Unit) -> ProgressStyle {
        let bar = match self.color {
            true => "{bar:24.cyan/blue}",
            false => "{bar:24}",
        };
        let template = match unit {
            Unit::Bytes => format!(
                "{{prefix}} [{bar}] {{bytes}}/{{total_bytes}} {{bytes_per_sec}} ETA {{eta}} {{wide_msg}}"
            ),
            Unit::Steps => format!("{{prefix}} [{bar}] {{pos}}/{{len}} ETA {{eta}}"),
            Unit::Unknown => "{prefix} {spinner} {wide_msg}".to_string(),
        };
        ProgressStyle::with_template(&template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ")
    }

    fn begin_phase(&self, label: &str, size: &str, total: u64, unit: Unit) {
        self.end();
        if self.quiet {
            return;
        }
        if !self.terminal {
            self.to_stderr(&format!("{label}{size}"));
            return;
        }
        let bar = match unit {
            Unit::Unknown => ProgressBar::new_spinner(),
            _ => ProgressBar::new(total),
        };
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.set_style(self.style(unit));
        bar.set_prefix(label.to_string());
        if unit == Unit::Unknown {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        if let Ok(mut slot) = self.bar.lock() {
            *slot = Some(Phase {
                bar,
                label: label.to_string(),
                begun: Instant::now(),
            });
        }
    }
}

/// What a phase counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Steps,
    Unknown,
}

impl Progress for Console {
    fn begin_steps(&self, label: &str, total: usize) {
        self.begin_phase(
            label,
            &format!(" ({total} steps)"),
            total as u64,
            Unit::Steps,
        );
    }

    fn begin(&self, label: &str, total_bytes: u64) {
        match total_bytes {
            0 => self.begin_phase(label, "", 0, Unit::Unknown),
            n => self.begin_phase(label, &format!(" ({})", human_bytes(n)), n, Unit::Bytes),
        }
    }

    fn advance(&self, bytes: u64) {
        if let Ok(slot) = self.bar.lock()
            && let Some(phase) = slot.as_ref()
        {
            phase.bar.inc(bytes);
        }
    }

    fn item(&self, name: &str) {
        if let Ok(slot) = self.bar.lock()
            && let Some(phase) = slot.as_ref()
        {
            phase.bar.set_message(name.to_string());
        }
    }

    fn end(&self) {
        let phase = self.bar.lock().ok().and_then(|mut slot| slot.take());
        if let Some(phase) = phase {
            phase.bar.finish_and_clear();
            let seconds = phase.begun.elapsed().as_secs_f64();
            self.to_stderr(&format!("{} ({seconds:.1} s)", phase.label));
        }
    }
}

/// Bytes for people, in powers of 1000 as disks are sold: `805.3 MB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A table with a header, columns padded to their widest cell, two spaces apart. Cells of columns whose header
/// starts with `>` are set flush right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let right: Vec<bool> = header.iter().map(|h| h.starts_with('>')).collect();
    let titles: Vec<String> = header
        .iter()
        .map(|h| h.trim_start_matches('>').to_string())
        .collect();
    let mut widths: Vec<usize> = titles.iter().map(|t| t.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate().take(widths.len()) {
            let pad = " ".repeat(widths[i] - cell.chars().count());
            if i > 0 {
                line.push_str("  ");
            }
            if right[i] {
                line.push_str(&pad);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&pad);
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_well() {
        for (bytes, text) in [
            (999, "999 B"),
            (1000, "1.0 kB"),
            (805_306_368, "805.3 MB"),
            (999_999_999, "1.0 GB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }

    #[test]
    fn columns_line_up() {
        let text = table(
            &["name", ">bytes"],
            &[
                vec!["a".into(), "12".into()],
                vec!["longer".into(), "3".into()],
            ],
        );
        assert_eq!(text, "name    bytes\na          12\nlonger      3\n");
    }
}

//! How things look on standard output.

use serde_json::Value;

/// A line; whoever reads no further, as head(1), has what it wanted.
pub(crate) fn line(text: &str) {
    use std::io::Write;
    if let Err(error) = writeln!(std::io::stdout(), "{text}") {
        let wanted_no_more = error.kind() == std::io::ErrorKind::BrokenPipe;
        if !wanted_no_more {
            eprintln!("sock: failed to write to standard output: {error}");
        }
        std::process::exit(i32::from(!wanted_no_more));
    }
}

/// As `println!`, by [`line()`].
#[macro_export]
macro_rules! say {
    ($($part:tt)*) => {
        $crate::show::line(&format!($($part)*))
    };
}

/// JSON, indented.
pub(crate) fn json(value: &Value) {
    line(&format!("{value:#}"));
}

/// A value without quotes.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Columns as wide as their widest cell.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        crate::say!("{}", cells.join("  ").trim_end());
    }
}

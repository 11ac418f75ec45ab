//! What the measurements share: medians and spreads, a table, and the record under `benches/results/`.

use sartor_ir::{Context, Error, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Numbers of one thing, measured several times.
#[derive(Clone, Debug, Default)]
pub struct Series(pub Vec<f64>);

impl Series {
    /// The middle one; of an even count the lower of the two.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
    }
    /// `least … most`
    pub fn spread(&self) -> String {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!("{} … {}", short(least), short(most))
    }
}

/// Three digits.
pub fn short(number: f64) -> String {
    match number.abs() {
        x if x >= 100.0 => format!("{number:.0}"),
        x if x >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// A table in Markdown.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|h| h.to_string()).collect();
    let mut text = line(&head);
    text += &line(&vec!["---".to_string(); head.len()]);
    rows.iter().for_each(|row| text += &line(row));
    text
}

/// The last line of a command's output as JSON.
pub fn last_json(command: &mut Command) -> Result<serde_json::Value> {
    let output = command.output().map_err(|e| Error::msg(format!("{command:?}: {e}")))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Err(Error::msg(format!("{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr))));
    }
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).map_err(|e| Error::msg(format!("{command:?}: {e} in \"{line}\"")))
}

/// A number of a JSON object.
pub fn number(object: &serde_json::Value, key: &str) -> Result<f64> {
    object[key].as_f64().ok_or_else(|| Error::msg(format!("there is no number \"{key}\" in {object}")))
}

/// Where assets and the peers' Python are.
pub fn cache() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    std::env::var_os("SARTOR_CACHE").map_or(home.join(".cache/sartor"), PathBuf::from)
}

/// An executable beside this one.
pub fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|e| Error::msg(e.to_string()))?;
    let path = own.with_file_name(name);
    if path.exists() {
        return Ok(path);
    }
    Err(Error::msg(format!("{} is missing: cargo build --release --workspace", path.display())))
}

/// The processor, its features that matter here, and the number of threads that there are.
pub fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_string()).unwrap_or_default()
    };
    let flags = field("flags");
    let widest = ["avx512f", "avx2"].into_iter().find(|f| flags.contains(f)).unwrap_or("no AVX2");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{}, family {} model {}, {widest}, {threads} threads",
        field("model name"),
        field("cpu family"),
        field("model\t")
    )
}

/// Prints a result and writes it to `benches/results/NAME.md`, with the date and the machine.
pub fn record(name: &str, title: &str, body: &str) -> Result<()> {
    let date = Command::new("date").arg("+%Y-%m-%d").output().map_err(|e| Error::msg(e.to_string()))?;
    let date = String::from_utf8_lossy(&date.stdout).trim().to_string();
    let text = format!("# {title}\n\n{date}; {}; sartor {}\n\n{body}", processor(), env!("CARGO_PKG_VERSION"),);
    println!("{text}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("results").join(format!("{name}.md"));
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    std::fs::write(&path, text).map_err(|e| Error::io(&path, e)).context(|| "the result was not written")
}

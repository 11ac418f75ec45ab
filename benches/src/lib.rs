//! What the measurements share: medians and spreads, a table, and the record under `benches/results/`.

use sartor_ir::{Context, Error, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
    let text = output(command)?;
    parse(command, text.lines().last().unwrap_or_default())
}

/// A command's whole output as JSON.
pub fn output_json(command: &mut Command) -> Result<serde_json::Value> {
    let text = output(command)?;
    parse(command, &text)
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|e| Error::msg(format!("{command:?}: {e}")))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

fn parse(command: &Command, text: &str) -> Result<serde_json::Value> {
    serde_json::from_str(text).map_err(|e| Error::msg(format!("{command:?}: {e} in \"{text}\"")))
}

/// Runs a command to its end, its output left out: the seconds that it took, and its peak resident set in MiB.
pub fn run_watched(command: &mut Command) -> Result<(f64, f64)> {
    let failed = |e: std::io::Error| Error::msg(e.to_string());
    let start = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(failed)?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0.0;
    let code = loop {
        peak = memory_mib(&status, "VmHWM").unwrap_or(peak);
        match child.try_wait().map_err(failed)? {
            Some(code) => break code,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    ensure!(code.success(), "{command:?} failed: {code}");
    Ok((seconds, peak))
}

/// Processor seconds, of user and system, of a process that runs and of its threads: `utime` and `stime` of `/proc/PID/stat`, in
/// hundredths (man 5 proc).
pub fn process_seconds(process: u32) -> Result<f64> {
    let path = PathBuf::from(format!("/proc/{process}/stat"));
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    // The second field is a name in parentheses; `utime` is the 14th.
    let fields = text.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().skip(11).take(2));
    let ticks: Option<Vec<f64>> = fields.map(|two| two.filter_map(|field| field.parse().ok()).collect());
    match ticks.as_deref() {
        Some([user, system]) => Ok((user + system) / 100.0),
        _ => Err(Error::msg(format!("{}: unknown form", path.display()))),
    }
}

/// A number of memory of a process, in MiB: `VmHWM` is the largest resident set so far, `RssAnon` what no file stands behind.
pub fn memory_mib(status: &str, what: &str) -> Option<f64> {
    let text = std::fs::read_to_string(status).ok()?;
    let line = text.lines().find(|l| l.starts_with(what))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
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
    let build = "cargo build --release --workspace --features sartor/ort,sartor/tract";
    Err(Error::msg(format!("{} is missing: {build}", path.display())))
}

/// A script of `benches/peers/`, run by the Python of one of the environments that `tests/assets/venv.sh` makes.
pub fn peer_script(environment: &str, script: &str) -> Result<Command> {
    let python = cache().join(environment).join("bin/python");
    ensure!(python.exists(), "{} is missing: tests/assets/fetch.sh --bench", python.display());
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(script));
    Ok(command)
}

/// The version of a crate in the workspace's lock file.
pub fn locked_version(name: &str) -> &'static str {
    let lock = include_str!("../../Cargo.lock");
    let entry = lock.split_once(&format!("name = \"{name}\"\nversion = \"")).map(|(_, rest)| rest);
    entry.and_then(|rest| rest.split('"').next()).unwrap_or("of unknown version")
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
    save(&format!("{name}.md"), &text)
}

/// Writes a file to `benches/results/`.
pub fn save(name: &str, text: &str) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let path = folder.join(name);
    std::fs::write(&path, text).map_err(|e| Error::io(&path, e)).context(|| "the result was not written")
}

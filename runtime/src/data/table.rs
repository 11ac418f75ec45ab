//! Tables: `.csv`, `.tsv` and `.jsonl`, read row by row. The first line of the first two names the columns; the first
//! object of the last does.
//!
//! A `.tsv` is a table of lines: a field is unquoted only where it is well-formed as a whole (`"so ""it"" is"`), so raw
//! text with stray quotes reads as it stands. `data.quote` switches the rule.

use super::list;
use sartor_ir::{Error, Result, bail, ensure};
use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// A table whose columns are known.
pub struct Table {
    path: PathBuf,
    format: Format,
    /// The names of its columns, in order.
    pub columns: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Format {
    /// With quotes, by the crate `csv`; the delimiter.
    Quoted(u8),
    /// Lines cut at a delimiter; whether well-formed quoted fields are unquoted.
    Lines(char, bool),
    JsonLines,
}

/// Called with the number of the line and the wanted fields.
pub type OnRow<'a> = dyn FnMut(usize, &[Cow<str>]) -> Result<()> + 'a;

impl Table {
    /// Reads the header.
    pub fn open(path: &Path, quote: Option<bool>) -> Result<Table> {
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        let format = match (extension.as_str(), quote) {
            ("jsonl", _) => Format::JsonLines,
            ("csv", None | Some(true)) => Format::Quoted(b','),
            ("csv", Some(false)) => Format::Lines(',', false),
            (_, None) => Format::Lines('\t', true),
            (_, Some(true)) => Format::Quoted(b'\t'),
            (_, Some(false)) => Format::Lines('\t', false),
        };
        let mut table = Table { path: path.to_path_buf(), format, columns: Vec::new() };
        table.columns = table.header()?;
        Ok(table)
    }
    /// The file's name, for messages.
    pub fn file(&self) -> String {
        self.path.display().to_string()
    }
    fn empty(&self) -> Error {
        Error::msg(format!("{}: the file is empty", self.file()))
    }
    fn header(&self) -> Result<Vec<String>> {
        if let Format::Quoted(delimiter) = self.format {
            let mut reader = self.csv(delimiter)?;
            let header = reader.headers().map_err(|e| self.csv_error(&e))?;
            ensure!(!header.is_empty(), "{}: the file is empty", self.file());
            return Ok(header.iter().map(|c| c.trim_start_matches('\u{feff}').to_string()).collect());
        }
        let mut lines = Lines::open(&self.path)?;
        let Some((_, first)) = lines.next_line()? else { return Err(self.empty()) };
        let first = first.trim_start_matches('\u{feff}').to_string();
        match self.format {
            Format::Lines(delimiter, unquote) => Ok(split(&first, delimiter, unquote).map(Cow::into_owned).collect()),
            _ => Ok(parse_object(&first).map_err(|e| e.at(self.place(1)))?.keys().cloned().collect()),
        }
    }
    fn place(&self, line: usize) -> String {
        format!("{}, line {line}", self.file())
    }
    /// Whether there is a column of this name.
    pub fn has_column(&self, name: &str) -> bool {
        self.columns.iter().any(|c| c == name)
    }
    /// The place of a column. `role` says what it is for: `the text (data.text)`.
    pub fn column(&self, name: &str, role: &str) -> Result<usize> {
        match self.columns.iter().position(|c| c == name) {
            Some(place) => Ok(place),
            None => bail!(
                "{}: there is no column \"{name}\" for {role}; the columns are {}",
                self.file(),
                list(&self.columns)
            ),
        }
    }
    /// Reads all rows; hands the fields of the wanted columns to `each`.
    pub fn rows(&self, wanted: &[usize], each: &mut OnRow) -> Result<()> {
        match self.format {
            Format::Quoted(delimiter) => self.quoted_rows(delimiter, wanted, each),
            Format::Lines(delimiter, unquote) => self.line_rows(delimiter, unquote, wanted, each),
            Format::JsonLines => self.json_rows(wanted, each),
        }
    }
    fn csv(&self, delimiter: u8) -> Result<csv::Reader<File>> {
        let file = File::open(&self.path).map_err(|e| Error::io(&self.path, e))?;
        Ok(csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(file))
    }
    fn csv_error(&self, error: &csv::Error) -> Error {
        let line = error.position().map_or(1, csv::Position::line);
        Error::msg(error.to_string()).at(self.place(line as usize))
    }
    fn check_width(&self, line: usize, found: usize) -> Result<()> {
        let want = self.columns.len();
        ensure!(found == want, "{}: {found} fields, the header names {want}", self.place(line));
        Ok(())
    }
    fn quoted_rows(&self, delimiter: u8, wanted: &[usize], each: &mut OnRow) -> Result<()> {
        for record in self.csv(delimiter)?.records() {
            let record = record.map_err(|e| self.csv_error(&e))?;
            let line = record.position().map_or(0, csv::Position::line) as usize;
            self.check_width(line, record.len())?;
            let fields: Vec<Cow<str>> = wanted.iter().map(|&i| record.get(i).unwrap_or_default().into()).collect();
            each(line, &fields)?;
        }
        Ok(())
    }
    fn line_rows(&self, delimiter: char, unquote: bool, wanted: &[usize], each: &mut OnRow) -> Result<()> {
        let mut lines = Lines::open(&self.path)?;
        lines.next_line()?;
        while let Some((number, line)) = lines.next_line()? {
            if line.is_empty() {
                continue;
            }
            let all: Vec<Cow<str>> = split(line, delimiter, unquote).collect();
            self.check_width(number, all.len())?;
            let fields: Vec<Cow<str>> = wanted.iter().filter_map(|&i| all.get(i).cloned()).collect();
            each(number, &fields)?;
        }
        Ok(())
    }
    fn json_rows(&self, wanted: &[usize], each: &mut OnRow) -> Result<()> {
        let mut lines = Lines::open(&self.path)?;
        while let Some((number, line)) = lines.next_line()? {
            if line.trim().is_empty() {
                continue;
            }
            let object = parse_object(line.trim_start_matches('\u{feff}')).map_err(|e| e.at(self.place(number)))?;
            let mut fields = Vec::new();
            for &column in wanted {
                let Some(name) = self.columns.get(column) else { continue };
                let field = json_field(&object, name).map_err(|e| e.at(self.place(number)))?;
                fields.push(Cow::Owned(field));
            }
            each(number, &fields)?;
        }
        Ok(())
    }
}

/// Lines of UTF-8 text without their ends, numbered from 1.
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    buffer: Vec<u8>,
    number: usize,
}

impl Lines {
    fn open(path: &Path) -> Result<Lines> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        Ok(Lines { path: path.to_path_buf(), reader: BufReader::new(file), buffer: Vec::new(), number: 0 })
    }
    fn next_line(&mut self) -> Result<Option<(usize, &str)>> {
        self.buffer.clear();
        let read = self.reader.read_until(b'\n', &mut self.buffer).map_err(|e| Error::io(&self.path, e))?;
        self.number += 1;
        let number = self.number;
        if read == 0 {
            return Ok(None);
        }
        let Ok(line) = std::str::from_utf8(&self.buffer) else {
            bail!("{}, line {number}: the text is not UTF-8; convert the file", self.path.display());
        };
        let line = line.strip_suffix('\n').unwrap_or(line);
        Ok(Some((number, line.strip_suffix('\r').unwrap_or(line))))
    }
}

fn split(line: &str, delimiter: char, unquote: bool) -> impl Iterator<Item = Cow<'_, str>> {
    line.split(delimiter).map(move |field| if unquote { unquoted(field) } else { field.into() })
}

/// The content of a field that is quoted as a whole; any other field as it stands.
fn unquoted(field: &str) -> Cow<'_, str> {
    let inner = field.strip_prefix('"').and_then(|f| f.strip_suffix('"'));
    match inner {
        Some(inner) if !inner.replace("\"\"", "").contains('"') => inner.replace("\"\"", "\"").into(),
        _ => field.into(),
    }
}

type Object = serde_json::Map<String, serde_json::Value>;

fn parse_object(line: &str) -> Result<Object> {
    match serde_json::from_str(line) {
        Ok(serde_json::Value::Object(object)) => Ok(object),
        Ok(_) => bail!("expected a JSON object"),
        Err(e) => bail!("this is not JSON: {e}"),
    }
}

fn json_field(object: &Object, name: &str) -> Result<String> {
    match object.get(name) {
        Some(serde_json::Value::String(text)) => Ok(text.clone()),
        Some(serde_json::Value::Number(number)) => Ok(number.to_string()),
        Some(serde_json::Value::Bool(flag)) => Ok(u8::from(*flag).to_string()),
        Some(other) => bail!("\"{name}\" is {other}, expected a string or a number"),
        None => bail!("there is no \"{name}\"; the object has {}", list(object.keys())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, content: &[u8], quote: Option<bool>, columns: &[&str]) -> Result<Vec<(usize, Vec<String>)>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let table = Table::open(&path, quote)?;
        let wanted: Vec<usize> = columns.iter().map(|c| table.column(c, "the test")).collect::<Result<_>>()?;
        let mut rows = Vec::new();
        table.rows(&wanted, &mut |line, fields| {
            rows.push((line, fields.iter().map(|f| f.to_string()).collect()));
            Ok(())
        })?;
        Ok(rows)
    }

    fn rows(list: &[(usize, &[&str])]) -> Vec<(usize, Vec<String>)> {
        list.iter().map(|(n, f)| (*n, f.iter().map(|s| s.to_string()).collect())).collect()
    }

    #[test]
    fn three_formats() {
        let csv = b"text,label\n\"one, \"\"two\"\"\nthree\",1\nfour,0\n";
        let expected = rows(&[(2, &["1", "one, \"two\"\nthree"]), (4, &["0", "four"])]);
        assert_eq!(read("a.csv", csv, None, &["label", "text"]).unwrap(), expected);
        let tsv = b"text\tlabel\r\n\"Hello\" he said\t1\r\n\"all of \"\"it\"\"\"\t0\r\n";
        let expected = rows(&[(2, &["\"Hello\" he said", "1"]), (3, &["all of \"it\"", "0"])]);
        assert_eq!(read("a.tsv", tsv, None, &["text", "label"]).unwrap(), expected);
        let jsonl = b"{\"text\": \"a\\nb\", \"label\": 1}\n\n{\"label\": true, \"text\": \"c\", \"more\": []}\n";
        let expected = rows(&[(1, &["a\nb", "1"]), (3, &["c", "1"])]);
        assert_eq!(read("a.jsonl", jsonl, None, &["text", "label"]).unwrap(), expected);
    }

    #[test]
    fn mistakes_name_the_line() {
        let error = |name, content: &[u8], columns: &[&str]| {
            let message = read(name, content, None, columns).unwrap_err().to_string();
            message.rsplit_once('/').map(|(_, m)| m.to_string()).unwrap_or(message)
        };
        let missing = error("a.csv", b"sentence,y\na,1\n", &["text"]);
        assert_eq!(missing, "a.csv: there is no column \"text\" for the test; the columns are \"sentence\" and \"y\"");
        let ragged = "fields, the header names 2";
        assert_eq!(error("a.csv", b"a,b\n1,2\n3\n", &["a"]), format!("a.csv, line 3: 1 {ragged}"));
        assert_eq!(error("a.tsv", b"a\tb\n1\t2\t3\n", &["a"]), format!("a.tsv, line 2: 3 {ragged}"));
        assert_eq!(
            error("a.tsv", b"a\tb\n\xe9\t1\n", &["a"]),
            "a.tsv, line 2: the text is not UTF-8; convert the file"
        );
        assert_eq!(error("a.tsv", b"", &["a"]), "a.tsv: the file is empty");
        assert!(error("a.csv", b"", &["a"]).contains("a.csv: the file is empty"));
        let absent = error("a.jsonl", b"{\"a\": 1}\n{\"b\": 1}\n", &["a"]);
        assert_eq!(absent, "a.jsonl, line 2: there is no \"a\"; the object has \"b\"");
        assert!(error("a.jsonl", b"{\"a\": 1}\n{\"a\": \n", &["a"]).starts_with("a.jsonl, line 2: this is not JSON"));
    }
}

//! Tables in plain text: columns as wide as their widest cell, two blanks between them.

/// Rows of cells. The first column is flush left, as are those whose header begins with `<`; the others flush right.
pub struct Table {
    left: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this header.
    pub fn new(header: &[&str]) -> Table {
        let left = header.iter().enumerate().map(|(i, h)| i == 0 || h.starts_with('<')).collect();
        let names = header.iter().map(|h| h.trim_start_matches('<').to_string()).collect();
        Table { left, rows: vec![names] }
    }
    /// One more row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
    /// The lines, each indented by two blanks.
    pub fn lines(&self) -> Vec<String> {
        let width = |column: usize| self.rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..self.left.len()).map(|c| width(c).unwrap_or(0)).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).zip(&self.left);
            let cells: Vec<String> = cells
                .map(|((cell, &w), &left)| if left { format!("{cell:w$}") } else { format!("{cell:>w$}") })
                .collect();
            format!("  {}", cells.join("  ")).trim_end().to_string()
        };
        self.rows.iter().map(line).collect()
    }
    /// Prints it to standard output.
    pub fn print(&self) {
        self.lines().iter().for_each(|line| crate::say!("{line}"));
    }
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1234567` as `1.23 M`.
pub fn short(number: u64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let value = number as f64;
    match units.iter().find(|(size, _)| value >= *size) {
        Some((size, unit)) => format!("{:.2} {unit}", value / size),
        None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["name", "count", "<what"]);
        table.row(["MatMul".into(), "12".into(), "x".into()]);
        table.row(["Add".into(), "1,234".into(), "yy".into()]);
        assert_eq!(table.lines(), ["  name    count  what", "  MatMul     12  x", "  Add     1,234  yy"]);
        assert_eq!((grouped(1234567), grouped(12), short(1234567)), ("1,234,567".into(), "12".into(), "1.23 M".into()));
    }
}

//! The difference between two recipes, line by line: what a refused resume shows.

/// The lines that only one of them has, `-` before those of `old`, `+` before those of `new`; `None` if they are equal
/// up to blank lines, comments and white space at the ends of lines.
pub fn diff(old: &str, new: &str) -> Option<String> {
    let (a, b) = (lines(old), lines(new));
    if a == b {
        return None;
    }
    let common = common_lengths(&a, &b);
    let (mut i, mut j) = (0, 0);
    let mut out = Vec::new();
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
        } else if j >= b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            out.push(format!("- {}", a[i]));
            i += 1;
        } else {
            out.push(format!("+ {}", b[j]));
            j += 1;
        }
    }
    Some(out.join("\n"))
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect()
}

/// `out[i][j]`: the length of the longest common subsequence of `a[i..]` and `b[j..]`.
fn common_lengths(a: &[&str], b: &[&str]) -> Vec<Vec<usize>> {
    let mut out = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            out[i][j] = if a[i] == b[j] { out[i + 1][j + 1] + 1 } else { out[i + 1][j].max(out[i][j + 1]) };
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs() {
        let old = "[cola]\nrank = 8\nlinks = 1\n";
        let new = "# more\n[cola]\nrank = 8  \nlinks = 3\n\n[train]\n";
        assert_eq!(diff(old, new).unwrap(), "- links = 1\n+ links = 3\n+ [train]");
        assert_eq!(diff(old, "[cola]\n\nrank = 8\nlinks = 1"), None);
    }
}

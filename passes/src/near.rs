//! Near misses: what somebody may have meant by a name that does not exist.
//!
//! Two edit distances (Levenshtein; insert, delete, replace cost 1) rank the candidates: first the least distance to any
//! *substring* of the candidate, so that `qery` finds `/encoder/layer.0/attention/self/query/MatMul`, then the
//! distance to the whole. Letter case and the characters of globs do not count.

/// The candidates closest to `wanted`, best first, at most `max`. Those that are too far off to be meant (more than a
/// third of the letters wrong, at least one) are left out.
pub fn near_misses<S: AsRef<str>>(wanted: &str, candidates: impl IntoIterator<Item = S>, max: usize) -> Vec<String> {
    let wanted = plain(wanted);
    if wanted.is_empty() {
        return Vec::new();
    }
    let budget = (wanted.len() / 3).max(1);
    let mut ranked: Vec<(usize, usize, String)> = Vec::new();
    for candidate in candidates {
        let candidate = candidate.as_ref();
        let letters = plain(candidate);
        let part = distance(&wanted, &letters, Match::Part);
        if part <= budget && part < wanted.len() {
            ranked.push((part, distance(&wanted, &letters, Match::Whole), candidate.to_string()));
        }
    }
    ranked.sort();
    ranked.dedup();
    ranked.into_iter().take(max).map(|(.., name)| name).collect()
}

/// ` (did you mean "fold" or "folder"?)`, or nothing: to be put behind a sentence.
pub fn did_you_mean<S: AsRef<str>>(wanted: &str, candidates: impl IntoIterator<Item = S>) -> String {
    let near: Vec<String> = near_misses(wanted, candidates, 3).iter().map(|n| format!("\"{n}\"")).collect();
    if near.is_empty() { String::new() } else { format!(" (did you mean {}?)", near.join(" or ")) }
}

fn plain(text: &str) -> Vec<char> {
    text.chars().filter(|c| !"*?[]{}^$\\".contains(*c)).flat_map(char::to_lowercase).collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Match {
    Whole,
    Part,
}

/// The usual table, row by row. A part may start and end anywhere in `text` at no cost.
fn distance(wanted: &[char], text: &[char], how: Match) -> usize {
    let mut row: Vec<usize> = if how == Match::Part { vec![0; text.len() + 1] } else { (0..=text.len()).collect() };
    for (i, w) in wanted.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, t) in text.iter().enumerate() {
            let replaced = diagonal + usize::from(w != t);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    match how {
        Match::Whole => row[text.len()],
        Match::Part => row.into_iter().min().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_typing_errors_and_parts() {
        assert_eq!(near_misses("optimzer", ["optimizer", "loss", "optimize"], 1), ["optimizer"]);
        assert_eq!(
            near_misses("*qery*", ["/layer.0/query/MatMul", "/layer.0/value/MatMul"], 5),
            ["/layer.0/query/MatMul"]
        );
        assert!(near_misses("zebra", ["fold", "cse"], 5).is_empty());
        assert_eq!(did_you_mean("Fold", ["fold", "cse"]), " (did you mean \"fold\"?)");
        assert_eq!(did_you_mean("xyz", ["fold"]), "");
    }
}

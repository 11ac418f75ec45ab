//! `sartor report`: runs as one HTML page that needs nothing else: styles, drawings and script are in it.
//!
//! ```text
//! metrics.jsonl ─▶ Run ─▶ curves, experts ─▶ Chart ─▶ ┐
//! summary.json  ─▶ Run ─▶ tables ───────────────────▶ ├ page
//! recipe.toml   ─▶ Run ─▶ text ─────────────────────▶ │
//! gates.json    ─▶ Run ─▶ gates, pictures ──────────▶ ┘
//! ```
//!
//! Whatever comes from files is escaped. Curves are thinned out before they are drawn: a page of many thousands of steps
//! stays below a megabyte.

mod curves;
mod experts;
mod gates;
mod pictures;
mod run;
mod tables;

pub use run::{Run, name_apart};

use crate::chart::{Chart, escape, number};
use curves::Page;
use std::time::{SystemTime, UNIX_EPOCH};

/// The page of these runs, of which there is at least one.
pub fn page(runs: &[Run]) -> String {
    let page = Page::new(runs);
    let body = [header(&page), results(&page), training(&page), samuel(&page), gated(&page), recipes(runs)].concat();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"generator\" content=\"sartor {}\">\n<title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n\
         {body}<footer>Written by sartor {}.</footer>\n</main>\n<script>\n{}</script>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION"),
        escape(&title(runs)),
        include_str!("page.css"),
        env!("CARGO_PKG_VERSION"),
        include_str!("page.js")
    )
}

/// What was trained: the model's name; of several, how many runs.
fn title(runs: &[Run]) -> String {
    let mut models: Vec<String> = runs.iter().filter_map(Run::model).collect();
    models.dedup();
    match (runs, &models[..]) {
        ([run], []) => run.name.clone(),
        ([_], [model, ..]) => model.clone(),
        (_, [model]) => format!("{} runs of {model}", runs.len()),
        _ => format!("{} runs", runs.len()),
    }
}

fn header(page: &Page) -> String {
    let runs = page.runs;
    let written = runs.iter().filter_map(|run| run.written).max();
    let date = written.map(date).unwrap_or_default();
    let lead = match runs {
        [run] => {
            let of =
                if run.summary.is_empty() { "This run has not ended yet; its last line was" } else { "The run ended" };
            format!("{of} on {date}, after {}. Its folder is {}.", steps(run), run.folder.display())
        }
        _ => format!("The last of them wrote its last line on {date}."),
    };
    let over = if runs.len() == 1 { "Training report" } else { "Training report, several runs" };
    format!(
        "<header>\n<p class=\"over\">{over}</p>\n<h1>{}</h1>\n<p class=\"lead\">{}</p>\n</header>\n",
        escape(&title(runs)),
        escape(&lead)
    )
}

fn steps(run: &Run) -> String {
    let last = run.curve("loss").last().map_or(0.0, |p| p.0);
    let steps = run.summary.get("steps").and_then(|v| v.as_f64()).unwrap_or(last);
    let plural = if steps == 1.0 { "" } else { "s" };
    format!("{} step{plural}", number(steps))
}

/// `29 May 2026, 14:02 UTC`.
fn date(time: SystemTime) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()) as i64;
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    let minutes = seconds.rem_euclid(86_400) / 60;
    format!("{day} {} {year}, {:02}:{:02} UTC", MONTHS[month as usize - 1], minutes / 60, minutes % 60)
}

/// Year, month and day of a day counted from 1970-01-01: H. Hinnant, *chrono-Compatible Low-Level Date Algorithms*.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (year + era * 400 + next, month, day)
}

fn results(page: &Page) -> String {
    match page.runs {
        [run] => tables::tiles(run) + &section("All numbers of the run", &tables::numbers(run)),
        runs => tables::compared(page, runs),
    }
}

fn training(page: &Page) -> String {
    let first: Vec<Chart> = curves::loss(page).into_iter().collect();
    let charts = [first, curves::evaluations(page), curves::others(page)].concat();
    section("How the training went", &grid(&charts))
}

/// One section for each run that SAMUEL had a part in.
fn samuel(page: &Page) -> String {
    let mut out = String::new();
    for run in page.runs {
        let alone = Page::new(std::slice::from_ref(run));
        let charts = experts::charts(&Page { steps: page.steps, ..alone });
        let of = if page.runs.len() == 1 { String::new() } else { format!(" in “{}”", run.name) };
        out += &section(&format!("Which learning rates SAMUEL chose{of}"), &grid(&charts));
    }
    out
}

/// What several runs reach at what cost, and one section for each run with gates.
fn gated(page: &Page) -> String {
    let trade = gates::trade(page).filter(|_| page.runs.len() > 1);
    let mut out = section("Accuracy and cost", &grid(&trade.into_iter().collect::<Vec<Chart>>()));
    for run in page.runs {
        let alone = Page::new(std::slice::from_ref(run));
        let of = if page.runs.len() == 1 { String::new() } else { format!(" of “{}”", run.name) };
        out += &section(&format!("Gates{of}"), &gates::figures(&Page { steps: page.steps, ..alone }));
    }
    out
}

fn recipes(runs: &[Run]) -> String {
    let mut out = String::new();
    for run in runs {
        let Some(recipe) = &run.recipe else { continue };
        let text = format!("<pre>{}</pre>\n", escape(recipe));
        out += &match runs.len() {
            1 => text,
            _ => format!("<details>\n<summary>{}</summary>\n{text}</details>\n", escape(&run.name)),
        };
    }
    let heading = if runs.len() == 1 { "The recipe" } else { "The recipes" };
    section("Where the recipes differ", &tables::differing(runs)) + &section(heading, &out)
}

fn grid(charts: &[Chart]) -> String {
    let charts: String = charts.iter().filter(|chart| !chart.is_empty()).map(Chart::html).collect();
    if charts.is_empty() { charts } else { format!("<div class=\"charts\">\n{charts}</div>\n") }
}

/// A heading and what belongs to it; nothing if there is nothing.
fn section(heading: &str, content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    format!("<section>\n<h2>{}</h2>\n{content}</section>\n", escape(heading))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates() {
        let texts = [0, 951_827_696, 1_780_063_321].map(|s| date(UNIX_EPOCH + Duration::from_secs(s)));
        assert_eq!(texts, ["1 January 1970, 00:00 UTC", "29 February 2000, 12:34 UTC", "29 May 2026, 14:02 UTC"]);
    }
}

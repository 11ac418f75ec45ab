//! Bars, one a row: shares of 1 one after the other, a name on the left and a text on the right. Without a script, and readable on a narrow page.
//!
//! ```text
//! Bars { title, parts: [("dead", grey), …], rows: [Row { name, shares: [0.2, …], text }, …] }  →  <figure> … </figure>
//! ```

use super::{Colour, escape};
use std::fmt::Write;

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Bars {
    /// A sentence: what there is to see.
    pub title: String,
    /// More about it, in smaller letters; may be empty.
    pub note: String,
    /// What the parts of a bar are, from left to right; a legend names them if there are several.
    pub parts: Vec<(String, Colour)>,
    /// The bars, from top to bottom.
    pub rows: Vec<Row>,
}

/// A bar.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// What it is called.
    pub name: String,
    /// The lengths of its parts, as shares of the whole width.
    pub shares: Vec<f64>,
    /// What stands beside it.
    pub text: String,
}

impl Bars {
    /// The bars as a `<figure>`.
    pub fn html(&self) -> String {
        let note = if self.note.is_empty() { String::new() } else { format!("<p>{}</p>", escape(&self.note)) };
        let rows: String = self.rows.iter().map(|row| self.row(row)).collect();
        format!(
            "<figure class=\"bars\">\n<figcaption><h3>{}</h3>{note}</figcaption>\n{}<div class=\"rows\">\n{rows}</div>\n</figure>\n",
            escape(&self.title),
            self.legend(),
        )
    }
    fn legend(&self) -> String {
        if self.parts.len() < 2 {
            return String::new();
        }
        let entry = |(name, colour): &(String, Colour)| {
            format!("<li><i class=\"key ink box\" style=\"{}\"></i>{}</li>\n", colour.style(), escape(name))
        };
        format!("<ul class=\"legend\">\n{}</ul>\n", self.parts.iter().map(entry).collect::<String>())
    }
    fn row(&self, row: &Row) -> String {
        let mut bar = String::new();
        for ((_, colour), share) in self.parts.iter().zip(&row.shares).filter(|(_, share)| **share > 0.0) {
            let width = (share.min(1.0) * 10_000.0).round() / 100.0;
            let _ = write!(bar, "<i class=\"ink\" style=\"{};width:{width}%\"></i>", colour.style());
        }
        let name = escape(&row.name);
        format!(
            "<span class=\"name\" title=\"{name}\">{name}</span><span class=\"bar\">{bar}</span><span class=\"value\">{}</span>\n",
            escape(&row.text)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::colour;
    use super::*;

    #[test]
    fn parts_are_as_long_as_their_shares() {
        let parts = ["<dead>", "open"].into_iter().enumerate().map(|(i, name)| (name.to_string(), colour::category(i)));
        let row = Row { name: "a&b".into(), shares: vec![0.25, 0.5], text: "3 of 4".into() };
        let empty = Row { name: "none".into(), shares: vec![0.0, 0.0], text: "0".into() };
        let bars = Bars { title: "It".into(), parts: parts.collect(), rows: vec![row, empty], ..Bars::default() };
        let html = bars.html();
        assert!(html.contains("title=\"a&amp;b\">a&amp;b</span>") && html.contains("</i>&lt;dead&gt;</li>"), "{html}");
        assert!(html.contains(";width:25%\"></i><i") && html.contains(";width:50%\"></i></span>"), "{html}");
        assert!(html.contains("<span class=\"bar\"></span><span class=\"value\">0</span>"), "{html}");
    }
}

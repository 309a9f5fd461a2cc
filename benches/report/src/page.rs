//! The page: one file that needs nothing else.
use minijinja::{context, Environment, Value};

use crate::chart;
use crate::sections::Part;

/// The whole page.
///
/// # Errors
/// When a chart cannot be drawn.
pub fn page(parts: &[Part]) -> Result<String, String> {
    let mut environment = Environment::new();
    let template = include_str!("page.html");
    environment
        .add_template("page.html", template)
        .map_err(|error| format!("{error:#}"))?;
    let mut shown = Vec::new();
    for part in parts {
        let mut sections = Vec::new();
        for section in &part.sections {
            let rows: Vec<Value> = section
                .rows
                .iter()
                .map(|row| context! { cells => row.cells, loses => row.loses })
                .collect();
            sections.push(context! {
                title => section.title,
                svg => chart::svg(&section.chart)?,
                heads => section.heads,
                rows => rows,
                is_detail => section.is_detail,
            });
        }
        shown.push(context! {
            title => part.title,
            what => part.what,
            origin => part.origin,
            command => part.command,
            sections => sections,
        });
    }
    let page = environment.get_template("page.html").and_then(|template| {
        let style = Value::from_safe_string(chart::STYLE.into());
        template.render(context! { parts => shown, chart_style => style })
    });
    page.map_err(|error| format!("{error:#}"))
}

//! Charts as SVG. They are drawn in colours that stand for roles; a style sheet, the page's or the file's own, gives the
//! roles their colours in light and in dark. A fixed width that fits a phone, so that text keeps its size there.
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::sections::{Chart, Who};

const WIDTH: u32 = 360;
const ROW: u32 = 20;
const LABELS: u32 = 166;
/// Letters of a label that have room; the description and the table have the whole of it.
const LETTERS: usize = 26;
/// plotters writes four fifths of it: 11 pixels.
const TEXT: u32 = 14;

// Roles. What a style sheet does not name stays in these colours, which are those of the light page.
const INK: RGBColor = RGBColor(0x1d, 0x1d, 0x1f);
const GRID: RGBColor = RGBColor(0xd8, 0xd8, 0xdc);
const OURS: RGBColor = RGBColor(0x1f, 0x6f, 0xb5);
const LOSING: RGBColor = RGBColor(0xb4, 0x53, 0x09);
const PEER: RGBColor = RGBColor(0x8e, 0x8e, 0x96);
const OTHER: RGBColor = RGBColor(0xb9, 0xb9, 0xc2);

/// The roles' colours: attributes of an SVG have less weight than any rule of a style sheet.
pub const STYLE: &str = r##"
svg text { fill: #1d1d1f; font-family: system-ui, sans-serif; paint-order: stroke; stroke: #fff; stroke-width: 3px; }
@media (prefers-color-scheme: dark) {
  svg text { fill: #f0f0f3; stroke: #17171a; }
  svg [fill="#1D1D1F"] { fill: #f0f0f3; }
  svg [stroke="#1D1D1F"] { stroke: #f0f0f3; }
  svg [stroke="#D8D8DC"] { stroke: #45454d; }
  svg [fill="#1F6FB5"] { fill: #5aa9ec; }
  svg [fill="#B45309"] { fill: #f0a04b; }
  svg [fill="#8E8E96"] { fill: #85858f; }
  svg [fill="#B9B9C2"] { fill: #5c5c66; }
}
"##;

/// The chart as an SVG element with its text alternative.
///
/// # Errors
/// When it cannot be drawn.
pub fn svg(chart: &Chart) -> Result<String, String> {
    let height = 24 + 8 + ROW * chart.bars.len() as u32;
    let mut drawn = String::new();
    draw(chart, height, &mut drawn).map_err(|error| format!("{}: {error}", chart.id))?;
    let (_, inside) = drawn.split_once('>').ok_or("an SVG without an element")?;
    let id = &chart.id;
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-labelledby=\"{id}-title {id}-desc\"><title id=\"{id}-title\">{}</title><desc id=\"{id}-desc\">{}</desc>{inside}",
        escaped(&chart.title),
        escaped(&chart.description())
    ))
}

/// The same as a file of its own.
///
/// # Errors
/// As `svg`.
pub fn file(chart: &Chart) -> Result<String, String> {
    let svg = svg(chart)?;
    let (head, rest) = svg.split_once("</desc>").ok_or("an SVG without a description")?;
    let ground = "svg { background: #fff; } @media (prefers-color-scheme: dark) { svg { background: #17171a; } }";
    Ok(format!("{head}</desc><style>{STYLE}{ground}</style>{rest}\n"))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The label as far as it has room.
fn shortened(label: &str) -> String {
    if label.chars().count() <= LETTERS {
        return label.into();
    }
    label.chars().take(LETTERS - 1).chain(['\u{2026}']).collect()
}

fn draw(chart: &Chart, height: u32, into: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let bars = &chart.bars;
    let ends = bars
        .iter()
        .map(|bar| bar.interval.map_or(bar.value, |(_, high)| high.max(bar.value)));
    // A bar far longer than the rest would flatten them: it is cut, and its value says how long it is.
    let mut sorted: Vec<f64> = ends.clone().collect();
    sorted.sort_by(f64::total_cmp);
    let typical = sorted.get(sorted.len() * 3 / 4).copied().unwrap_or(1.0);
    let most = ends
        .fold(0.0, f64::max)
        .min(4.0 * typical)
        .max(chart.reference.unwrap_or(0.0));
    let most = if most > 0.0 { most } else { 1.0 };
    let room = most * 1.4;
    let area = SVGBackend::with_string(into, (WIDTH, height)).into_drawing_area();
    let mut plot = ChartBuilder::on(&area)
        .margin_top(4)
        .margin_right(6)
        .margin_bottom(4)
        .set_label_area_size(LabelAreaPosition::Left, LABELS)
        .set_label_area_size(LabelAreaPosition::Bottom, 20)
        .build_cartesian_2d(0.0..room, 0.0..bars.len() as f64)?;
    let text = || TextStyle::from(("sans-serif", TEXT).into_font()).color(&INK);
    let at = |index: usize| (bars.len() - 1 - index) as f64;
    plot.configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(5)
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(text())
        .x_label_formatter(&|value| format!("{}", (value * 1000.0).round() / 1000.0))
        .draw()?;
    // The line before the bars, so that their values can be read across it.
    if let Some(reference) = chart.reference {
        let line = [0.0, bars.len() as f64].map(|y| (reference, y));
        plot.draw_series([PathElement::new(line.to_vec(), INK.stroke_width(1))])?;
    }
    // From above to below, in the order of the bars.
    for (index, bar) in bars.iter().enumerate() {
        let (middle, end) = (at(index) + 0.5, bar.value.min(most * 1.02));
        let colour = match bar.who {
            Who::Ours => OURS,
            Who::OursLosing => LOSING,
            Who::Peer => PEER,
            Who::Other => OTHER,
        };
        let mut shape = Rectangle::new([(0.0, at(index)), (end, at(index) + 1.0)], colour.filled());
        shape.set_margin(4, 4, 0, 0);
        plot.draw_series([shape])?;
        let mut label_at = end;
        if let Some((low, high)) = bar.interval.filter(|&(low, _)| low < most) {
            let high = high.min(most * 1.02);
            label_at = label_at.max(high);
            plot.draw_series([PathElement::new(
                vec![(low, middle), (high, middle)],
                INK.stroke_width(1),
            )])?;
        }
        let cut = if bar.value > end { " \u{2192}" } else { "" };
        let lost = if bar.who == Who::OursLosing { " \u{25b2}" } else { "" };
        let value = format!("{}{cut}{lost}", stepalloc_measure::table::figure(Some(bar.value)));
        let style = text().pos(Pos::new(HPos::Left, VPos::Center));
        plot.draw_series([Text::new(value, (label_at + room * 0.015, middle), style)])?;
        let style = text().pos(Pos::new(HPos::Right, VPos::Center));
        let y = plot.backend_coord(&(0.0, middle)).1;
        area.draw(&Text::new(shortened(&bar.label), (LABELS as i32 - 6, y), style))?;
    }
    area.present()?;
    Ok(())
}

//! A chart: lines over the swap's time, as SVG that stretches, with its words around it in HTML.

use super::escaped;

/// Milliseconds since the swap began, and the value then; `None` where nothing was measured: the line has a gap there.
pub(super) type Points = Vec<(u64, Option<f64>)>;

/// One line of a chart.
pub(super) struct Series {
    /// What the legend calls it.
    pub(super) name: String,
    /// Which of the page's colours, from 0.
    pub(super) colour: usize,
    pub(super) points: Points,
}

impl Series {
    /// What was measured.
    fn values(&self) -> impl Iterator<Item = f64> {
        self.points.iter().filter_map(|(_, value)| *value)
    }

    /// The stretches between its gaps.
    fn runs(&self) -> impl Iterator<Item = Vec<(u64, f64)>> {
        let runs = self.points.split(|(_, value)| value.is_none());
        let runs =
            runs.map(|run| run.iter().filter_map(|(at, value)| Some((*at, (*value)?))).collect());
        runs.filter(|run: &Vec<_>| !run.is_empty())
    }
}

/// A moment that every chart marks.
pub(super) struct Mark {
    pub(super) at: u64,
    pub(super) name: String,
}

/// What the drawing is in units of; it is stretched to the width of the page.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 200.0;

/// How wide a single point is drawn.
const SPECK: f64 = 12.0;

/// How many colours `report.css` has for lines.
const COLOURS: usize = 4;

/// A chart, or a line that says that nothing was measured. `unit` stands behind every value.
pub(super) fn chart(
    title: &str,
    unit: &str,
    series: &[Series],
    (whole, marks): (u64, &[Mark]),
) -> String {
    let title = escaped(title);
    let values = || series.iter().flat_map(Series::values);
    if values().next().is_none() {
        return format!("<section><h2>{title}</h2><p class=\"none\">Not measured.</p></section>\n");
    }
    let top = above(values().fold(0.0, f64::max));
    let x = |at: u64| share(at, whole) * WIDTH;
    let lines: String = series
        .iter()
        .flat_map(|series| series.runs().map(move |run| (series, run)))
        .map(|(series, run)| {
            let mut points: Vec<(f64, f64)> =
                run.iter().map(|(at, value)| (x(*at), HEIGHT - value / top * HEIGHT)).collect();
            if let [(x, y)] = points[..] {
                // A single point would not be drawn.
                points.push((x + SPECK, y));
            }
            let points: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let class = series.colour % COLOURS;
            format!("<polyline class=\"c{class}\" points=\"{}\"/>", points.join(" "))
        })
        .collect();
    let grid: String = [0.0, 0.25, 0.5, 0.75]
        .map(|part| part * HEIGHT)
        .map(|y| format!("<line class=\"grid\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{y}\" y2=\"{y}\"/>"))
        .concat();
    let moments: String = marks
        .iter()
        .map(|mark| {
            let x = x(mark.at);
            let name = escaped(&mark.name);
            format!(
                "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{HEIGHT}\"><title>{name}</title></line>"
            )
        })
        .collect();
    let legend: String = series
        .iter()
        .filter_map(|series| {
            let most = series.values().fold(f64::NAN, f64::max);
            let last = series.values().last()?;
            Some(format!(
                "<li><i class=\"c{}\"></i>{}<small> at most {}{unit}, last {}{unit}</small></li>",
                series.colour % COLOURS,
                escaped(&series.name),
                number(most),
                number(last),
            ))
        })
        .chain(marks.iter().map(|mark| {
            let (name, at) = (escaped(&mark.name), super::duration(mark.at));
            format!("<li><i class=\"moment\"></i><small>{name} at {at}</small></li>")
        }))
        .collect();
    format!(
        "<section><h2>{title}</h2><ul class=\"legend\">{legend}</ul>\
         <div class=\"chart\"><div class=\"y\"><span>{}{unit}</span><span>{}{unit}</span><span>0</span></div>\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{title}\">\
         {grid}{moments}{lines}</svg></div>\
         <div class=\"x\"><span>0</span><span>{}</span><span>{}</span></div></section>\n",
        number(top),
        number(top / 2.0),
        super::duration(whole / 2),
        super::duration(whole),
    )
}

/// A round number that no value is above: 1, 2, 4, 5 or 8 of a power of ten, a thousandth at least.
fn above(most: f64) -> f64 {
    if most == 0.0 {
        return 1.0;
    }
    let mut tops = (-3..=15)
        .map(|power| 10_f64.powi(power))
        .flat_map(|step| [1.0, 2.0, 4.0, 5.0, 8.0].map(|factor| factor * step));
    tops.find(|top| *top >= most).unwrap_or(most)
}

#[expect(clippy::cast_precision_loss, reason = "a swap lasts fewer than 2^53 milliseconds")]
pub(super) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part.min(whole)) as f64 / whole as f64 }
}

/// As many digits as a reader needs: of what is small, thousandths.
fn number(value: f64) -> String {
    if value.fract() == 0.0 || value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.1}")
    } else {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_of_a_chart_is_round_and_above_every_value() {
        for (most, top) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (3.0, 4.0),
            (12.0, 20.0),
            (99.0, 100.0),
            (81_000.0, 100_000.0),
            (0.223, 0.4),
            (0.0004, 0.001),
        ] {
            assert!((above(most) - top).abs() < 1e-9, "{most}: {}", above(most));
        }
    }

    #[test]
    fn what_is_small_is_not_shown_as_nothing() {
        for (value, text) in [
            (0.0, "0"),
            (0.012, "0.012"),
            (0.2, "0.2"),
            (0.9996, "1"),
            (1.25, "1.2"),
            (250.4, "250"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn what_was_not_measured_is_said_to_be_so() {
        let series = |points| [Series { name: "a <b>".to_owned(), colour: 5, points }];
        let marks = [Mark { at: 500, name: "cut_over".to_owned() }];
        let text = chart("In flight", "", &series(Vec::new()), (1000, &marks));
        assert!(text.contains("Not measured"), "{text}");
        let measured = vec![(0, Some(1.0)), (1000, Some(2.0))];
        let text = chart("In flight", "", &series(measured), (1000, &marks));
        assert!(text.contains("points=\"0.0,100.0 1000.0,0.0\""), "{text}");
        assert!(text.contains("a &lt;b&gt;<small> at most 2, last 2</small>"), "{text}");
        assert!(text.contains("x1=\"500.0\"") && text.contains("class=\"c1\""), "{text}");

        let at = |at, value| (at, Some(value));
        let broken =
            vec![at(0, 1.0), at(100, 2.0), (200, None), (300, None), at(400, 2.0), (500, None)];
        let text = chart("In flight", "", &series(broken), (1000, &marks));
        let lines: Vec<_> = text.split("points=").skip(1).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with("\"0.0,100.0 100.0,0.0\""), "{text}");
        assert!(lines[1].starts_with("\"400.0,0.0 412.0,0.0\""), "{text}");
        assert!(text.contains("at most 2, last 2"), "{text}");
    }
}

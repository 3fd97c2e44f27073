//! The plot of KL against size. Two drawings of each, one for wide screens and one for narrow ones.

use std::fmt::Write as _;

use super::super::front::pareto;
use super::super::result::{RecipeResult, Sweep};
use super::colour;
use super::text::{escape, kl, megabytes, power};

/// Width of a character of a label, in units of the drawing.
const CHARACTER: f64 = 7.1;
/// Height of a label.
const LINE: f64 = 15.0;

/// What the horizontal axis shows.
struct Axis {
    name: &'static str,
    unit: &'static str,
    value: fn(&RecipeResult) -> f64,
}

const AXES: [Axis; 3] = [
    Axis {
        name: "bundle",
        unit: "whole bundle, MB",
        value: |r| r.weights.bundle_bytes as f64 / 1e6,
    },
    Axis {
        name: "weight files",
        unit: "weight files, MB",
        value: |r| r.weights.weight_bytes as f64 / 1e6,
    },
    Axis {
        name: "bits per weight",
        unit: "bits per weight, LUTs and scales counted",
        value: |r| r.weights.bits_per_weight,
    },
];

/// A rectangle: left, top, right, bottom.
type Rect = [f64; 4];

struct Frame {
    width: f64,
    height: f64,
    plot: Rect,
    /// Smallest and largest value of each axis; the vertical one in powers of ten.
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let [left, top, right, bottom] = self.plot;
        let across = (x - self.x.0) / (self.x.1 - self.x.0);
        let up = (y.log10() - self.y.0) / (self.y.1 - self.y.0);
        (
            left + across * (right - left),
            bottom - up.clamp(0.0, 1.0) * (bottom - top),
        )
    }
}

/// Least and largest mean KL as powers of ten, for bars on a log scale.
pub(super) fn largest_kl(sweep: &Sweep) -> (f64, f64) {
    let kls = sweep.recipes.iter().map(|r| r.figures.kl_mean);
    let known = kls.filter(|k| k.is_finite() && *k > 0.0).map(f64::log10);
    let (low, high) = known.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), k| {
        (a.min(k), b.max(k))
    });
    match low.is_finite() {
        true => (low.floor(), high.ceil().max(low.floor() + 1.0)),
        false => (-6.0, 0.0),
    }
}

pub(super) fn section(sweep: &Sweep) -> String {
    let mut out = String::from(
        "<section class=\"card\">\n<h2>Loss against size</h2>\n<p class=\"note\">Mean KL divergence from the f32 model, \
         logarithmic, with its standard error. Lower and further left is better; the dashed line joins the recipes that no \
         other beats.</p>\n<div class=\"tabs\">\n",
    );
    for (i, axis) in AXES.iter().enumerate() {
        let checked = if i == 0 { " checked=\"checked\"" } else { "" };
        let _ = writeln!(
            out,
            "<input type=\"radio\" name=\"x\" id=\"x{i}\"{checked}/><label for=\"x{i}\">{}</label>",
            axis.name
        );
    }
    for (i, axis) in AXES.iter().enumerate() {
        let _ = write!(out, "<div class=\"pane p{i}\">\n<div class=\"wide\">");
        out.push_str(&plot(sweep, axis, 940.0, 430.0));
        out.push_str("</div>\n<div class=\"narrow\">");
        out.push_str(&plot(sweep, axis, 370.0, 400.0));
        out.push_str("</div>\n</div>\n");
    }
    out.push_str("</div>\n</section>\n");
    out
}

/// Recipes that can be drawn, with their index.
fn drawn(sweep: &Sweep) -> Vec<(usize, &RecipeResult)> {
    let all = sweep.recipes.iter().enumerate();
    all.filter(|(_, r)| r.figures.kl_mean.is_finite()).collect()
}

fn plot(sweep: &Sweep, axis: &Axis, width: f64, height: f64) -> String {
    let recipes = drawn(sweep);
    let values: Vec<f64> = recipes.iter().map(|(_, r)| (axis.value)(r)).collect();
    let (least, most) = values
        .iter()
        .fold((f64::INFINITY, 0f64), |(a, b), v| (a.min(*v), b.max(*v)));
    if values.is_empty() {
        return "<p class=\"note\">No recipe has a finite KL.</p>".into();
    }
    let spread = (most - least).max(most * 0.05).max(f64::MIN_POSITIVE);
    let frame = Frame {
        width,
        height,
        plot: [54.0, 14.0, width - 16.0, height - 44.0],
        x: ((least - spread * 0.09).max(0.0), most + spread * 0.09),
        y: largest_kl(sweep),
    };
    let mut out = format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"KL divergence against {}\">\n",
        axis.unit
    );
    grid(&mut out, &frame, axis);
    let points: Vec<(f64, f64)> = recipes
        .iter()
        .zip(&values)
        .map(|((_, r), v)| (*v, r.figures.kl_mean))
        .collect();
    let front = pareto(&points);
    let steps = stairs(&mut out, &frame, &points, &front);
    let spots: Vec<(f64, f64)> = points.iter().map(|p| frame.at(p.0, p.1)).collect();
    for (((index, recipe), spot), on) in recipes.iter().zip(&spots).zip(&front) {
        point(&mut out, &frame, *index, recipe, *spot, *on);
    }
    let names: Vec<&str> = recipes.iter().map(|(_, r)| r.name.as_str()).collect();
    for (i, place) in place(&frame, &spots, &names, &steps)
        .into_iter()
        .enumerate()
    {
        label(&mut out, names[i], spots[i], place, front[i]);
    }
    out.push_str("</svg>\n");
    out
}

/// Steps of 1, 2 or 5 times a power of ten, about `wanted` of them.
fn ticks(low: f64, high: f64, wanted: f64) -> Vec<f64> {
    let rough = (high - low) / wanted;
    let unit = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * unit)
        .find(|s| *s >= rough)
        .unwrap_or(unit * 10.0);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

fn grid(out: &mut String, frame: &Frame, axis: &Axis) {
    let [left, top, right, bottom] = frame.plot;
    let (low, high) = (frame.y.0 as i32, frame.y.1 as i32);
    let skip = ((high - low) / 8 + 1).max(1);
    for exponent in (low..=high).filter(|e| (e - low) % skip == 0) {
        let (_, y) = frame.at(frame.x.0, 10f64.powi(exponent));
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 8.0,
            y + 4.0,
            match exponent {
                0 => "1".to_string(),
                1 => "10".to_string(),
                -1 => "0.1".to_string(),
                -2 => "0.01".to_string(),
                e => power(e),
            }
        );
    }
    let marks = ticks(frame.x.0, frame.x.1, frame.width / 95.0);
    let step = marks.get(1).map_or(1.0, |b| b - marks[0]);
    let decimals = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    for mark in marks {
        let (x, _) = frame.at(mark, 1.0);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{mark:.decimals$}</text>",
            bottom + 18.0
        );
    }
    let _ = writeln!(
        out,
        "<line class=\"axis\" x1=\"{left}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text x=\"12\" y=\"{:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 12 {:.1})\">KL, nats</text>",
        (left + right) / 2.0,
        frame.height - 6.0,
        axis.unit,
        (top + bottom) / 2.0,
        (top + bottom) / 2.0
    );
}

/// Draws what the front beats, and its line. Returns the line's parts.
fn stairs(out: &mut String, frame: &Frame, points: &[(f64, f64)], front: &[bool]) -> Vec<Rect> {
    let [_, top, right, _] = frame.plot;
    let mut members: Vec<(f64, f64)> = points
        .iter()
        .zip(front)
        .filter(|(_, on)| **on)
        .map(|(p, _)| frame.at(p.0, p.1))
        .collect();
    members.sort_by(|a, b| a.0.total_cmp(&b.0));
    let Some(first) = members.first() else {
        return Vec::new();
    };
    let mut steps = Vec::new();
    let mut path = format!("M{:.1} {:.1}", first.0, first.1);
    for pair in members.windows(2) {
        let ((x, y), (next, below)) = (pair[0], pair[1]);
        steps.push([x, y - 1.0, next, y + 1.0]);
        steps.push([next - 1.0, y.min(below), next + 1.0, y.max(below)]);
        let _ = write!(path, "H{next:.1}V{below:.1}");
    }
    let _ = writeln!(
        out,
        "<path class=\"beaten\" d=\"M{:.1} {top}{}H{right}V{top}Z\"/>\n<path class=\"front\" d=\"{path}\"/>",
        first.0,
        path.replacen('M', "L", 1)
    );
    steps
}

fn point(
    out: &mut String,
    frame: &Frame,
    index: usize,
    r: &RecipeResult,
    (x, y): (f64, f64),
    on: bool,
) {
    let f = &r.figures;
    let bar = |at: f64| frame.at(frame.x.0, at.max(f64::MIN_POSITIVE)).1;
    let (high, low) = (bar(f.kl_mean + f.kl_stderr), bar(f.kl_mean - f.kl_stderr));
    let _ = writeln!(
        out,
        "<g class=\"k{}\"><title>{}: KL {} ± {} nats, {}, {:.3} bits per weight, same top token {:.1} %</title>\
         <line class=\"bar\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{high:.1}\" y2=\"{low:.1}\"/>\
         <circle class=\"{}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{}\"/></g>",
        colour(index),
        escape(&r.name),
        kl(f.kl_mean),
        kl(f.kl_stderr),
        megabytes(r.weights.bundle_bytes),
        r.weights.bits_per_weight,
        100.0 * f.top1_agreement,
        if on { "on" } else { "off" },
        if on { "6.5" } else { "5" }
    );
}

/// A place for each label, beside its point, clear of points, of labels placed before and of the frame's edge as far as
/// there is one.
fn place(frame: &Frame, spots: &[(f64, f64)], names: &[&str], steps: &[Rect]) -> Vec<Rect> {
    let mut taken: Vec<Rect> = Vec::new();
    for (&(x, y), name) in spots.iter().zip(names) {
        let width = name.chars().count() as f64 * CHARACTER;
        let mut best: Option<(f64, Rect)> = None;
        for (far, distance) in [11.0, 20.0, 32.0, 46.0].into_iter().enumerate() {
            for (turn, (dx, dy)) in DIRECTIONS.into_iter().enumerate() {
                let left = x + dx * distance - width * (1.0 - dx.signum() * dx.abs().ceil()) / 2.0;
                let top = y + dy * distance - LINE / 2.0;
                let rect = [left, top, left + width, top + LINE];
                let cost = overlaps(frame, spots, &taken, steps, &rect)
                    + far as f64 * 3.0
                    + turn as f64 * 0.2;
                if best.is_none_or(|(least, _)| cost < least) {
                    best = Some((cost, rect));
                }
            }
        }
        if let Some((_, rect)) = best {
            taken.push(rect);
        }
    }
    taken
}

/// Where a label may lie from its point, the best first: up right, right, down left, left, up left, down right, up, down.
const DIRECTIONS: [(f64, f64); 8] = [
    (0.8, -0.9),
    (1.0, 0.0),
    (-0.8, 0.9),
    (-1.0, 0.0),
    (-0.8, -0.9),
    (0.8, 0.9),
    (0.0, -1.5),
    (0.0, 1.5),
];

/// How much is wrong with a label there.
fn overlaps(
    frame: &Frame,
    spots: &[(f64, f64)],
    taken: &[Rect],
    steps: &[Rect],
    rect: &Rect,
) -> f64 {
    let shared = |other: &Rect| {
        let width = rect[2].min(other[2]) - rect[0].max(other[0]);
        let height = rect[3].min(other[3]) - rect[1].max(other[1]);
        width.max(0.0) * height.max(0.0)
    };
    let labels: f64 = taken.iter().map(shared).sum();
    let points: f64 = spots
        .iter()
        .map(|(x, y)| shared(&[x - 8.0, y - 8.0, x + 8.0, y + 8.0]))
        .sum();
    let [left, top, right, bottom] = frame.plot;
    let outside = (left - rect[0]).max(0.0)
        + (rect[2] - right).max(0.0)
        + (top - rect[1]).max(0.0)
        + (rect[3] - bottom).max(0.0);
    let lines: f64 = steps.iter().map(shared).sum();
    labels + points + outside * 20.0 + lines * 0.5
}

fn label(out: &mut String, name: &str, spot: (f64, f64), rect: Rect, on: bool) {
    let middle = (rect[1] + rect[3]) / 2.0;
    let nearest = (spot.0.clamp(rect[0], rect[2]), middle);
    let distance = (nearest.0 - spot.0).hypot(nearest.1 - spot.1);
    if distance > 18.0 {
        let _ = writeln!(
            out,
            "<line class=\"lead-line\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            spot.0, spot.1, nearest.0, nearest.1
        );
    }
    let (anchor, x) = match (rect[0] >= spot.0, rect[2] <= spot.0) {
        (true, _) => ("start", rect[0]),
        (_, true) => ("end", rect[2]),
        _ => ("middle", (rect[0] + rect[2]) / 2.0),
    };
    let faint = if on { "" } else { " faint" };
    let _ = writeln!(
        out,
        "<text class=\"label{faint}\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
        middle + 4.2,
        escape(name)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        Frame {
            width: 900.0,
            height: 400.0,
            plot: [50.0, 10.0, 880.0, 360.0],
            x: (0.0, 10.0),
            y: (-4.0, 0.0),
        }
    }

    #[test]
    fn labels_of_a_crowd_do_not_overlap() {
        let frame = frame();
        let spots: Vec<(f64, f64)> = (0..6)
            .map(|i| (400.0 + 7.0 * f64::from(i), 200.0))
            .collect();
        let names = ["swa4-a", "swa4-b", "swa4-c", "swa4-d", "swa4-e", "swa4-f"];
        let places = place(&frame, &spots, &names, &[]);
        assert_eq!(places.len(), 6);
        for (i, a) in places.iter().enumerate() {
            for b in &places[..i] {
                let apart = a[2] <= b[0] || b[2] <= a[0] || a[3] <= b[1] || b[3] <= a[1];
                assert!(apart, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(2.9, 8.4, 6.0), [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(ticks(0.0, 1.0, 5.0).len(), 6);
        assert!(ticks(3.0, 3.1, 5.0).iter().all(|t| (3.0..=3.1).contains(t)));
    }

    #[test]
    fn the_log_axis_goes_up() {
        let frame = frame();
        assert_eq!(frame.at(0.0, 1e-4), (50.0, 360.0));
        assert_eq!(frame.at(10.0, 1.0), (880.0, 10.0));
        assert!((frame.at(5.0, 1e-2).1 - 185.0).abs() < 1e-9);
    }
}

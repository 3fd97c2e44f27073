//! Signal to noise of each kind of projection along the layers: one small plot a kind, one line a recipe.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::super::result::{RecipeResult, Sweep};
use super::colour;
use super::text::escape;

/// From here on a weight counts as kept; lines would leave no room for the others.
const KEPT_DB: f64 = 100.0;
/// Size of a panel.
const SIZE: (f64, f64) = (320.0, 168.0);
/// Left, top, right, bottom of its plot.
const PLOT: [f64; 4] = [30.0, 8.0, 314.0, 146.0];

/// Signal to noise by layer, of one recipe.
type Line = BTreeMap<usize, f64>;

pub(super) fn section(sweep: &Sweep) -> String {
    let mut kinds: Vec<(String, BTreeMap<usize, Line>)> = Vec::new();
    let mut outside: Vec<(String, BTreeMap<usize, Line>)> = Vec::new();
    for (index, recipe) in sweep.recipes.iter().enumerate() {
        for (layer, kind, db) in lossy(recipe) {
            let list = match layer {
                Some(_) => &mut kinds,
                None => &mut outside,
            };
            let at = list.iter().position(|(k, _)| *k == kind);
            let at = at.unwrap_or_else(|| {
                list.push((kind, BTreeMap::new()));
                list.len() - 1
            });
            list[at]
                .1
                .entry(index)
                .or_default()
                .insert(layer.unwrap_or(0), db);
        }
    }
    if kinds.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<section class=\"card\">\n<h2>Error of the weights, layer by layer</h2>\n<p class=\"note\">Signal to quantization \
         noise in dB, higher is better: one plot for each kind of projection, the layers from left to right.",
    );
    let kept: Vec<String> = sweep
        .recipes
        .iter()
        .filter(|r| lossy(r).is_empty())
        .map(|r| escape(&r.name))
        .collect();
    if !kept.is_empty() {
        let _ = write!(
            out,
            " Not shown, as nothing is lost to speak of (above {KEPT_DB} dB): {}.",
            kept.join(", ")
        );
    }
    out.push_str("</p>\n");
    legend(&mut out, sweep);
    let all = kinds.iter().chain(&outside);
    let most = all
        .flat_map(|(_, lines)| lines.values().flat_map(BTreeMap::values))
        .fold(10f64, |a, b| a.max(*b));
    let most = (most / 10.0).ceil() * 10.0;
    let layers = kinds
        .iter()
        .flat_map(|(_, lines)| lines.values().flat_map(BTreeMap::keys))
        .max()
        .map_or(1, |l| l + 1);
    out.push_str("<div class=\"panels\">\n");
    for (kind, lines) in &kinds {
        panel(&mut out, sweep, kind, lines, layers, most);
    }
    out.push_str("</div>\n");
    others(&mut out, sweep, &outside);
    out.push_str("</section>\n");
    out
}

/// Layer, kind and ratio of the weights that lost something.
fn lossy(recipe: &RecipeResult) -> Vec<(Option<usize>, String, f64)> {
    let tensors = recipe.weights.tensors.iter();
    let lossy = tensors.filter_map(|t| {
        let db = t.sqnr_db.filter(|db| *db < KEPT_DB)?;
        let (layer, kind) = kind_of(&t.tensor);
        Some((layer, kind, db))
    });
    lossy.collect()
}

/// `layers.3.mlp.up_proj.weight` is layer 3, `mlp.up_proj`.
fn kind_of(tensor: &str) -> (Option<usize>, String) {
    let name = tensor.strip_suffix(".weight").unwrap_or(tensor);
    let inner = name
        .strip_prefix("layers.")
        .and_then(|rest| rest.split_once('.'));
    match inner.and_then(|(layer, kind)| Some((layer.parse().ok()?, kind))) {
        Some((layer, kind)) => (Some(layer), kind.to_string()),
        None if ["embed_tokens", "lm_head"].contains(&name) => (None, format!("head ({name})")),
        None => (None, name.to_string()),
    }
}

fn legend(out: &mut String, sweep: &Sweep) {
    out.push_str("<div class=\"legend\">");
    for (i, recipe) in sweep.recipes.iter().enumerate() {
        if !lossy(recipe).is_empty() {
            let _ = write!(
                out,
                "<span class=\"k{}\"><span class=\"swatch\"></span>{}</span>",
                colour(i),
                escape(&recipe.name)
            );
        }
    }
    out.push_str("</div>\n");
}

fn panel(
    out: &mut String,
    sweep: &Sweep,
    kind: &str,
    lines: &BTreeMap<usize, Line>,
    layers: usize,
    most: f64,
) {
    let [left, top, right, bottom] = PLOT;
    let x = |layer: usize| {
        let across = (layer as f64 + 0.5) / layers as f64;
        left + across * (right - left)
    };
    let y = |db: f64| bottom - (db / most).clamp(0.0, 1.0) * (bottom - top);
    let _ = writeln!(
        out,
        "<div><h3>{}</h3>\n<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"signal to noise of {} by layer\">",
        escape(kind),
        SIZE.0,
        SIZE.1,
        escape(kind)
    );
    let step = if most > 40.0 { 20.0 } else { 10.0 };
    let mut db = 0.0;
    while db <= most {
        let at = y(db);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{db:.0}</text>",
            left - 6.0,
            at + 4.0
        );
        db += step;
    }
    let skip = layers.div_ceil(12);
    for layer in (0..layers).step_by(skip) {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{layer}</text>",
            x(layer),
            bottom + 17.0
        );
    }
    for (&index, line) in lines {
        let name = escape(&sweep.recipes[index].name);
        let path: Vec<String> = line
            .iter()
            .map(|(layer, db)| format!("{:.1},{:.1}", x(*layer), y(*db)))
            .collect();
        let _ = write!(
            out,
            "<g class=\"k{}\"><polyline class=\"run\" points=\"{}\"/>",
            colour(index),
            path.join(" ")
        );
        for (layer, db) in line {
            let _ = write!(
                out,
                "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.6\"><title>{name}, layer {layer}: {db:.2} dB</title>\
                 </circle>",
                x(*layer),
                y(*db)
            );
        }
        out.push_str("</g>\n");
    }
    out.push_str("</svg></div>\n");
}

/// Weights outside the layers, as a table.
fn others(out: &mut String, sweep: &Sweep, outside: &[(String, BTreeMap<usize, Line>)]) {
    if outside.is_empty() {
        return;
    }
    out.push_str("<div class=\"scroll\"><table>\n<thead><tr><th>outside the layers, dB</th>");
    let shown: Vec<usize> = (0..sweep.recipes.len())
        .filter(|i| outside.iter().any(|(_, lines)| lines.contains_key(i)))
        .collect();
    for &i in &shown {
        let _ = write!(out, "<th>{}</th>", escape(&sweep.recipes[i].name));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for (kind, lines) in outside {
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>", escape(kind));
        for i in &shown {
            let db = lines.get(i).and_then(|line| line.get(&0));
            let _ = write!(
                out,
                "<td>{}</td>",
                db.map_or("–".into(), |db| format!("{db:.2}"))
            );
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table></div>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_of_a_layer_and_a_kind() {
        assert_eq!(
            kind_of("layers.3.mlp.up_proj.weight"),
            (Some(3), "mlp.up_proj".into())
        );
        assert_eq!(
            kind_of("layers.12.experts.gate_up_proj"),
            (Some(12), "experts.gate_up_proj".into())
        );
        assert_eq!(kind_of("norm.weight"), (None, "norm".into()));
        assert_eq!(kind_of("embed_tokens.weight").0, None);
    }
}

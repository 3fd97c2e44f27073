//! `sweep.html`: one page that needs nothing else. Styles are inline, plots are SVG made here, all text is escaped, and the
//! page is well-formed XML.

mod layers;
mod pareto;
mod samples;
mod text;

use std::fmt::Write as _;

use super::result::{Path, RecipeResult, Sweep};
use text::{count, escape, kl, megabytes};

const STYLE: &str = include_str!("style.css");

/// The class that gives a recipe its colour.
fn colour(index: usize) -> usize {
    index % 12
}

/// The page of a sweep.
pub fn page(sweep: &Sweep) -> String {
    let mut out = String::new();
    let title = escape(&sweep.model);
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>Recipes for {title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>Recipes for {title}</h1>\n\
         <p class=\"lead\">What each costs in bytes, and what it loses against the f32 model.</p>\n</header>\n"
    );
    out.push_str(&tiles(sweep));
    out.push_str(&alarm(sweep));
    out.push_str(&pareto::section(sweep));
    out.push_str(&table(sweep));
    out.push_str(&layers::section(sweep));
    out.push_str(&samples::section(sweep));
    out.push_str(&notes(sweep));
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

fn tiles(sweep: &Sweep) -> String {
    let mut out = String::from("<div class=\"tiles\">\n");
    let mut tile = |value: String, what: String| {
        let _ = writeln!(
            out,
            "<div class=\"tile\"><b>{value}</b><span>{what}</span></div>"
        );
    };
    tile(
        sweep.recipes.len().to_string(),
        format!("recipes, {} on the front", sweep.front.len()),
    );
    tile(
        count(sweep.tokens),
        format!("tokens in windows of {}", count(sweep.context)),
    );
    tile(
        format!("{:.4}", sweep.perplexity),
        "perplexity of the f32 model".into(),
    );
    if let Some(recall) = &sweep.recall {
        tile(
            format!("{}/{}", recall.right, recall.of),
            "facts the f32 model recalls".into(),
        );
    }
    out.push_str("</div>\n");
    out
}

/// Recipes whose two evaluations disagree.
fn alarm(sweep: &Sweep) -> String {
    if sweep.disagree.is_empty() {
        return String::new();
    }
    let names: Vec<String> = sweep.disagree.iter().map(|n| escape(n)).collect();
    format!(
        "<p class=\"card alarm\"><b>{}</b>: run op by op, the packages do not give the KL shown here.</p>\n",
        names.join(", ")
    )
}

fn table(sweep: &Sweep) -> String {
    let mut out = String::from(
        "<section class=\"card\">\n<h2>Figures</h2>\n<p class=\"note\">A filled dot: no other recipe is both smaller and \
         closer. Bits count LUTs and scales. SQNR: signal to quantization noise over all weights of the packages.</p>\n\
         <div class=\"scroll\"><table>\n<thead><tr><th>recipe</th><th>KL mean ± se<br/>nats</th><th>bundle</th><th>weights</th>\
         <th>bits per<br/>weight</th><th>SQNR<br/>dB</th><th>KL<br/>p99</th><th>same<br/>top token</th><th>perplexity</th>",
    );
    if sweep.recall.is_some() {
        out.push_str("<th>recall</th>");
    }
    out.push_str("<th>conversion</th><th>memory</th></tr></thead>\n<tbody>\n");
    let _ = write!(
        out,
        "<tr class=\"base\"><th scope=\"row\">f32 model</th><td>0</td><td></td><td></td><td></td><td></td><td>0</td>\
         <td></td><td>{:.4}</td>",
        sweep.perplexity
    );
    if let Some(recall) = &sweep.recall {
        let _ = write!(out, "<td>{}</td>", share(recall.share()));
    }
    out.push_str("<td></td><td></td></tr>\n");
    let largest = pareto::largest_kl(sweep);
    for (i, recipe) in sweep.recipes.iter().enumerate() {
        row(&mut out, sweep, i, recipe, largest);
    }
    out.push_str("</tbody>\n</table></div>\n</section>\n");
    out
}

fn row(out: &mut String, sweep: &Sweep, index: usize, r: &RecipeResult, scale: (f64, f64)) {
    let (f, w) = (&r.figures, &r.weights);
    let hollow = match sweep.front.contains(&r.name) {
        true => "",
        false => " hollow",
    };
    let (low, high) = scale;
    let filled = match f.kl_mean > 0.0 && high > low {
        true => 100.0 * (f.kl_mean.log10() - low) / (high - low),
        false => 0.0,
    };
    let _ = write!(
        out,
        "<tr class=\"k{}\"><th scope=\"row\" title=\"{}\"><span class=\"swatch{hollow}\"></span>{}</th>\
         <td class=\"kl\">{} <span class=\"small\">± {}</span><span class=\"meter\"><i style=\"width:{:.1}%\"></i></span></td>\
         <td>{}</td><td>{}</td><td>{:.3}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.4}</td>",
        colour(index),
        escape(&r.description),
        escape(&r.name),
        kl(f.kl_mean),
        kl(f.kl_stderr),
        filled.clamp(2.0, 100.0),
        megabytes(w.bundle_bytes),
        megabytes(w.weight_bytes),
        w.bits_per_weight,
        w.sqnr_db.map_or("∞".to_string(), |db| format!("{db:.2}")),
        kl(f.kl_p99),
        share(f.top1_agreement),
        f.perplexity,
    );
    if sweep.recall.is_some() {
        let text = r.recall.as_ref().map_or("–".into(), |c| share(c.share()));
        let _ = write!(out, "<td>{text}</td>");
    }
    let memory = r.conversion.memory.added();
    let _ = writeln!(
        out,
        "<td>{:.1} s</td><td>{}</td></tr>",
        r.conversion.seconds,
        memory.map_or("–".into(), megabytes)
    );
}

fn share(value: f64) -> String {
    match value.is_nan() {
        true => "–".into(),
        false => format!("{:.1} %", 100.0 * value),
    }
}

fn notes(sweep: &Sweep) -> String {
    let mut out = String::from(
        "<section class=\"card\">\n<h2>How it was measured</h2>\n<p class=\"note\">Each recipe was converted to a bundle, and \
         the bundle's weights, decoded from the bytes on disk, were run over the text together with the rows of its tables. \
         Every token's logits are compared with those of the f32 model.",
    );
    if !sweep.kl_is_exact {
        let _ = write!(
            out,
            " The KL divergence takes the {} most likely of {} tokens one by one and all others as one, which makes it a \
             lower bound.",
            count(sweep.top),
            count(sweep.vocab)
        );
    }
    out.push_str(
        " Recipes on the front were run op by op as well, and the two KL figures compared. Memory is the largest that the \
         program allocated for the conversion, beyond what it held before.</p>\n<div class=\"scroll\"><table>\n\
         <thead><tr><th>recipe</th><th>run</th><th>first tokens</th><th>KL batched</th><th>KL op by op</th><th></th></tr>\
         </thead>\n<tbody>\n",
    );
    for (i, r) in sweep.recipes.iter().enumerate() {
        let (run, why) = match &r.path {
            Path::Batched => ("batched", ""),
            Path::Interpreter(why) => ("op by op", why.as_str()),
        };
        let _ = write!(
            out,
            "<tr class=\"k{}\"><th scope=\"row\"><span class=\"swatch\"></span>{}</th><td title=\"{}\">{run}</td>",
            colour(i),
            escape(&r.name),
            escape(why)
        );
        let _ = match &r.check {
            None => writeln!(out, "<td>–</td><td>–</td><td>–</td><td></td></tr>"),
            Some(check) => writeln!(
                out,
                "<td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                count(check.tokens),
                kl(check.kl_batched),
                kl(check.kl_interpreter),
                match check.agrees() {
                    true => "<span class=\"good\">agree</span>",
                    false => "<span class=\"bad\">differ</span>",
                }
            ),
        };
    }
    let _ = write!(
        out,
        "</tbody>\n</table></div>\n<footer>{} · checkpoint {} · {} windows</footer>\n</section>\n",
        escape(&sweep.tool),
        escape(sweep.checkpoint.get(..16).unwrap_or(&sweep.checkpoint)),
        count(sweep.windows)
    );
    out
}

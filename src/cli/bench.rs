//! `bench`: how fast a bundle decodes, and how fast this machine could.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::Threads;
use super::console::{Console, human_bytes, table};
use super::failure::{Code, Failure, OrFail, Result};
use super::source::{PrecisionArg, open_bundle};
use crate::bundle::Bundle;
use crate::evaluate::{RowSource, open_decoder};
use crate::progress::Progress;
use crate::runtime::roofline::{Meter, Roofline, median};
use crate::runtime::{DecodeOptions, Decoder, Kernel};
use crate::sweep::status;

/// Tokens of which the time is broken down by op.
const PROFILED: usize = 8;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The bundle
    bundle: PathBuf,

    /// Tokens to decode and time
    #[arg(short = 'n', long, value_name = "N", default_value_t = 32)]
    tokens: usize,

    /// Tokens that are in the context before the first that is timed
    #[arg(long, value_name = "K", default_value_t = 0)]
    context_tokens: usize,

    /// How activations are carried
    #[arg(long, value_enum, default_value = "f32")]
    precision: PrecisionArg,

    /// Instructions that multiply weights [default: the fastest that this CPU has]
    #[arg(long, value_name = "NAME", value_parser = Kernel::NAMES)]
    kernel: Option<String>,

    #[command(flatten)]
    threads: Threads,
}

#[derive(Serialize)]
struct Output {
    kernel: &'static str,
    threads: usize,
    position: usize,
    tokens: usize,
    open_seconds: f64,
    tokens_per_second: f64,
    tokens_per_second_best: f64,
    weight_bytes_per_token: u64,
    cache_bytes_per_token: u64,
    row_bytes_per_token: u64,
    bandwidth_bytes_per_second: f64,
    bandwidth_bytes_per_second_best: f64,
    codings: Vec<Coding>,
    memory_bound_tokens_per_second: f64,
    kernel_bound_tokens_per_second: Option<f64>,
    bound_tokens_per_second: f64,
    gap_percent: f64,
    resident_bytes: Option<u64>,
    anonymous_bytes: Option<u64>,
    profile: Vec<Op>,
}

#[derive(Serialize)]
struct Coding {
    coding: String,
    elements_per_token: u64,
    bytes_per_token: u64,
    elements_per_second_one_thread: Option<f64>,
    elements_per_second: Option<f64>,
}

#[derive(Serialize)]
struct Op {
    op: String,
    count_per_token: f64,
    milliseconds_per_token: f64,
}

/// Tokens between two measurements of the machine.
const ROUND: usize = 4;

/// What decoding gave.
struct Decoded {
    /// Seconds of each token.
    seconds: Vec<f64>,
    roofline: Roofline,
    cache_bytes: u64,
    resident: Option<u64>,
    anonymous: Option<u64>,
    profile: Vec<Op>,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    let kernel = kernel(args)?;
    let begun = Instant::now();
    let bundle = open_bundle(&args.bundle)?;
    check_room(args, &bundle)?;
    let options = DecodeOptions {
        threads: args.threads.threads,
        ..DecodeOptions::default()
    };
    let mut decoder =
        open_decoder(&bundle, args.precision.into(), &RowSource::Bundle, options).or_invalid()?;
    let open_seconds = begun.elapsed().as_secs_f64();
    let threads = match args.threads.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    console.begin("decoding and measuring the machine", 0);
    let meter = Meter::new(&decoder.weights(), kernel, threads).or_unexpected()?;
    let row_bytes = row_bytes(&bundle);
    let decoded = decode(args, &bundle, &mut decoder, (meter, row_bytes))?;
    console.end();
    let position = decoder.position();
    let output = output(
        args,
        kernel,
        (threads, position, open_seconds, row_bytes),
        decoded,
    );
    match console.json() {
        true => console.json_value(&output),
        false => console.print(&text(&output)),
    }
}

/// The kernel asked for, made that of the process.
fn kernel(args: &Args) -> Result<Kernel> {
    let Some(name) = &args.kernel else {
        return Ok(Kernel::current());
    };
    let kernel = Kernel::named(name).filter(|kernel| kernel.choose());
    kernel.ok_or_else(|| {
        let names: Vec<&str> = Kernel::available().iter().map(|k| k.name()).collect();
        Failure::new(
            Code::Invalid,
            format!("--kernel {name}: this CPU does not have it"),
        )
        .hint(format!("it has: {}", names.join(", ")))
    })
}

fn check_room(args: &Args, bundle: &Bundle) -> Result<()> {
    if args.tokens == 0 {
        return Err(Failure::new(Code::Usage, "--tokens must be at least 1"));
    }
    let context = bundle.config().context_length;
    let needed = (args.context_tokens)
        .saturating_add(args.tokens)
        .saturating_add(PROFILED);
    match needed <= context {
        true => Ok(()),
        false => Err(Failure::new(
            Code::Invalid,
            format!(
                "{} tokens of context, {} timed and {PROFILED} profiled: expected at most the bundle's context of {context}",
                args.context_tokens, args.tokens
            ),
        )
        .hint("ask for fewer, or convert with a larger --context")),
    }
}

/// Fills the context, decodes greedily token by token, the machine measured between them, then some more with the clock in
/// every op.
fn decode(
    args: &Args,
    bundle: &Arc<Bundle>,
    decoder: &mut Decoder,
    (mut meter, row_bytes): (Meter, u64),
) -> Result<Decoded> {
    let vocab = bundle.config().vocab_size.max(1);
    let mut token = bundle.config().bos_token_id;
    for i in 0..args.context_tokens {
        decoder.step(token).or_invalid()?;
        // Any tokens will do: the work does not depend on them.
        token = ((i * 7919 + 13) % vocab) as u32;
    }
    let mut seconds = Vec::with_capacity(args.tokens);
    for i in 0..args.tokens {
        if i % ROUND == 0 {
            meter.sample();
        }
        let begun = Instant::now();
        token = decoder.step(token).or_invalid()?.token_id;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    let cache_bytes = cache_bytes(decoder);
    // The memory of the meter is gone before memory is asked for.
    let roofline = meter.roofline(cache_bytes + row_bytes);
    let (resident, anonymous) = (status("VmRSS:"), status("RssAnon:"));
    decoder.set_profiling(true);
    for _ in 0..PROFILED {
        token = decoder.step(token).or_invalid()?.token_id;
    }
    let profile = decoder.profile();
    decoder.set_profiling(false);
    let ops = profile.ops().into_iter().map(|(op, of)| Op {
        op: op.to_string(),
        count_per_token: of.count as f64 / PROFILED as f64,
        milliseconds_per_token: of.time.as_secs_f64() * 1e3 / PROFILED as f64,
    });
    Ok(Decoded {
        seconds,
        roofline,
        cache_bytes,
        resident,
        anonymous,
        profile: ops.collect(),
    })
}

/// Bytes of the caches that hold a token at the decoder's position: each position once, as f32.
fn cache_bytes(decoder: &Decoder) -> u64 {
    let caches = decoder.caches().map(|(_, _, cache)| match *cache.shape() {
        [slots, heads, length, width] => {
            slots * heads * length.min(decoder.position()) * width * size_of::<f32>()
        }
        _ => 0,
    });
    caches.sum::<usize>() as u64
}

/// Bytes of the rows of one token in the bundle's tables, scales included.
fn row_bytes(bundle: &Bundle) -> u64 {
    let tables = [Some(bundle.embed_table()), bundle.per_layer_table()];
    let rows = tables.into_iter().flatten().map(|table| {
        let (format, dim) = (table.format(), table.dim());
        format.row_bytes(dim) + format.row_scales(dim) * 2
    });
    rows.sum::<usize>() as u64
}

fn output(
    args: &Args,
    kernel: Kernel,
    (threads, position, open_seconds, row_bytes): (usize, usize, f64, u64),
    decoded: Decoded,
) -> Output {
    let best = decoded.seconds.iter().copied().fold(f64::MAX, f64::min);
    let median = median(decoded.seconds).unwrap_or(best);
    let roofline = &decoded.roofline;
    let codings = roofline.codings.iter().map(|c| Coding {
        coding: c.coding.clone(),
        elements_per_token: c.elements,
        bytes_per_token: c.bytes,
        elements_per_second_one_thread: c.one_thread,
        elements_per_second: c.all_threads,
    });
    let bound = roofline.bound();
    Output {
        kernel: kernel.name(),
        threads,
        position,
        tokens: args.tokens,
        open_seconds,
        tokens_per_second: median.recip(),
        tokens_per_second_best: best.recip(),
        weight_bytes_per_token: roofline.codings.iter().map(|c| c.bytes).sum(),
        cache_bytes_per_token: decoded.cache_bytes,
        row_bytes_per_token: row_bytes,
        bandwidth_bytes_per_second: roofline.bandwidth,
        bandwidth_bytes_per_second_best: roofline.bandwidth_best,
        codings: codings.collect(),
        memory_bound_tokens_per_second: roofline.memory_bound(),
        kernel_bound_tokens_per_second: roofline.kernel_bound(),
        bound_tokens_per_second: bound,
        gap_percent: 100.0 * (1.0 - median.recip() / bound),
        resident_bytes: decoded.resident,
        anonymous_bytes: decoded.anonymous,
        profile: decoded.profile,
    }
}

fn text(o: &Output) -> String {
    let rate = |r: Option<f64>| r.map_or("-".to_string(), |r| format!("{:.2}", r / 1e9));
    let bytes = |b: Option<u64>| b.map_or("-".to_string(), human_bytes);
    let mut rows = vec![
        [
            "kernel, threads".into(),
            format!("{}, {}", o.kernel, o.threads),
        ],
        ["open".into(), format!("{:.2} s", o.open_seconds)],
        [
            format!("tokens/s, median and best of {}", o.tokens),
            format!(
                "{:.2}, {:.2}",
                o.tokens_per_second, o.tokens_per_second_best
            ),
        ],
        [
            "read per token: weights, caches, rows".into(),
            format!(
                "{}, {}, {}",
                human_bytes(o.weight_bytes_per_token),
                human_bytes(o.cache_bytes_per_token),
                human_bytes(o.row_bytes_per_token)
            ),
        ],
        [
            "memory bandwidth, median and best".into(),
            format!(
                "{}/s, {}/s",
                human_bytes(o.bandwidth_bytes_per_second as u64),
                human_bytes(o.bandwidth_bytes_per_second_best as u64)
            ),
        ],
        [
            "bound by memory, tokens/s".into(),
            format!("{:.2}", o.memory_bound_tokens_per_second),
        ],
    ];
    let kernel_bound = o.kernel_bound_tokens_per_second;
    rows.push([
        "bound by the kernels in cache, tokens/s".into(),
        kernel_bound.map_or("-".to_string(), |b| format!("{b:.2}")),
    ]);
    rows.push([
        "gap to the lower bound".into(),
        format!("{:.1} %", o.gap_percent),
    ]);
    rows.push([
        "resident, anonymous".into(),
        format!("{}, {}", bytes(o.resident_bytes), bytes(o.anonymous_bytes)),
    ]);
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    let codings: Vec<Vec<String>> = o
        .codings
        .iter()
        .map(|c| {
            vec![
                c.coding.clone(),
                format!("{:.1}", c.elements_per_token as f64 / 1e6),
                human_bytes(c.bytes_per_token),
                rate(c.elements_per_second_one_thread),
                rate(c.elements_per_second),
            ]
        })
        .collect();
    let total: f64 = o.profile.iter().map(|op| op.milliseconds_per_token).sum();
    let ops: Vec<Vec<String>> = o
        .profile
        .iter()
        .map(|op| {
            vec![
                op.op.clone(),
                format!("{:.0}", op.count_per_token),
                format!("{:.3}", op.milliseconds_per_token),
                format!("{:.1}", 100.0 * op.milliseconds_per_token / total),
            ]
        })
        .collect();
    format!(
        "{}\n{}\n{}",
        table(&["", ">"], &rows),
        table(
            &[
                "weights",
                ">millions",
                ">bytes",
                ">G/s one thread",
                ">G/s all",
            ],
            &codings,
        ),
        table(&["op", ">per token", ">ms", ">%"], &ops)
    )
}

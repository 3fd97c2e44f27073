//! `decode`: text from a bundle, streamed.

use std::cell::Cell;
use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::Threads;
use super::adapters::Adapters;
use super::console::Console;
use super::failure::{Code, Failure, OrFail, Result};
use super::source::{PrecisionArg, check_ids, open_bundle, row_source};
use crate::bundle::Bundle;
use crate::checkpoint::{ChatTemplate, Message, Piece, Reply, ReplyDecoder, Tokenizer, stop_ids};
use crate::evaluate::{BundleSubject, RowSource, open_decoder, reference_file, subject};
use crate::progress::Progress;
use crate::runtime::generate::{Finish, Generated, Limits, generate};
use crate::runtime::sampling::{Sampler, SamplingOptions};
use crate::runtime::{DecodeOptions, Decoder, Precision};

/// First positions whose hidden states `--trace` writes.
const TRACE_POSITIONS: usize = 16;

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("input").required(true).multiple(true).args(["prompt", "chat", "tokens"])))]
pub struct Args {
    /// The bundle
    bundle: PathBuf,

    /// Text to continue; the tokenizer's beginning-of-text token is put before it
    #[arg(short, long, value_name = "PROMPT")]
    prompt: Option<String>,

    /// Use the chat template: for the one turn of --prompt, or for turns read from stdin line by line
    #[arg(long)]
    chat: bool,

    /// Token ids to continue, as they are
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with_all = ["prompt", "chat"])]
    tokens: Option<Vec<u32>>,

    /// Most new tokens
    #[arg(short = 'n', long = "max-new", value_name = "N", default_value_t = 128)]
    max_new: usize,

    /// Divides the logits; 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f64,

    /// Sample among the K most probable tokens only; 0 means all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,

    /// Sample among the most probable tokens that reach this probability only
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f64,

    /// Seed of the sampler
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,

    /// How activations are carried
    #[arg(long, value_enum, default_value = "f32")]
    precision: PrecisionArg,

    /// Take embedding and per-layer rows from this checkpoint instead of the bundle's tables
    #[arg(long, value_name = "MODEL")]
    exact_tables: Option<String>,

    #[command(flatten)]
    adapters: Adapters,

    /// Print thoughts as well, dimmed, to stderr
    #[arg(long)]
    show_thoughts: bool,

    /// Go on after a stop token
    #[arg(long)]
    ignore_eos: bool,

    /// Write ids, logits and hidden states as a reference file (runs the tokens a second time)
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    #[command(flatten)]
    threads: Threads,
}

#[derive(Serialize)]
struct Output<'a> {
    tokens: &'a [u32],
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
    finish_reason: Finish,
    tokens_per_second: f64,
}

/// Where pieces of a reply go: answers to stdout, thoughts to stderr or nowhere.
struct Screen<'a> {
    console: &'a Console,
    thoughts: bool,
    /// Whether a line of thoughts is open on stderr.
    thinking: Cell<bool>,
}

impl Screen<'_> {
    fn print(&self, pieces: &[Piece]) -> Result<()> {
        for piece in pieces {
            match piece {
                _ if self.console.json() => {}
                Piece::Answer(text) => {
                    self.end_thought();
                    self.console.print(text)?;
                }
                Piece::Thought(text) if self.thoughts => {
                    self.thinking.set(true);
                    self.console.aside(text);
                }
                Piece::Thought(_) => {}
            }
        }
        Ok(())
    }

    fn end_thought(&self) {
        if self.thinking.replace(false) {
            self.console.aside("\n");
        }
    }
}

struct Session<'a> {
    args: &'a Args,
    console: &'a Console,
    bundle: &'a Arc<Bundle>,
    rows: RowSource,
    tokenizer: Tokenizer,
    stop: Vec<u32>,
    sampler: Sampler,
    decoder: Decoder,
    /// Ids that the decoder holds.
    fed: Vec<u32>,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    let bundle = open_bundle(&args.bundle)?;
    let mut session = Session::open(args, console, &bundle)?;
    let interactive = args.chat && args.prompt.is_none();
    if interactive {
        return session.converse();
    }
    let ids = session.prompt_ids()?;
    let (generated, _) = session.turn(&ids)?;
    if let Some(path) = &args.trace {
        session.write_trace(path, &ids, &generated.tokens)?;
    }
    Ok(())
}

/// Refuses before the work what could not be written after it.
fn check_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    match parent {
        Some(parent) if !parent.is_dir() => Err(Failure::new(
            Code::Invalid,
            format!(
                "{}: no directory {} to write it to",
                path.display(),
                parent.display()
            ),
        )
        .hint("make the directory first")),
        _ => Ok(()),
    }
}

impl<'a> Session<'a> {
    fn open(args: &'a Args, console: &'a Console, bundle: &'a Arc<Bundle>) -> Result<Self> {
        let interactive = args.chat && args.prompt.is_none();
        if args.trace.is_some() && (interactive || args.max_new == 0) {
            let what = "--trace needs --prompt or --tokens, and at least one new token";
            return Err(Failure::new(Code::Usage, what));
        }
        if let Some(path) = &args.trace {
            check_parent(path)?;
        }
        let sampler = Sampler::new(SamplingOptions {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            seed: args.seed,
        })
        .map_err(|e| Failure::from_error(Code::Usage, &e))?;
        if args.exact_tables.is_none() && !args.adapters.is_empty() {
            return Err(Failure::new(
                Code::Usage,
                "--adapter needs --exact-tables: a bundle holds what was merged when it was made",
            ));
        }
        let rows = row_source(args.exact_tables.as_deref(), &args.adapters, console)?;
        let tokenizer = Tokenizer::open(&bundle.hf_dir()).or_invalid()?;
        let stop = match args.ignore_eos {
            true => Vec::new(),
            false => stop_ids(&bundle.hf_dir()).or_invalid()?,
        };
        console.begin("loading", 0);
        let decoder = open_decoder(
            bundle,
            args.precision.into(),
            &rows,
            DecodeOptions {
                threads: args.threads.threads,
                keep: match sampler.is_greedy() {
                    true => Vec::new(),
                    false => vec!["logits".into()],
                },
                plain: false,
            },
        )
        .or_invalid()?;
        console.end();
        Ok(Session {
            args,
            console,
            bundle,
            rows,
            tokenizer,
            stop,
            sampler,
            decoder,
            fed: Vec::new(),
        })
    }

    fn prompt_ids(&self) -> Result<Vec<u32>> {
        let text = self.args.prompt.as_deref().unwrap_or_default();
        if let Some(ids) = &self.args.tokens {
            return Ok(ids.clone());
        }
        if self.args.chat {
            return self.chat_ids(&self.template()?, &[Message::new("user", text)]);
        }
        self.tokenizer.encode(text, true).or_invalid()
    }

    fn template(&self) -> Result<ChatTemplate> {
        ChatTemplate::open(&self.bundle.hf_dir())
            .or_invalid()?
            .ok_or_else(|| {
                Failure::new(Code::Invalid, "the bundle's hf_model has no chat template")
                    .hint("decode without --chat, or add chat_template.jinja to hf_model")
            })
    }

    fn chat_ids(&self, template: &ChatTemplate, messages: &[Message]) -> Result<Vec<u32>> {
        let text = template.render(messages, true).or_invalid()?;
        // The template writes the beginning-of-text token itself.
        self.tokenizer.encode(&text, false).or_invalid()
    }

    /// Turns of the user from stdin, one per line, until its end.
    fn converse(&mut self) -> Result<()> {
        let template = self.template()?;
        let mut messages = Vec::new();
        let ask = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        loop {
            if ask {
                // A missing prompt sign is no reason to stop.
                let _ = write!(std::io::stderr(), "> ");
            }
            let mut line = String::new();
            if std::io::stdin().lock().read_line(&mut line).or_invalid()? == 0 {
                return Ok(());
            }
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            messages.push(Message::new("user", line));
            let ids = self.chat_ids(&template, &messages)?;
            let (_, reply) = self.turn(&ids)?;
            // A turn's history holds its answer only.
            messages.push(Message::new("assistant", reply.answer));
        }
    }

    /// Brings the decoder to `ids`, generates, prints.
    fn turn(&mut self, ids: &[u32]) -> Result<(Generated, Reply)> {
        check_ids(ids, self.bundle.config().vocab_size)?;
        if ids.len() > self.decoder.context() {
            return Err(Failure::new(
                Code::Invalid,
                format!(
                    "the prompt has {} tokens: expected at most the bundle's context of {}",
                    ids.len(),
                    self.decoder.context()
                ),
            )
            .hint("convert with a larger --context, or shorten the prompt"));
        }
        // What the decoder holds can stay when the new ids go on from there.
        let held = self.fed.len();
        let rest = match ids.starts_with(&self.fed) && held < ids.len() {
            true => &ids[held..],
            false => {
                self.decoder.reset();
                ids
            }
        };
        let screen = Screen {
            console: self.console,
            thoughts: self.args.show_thoughts,
            thinking: Cell::new(false),
        };
        let mut stream = ReplyDecoder::new(&self.tokenizer, ids);
        let mut failed = None;
        let mut emit = |token: u32| -> ControlFlow<()> {
            let printed = stream.push(token).or_invalid();
            match printed.and_then(|pieces| screen.print(&pieces)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => {
                    failed = Some(e);
                    ControlFlow::Break(())
                }
            }
        };
        let limits = Limits {
            max_new: self.args.max_new,
            stop_ids: &self.stop,
        };
        let generated = generate(
            &mut self.decoder,
            rest,
            &mut self.sampler,
            &limits,
            &mut emit,
        )
        .or_invalid()?;
        if let Some(failure) = failed {
            return Err(failure);
        }
        let (pieces, reply) = stream.finish().or_invalid()?;
        screen.print(&pieces)?;
        screen.end_thought();
        if !self.console.json() {
            self.console.line("")?;
        }
        let all = [ids, &generated.tokens].concat();
        self.fed = all[..self.decoder.position().min(all.len())].to_vec();
        self.report(&generated, &reply)?;
        Ok((generated, reply))
    }

    fn report(&self, generated: &Generated, reply: &Reply) -> Result<()> {
        let speed = generated.tokens_per_second();
        if self.console.json() {
            let output = Output {
                tokens: &generated.tokens,
                text: &reply.answer,
                reasoning: (!reply.thoughts.is_empty()).then(|| reply.thoughts.join("\n")),
                finish_reason: generated.finish,
                tokens_per_second: speed,
            };
            let line = serde_json::to_string(&output).or_unexpected()?;
            self.console.line(&line)?;
        }
        let why = match generated.finish {
            Finish::Stop => "stop token",
            Finish::Length => "length reached",
            Finish::Context => "context full",
        };
        let new = generated.tokens.len();
        self.console
            .note(&format!("{new} tokens, {speed:.1} tokens/s, {why}"));
        let hidden = !reply.thoughts.is_empty() && !self.args.show_thoughts;
        if hidden && !self.console.json() {
            self.console
                .note("the model's thoughts are left out; --show-thoughts prints them");
        }
        for line in super::source::overflow_lines(self.decoder.overflows()) {
            self.console.warn(&line);
        }
        Ok(())
    }

    fn write_trace(&self, path: &Path, prompt: &[u32], generated: &[u32]) -> Result<()> {
        let precision: Precision = self.args.precision.into();
        let threads = self.args.threads.threads;
        let mut model =
            BundleSubject::open(self.bundle, precision, &self.rows, true, threads).or_invalid()?;
        let positions = TRACE_POSITIONS.min(prompt.len() + generated.len() - 1);
        self.console.begin("tracing", 0);
        let run = subject::teacher_forced(&mut model, prompt, generated, positions, &mut || ())
            .or_invalid()?;
        self.console.end();
        reference_file::write(path, &[run.trace]).or_unexpected()
    }
}

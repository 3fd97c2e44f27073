//! Which functions the packages of a bundle have, compiled.

use super::chain::Chain;
use super::host::CallKind;
use super::spec::{ChainSpec, DecodeOptions};
use crate::package::Package;
use crate::runtime::interpreter::model::Model;
use crate::runtime::values::error::{Error, Result};
use crate::runtime::values::tensor::Precision;
use std::path::PathBuf;

/// The chunks of one function, compiled and wired.
pub(crate) struct Runner {
    /// Name and model of each chunk.
    pub chunks: Vec<(String, Model)>,
    /// Their wiring.
    pub chain: Chain,
}

/// The functions of a bundle.
pub(super) struct Functions {
    pub decode: Runner,
    /// By width, ascending.
    pub prefill: Vec<Runner>,
    pub verify: Option<Runner>,
}

/// Name of the function that verifies.
const VERIFY: &str = "verify_qK";
/// What the number of tokens follows in the name of a prefill function.
const PREFILL: &str = "prefill_b";

type Packages = Vec<(String, Package)>;

/// Opens and compiles the packages of decode, with verify and prefill where every one of them has it, and those of prefill.
pub(super) fn load(
    spec: &ChainSpec,
    precision: Precision,
    options: &DecodeOptions,
) -> Result<Functions> {
    let packages = open(&spec.chunks)?;
    let own = open(&spec.prefill)?;
    let compile = |packages: &Packages, function: Option<&str>, kind, decode: Option<&Chain>| {
        let all = decode.is_none();
        let chunks = compile(packages, function, precision, options, all)?;
        let chain = Chain::new(spec, kind, &chunks, decode)?;
        Ok::<_, Error>(Runner { chunks, chain })
    };
    let decode = compile(&packages, None, CallKind::Decode, None)?;
    let mut verify = None;
    if let Some(kind) = has(&packages, VERIFY)?.map(CallKind::Verify) {
        verify = Some(compile(&packages, Some(VERIFY), kind, Some(&decode.chain))?);
    }
    let mut prefill = Vec::new();
    for packages in [&packages, &own] {
        for function in prefill_functions(packages) {
            let Some(width) = has(packages, &function)? else {
                continue;
            };
            let kind = CallKind::Prefill(width);
            let function = Some(function.as_str());
            prefill.push(compile(packages, function, kind, Some(&decode.chain))?);
        }
    }
    if prefill_functions(&own).is_empty()
        && let Some(width) = width(&own, None)
    {
        let kind = CallKind::Prefill(width);
        prefill.push(compile(&own, None, kind, Some(&decode.chain))?);
    }
    prefill.sort_by_key(|r| r.chain.kind.width());
    Ok(Functions {
        decode,
        prefill,
        verify,
    })
}

fn open(paths: &[(String, PathBuf)]) -> Result<Packages> {
    let opened = paths.iter();
    let opened = opened.map(|(name, path)| Ok((name.clone(), Package::open(path)?)));
    opened.collect()
}

/// Names of the prefill functions of the first package.
fn prefill_functions(packages: &Packages) -> Vec<String> {
    let functions = packages.first().map(|(_, p)| p.functions().keys());
    let names = functions.into_iter().flatten();
    names.filter(|n| n.starts_with(PREFILL)).cloned().collect()
}

/// Tokens of a function, if the packages have it: all of them, or none.
fn has(packages: &Packages, function: &str) -> Result<Option<usize>> {
    let with = |(_, p): &&(String, Package)| p.functions().contains_key(function);
    let count = packages.iter().filter(with).count();
    if count == 0 {
        return Ok(None);
    }
    if let Some((chunk, _)) = packages.iter().find(|p| !with(p)) {
        return Err(Error::Chain {
            chunk: chunk.clone(),
            what: format!("no function `{function}`, which other chunks have"),
        });
    }
    Ok(width(packages, Some(function)))
}

/// Tokens of a function: the second dim of the first chunk's `hidden_states`.
fn width(packages: &Packages, function: Option<&str>) -> Option<usize> {
    let (_, package) = packages.first()?;
    let name = function.unwrap_or(package.default_function());
    match *package
        .functions()
        .get(name)?
        .type_of("hidden_states")?
        .shape
    {
        [1, tokens, _] => Some(tokens),
        _ => None,
    }
}

/// Compiles a function of every package, the default one when none is named. A kept value is kept by the last chunk that
/// has it; `all` of them must be there.
fn compile(
    packages: &Packages,
    function: Option<&str>,
    precision: Precision,
    options: &DecodeOptions,
    all: bool,
) -> Result<Vec<(String, Model)>> {
    fn named<'a>(package: &'a Package, function: Option<&'a str>) -> &'a str {
        function.unwrap_or(package.default_function())
    }
    let mut keep_in: Vec<Vec<&str>> = vec![Vec::new(); packages.len()];
    for name in options.keep.iter().map(String::as_str) {
        let has = |package: &Package| {
            let function = package.functions().get(named(package, function));
            function.is_some_and(|f| f.type_of(name).is_some())
        };
        match packages.iter().rposition(|(_, package)| has(package)) {
            Some(chunk) => keep_in[chunk].push(name),
            None if all => return Err(Error::UnknownValue(name.to_owned())),
            None => {}
        }
    }
    let compiled = packages.iter().zip(&keep_in);
    let compiled = compiled.map(|((name, package), keep)| {
        let function = named(package, function);
        let model = match options.plain {
            true => Model::load_plain(package, function, precision, keep)?,
            false => Model::load(package, function, precision, keep)?,
        };
        Ok((name.clone(), model))
    });
    compiled.collect()
}

//! Recipes that parse, recipes that do not, and rules against names.

use super::*;
use crate::graph::WeightKind;
use crate::quantize::{Grouping, PaletteForm, Scheme, TableScheme};

const GOOD: &str = r#"name = "mine"
description = "a test"
status = "experiment"
layout = "swa4"
attention = "standard"
cache = "shift"
functions = ["decode"]
context = 256

[quantize]
default = "palette3-g16"
threshold = 100
tables = "rows-int8"

[[quantize.rules]]
pattern = 'layers\.0\.'
scheme = "palette8-g16"

[[quantize.rules]]
pattern = 'k_proj|layer_scalar'
scheme = "fp16"
"#;

fn error_of(text: &str) -> String {
    Recipe::parse("mine.toml", text).unwrap_err().to_string()
}

#[test]
fn every_file_of_recipes_is_built_in_under_its_name() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut files: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|f| {
            f.unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    files.sort();
    let recipes = Recipe::list().unwrap();
    let mut names: Vec<String> = recipes.iter().map(|r| r.name.clone()).collect();
    assert_eq!(names[0], DEFAULT);
    names.sort();
    assert_eq!(files, names);
    for recipe in &recipes {
        let text = BUILTIN.iter().find(|(key, _)| *key == recipe.name);
        assert_eq!(text.unwrap().1, recipe.source);
    }
}

#[test]
fn the_default_is_what_ships() {
    let recipe = Recipe::load(DEFAULT).unwrap();
    assert_eq!(
        recipe.quantize.default,
        Scheme::Palette {
            nbits: 4,
            group: Grouping::Channels(32),
            form: PaletteForm::Scalar,
        }
    );
    assert_eq!(
        recipe.quantize.otherwise,
        Some(Scheme::Palette {
            nbits: 4,
            group: Grouping::Tensor,
            form: PaletteForm::Scalar,
        })
    );
    assert_eq!(recipe.quantize.threshold, 2048);
    assert_eq!(recipe.quantize.tables, TableScheme::RowsInt8);
    assert!(!recipe.compat);
    assert_eq!(
        Recipe::load("swa4-fp16").unwrap().quantize.default,
        Scheme::Fp16
    );
}

#[test]
fn a_path_is_read_and_a_name_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.toml");
    std::fs::write(&path, GOOD).unwrap();
    let recipe = Recipe::load(path.to_str().unwrap()).unwrap();
    assert_eq!((recipe.name.as_str(), recipe.context), ("mine", Some(256)));
    assert_eq!(recipe.source, GOOD);
    let unknown = Recipe::load("swa5").unwrap_err().to_string();
    assert!(
        unknown.starts_with(
            "no recipe `swa5`\nhint: built-in recipes are swa4-int4, swa4-8k, swa4-fp16,"
        ),
        "{unknown}"
    );
    assert!(matches!(
        Recipe::load("absent.toml"),
        Err(Error::Read { .. })
    ));
}

#[test]
fn contexts_come_from_caller_recipe_or_default() {
    let recipe = Recipe::parse("mine.toml", GOOD).unwrap();
    assert_eq!(recipe.context_for(Some(64), 8192), 64);
    assert_eq!(recipe.context_for(None, 8192), 256);
    let recipe = Recipe::load(DEFAULT).unwrap();
    assert_eq!(recipe.context_for(None, 131_072), 2048);
    assert_eq!(recipe.context_for(None, 1024), 1024);
}

#[test]
fn errors_say_where_and_what() {
    let unknown = error_of(&GOOD.replace("context = 256", "contxt = 256"));
    assert!(
        unknown.starts_with("mine.toml:8:1: unknown field `contxt`, expected one of"),
        "{unknown}"
    );
    let missing = error_of(&GOOD.replace("cache = \"shift\"\n", ""));
    assert!(
        missing.contains("missing field `cache`\nhint: `gemma-coreml recipes show swa4-int4`"),
        "{missing}"
    );
    let layout = error_of(&GOOD.replace("\"swa4\"", "\"swa9\""));
    assert!(
        layout.starts_with("mine.toml:4:10: unknown variant `swa9`, expected one of `swa4`"),
        "{layout}"
    );
    let scheme = error_of(&GOOD.replace("palette3-g16", "palette5-g16"));
    assert!(
        scheme.starts_with("mine.toml:11:11: ") && scheme.contains("palette5-g16"),
        "{scheme}"
    );
    let pattern = error_of(&GOOD.replace("layers\\.0\\.", "layers(0"));
    assert_eq!(
        pattern,
        "mine.toml:16:11: `layers(0` is not a regular expression: unclosed group"
    );
    let rule = error_of(&GOOD.replace("scheme = \"fp16\"", "shceme = \"fp16\""));
    assert!(
        rule.starts_with("mine.toml:21:1: unknown field `shceme`"),
        "{rule}"
    );
    let syntax = error_of(&GOOD.replace("status = ", "status "));
    assert!(syntax.starts_with("mine.toml:3:"), "{syntax}");
    let kind = error_of(&GOOD.replace("threshold = 100", "threshold = \"100\""));
    assert!(kind.starts_with("mine.toml:12:13: invalid type"), "{kind}");
}

#[test]
fn values_beyond_types_are_checked() {
    for (from, to, expected) in [
        (
            "context = 256",
            "context = 0",
            "mine.toml:8:1: context 0: expected at least 1 token",
        ),
        (
            "[\"decode\"]",
            "[]",
            "mine.toml:7:1: functions is empty: expected at least \"decode\"",
        ),
        (
            "[\"decode\"]",
            "[\"decode\", \"decode\"]",
            "mine.toml:7:1: function decode is listed twice",
        ),
        (
            "\"mine\"",
            "\"a b\"",
            "mine.toml:1:1: name `a b`: expected letters, digits, `-`, `_`, `.`",
        ),
        (
            "\"a test\"",
            "\"\"",
            "mine.toml:2:1: description: expected one line of text",
        ),
    ] {
        assert_eq!(error_of(&GOOD.replace(from, to)), expected);
    }
}

fn candidates() -> Vec<Candidate<'static>> {
    [
        ("layers.0.input_layernorm.weight", 5000, WeightKind::Norm),
        ("layers.0.mlp.up_proj.weight", 5000, WeightKind::Projection),
        ("layers.0.layer_scalar", 1, WeightKind::Scalar),
        (
            "layers.0.self_attn.k_proj.weight",
            5000,
            WeightKind::Projection,
        ),
        ("layers.1.mlp.up_proj.weight", 101, WeightKind::Projection),
        ("layers.1.mlp.down_proj.weight", 100, WeightKind::Projection),
        ("embed_tokens.weight", 9000, WeightKind::Head),
    ]
    .map(|(name, elements, kind)| Candidate {
        name,
        elements,
        kind,
        given: None,
    })
    .to_vec()
}

#[test]
fn the_last_matching_rule_wins() {
    let recipe = Recipe::parse("mine.toml", GOOD).unwrap();
    let chosen: Vec<_> = recipe
        .quantize
        .resolve(&recipe.name, &candidates())
        .unwrap()
        .iter()
        .map(|c| format!("{}: {}", c.scheme, c.reason))
        .collect();
    assert_eq!(
        chosen,
        [
            "fp16: norm or scalar",
            "palette8-g16: rule `layers\\.0\\.`",
            "fp16: norm or scalar",
            "fp16: rule `k_proj|layer_scalar`",
            "palette3-g16: default",
            "fp16: at most 100 elements",
            "palette3-g16: default",
        ]
    );
}

#[test]
fn a_rule_overrides_the_threshold() {
    let mut rules = Recipe::parse("mine.toml", GOOD).unwrap().quantize;
    rules
        .rules
        .push(Rule::new("down_proj", "int8-channel".parse().unwrap()).unwrap());
    let chosen = rules.resolve("mine", &candidates()).unwrap();
    assert_eq!(chosen[5].scheme.to_string(), "int8-channel");
}

#[test]
fn a_rule_that_matches_nothing_is_an_error() {
    let mut rules = Recipe::parse("mine.toml", GOOD).unwrap().quantize;
    rules
        .rules
        .push(Rule::new("layers\\.7\\.", Scheme::Fp16).unwrap());
    assert_eq!(
        rules
            .resolve("mine", &candidates())
            .unwrap_err()
            .to_string(),
        "recipe `mine`: rule `layers\\.7\\.` = fp16 matches no weight\nhint: it is searched in tensor names without \
         prefix, such as `layers.0.mlp.up_proj.weight`"
    );
    rules.rules.pop();
    rules
        .rules
        .push(Rule::new("layernorm", "int8-channel".parse().unwrap()).unwrap());
    assert_eq!(
        rules
            .resolve("mine", &candidates())
            .unwrap_err()
            .to_string(),
        "recipe `mine`: rule `layernorm` = int8-channel matches no weight\nhint: it finds only norms and scalars such as \
         `layers.0.input_layernorm.weight`, which stay fp16"
    );
    assert_eq!(
        Rule::new("(", Scheme::Fp16).unwrap_err().to_string(),
        "`(` is not a regular expression: unclosed group"
    );
}

#[test]
fn a_name_takes_another_number() {
    let flash = Recipe::builtin("flash-256").unwrap();
    assert_eq!(flash.name, "flash-256");
    assert_eq!(flash.attention, AttentionForm::Flash(256));
    // The number stands in the description as well, and other numbers stay.
    assert!(flash.description.contains("256") && !flash.source.contains("1024"));
    assert_eq!(flash.context, Some(8192));
    let wfa = Recipe::builtin("wfa-64").unwrap();
    assert_eq!(wfa.cache, CacheForm::Window(64));
    let verify = Recipe::builtin("verify-4").unwrap();
    let functions = [FunctionKind::Decode, FunctionKind::Verify(4)];
    assert_eq!(verify.functions, functions);
    for unknown in ["flash-", "flash-x", "flash", "nothing-3", "swa4-3"] {
        let error = Recipe::builtin(unknown).unwrap_err().to_string();
        assert!(error.contains(unknown) && error.contains("swa3"), "{error}");
    }
    // A number that the form does not take is an error of the form.
    assert!(Recipe::builtin("flash-0").is_err());
    assert!(Recipe::builtin("verify-1").is_err());
}

#[test]
fn forms_that_do_not_go_together_are_refused() {
    let state = error_of(&GOOD.replace("\"shift\"", "\"state-full\""));
    assert!(
        state.contains("mine.toml:4:1") && state.contains("lite2"),
        "{state}"
    );
    let twice = error_of(&GOOD.replace("[\"decode\"]", "[\"decode\", \"decode\"]"));
    assert!(twice.contains("listed twice"), "{twice}");
    let odd = error_of(&GOOD.replace("[\"decode\"]", "[\"decode\", \"prefill\"]"));
    assert!(odd.contains("prefill-N"), "{odd}");
}

#[test]
fn the_steps_of_a_checkpoint_have_a_form() {
    let with = |value: &str| {
        let line = format!("tables = \"rows-int8\"\nactivations = {value}");
        GOOD.replace("tables = \"rows-int8\"", &line)
    };
    let read = |value: &str| {
        let recipe = Recipe::parse("mine.toml", &with(value)).unwrap();
        assert_eq!(recipe.quantize.calibrated_by(), None, "{value}");
        recipe.quantize.activations.unwrap()
    };
    for (value, form) in [
        ("{ ranges = \"checkpoint\" }", ActivationForm::Arithmetic),
        (
            "{ ranges = \"checkpoint\", form = \"arithmetic\" }",
            ActivationForm::Arithmetic,
        ),
        (
            "{ ranges = \"checkpoint\", form = \"quantize\" }",
            ActivationForm::Quantize,
        ),
    ] {
        assert_eq!(read(value), Activations::Checkpoint { form });
    }
    assert_eq!(read("{ ranges = \"none\" }"), Activations::None {});
    for (value, part) in [
        ("{ ranges = \"checkpoint\", form = \"float\" }", "float"),
        ("{ ranges = \"checkpoint\", percentile = 99 }", "percentile"),
        ("{ ranges = \"none\", form = \"quantize\" }", "form"),
        ("{ ranges = \"checkpoint\" }\nscale = true", "folds"),
        ("{ ranges = \"checkpoint\" }\ngiven = \"int4\"", "int4"),
    ] {
        let error = error_of(&with(value));
        assert!(error.contains(part), "{value}: {error}");
    }
    Recipe::parse("mine.toml", &with("{ ranges = \"none\" }\nscale = true")).unwrap();
}

#[test]
fn given_integers_keep_their_width() {
    let form = |text: &str| {
        let text = GOOD.replace("tables =", &format!("given = \"{text}\"\ntables ="));
        Recipe::parse("mine.toml", &text).unwrap().quantize
    };
    let given = |nbits, block| Given { nbits, block };
    for (name, nbits, block, scheme) in [
        ("palette", 2, None, "palette2-g1"),
        ("palette", 4, None, "palette4-g1"),
        ("palette", 8, None, "int8-channel-full"),
        ("palette", 4, Some(32), "int4-block32-full"),
        ("linear", 2, None, "int4-channel-full"),
        ("linear", 4, None, "int4-channel-full"),
        ("linear", 8, Some(64), "int8-block64-full"),
    ] {
        let rules = form(name);
        let scheme_of = rules.given.unwrap().scheme(given(nbits, block));
        assert_eq!(scheme_of.to_string(), scheme);
        let mut list = candidates();
        list.iter_mut()
            .for_each(|c| c.given = Some(given(nbits, block)));
        let chosen = rules.resolve("mine", &list).unwrap();
        // Norms stay, rules win, the threshold does not.
        let schemes: Vec<String> = chosen.iter().map(|c| c.scheme.to_string()).collect();
        assert_eq!(schemes[..4], ["fp16", "palette8-g16", "fp16", "fp16"]);
        assert_eq!(schemes[4..], [scheme, scheme, scheme]);
        assert_eq!(chosen[5].reason.to_string(), format!("given ({name})"));
        let plain = rules.resolve("mine", &candidates()).unwrap();
        assert_eq!(plain[4].scheme.to_string(), "palette3-g16");
    }
    let mut rules = form("linear");
    rules.keep_tables(None, Some(given(2, Some(256))));
    let tables = |r: &QuantRules| [r.tables, r.per_layer_tables()].map(|t| t.to_string());
    assert_eq!(tables(&rules), ["rows-int8", "rows-int2-block256"]);
    rules.keep_tables(Some(given(4, None)), None);
    assert_eq!(tables(&rules), ["rows-int4-row", "rows-int2-block256"]);
    let mut plain = Recipe::parse("mine.toml", GOOD).unwrap().quantize;
    plain.keep_tables(Some(given(4, None)), None);
    assert_eq!(plain.tables.to_string(), "rows-int8");
}

#[test]
fn activations_have_a_range() {
    let with = |value: &str| {
        let line = format!("tables = \"rows-int8\"\nactivations = {value}");
        GOOD.replace("tables = \"rows-int8\"", &line)
    };
    let read = |value: &str| Recipe::parse("mine.toml", &with(value)).unwrap();
    let minmax = read("{ ranges = \"minmax\" }");
    assert_eq!(minmax.quantize.activations, Some(Activations::Minmax {}));
    assert_eq!(
        minmax.quantize.activations.unwrap().percentile(),
        Some(100.0)
    );
    let percentile = read("{ ranges = \"percentile\", percentile = 99.9 }");
    let range = percentile.quantize.activations.unwrap().percentile();
    assert_eq!(range, Some(99.9));
    assert_eq!(percentile.quantize.calibrated_by(), Some("activations"));
    let folded = with("{ ranges = \"minmax\" }\nscale = true");
    assert!(error_of(&folded).contains("folds"));
    for (value, part) in [
        ("{ ranges = \"percentile\", percentile = 0 }", "above 0"),
        ("{ ranges = \"percentile\", percentile = 100.5 }", "100.5"),
        ("{ ranges = \"percentile\", percentile = nan }", "NaN"),
        ("{ ranges = \"percentile\" }", "percentile"),
        ("{ ranges = \"minmax\", percentile = 99 }", "percentile"),
        ("{ ranges = \"entropy\" }", "entropy"),
        ("\"minmax\"", "ranges"),
        ("{}", "ranges"),
    ] {
        let error = error_of(&with(value));
        assert!(
            error.contains(part) && error.contains("mine.toml"),
            "{value}: {error}"
        );
    }
}

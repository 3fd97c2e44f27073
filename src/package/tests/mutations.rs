//! One change of a good package per test: each fault has a name and is found.

use super::*;
use crate::mil::OPSET;
use crate::package::Error;
use pb::mil_spec as mil_pb;

/// The program's only function.
pub(super) fn main(model: &mut pb::Model) -> &mut mil_pb::Function {
    let Some(pb::model::Type::MlProgram(program)) = &mut model.r#type else {
        panic!("not an ML program");
    };
    program.functions.get_mut("main").unwrap()
}

fn program(model: &mut pb::Model) -> &mut mil_pb::Program {
    let Some(pb::model::Type::MlProgram(program)) = &mut model.r#type else {
        panic!("not an ML program");
    };
    program
}

fn block(model: &mut pb::Model) -> &mut mil_pb::Block {
    main(model).block_specializations.get_mut(OPSET).unwrap()
}

/// The first op of a type.
fn op<'m>(model: &'m mut pb::Model, op_type: &str) -> &'m mut mil_pb::Operation {
    let ops = &mut block(model).operations;
    ops.iter_mut().find(|op| op.r#type == op_type).unwrap()
}

fn description(model: &mut pb::Model) -> &mut pb::ModelDescription {
    model.description.as_mut().unwrap()
}

fn tensor(ty: &mut Option<mil_pb::ValueType>) -> &mut mil_pb::TensorType {
    match ty.as_mut().and_then(|ty| ty.r#type.as_mut()) {
        Some(mil_pb::value_type::Type::TensorType(tensor)) => tensor,
        other => panic!("{other:?}"),
    }
}

fn dim(size: u64) -> mil_pb::Dimension {
    mil_pb::Dimension {
        dimension: Some(mil_pb::dimension::Dimension::Constant(
            mil_pb::dimension::ConstantDimension { size },
        )),
    }
}

fn by_name(name: &str) -> mil_pb::Argument {
    mil_pb::Argument {
        arguments: vec![mil_pb::argument::Binding {
            binding: Some(mil_pb::argument::binding::Binding::Name(name.to_owned())),
        }],
    }
}

fn inline<'m>(model: &'m mut pb::Model, op_type: &str, arg: &str) -> &'m mut mil_pb::Value {
    let argument = op(model, op_type).inputs.get_mut(arg).unwrap();
    match argument.arguments[0].binding.as_mut().unwrap() {
        mil_pb::argument::binding::Binding::Value(value) => value,
        other => panic!("{other:?}"),
    }
}

fn blob(value: &mut mil_pb::Value) -> &mut mil_pb::value::BlobFileValue {
    match value.value.as_mut().unwrap() {
        mil_pb::value::Value::BlobFileValue(blob) => blob,
        other => panic!("{other:?}"),
    }
}

fn array(feature: &mut pb::FeatureDescription) -> &mut pb::ArrayFeatureType {
    match feature.r#type.as_mut().and_then(|ty| ty.r#type.as_mut()) {
        Some(pb::feature_type::Type::MultiArrayType(array)) => array,
        other => panic!("{other:?}"),
    }
}

/// Applies a change to the model and checks that the error has these words.
fn refused(change: impl FnOnce(&mut pb::Model), words: &[&str]) -> Error {
    let sample = Sample::new();
    let mut model = sample.model();
    let before = model.clone();
    change(&mut model);
    assert!(model != before, "the change changes nothing");
    sample.set_model(&model);
    let error = sample.open().expect_err("the fault is found");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    error
}

/// Applies a change to a file and checks that the error has these words.
fn refused_file(name: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>, words: &[&str]) {
    let sample = Sample::new();
    let path = sample.file(name);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, change(bytes)).unwrap();
    let text = sample.open().expect_err("the fault is found").to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

const WEIGHT_BIN: &str = "Data/com.apple.CoreML/weights/weight.bin";

fn refused_weights(at: usize, bytes: &[u8], words: &[&str]) {
    let change = |mut file: Vec<u8>| {
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    refused_file(WEIGHT_BIN, change, words);
}

fn refused_manifest(from: &str, to: &str, words: &[&str]) {
    let change = |file: Vec<u8>| {
        let text = String::from_utf8(file).unwrap();
        assert!(text.contains(from));
        text.replacen(from, to, 1).into_bytes()
    };
    refused_file("Manifest.json", change, words);
}

/// One test per line: a name, a change of the model, words of the error.
macro_rules! mutations {
    ($($name:ident: $change:expr => [$($word:literal),*];)*) => {
        $(#[test] fn $name() { refused($change, &[$($word),*]); })*
    };
}

#[test]
fn the_sample_itself_is_good() {
    Sample::new().open().unwrap();
}

mutations! {
    spec_version_0: |m| m.specification_version = 0 => ["specificationVersion 0"];
    spec_version_99: |m| m.specification_version = 99 => ["99", "expected 9"];
    updatable: |m| m.is_updatable = true => ["isUpdatable"];
    no_program: |m| m.r#type = None => ["not an ML program"];
    program_version: |m| program(m).version = 2 => ["program version 2"];
    program_attribute: |m| {
        program(m).attributes.insert("other".to_owned(), Default::default());
    } => ["program attribute `other`"];
    no_function: |m| program(m).functions.clear() => ["no function"];
    function_attribute: |m| {
        main(m).attributes.insert("other".to_owned(), Default::default());
    } => ["main", "attribute `other`"];
    block_attribute: |m| {
        block(m).attributes.insert("other".to_owned(), Default::default());
    } => ["main", "attribute `other`"];
    op_attribute: |m| {
        let name = op(m, "conv").attributes["name"].clone();
        op(m, "conv").attributes.insert("other".to_owned(), name);
    } => ["attribute `other`", "conv"];
    opset_of_the_function: |m| main(m).opset = "CoreML7".to_owned() => ["CoreML7", "CoreML8"];
    opset_of_the_body: |m| {
        let block = block(m).clone();
        main(m).block_specializations = [("CoreML7".to_owned(), block)].into();
    } => ["CoreML7"];
    two_bodies: |m| {
        let block = block(m).clone();
        main(m).block_specializations.insert("CoreML9".to_owned(), block);
    } => ["expected one"];
    function_not_main: |m| {
        let main = main(m).clone();
        program(m).functions = [("other".to_owned(), main)].into();
    } => ["other"];
    function_identifier: |m| {
        let main = main(m).clone();
        program(m).functions.insert("a-b".to_owned(), main);
    } => ["a-b"];
    input_identifier: |m| {
        main(m).inputs[0].name = "1x".to_owned();
    } => ["1x", "digit"];
    value_identifier: |m| {
        op(m, "softmax").outputs[0].name = "a b".to_owned();
    } => ["a b"];
    reserved_word: |m| {
        op(m, "softmax").outputs[0].name = "fp16".to_owned();
    } => ["fp16", "reserved"];
    duplicate_value: |m| {
        op(m, "softmax").outputs[0].name = "x".to_owned();
    } => ["value `x`", "defined twice"];
    duplicate_input: |m| {
        let input = main(m).inputs[0].clone();
        main(m).inputs.push(input);
    } => ["value `x`", "defined twice"];
    use_before_definition: |m| {
        op(m, "softmax").inputs.insert("x".to_owned(), by_name("y"));
    } => ["value `y`", "not defined before"];
    unknown_output: |m| block(m).outputs[0] = "nothing".to_owned() => ["nothing", "not defined"];
    output_twice: |m| block(m).outputs[0] = "y".to_owned() => ["y", "twice"];
    input_as_output: |m| block(m).outputs[0] = "x".to_owned() => ["x", "input"];
    no_outputs: |m| block(m).outputs.clear() => ["no output"];
    missing_argument: |m| {
        op(m, "softmax").inputs.remove("x");
    } => ["softmax", "`x` is missing"];
    unknown_argument: |m| {
        op(m, "softmax").inputs.insert("dim".to_owned(), by_name("x"));
    } => ["softmax", "no argument `dim`"];
    two_bindings: |m| {
        let argument = op(m, "softmax").inputs.get_mut("x").unwrap();
        let binding = argument.arguments[0].clone();
        argument.arguments.push(binding);
    } => ["softmax", "one value", "got 2"];
    no_binding: |m| {
        op(m, "softmax").inputs.insert("x".to_owned(), Default::default());
    } => ["softmax", "one value"];
    state_as_a_tensor: |m| {
        op(m, "softmax").inputs.insert("x".to_owned(), by_name("cache"));
    } => ["softmax", "a tensor", "a state"];
    tensor_as_a_state: |m| {
        op(m, "read_state").inputs.insert("input".to_owned(), by_name("x"));
    } => ["read_state", "a state"];
    computed_attribute: |m| {
        op(m, "softmax").inputs.insert("axis".to_owned(), by_name("position"));
    } => ["softmax", "constant"];
    op_without_name: |m| {
        op(m, "conv").attributes.clear();
    } => ["has no name"];
    op_with_blocks: |m| op(m, "conv").blocks.push(Default::default()) => ["blocks"];
    output_dtype: |m| {
        tensor(&mut op(m, "softmax").outputs[0].r#type).data_type = 11;
    } => ["fp32", "fp16", "softmax"];
    output_shape: |m| {
        tensor(&mut op(m, "softmax").outputs[0].r#type).dimensions[1] = dim(3);
    } => ["declared", "softmax"];
    output_rank_field: |m| {
        tensor(&mut op(m, "softmax").outputs[0].r#type).rank = 3;
    } => ["rank 3 with 4"];
    flexible_dimension: |m| {
        tensor(&mut main(m).inputs[0].r#type).dimensions[1] = Default::default();
    } => ["x", "flexible"];
    result_count: |m| {
        op(m, "softmax").outputs.clear();
    } => ["0 results"];
    const_output_type: |m| {
        tensor(&mut op(m, "const").outputs[0].r#type).data_type = 23;
        let first = op(m, "const").outputs[0].name.clone();
        let others = block(m).operations.iter_mut().filter(|op| op.r#type == "const");
        for other in others.filter(|op| op.outputs[0].name != first) {
            let tensor = tensor(&mut other.outputs[0].r#type);
            tensor.dimensions.push(dim(1));
            tensor.rank += 1;
        }
    } => ["the const holds"];
    const_with_input: |m| {
        op(m, "const").inputs.insert("val".to_owned(), by_name("x"));
    } => ["no inputs"];
    const_without_val: |m| {
        op(m, "const").attributes.remove("val");
    } => ["no val"];
    const_elements: |m| {
        let val = op(m, "const").attributes.get_mut("val").unwrap();
        let tensor = tensor(&mut val.r#type);
        tensor.dimensions.push(dim(3));
        tensor.rank += 1;
    } => ["elements"];
    constexpr_output_shape: |m| {
        tensor(&mut op(m, "constexpr_lut_to_dense").outputs[0].r#type).dimensions[0] = dim(12);
    } => ["palette", "declared"];
    constexpr_output_dtype: |m| {
        tensor(&mut op(m, "constexpr_blockwise_shift_scale").outputs[0].r#type).data_type = 11;
    } => ["blockwise", "declared"];
    docstring: |m| {
        let val = op(m, "const").attributes.get_mut("val").unwrap();
        val.doc_string = "words".to_owned();
    } => ["docString"];
    inline_immediate: |m| {
        let axis = inline(m, "constexpr_blockwise_shift_scale", "scale").clone();
        let binding = mil_pb::argument::binding::Binding::Value(axis);
        let argument = op(m, "softmax").inputs.get_mut("axis").unwrap();
        argument.arguments[0].binding = Some(binding);
    } => ["softmax", "in place"];
    inline_blob: |m| {
        let lut = inline(m, "constexpr_lut_to_dense", "lut").clone();
        let binding = mil_pb::argument::binding::Binding::Value(lut);
        let argument = op(m, "mul").inputs.get_mut("y").unwrap();
        argument.arguments[0].binding = Some(binding);
    } => ["mul", "in place"];
    blob_prefix: |m| {
        let value = inline(m, "constexpr_lut_to_dense", "lut");
        blob(value).file_name = "weights/weight.bin".to_owned();
    } => ["palette", "@model_path/weights/"];
    blob_file: |m| {
        let value = inline(m, "constexpr_lut_to_dense", "lut");
        blob(value).file_name = "@model_path/weights/../weights/weight.bin".to_owned();
    } => ["palette", "no weight file"];
    blob_offset: |m| {
        blob(inline(m, "constexpr_lut_to_dense", "lut")).offset += 64;
    } => ["palette", "no blob begins"];
    blob_of_another_type: |m| {
        blob(inline(m, "constexpr_lut_to_dense", "lut")).offset = 64;
    } => ["palette", "uint3", "fp16"];
    blob_of_another_size: |m| {
        blob(inline(m, "constexpr_lut_to_dense", "lut")).offset = 320;
    } => ["palette", "48 bytes"];
    input_not_described: |m| {
        description(m).input.remove(0);
    } => ["input `x`"];
    input_described_twice: |m| {
        let feature = description(m).input[0].clone();
        description(m).input.push(feature);
    } => ["input `x`", "program does not have"];
    inputs_in_another_order: |m| description(m).input.reverse() => ["input `x`", "position"];
    input_name: |m| description(m).input[0].name = "z".to_owned() => ["`x`", "`z`"];
    input_shape: |m| array(&mut description(m).input[0]).shape[1] = 6 => ["input `x`"];
    input_dtype: |m| array(&mut description(m).input[0]).data_type = 65568 => ["x", "fp32"];
    input_optional: |m| {
        description(m).input[0].r#type.as_mut().unwrap().is_optional = true;
    } => ["input `x`", "optional"];
    output_not_described: |m| {
        description(m).output.pop();
    } => ["output `y`"];
    output_described_shape: |m| {
        array(&mut description(m).output[1]).shape.clear();
    } => ["output `y`"];
    output_described_dtype: |m| {
        array(&mut description(m).output[0]).data_type = 131104;
    } => ["output `piece`", "int32"];
    state_not_described: |m| description(m).state.clear() => ["state `cache`"];
    state_described_as_an_input: |m| {
        let state = description(m).state.remove(0);
        description(m).input.push(state);
    } => ["cache"];
    state_as_an_array: |m| {
        let array = description(m).input[0].r#type.clone();
        description(m).state[0].r#type = array;
    } => ["state `cache`", "another kind"];
    default_function_without_functions: |m| {
        description(m).default_function_name = "main".to_owned();
    } => ["defaultFunctionName"];
    functions_and_features: |m| {
        let function = pb::FunctionDescription { name: "main".to_owned(), ..Default::default() };
        description(m).functions.push(function);
    } => ["features beside functions"];
}

#[test]
fn unknown_op() {
    let error = refused(
        |m| op(m, "softmax").r#type = "softmin".to_owned(),
        &["softmin", "main"],
    );
    assert!(matches!(error, Error::UnknownOp { .. }));
}

#[test]
fn bad_enum_string() {
    refused(
        |m| {
            for op in &mut block(m).operations {
                let Some(val) = op.attributes.get_mut("val") else {
                    continue;
                };
                let Some(mil_pb::value::Value::ImmediateValue(immediate)) = &mut val.value else {
                    continue;
                };
                if let Some(mil_pb::value::immediate_value::Value::Tensor(tensor)) =
                    &mut immediate.value
                    && let Some(mil_pb::tensor_value::Value::Strings(text)) = &mut tensor.value
                {
                    text.values[0] = "sideways".to_owned();
                }
            }
        },
        &["conv", "pad_type", "sideways"],
    );
}

#[test]
fn multifunction_faults() {
    let described = |m: &mut pb::Model| {
        let (input, output, state) = {
            let d = description(m);
            let take = std::mem::take::<Vec<pb::FeatureDescription>>;
            (take(&mut d.input), take(&mut d.output), take(&mut d.state))
        };
        let name = "main".to_owned();
        description(m).functions = vec![pb::FunctionDescription {
            name,
            input,
            output,
            state,
        }];
        description(m).default_function_name = "main".to_owned();
    };
    let sample = Sample::new();
    let mut model = sample.model();
    described(&mut model);
    sample.set_model(&model);
    sample.open().unwrap();

    refused(
        |m| {
            described(m);
            description(m).default_function_name = "other".to_owned();
        },
        &["defaultFunctionName `other`"],
    );
    refused(
        |m| {
            described(m);
            let again = description(m).functions[0].clone();
            description(m).functions.push(again);
        },
        &["main", "twice"],
    );
    refused(
        |m| {
            described(m);
            let main = main(m).clone();
            program(m).functions.insert("prefill".to_owned(), main);
        },
        &["`prefill` is not described"],
    );
    refused(
        |m| {
            described(m);
            description(m).functions[0].state.clear();
        },
        &["main", "state `cache`"],
    );
}

#[test]
fn header_count_too_small() {
    refused_weights(0, &[3], &["after the last blob"]);
}

#[test]
fn header_count_zero() {
    refused_weights(0, &[0], &["after the last blob"]);
}

#[test]
fn header_count_too_large() {
    refused_weights(0, &[5], &["blob 4 of 5", "the file ends"]);
}

#[test]
fn header_version() {
    refused_weights(4, &[1], &["version 1"]);
}

#[test]
fn header_reserved() {
    refused_weights(63, &[1], &["reserved"]);
}

#[test]
fn blob_sentinel() {
    refused_weights(64, &[0xee], &["at byte 64", "sentinel"]);
}

#[test]
fn blob_dtype() {
    refused_weights(192 + 4, &[2], &["fp32", "fp16"]);
    refused_weights(192 + 4, &[77], &["at byte 192", "element type 77"]);
}

#[test]
fn blob_size() {
    refused_weights(192 + 8, &[30], &["at byte 320", "not zero"]);
    refused_weights(448 + 8, &[255], &["pass the end"]);
    refused_weights(448 + 8, &[0xff; 8], &["18446744073709551615 bytes"]);
    refused_weights(448 + 8, &[0, 0, 0, 0, 0, 0, 0, 0x10], &["pass the end"]);
    refused_weights(448 + 8, &[0], &["empty"]);
}

#[test]
fn blob_data_offset() {
    refused_weights(192 + 16, &[2], &["at byte 192", "data is said to be at"]);
}

#[test]
fn blob_overlaps_the_one_before() {
    refused_weights(
        192 + 16,
        &[128, 0],
        &["at byte 192", "data is said to be at 128"],
    );
}

#[test]
fn blob_padding() {
    refused_weights(64 + 24, &[5], &["whole elements of uint3"]);
    refused_weights(64 + 24, &[3], &["padding bits"]);
    refused_weights(192 + 24, &[1], &["whole elements of fp16"]);
}

#[test]
fn blob_reserved() {
    refused_weights(192 + 40, &[1], &["at byte 192", "reserved"]);
}

#[test]
fn bytes_between_blobs() {
    refused_weights(141, &[1], &["not zero"]);
}

#[test]
fn bytes_after_the_last_blob() {
    let change = |mut file: Vec<u8>| {
        file.push(0);
        file
    };
    refused_file(WEIGHT_BIN, change, &["1 bytes after"]);
}

#[test]
fn manifest_absent() {
    let sample = Sample::new();
    fs::remove_file(sample.file("Manifest.json")).unwrap();
    let error = sample.open().unwrap_err();
    assert!(error.to_string().contains("Manifest.json"));
}

#[test]
fn manifest_version() {
    refused_manifest("\"1.0.0\"", "\"1.0.1\"", &["1.0.1"]);
}

#[test]
fn manifest_missing_key() {
    refused_manifest("\"author\"", "\"writer\"", &["author"]);
}

#[test]
fn manifest_dangling_root() {
    refused_manifest(
        "rootModelIdentifier\": \"",
        "rootModelIdentifier\": \"0",
        &["names no item"],
    );
}

#[test]
fn manifest_path_leaves_the_package() {
    refused_manifest(
        "com.apple.CoreML/weights",
        "../Data/weights",
        &["leaves Data/"],
    );
    refused_manifest("com.apple.CoreML/weights", "/etc", &["leaves Data/"]);
}

#[test]
fn manifest_missing_file() {
    refused_manifest("CoreML/weights", "CoreML/heights", &["there is no"]);
}

#[test]
fn manifest_without_weights() {
    refused_manifest(
        "\"name\": \"weights\"",
        "\"name\": \"other\"",
        &["no weights item"],
    );
}

#[test]
fn model_file_absent() {
    let sample = Sample::new();
    fs::remove_file(sample.file(MODEL_PATH)).unwrap();
    assert!(
        sample
            .open()
            .unwrap_err()
            .to_string()
            .contains("model.mlmodel")
    );
}

#[test]
fn weight_file_absent() {
    let sample = Sample::new();
    fs::remove_file(sample.weights()).unwrap();
    let text = sample.open().unwrap_err().to_string();
    assert!(text.contains("no weight file `weight.bin`"), "{text}");
}

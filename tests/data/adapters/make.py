"""Adapters of the tiny fixtures with random weights, and what PEFT and mlx-lm make of the fixtures with them.

    python tests/data/adapters/make.py

needs torch, transformers, peft 0.21, mlx and mlx-lm 0.32. Each case is a folder as the library writes it; merged.safetensors
holds, for each case, each tensor that it changes and each number format of the base, some of the merged elements:
`CASE/f32/NAME` and `CASE/bf16/NAME` (PEFT), `CASE/mlx/NAME` (mlx-lm, whose fuse was run in f32). Element i of them is
element i * STEP of the tensor, where STEP is the entry of the same name in the file's metadata.
"""

import json
import os
import shutil
import warnings

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURES = os.path.join(HERE, "..", "..", "..", "fixtures")
PROBES = 96
warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PER_LAYER = ["per_layer_input_gate", "per_layer_projection"]
CASES = {
    "lora": dict(r=4, lora_alpha=8, target_modules=PROJECTIONS + PER_LAYER, layers_to_transform=[0, 3, 9]),
    "rslora": dict(
        r=3,
        lora_alpha=5,
        use_rslora=True,
        target_modules=r".*\.layers\.(0|3|9)\.(self_attn\.(q|v|o)_proj|mlp\.(gate|up)_proj)",
        rank_pattern={"q_proj": 2, r"layers\.3\.mlp\.up_proj": 6, "^model.layers.9.self_attn.o_proj": 1, "o_proj": 5},
        alpha_pattern={"gate_proj": 7, r"self_attn\.[vq]_proj": 2},
    ),
    "dora": dict(r=4, lora_alpha=6, use_dora=True, target_modules=["q_proj", "o_proj", "down_proj"], layers_to_transform=[1, 4]),
    "second": dict(r=2, lora_alpha=3, use_dora=True, target_modules=["q_proj", "down_proj"], layers_to_transform=[4, 5]),
    "tables": dict(r=3, lora_alpha=6, target_modules=["embed_tokens", "embed_tokens_per_layer", "per_layer_model_projection"]),
    "tables_dora": dict(r=2, lora_alpha=4, use_dora=True, target_modules=["embed_tokens", "embed_tokens_per_layer"]),
    "head": dict(r=2, lora_alpha=4, target_modules=["lm_head"]),
    "tied": dict(r=2, lora_alpha=4, target_modules=["embed_tokens"], ensure_weight_tying=True),
    "tokens": dict(r=2, lora_alpha=4, target_modules=["q_proj"], layers_to_transform=[2], trainable_token_indices=[3, 200, 7]),
    "saved": dict(r=2, lora_alpha=4, target_modules=["q_proj"], layers_to_transform=[2], modules_to_save=["layers.1.mlp.up_proj", "layers.2.input_layernorm"]),
    "eva": dict(r=2, lora_alpha=4, target_modules=["v_proj"], layers_to_transform=[2], init_lora_weights="eva"),
    "multimodal": dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], layers_to_transform=[0, 5]),
}


def fixture(case):
    return os.path.join(FIXTURES, "e4b-tiny" if case == "multimodal" else "textonly-tiny")


def base(case, dtype):
    return AutoModelForCausalLM.from_pretrained(fixture(case), dtype=dtype)


def randomize(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "magnitude" in name:
                p.mul_(1 + 0.2 * torch.randn_like(p))
            elif "lora_" in name or "trainable_tokens_delta" in name or "modules_to_save" in name:
                p.copy_(torch.randn_like(p) * 0.1)


def tensors(model):
    """By the name without prefix."""
    found = {}
    for name, p in model.named_parameters():
        for prefix in ("model.language_model.", "model."):
            if name.startswith(prefix):
                found[name[len(prefix) :]] = p.detach()
                break
    return found


probes, steps = {}, {}


def keep(case, kind, before, after):
    for name, value in after.items():
        if torch.equal(before[name], value):
            continue
        step = max(1, value.numel() // PROBES)
        key = f"{case}/{kind}/{name}"
        probes[key] = value.flatten()[::step][:PROBES].contiguous().clone()
        steps[key] = str(step)


def adapter(case, settings, seed):
    folder = os.path.join(HERE, case)
    shutil.rmtree(folder, ignore_errors=True)
    model = get_peft_model(base(case, torch.float32), LoraConfig(task_type="CAUSAL_LM", **settings))
    randomize(model, seed)
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))
    path = os.path.join(folder, "adapter_config.json")
    config = json.load(open(path))
    config["base_model_name_or_path"] = os.path.basename(fixture(case))
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(config[key], list):
            config[key].sort()
    json.dump(config, open(path, "w"), indent=1)
    if case == "tables_dora":
        weights = os.path.join(folder, "adapter_model.safetensors")
        save_file({k: v.to(torch.bfloat16) for k, v in load_file(weights).items()}, weights, {"format": "pt"})


def merged(case, dtype, *folders):
    model = base(case, dtype)
    before = {k: v.clone() for k, v in tensors(model).items()}
    for folder in folders:
        model = PeftModel.from_pretrained(model, os.path.join(HERE, folder)).merge_and_unload()
    return before, tensors(model)


for seed, (case, settings) in enumerate(CASES.items()):
    adapter(case, settings, seed)
    if case == "tied":
        # PEFT's merge adds the one product to the one tensor twice. The trained model has it once.
        model = PeftModel.from_pretrained(base(case, torch.float32), os.path.join(HERE, case))
        embed = model.get_input_embeddings()
        name, weight = "embed_tokens.weight", embed.base_layer.weight.detach()
        keep(case, "f32", {name: weight}, {name: weight + embed.get_delta_weight("default").detach()})
        continue
    for kind, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        keep(case, kind, *merged(case, dtype, case))
for name, order in (("dora+second", ("dora", "second")), ("second+dora", ("second", "dora")), ("lora+second", ("lora", "second"))):
    keep(name, "f32", *merged("dora", torch.float32, *order))


def mlx_cases():
    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np
    from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
    from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear

    mx.random.seed(5)
    with safe_open(os.path.join(FIXTURES, "textonly-tiny", "model.safetensors"), "pt") as f:
        weights = {name[len("model.") :]: f.get_tensor(name).float() for name in f.keys() if name.startswith("model.")}
    projections = ["layers.10.self_attn.q_proj", "layers.11.mlp.down_proj", "layers.11.self_attn.o_proj"]
    for case, linear, embedding in (("mlx_lora", LoRALinear, LoRAEmbedding), ("mlx_dora", DoRALinear, DoRAEmbedding)):
        saved = {}
        for module in projections + ["embed_tokens"]:
            weight = mx.array(weights[module + ".weight"].numpy())
            if module == "embed_tokens":
                plain = nn.Embedding(*weight.shape)
                plain.weight = weight
                layer = embedding.from_base(plain, r=3, scale=1.5)
            else:
                plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                plain.weight = weight
                layer = linear.from_base(plain, r=3, scale=1.5)
            for part in ("lora_a", "lora_b"):
                layer[part] = 0.1 * mx.random.normal(layer[part].shape)
                saved[f"language_model.model.{module}.{part}"] = layer[part]
            if case == "mlx_dora":
                layer.m = layer.m * (1 + 0.2 * mx.random.normal(layer.m.shape))
                saved[f"language_model.model.{module}.m"] = layer.m
            name = module + ".weight"
            after = torch.from_numpy(np.array(layer.fuse().weight))
            keep(case, "mlx", {name: weights[name]}, {name: after})
        folder = os.path.join(HERE, case)
        shutil.rmtree(folder, ignore_errors=True)
        os.mkdir(folder)
        mx.save_safetensors(os.path.join(folder, "adapters.safetensors"), saved)
        config = {
            "batch_size": 4,
            "fine_tune_type": case.removeprefix("mlx_"),
            "lora_parameters": {
                "dropout": 0.0,
                "keys": ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", "language_model.model.embed_tokens"],
                "rank": 3,
                "scale": 1.5,
            },
            "model": "textonly-tiny",
            "num_layers": 2,
        }
        json.dump(config, open(os.path.join(folder, "adapter_config.json"), "w"), indent=1, sort_keys=True)


mlx_cases()
save_file(probes, os.path.join(HERE, "merged.safetensors"), {"format": "pt", **steps})

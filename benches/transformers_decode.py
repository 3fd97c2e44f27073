"""Greedy decoding of a checkpoint with Hugging Face transformers on the CPU: the peer of `gemma-coreml bench`.

    transformers_decode.py MODEL [--prompt 128] [--tokens 32] [--runs 2] [--threads 2] ...

Loads the text weights only, runs a prompt of random ids, then token by token with the model's own cache; only the last
position's logits are computed. Prints one JSON object. `tokens_per_s_median` is one over the median time of a token,
`tokens_per_s_best` one over the shortest; sizes are bytes. docs/PERFORMANCE.md says
which settings were tried beside the defaults.
"""

import argparse
import json
import os
import resource
import statistics
import time


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a checkpoint directory")
    parser.add_argument("--prompt", type=int, default=128, help="ids of the prompt")
    parser.add_argument("--tokens", type=int, default=32, help="ids decoded after it, in each run")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--no-onednn", action="store_true", help="torch's own matrix kernels")
    parser.add_argument("--static-cache", action="store_true", help="a preallocated cache")
    parser.add_argument("--compile", action="store_true", help="torch.compile (needs a C++ compiler); implies --static-cache")
    return parser.parse_args()


def load(args, torch):
    """The text model with its head, in the dtype asked for; towers and unused K/V tensors are left in the files."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(args.model)
    text = config.get_text_config()
    # The files of multimodal checkpoints prefix the text model's names.
    names = {r"^model\.language_model\.": "model."} if text is not config else None
    model, info = AutoModelForCausalLM.from_pretrained(
        args.model,
        config=text,
        key_mapping=names,
        dtype=getattr(torch, args.dtype),
        attn_implementation=args.attention,
        output_loading_info=True,
    )
    missing = sorted(info["missing_keys"]) + sorted(info["mismatched_keys"])
    if missing:
        raise SystemExit(f"{args.model}: weights not loaded: {missing[:5]}")
    return model.eval()


def status(field):
    """A size from /proc/self/status, in bytes."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def decode(args, model, torch):
    """Seconds of the prompt and of each token after it."""
    from transformers import StaticCache

    ids = torch.randint(0, model.config.vocab_size, (1, args.prompt), generator=torch.Generator().manual_seed(1))
    cache = None
    if args.static_cache or args.compile:
        cache = StaticCache(config=model.config, max_cache_len=args.prompt + args.tokens)
    step = torch.compile(model) if args.compile else model
    times = []
    for _ in range(args.tokens + 1):
        start = time.perf_counter()
        out = (model if not times else step)(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        ids = out.logits[:, -1:].argmax(-1)
        times.append(time.perf_counter() - start)
    return times[0], times[1:]


def main():
    args = arguments()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.backends.mkldnn.enabled = not args.no_onednn
    start = time.perf_counter()
    model = load(args, torch)
    load_s = time.perf_counter() - start
    prompts, tokens = [], []
    with torch.inference_mode():
        for _ in range(args.runs):
            prompt, times = decode(args, model, torch)
            prompts.append(prompt)
            # The first step after a prompt allocates, or compiles.
            tokens += times[1:] or times
    report = {
        "model": args.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_s_median": 1 / statistics.median(tokens),
        "tokens_per_s_best": 1 / min(tokens),
        "prompt_tokens_per_s": args.prompt / min(prompts),
        "load_s": load_s,
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rss": status("VmRSS"),
        "rss_anonymous": status("RssAnon"),
        "prompt": args.prompt,
        "tokens": args.tokens,
        "runs": args.runs,
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "attention": args.attention,
        "onednn": not args.no_onednn,
        "cache": "static" if args.static_cache or args.compile else "dynamic",
        "compiled": args.compile,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()

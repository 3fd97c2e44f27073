"""A conversion and decoding at full size, measured; one table in Markdown. Called by full.sh, which lists the settings."""

import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import measure

HERE = Path(__file__).resolve().parent
CLI = Path("target/release/gemma-coreml")
SYNTH = Path("target/release/examples/synth")
STEPS = ["convert", "cold", "plan", "kill", "decode", "peer", "growth"]

# Targets that the table names.
WARM_TARGET_S = 40.0
COLD_TARGET = 1.5
MEMORY_TARGET_MIB = {"e2b": 1024, "31b": 1536}
OTHER_FILES_TOLERANCE = 0.01
PEER_TARGET = 2.0
BOUND_TARGET = 0.8
OPEN_TARGET_S = 2.0
RESIDENT_TARGET = 2_500_000_000
# Tokens in the context before the ones that are timed, and those; ours and the peer's.
PROMPT, TOKENS = 128, 32
# Ops that are listed, the most expensive first.
PROFILE_ROWS = 6
# Share of the input that may still be cached for a run to count as uncached.
UNCACHED = 0.01
# Recipe of all conversions: the default.
RECIPE = "swa4-int4"
# 31B is cut to this many layers where the disk does not hold it whole.
SHORT_LAYERS = 30
# Bytes of a checkpoint (bf16) and of its INT4 bundle together, roughly; for 31B also of its first layers.
NEEDED = {"e2b": 13e9, "e4b": 22e9, "12b": 32e9, "31b": 82e9}
NEEDED_SHORT = 45e9


def setting(name, default):
    return os.environ.get(name, default)


class Table:
    """Rows of: what, value, compared with, ratio, target."""

    def __init__(self):
        self.rows = []

    def add(self, what, value, against="", ratio="", target=""):
        ratio = f"{ratio:.2f}" if isinstance(ratio, float) else ratio
        self.rows.append((what, value, against, ratio, target))
        print(f"  {what}: {value} {f'({ratio} of {against})' if ratio else ''}", file=sys.stderr, flush=True)

    def show(self):
        print("| measure | value | compared with | ratio | target |\n|---|---:|---|---:|---:|")
        for row in self.rows:
            print("| " + " | ".join(row) + " |")


def mib(n):
    return f"{n / 2**20:.0f} MiB"


def gb(n):
    return f"{n / 1e9:.2f} GB"


def million(n):
    return f"{n / 1e6:.0f} M"


def machine(directory):
    """One line about the machine, disk rates measured now."""
    fields = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    cpu = {name.strip(): value.strip() for name, value in fields}
    sets = [f for f in ("avx2", "avx512bw", "avx512_bf16", "avx512_vnni") if f in cpu.get("flags", "").split()]
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    wrote, read = measure.disk_rates(directory)
    load = os.getloadavg()[0]
    return (
        f"{len(os.sched_getaffinity(0))} cores of {cpu.get('model name', platform.machine())} ({', '.join(sets)}), "
        f"{total / 2**30:.0f} GiB of memory, Linux {platform.release()}; disk: {wrote / 1e6:.0f} MB/s written with fsync, "
        f"{read / 1e6:.0f} MB/s read uncached; load before the run {load:.1f}; {datetime.date.today()}"
    )


class Bench:
    def __init__(self):
        self.dir = Path(setting("BENCH_DIR", "target/bench-full"))
        self.dir.mkdir(parents=True, exist_ok=True)
        self.steps = setting("BENCH_STEPS", " ".join(STEPS)).split()
        unknown = set(self.steps) - set(STEPS)
        if unknown:
            raise SystemExit(f"BENCH_STEPS: no step {' '.join(sorted(unknown))}; there are {' '.join(STEPS)}")
        self.runs = int(setting("BENCH_RUNS", "3"))
        self.table = Table()
        self.shrink = int(setting("BENCH_SHRINK", "1"))
        given = os.environ.get("BENCH_CHECKPOINT")
        self.name = Path(given).name if given else self.label("e2b")
        self.input = Path(given) if given else self.dir / "e2b"
        if not given:
            self.make("e2b", self.input)
        self.output = self.dir / "int4"
        self.elements = self.warm = self.anonymous = None

    def label(self, model):
        """A member's name in the table; another one for a member made smaller, which has no targets."""
        return model if self.shrink == 1 else f"{model}/{self.shrink}"

    def synth(self, model, target, layers=None):
        """Writes a checkpoint of made-up weights."""
        command = [SYNTH, model, "-o", target, "--shrink", self.shrink]
        return measure.run(command + (["--layers", layers] if layers else []))

    def make(self, model, target):
        """As synth, unless it is there; complete when its mark is there too."""
        mark = target.with_name(target.name + ".done")
        if not mark.exists():
            made = self.synth(model, target)
            mark.touch()
            self.table.add(f"make {self.name}", f"{made.wall_s:.1f} s", f"{gb(measure.size(target))}")

    def fresh(self, model, output):
        """A conversion into nothing: its run and its report."""
        shutil.rmtree(output, ignore_errors=True)
        done = measure.run([CLI, "-q", "--format", "json", "convert", model, "-r", RECIPE, "-o", output])
        return done, json.loads(done.out)

    def row(self, what, done, report, target=""):
        """The row of a conversion."""
        self.elements = elements = sum(s["elements"] for s in report["schemes"].values())
        rows = sum(s["elements"] for name, s in report["schemes"].items() if name.startswith("rows-"))
        value = f"{done.wall_s:.1f} s, {million(elements / done.wall_s)} weights/s ({rows / elements:.0%} in row tables), "
        value += f"{done.cpu_s / done.wall_s:.2f} cores"
        self.table.add(what, value, target=target)

    def memory_row(self, model, done):
        limit = MEMORY_TARGET_MIB.get(model.split(",")[0])
        against = f"{mib(limit * 2**20)}" if limit else ""
        ratio = done.anonymous / (limit * 2**20) if limit else ""
        self.table.add(f"{model}: peak anonymous memory", f"{mib(done.anonymous)}, {done.samples} samples", against, ratio, "≤ 1" if limit else "")

    def convert_warm(self):
        """Conversions of the cached input; the last one's output stays."""
        done = []
        for _ in range(self.runs):
            measure.read_all(self.input)
            done.append(self.fresh(self.input, self.output))
        done.sort(key=lambda pair: pair[0].wall_s)
        best, report = done[0]
        median = done[len(done) // 2][0]
        self.warm = median.wall_s
        self.row(f"convert {self.name}, cached: best of {self.runs}", best, report)
        self.row(f"convert {self.name}, cached: median", median, report)
        if self.name == "e2b":
            self.table.add("the median", f"{median.wall_s:.1f} s", f"{WARM_TARGET_S:.0f} s", median.wall_s / WARM_TARGET_S, "≤ 1")
        largest = max((d for d, _ in done), key=lambda d: d.anonymous)
        self.anonymous = largest.anonymous
        self.memory_row(self.name, largest)
        for stage in report["stages"]:
            if stage["seconds"] >= 0.02 * best.wall_s:
                self.table.add(f"stage {stage['stage']}", f"{stage['seconds']:.1f} s", "all", stage["seconds"] / best.wall_s)

    def copies(self):
        """The two copies that a conversion of uncached input is compared with; seconds."""
        left = measure.evict(self.input)
        read_in = measure.read_all(self.input)
        measure.evict(self.input)
        into = measure.copy(self.input, self.dir / "copy", synced=False)
        measure.evict(self.dir)
        measure.read_all(self.output)
        out = measure.copy(self.output, self.dir / "copy", synced=True)
        size_in, size_out = measure.size(self.input), measure.size(self.output)
        self.table.add("read the input, uncached", f"{read_in:.1f} s", f"{gb(size_in)}, {left:.0%} still cached")
        self.table.add("cp of the input, uncached", f"{into:.1f} s", gb(size_in))
        self.table.add("cp of the output, cached, fsynced", f"{out:.1f} s", gb(size_out))
        return read_in, into, out

    def convert_cold(self):
        read_in, into, out = self.copies()
        left = measure.evict(self.input)
        # The bundle of the step before stays for what follows.
        other = self.dir / "cold"
        done, report = self.fresh(self.input, other)
        same = measure.tree(other) == measure.tree(self.output)
        shutil.rmtree(other)
        self.row(f"convert {self.name}, input not cached ({left:.0%} still was)", done, report)
        larger = max(self.warm, into + out)
        ratio = done.wall_s / larger
        target = f"≤ {COLD_TARGET}" if left <= UNCACHED else "the input was not uncached"
        self.table.add("the same", f"{done.wall_s:.1f} s", f"{larger:.1f} s: larger of cached, cp in + fsynced cp out", ratio, target)
        self.table.add("the same", f"{done.wall_s:.1f} s", f"{read_in + out:.1f} s: read in + fsynced cp out", done.wall_s / (read_in + out))
        self.table.add("its bundle", "the same bytes" if same else "OTHER BYTES", "cached conversion", "", "the same bytes")

    def kills(self):
        """kills.sh: three conversions killed and resumed, each compared with the uninterrupted bundle."""
        measure.read_all(self.input)
        command = [HERE / "kills.sh", self.input, RECIPE, self.output, f"{self.warm:.3f}", self.dir / "kills"]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=dict(os.environ, GEMMA_COREML=str(CLI)))
        kept_in_all = 0
        for line in done.stdout.splitlines()[1:]:
            after, _, kept, in_work, built, second, *result = line.split()
            kept_in_all += int(kept) if kept.isdigit() else 0
            value = f"{kept} units kept, {in_work} lost in work, {built} built again; {' '.join(result).removeprefix('s ')}"
            self.table.add(f"killed after {after} s, then to the end", value, "", "", "≤ 2 lost, the same bytes")
            if second != "-":
                self.table.add("its second run", f"{float(second):.1f} s", "uninterrupted", float(second) / self.warm)
        if done.returncode != 0:
            self.table.add("kills.sh", f"FAILED: {done.stderr.strip().splitlines()[-1]}")
        elif kept_in_all == 0:
            self.table.add("kills.sh", "NOTHING WAS KEPT by any kill: this shows nothing about resuming")

    def plan(self):
        """Bytes of the bundle against what `plan` says of it."""
        done = measure.run([CLI, "-q", "--format", "json", "plan", self.input])
        forecast = json.loads(done.out)
        made = {str(p.relative_to(self.output)): p.stat().st_size for p in measure.files(self.output)}
        told = {name: file["bytes"] for name, file in forecast["files"].items()}
        if made.keys() != told.keys():
            self.table.add("plan: other files", " ".join(sorted(made.keys() ^ told.keys())))
        both = made.keys() & told.keys()
        large = [n for n in both if n.endswith(".bin")]
        wrong = [n for n in large if made[n] != told[n]]
        other = [abs(told[n] - made[n]) / made[n] for n in both if n not in large]
        self.table.add("plan takes", f"{done.wall_s:.2f} s")
        self.table.add(f"plan: {len(large)} weight files and tables", f"{len(large) - len(wrong)} exact", "bytes on disk", "", "all")
        value = f"at most {max(other, default=0):.2%} off"
        self.table.add(f"plan: {len(other)} other files", value, "bytes on disk", "", f"≤ {OTHER_FILES_TOLERANCE:.0%}")
        total = sum(made.values())
        self.table.add("plan: bytes in all", str(forecast["bytes"]), f"{total} on disk", forecast["bytes"] / total)
        self.table.add("plan: peak memory", mib(forecast["memory"]), "measured (anonymous)", forecast["memory"] / self.anonymous, "≥ 1")
        self.table.add("plan: time", f"{forecast['time']['seconds']:.1f} s", "cached, median", forecast["time"]["seconds"] / self.warm)

    def decode(self):
        """Tokens per second of the bundle against what the machine allows; answers them."""
        measure.read_all(self.output)
        done = measure.run([CLI, "-q", "--format", "json", "bench", self.output, "--context-tokens", PROMPT, "-n", TOKENS])
        found = json.loads(done.out)
        rate = found["tokens_per_second"]
        what = f"decode {self.name}, {found['kernel']}, {found['threads']} threads, from position {PROMPT}"
        self.table.add(what, f"{rate:.2f} tokens/s (best {found['tokens_per_second_best']:.2f})")
        read = sum(found[f"{kind}_bytes_per_token"] for kind in ("weight", "cache", "row"))
        bandwidth, fastest = found["bandwidth_bytes_per_second"], found["bandwidth_bytes_per_second_best"]
        memory = f"{found['memory_bound_tokens_per_second']:.2f}: {gb(read)} a token at {gb(bandwidth)}/s"
        self.table.add("bound by memory", f"{rate:.2f} tokens/s", memory, rate / found["memory_bound_tokens_per_second"])
        if kernels := found["kernel_bound_tokens_per_second"]:
            self.table.add("bound by kernels in cache", f"{rate:.2f} tokens/s", f"{kernels:.2f}", rate / kernels)
        bound = found["bound_tokens_per_second"]
        self.table.add("the lower bound", f"{rate:.2f} tokens/s", f"{bound:.2f}", rate / bound, f"≥ {BOUND_TARGET}")
        # The median against the fastest sample: what other guests of the host take is then all counted as ours.
        fastest = min(fastest / read, kernels or fastest / read)
        self.table.add("with the memory's fastest sample", f"{rate:.2f} tokens/s", f"{fastest:.2f}", rate / fastest)
        for op in found["profile"][:PROFILE_ROWS]:
            self.table.add(f"op {op['op']}", f"{op['milliseconds_per_token']:.2f} ms a token")
        opened = found["open_seconds"]
        self.table.add("opening the bundle, cached", f"{opened:.2f} s", f"{OPEN_TARGET_S:.0f} s", opened / OPEN_TARGET_S, "≤ 1")
        resident, anonymous = found["resident_bytes"], found["anonymous_bytes"]
        value = f"{mib(resident)} ({mib(anonymous)} anonymous)"
        self.table.add("resident while decoding", value, gb(RESIDENT_TARGET), resident / RESIDENT_TARGET, "≤ 1")
        return rate

    def decode_with_transformers(self, ours):
        """The peer: transformers in bf16 on the same checkpoint. `ours` is the median of tokens per second, or none."""
        script = HERE / "transformers_decode.py"
        python = setting("GEMMA_COREML_TORCH_PYTHON", ".venv-torch/bin/python")
        done = measure.run([python, script, self.input, "--prompt", PROMPT, "--tokens", TOKENS])
        peer = json.loads(done.out)
        rate = peer["tokens_per_s_median"]
        what = f"transformers {peer['transformers']}, {peer['dtype']}, {peer['threads']} threads"
        value = f"{rate:.2f} tokens/s (best {peer['tokens_per_s_best']:.2f}), resident {mib(peer['rss'])}"
        self.table.add(what, value)
        if ours:
            self.table.add("tokens/s of ours", f"{ours:.2f}", "transformers", ours / rate, f"≥ {PEER_TARGET:.0f}")

    def growth(self):
        """Other members, one after the other: made, converted once, deleted. Time per weight against the first model's."""
        first = self.warm / self.elements
        for model in setting("BENCH_GROWTH", "e4b 12b 31b").split():
            free = shutil.disk_usage(self.dir).free * self.shrink**2
            layers, label = None, self.label(model)
            if free < NEEDED[model] and model == "31b":
                layers, label = SHORT_LAYERS, f"{label}, first {SHORT_LAYERS} layers only"
            needed = NEEDED_SHORT if layers else NEEDED[model]
            if free < needed:
                self.table.add(f"convert {label}", "not run", f"{gb(free)} of disk free, {gb(needed)} needed")
                continue
            checkpoint, output = self.dir / model, self.dir / f"{model}-int4"
            shutil.rmtree(checkpoint, ignore_errors=True)
            self.synth(model, checkpoint, layers)
            measure.read_all(checkpoint)
            there = measure.cached(checkpoint)
            done, report = self.fresh(checkpoint, output)
            self.row(f"convert {label} ({gb(measure.size(checkpoint))}, {there:.0%} cached)", done, report)
            per_weight = done.wall_s / self.elements
            self.table.add("time per weight", f"{per_weight * 1e9:.1f} ns", self.name, per_weight / first)
            self.memory_row(label, done)
            shutil.rmtree(checkpoint)
            shutil.rmtree(output)


def main():
    os.chdir(HERE.parent)
    bench = Bench()
    steps = bench.steps
    print(machine(bench.dir), end="\n\n")
    needs_bundle = {"convert", "cold", "plan", "kill", "decode", "growth"}
    if needs_bundle & set(steps):
        bench.convert_warm()
    if "cold" in steps:
        bench.convert_cold()
    if "kill" in steps:
        bench.kills()
    if "plan" in steps:
        bench.plan()
    rate = bench.decode() if "decode" in steps else None
    if "peer" in steps:
        bench.decode_with_transformers(rate)
    if "growth" in steps:
        bench.growth()
    bench.table.show()


if __name__ == "__main__":
    main()

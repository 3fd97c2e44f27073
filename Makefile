# gemma-coreml: the commands of README.md and of CI.
SHELL := /bin/bash
CARGO ?= cargo
VENV := .venv-coremltools
OUT ?= target/demo
SWEEP ?= target/sweep
MODEL ?= e2b
KIND ?= plain
SYNTH ?= target/synth/$(MODEL)$(if $(filter-out plain,$(KIND)),-$(KIND))

.PHONY: demo test check fmt clippy doc bench bench-full sweep recipe-table synth fixtures venv build clean

build:
	$(CARGO) build --release

## Converts the shipped model to INT4, and as trained at two bits; decodes stories from the packages, shows parity. No network
## beyond crates.
demo: build
	rm -rf $(OUT) && mkdir -p $(OUT)
	target/release/gemma-coreml convert fixtures/nano -o $(OUT)/nano-int4
	target/release/gemma-coreml inspect $(OUT)/nano-int4
	target/release/gemma-coreml decode $(OUT)/nano-int4 -p "Once there was a girl named Zoe." -n 120
	target/release/gemma-coreml convert tests/data/nano-qat2 -r qat-mobile -o $(OUT)/nano-qat2
	target/release/gemma-coreml decode $(OUT)/nano-qat2 -p "Once there was a girl named Zoe." -n 120
	target/release/gemma-coreml convert fixtures/nano -r swa4-fp16 -o $(OUT)/nano-fp16
	target/release/gemma-coreml parity $(OUT)/nano-fp16 --reference fixtures/nano/reference.safetensors --exact-tables fixtures/nano
	target/release/gemma-coreml parity $(OUT)/nano-int4 --reference fixtures/nano/reference.safetensors --no-gate

## A virtual environment with coremltools, which opens every package that the tests write.
venv:
	bash tests/coremltools/venv.sh

## Every test. Installs what it needs (the virtual environment above).
test: venv
	$(CARGO) test --no-fail-fast

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps

check: fmt clippy test doc

## Steps of a conversion and kernels, and the palettizer's error and speed, against coremltools, same inputs, same run.
bench: venv
	sh benches/run.sh steps
	sh benches/run.sh palettize

## Conversion and decoding at full size (docs/PERFORMANCE.md). Tens of GB of disk; settings in benches/full.sh.
bench-full:
	bash benches/full.sh

## The sweep of docs/EXPERIMENTS.md section 3: calibrates on one text of nano, allocates widths, compares every scheme on another.
sweep: build
	bash benches/sweep.sh $(SWEEP)

## The table of recipes of docs/EXPERIMENTS.md, and what windowed full attention forgets.
recipe-table: venv
	$(CARGO) test --release --test recipes -- --nocapture every_recipe | grep '^|'
	RECALL_CONTEXTS=125 $(CARGO) test --release --test recipes -- --nocapture recall_is_lost | grep '^|'

## A checkpoint of real size with made-up weights: MODEL=e2b (9.3 GB), e4b, 12b or 31b; KIND=plain, q4_0, w4a16-ct or mobile.
## RANK=16 writes a LoRA adapter beside it.
synth:
	$(CARGO) run --release --example synth -- $(MODEL) --kind $(KIND) -o $(SYNTH) $(if $(RANK),--adapter $(RANK))

## Retrains and regenerates fixtures/ (needs torch: see fixtures/README.md).
fixtures:
	bash fixtures/make.sh

clean:
	$(CARGO) clean

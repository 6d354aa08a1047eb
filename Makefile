# What there is to do with Forebay. Cargo is all that has to be there; the rest is installed where this
# user may, or named.

FUZZ_SECONDS ?= 30
# For `make bench`: --quick, --only count|engine|large|small|shm|memory|disk
# For `make bench-vm`: --quick, --only count,guest,rdma
BENCH ?=
# For `make test-vm`: which tests, by a part of their names
VM ?=
# RDMA is built in; `make RDMA= …` leaves it out, and with it the packages that it takes.
export RDMA ?= rdma

comma := ,
features := $(if $(RDMA),--features forebayd/rdma$(comma)forebay-tools/rdma)
# What RDMA takes in the virtual machine, which has this machine's files.
guest_rdma := $(if $(RDMA),'/usr/lib/*/libibverbs/librxe-rdmav*.so:ibverbs-providers' rdma:iproute2 tc:iproute2)
# Of all crates, for their tests and lints.
export ALL_FEATURES := $(if $(RDMA),--all-features)

.PHONY: help build demo test test-vm test-rdma lint doc fuzz bench bench-vm

help:
	@echo 'make demo    the whole path once, with a crash in the middle (2 minutes and the build)'
	@echo 'make test    every test there is; FUZZ_SECONDS=$(FUZZ_SECONDS) for each fuzz target'
	@echo 'make test-vm only those in a virtual machine: real NVMe controllers, and a part of those over RDMA;'
	@echo '             VM=name for some of them'
	@echo 'make test-rdma all over real verbs (soft-RoCE), in one virtual machine and between two (15 minutes)'
	@echo 'make build   forebayd and forebay, in target/release; RDMA= leaves RDMA out'
	@echo 'make lint    rustfmt and clippy, as CI has them'
	@echo 'make doc     the documentation, as CI has it'
	@echo 'make fuzz    the fuzz targets alone, FUZZ_SECONDS=$(FUZZ_SECONDS) each'
	@echo 'make bench   how fast and how big, beside fio, iperf3 and Redis; BENCH="--only small" for a part'
	@echo 'make bench-vm how fast the NVMe driver is beside the kernel'"'"'s, and RDMA beside perftest, in a virtual machine'

build:
	@tests/scripts/need-build.sh
	cargo build --release -p forebayd -p forebay-tools $(features)

demo:
	@tests/scripts/demo.sh

test:
	@FUZZ_SECONDS=$(FUZZ_SECONDS) tests/scripts/test.sh

test-vm: build
	@tests/scripts/need.sh fio:fio strace:strace valgrind:valgrind $(guest_rdma)
	@tests/vm/prepare.sh target/vm
	cargo build --release -p forebay-nvme --example queue_iops
	FOREBAY_VM=$(CURDIR)/target/vm RUST_LIB_BACKTRACE=0 cargo test -p forebay-tests --test vm $(ALL_FEATURES) -- --test-threads=1 $(VM)

test-rdma: build
	@tests/scripts/need.sh $(guest_rdma) rping:rdmacm-utils ib_write_bw:perftest
	@tests/vm/prepare.sh target/vm
	FOREBAY_RXE_TESTS=$$(cargo test -p forebay-fabric $(ALL_FEATURES) --test rxe --no-run --message-format=json | \
		sed -n 's/.*"executable":"\([^"]*\/rxe-[^"]*\)".*/\1/p') FOREBAY_VM=$(CURDIR)/target/vm \
		cargo test -p forebay-tests --test vm $(ALL_FEATURES) rdma -- --include-ignored --test-threads=1 --nocapture

lint:
	@tests/scripts/need-build.sh
	cargo fmt --check
	cargo clippy --workspace --all-targets $(ALL_FEATURES) -- -D warnings

# For those who work on it: with private items, which public text may point at.
doc:
	@tests/scripts/need-build.sh
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' \
		cargo doc --workspace --no-deps --document-private-items $(ALL_FEATURES)

fuzz:
	@tests/scripts/need.sh c++:g++
	@tests/fuzz/run.sh $(FUZZ_SECONDS)

bench: build
	@tests/scripts/need.sh fio:fio iperf3:iperf3 redis-server:redis-server redis-benchmark:redis-tools \
		valgrind:valgrind
	cargo run --release --quiet -p forebay-tests --bin foundation-bench -- $(BENCH)

bench-vm: build
	@tests/scripts/need.sh fio:fio strace:strace valgrind:valgrind $(guest_rdma) ib_write_bw:perftest
	@tests/vm/prepare.sh target/vm
	cargo build --release --quiet -p forebay-tests --bins
	cargo build --release --quiet -p forebay-nvme --example queue_iops
	FOREBAY_VM=$(CURDIR)/target/vm cargo run --release --quiet -p forebay-tests --bin vm-bench -- $(BENCH)

# What there is to do with Forebay. Cargo is all that has to be there; the rest is installed where this
# user may, or named.

FUZZ_SECONDS ?= 30
# For `make bench`: --quick, --only engine|large|small|shm|memory|disk
# For `make bench-vm`: --quick, --only count|guest
BENCH ?=
# For `make test-vm`: which tests, by a part of their names
VM ?=

.PHONY: help build demo test test-vm test-rdma lint fuzz bench bench-vm

help:
	@echo 'make demo    the whole path once, with a crash in the middle (2 minutes and the build)'
	@echo 'make test    every test there is; FUZZ_SECONDS=$(FUZZ_SECONDS) for each fuzz target'
	@echo 'make test-vm only those on real NVMe controllers, in a virtual machine; VM=name for some of them'
	@echo 'make test-rdma the RDMA transport over real verbs (soft-RoCE), in a virtual machine'
	@echo 'make build   forebayd and forebay, in target/release'
	@echo 'make lint    rustfmt and clippy, as CI has them'
	@echo 'make fuzz    the fuzz targets alone, FUZZ_SECONDS=$(FUZZ_SECONDS) each'
	@echo 'make bench   how fast and how big, beside fio, iperf3 and Redis; BENCH="--only small" for a part'
	@echo 'make bench-vm how fast the NVMe driver is beside the kernel'"'"'s, in a virtual machine'

build:
	@tests/scripts/need.sh cc:gcc,libc6-dev
	cargo build --release -p forebayd -p forebay-tools

demo:
	@tests/scripts/demo.sh

test:
	@FUZZ_SECONDS=$(FUZZ_SECONDS) tests/scripts/test.sh

test-vm:
	@tests/scripts/need.sh cc:gcc,libc6-dev fio:fio strace:strace valgrind:valgrind
	@tests/vm/prepare.sh target/vm
	cargo build --release -p forebayd -p forebay-tools
	cargo build --release -p forebay-nvme --example queue_iops
	FOREBAY_VM=$(CURDIR)/target/vm RUST_LIB_BACKTRACE=0 cargo test -p forebay-tests --test vm -- --test-threads=1 $(VM)

test-rdma:
	@tests/scripts/need.sh cc:gcc,libc6-dev cmake:cmake,libclang-dev,pkg-config,libibverbs-dev,librdmacm-dev \
		ibv_devices:ibverbs-utils,ibverbs-providers rdma:iproute2 rping:rdmacm-utils ib_write_bw:perftest
	@tests/vm/prepare.sh target/vm
	cargo build --release -p forebayd -p forebay-tools
	FOREBAY_RXE_TESTS=$$(cargo test -p forebay-fabric --features rdma --test rxe --no-run --message-format=json | \
		sed -n 's/.*"executable":"\([^"]*\/rxe-[^"]*\)".*/\1/p') FOREBAY_VM=$(CURDIR)/target/vm \
		cargo test -p forebay-tests --features rdma --test vm rdma -- --ignored --test-threads=1 --nocapture

lint:
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings

fuzz:
	@tests/scripts/need.sh c++:g++
	@tests/fuzz/run.sh $(FUZZ_SECONDS)

bench:
	@tests/scripts/need.sh cc:gcc,libc6-dev fio:fio iperf3:iperf3 redis-server:redis-server redis-benchmark:redis-tools
	cargo build --release --quiet -p forebayd -p forebay-tools
	cargo run --release --quiet -p forebay-tests --bin foundation-bench -- $(BENCH)

bench-vm:
	@tests/scripts/need.sh cc:gcc,libc6-dev fio:fio strace:strace valgrind:valgrind
	@tests/vm/prepare.sh target/vm
	cargo build --release --quiet -p forebayd -p forebay-tools -p forebay-tests --bins
	cargo build --release --quiet -p forebay-nvme --example queue_iops
	FOREBAY_VM=$(CURDIR)/target/vm cargo run --release --quiet -p forebay-tests --bin vm-bench -- $(BENCH)

#!/bin/sh
# Fuzzes the wire's and the media's decoders: tests/fuzz/run.sh SECONDS (for each target).
#
# Stable Rust and a C++ compiler are enough: libFuzzer is built from the libfuzzer-sys crate, and the
# coverage counters come from LLVM's own pass. Ends with an error on the first crash, and says how to
# run it again.
set -eu
seconds=${1:-30}
cd "$(dirname "$0")"
command -v c++ >/dev/null || { echo "fuzz: a C++ compiler is needed (Debian: apt-get install g++)"; exit 2; }

host=$(rustc -vV | sed -n 's/^host: //p')
target=${FUZZ_TARGET_DIR:-$PWD/target}
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1" \
    cargo build --quiet --release --locked --target "$host" --target-dir "$target"

for name in wire media; do
    bin="$target/$host/release/$name"
    seeds=artifacts/seeds/$name log=artifacts/$name.log
    rm -rf "$seeds" && mkdir -p "$seeds" "corpus/$name"
    FOREBAY_SEEDS="$seeds" "$bin" >/dev/null 2>&1
    if ! "$bin" "corpus/$name" "$seeds" -max_total_time="$seconds" -max_len=8192 -timeout=10 \
        -rss_limit_mb=1024 -print_final_stats=1 -artifact_prefix="artifacts/$name-" >"$log" 2>&1; then
        tail -40 "$log"
        found=$(sed -n 's/.*Test unit written to //p' "$log" | tail -1)
        echo "fuzz $name: CRASH; again: $bin $PWD/$found"
        exit 1
    fi
    rate=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
    first=$(grep -o 'INITED cov: [0-9]*' "$log" | grep -o '[0-9]*$')
    last=$(grep -o 'cov: [0-9]*' "$log" | tail -1 | grep -o '[0-9]*$')
    echo "fuzz $name: $rate executions/s for $seconds s, coverage $first -> $last, no crash"
done

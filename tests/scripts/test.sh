#!/usr/bin/env bash
# Every test there is: fuzz targets (FUZZ_SECONDS each, 30 without it), documentation, all crates, the virtual
# machine.
set -euo pipefail
cd "$(dirname "$0")/../.."

tests/scripts/need-build.sh c++:g++
features=${ALL_FEATURES---all-features}
tests/fuzz/run.sh "${FUZZ_SECONDS:-30}"
# Those in the virtual machine come behind the others, one after the other.
export FOREBAY_VM=separately
# nextest, where it is there, runs tests side by side; it does not know those in documentation.
if cargo nextest --version >/dev/null 2>&1; then
    cargo test --workspace --doc $features
    cargo nextest run --workspace $features
else
    cargo test --workspace $features
fi
unset FOREBAY_VM
make test-vm

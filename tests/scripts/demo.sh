#!/usr/bin/env bash
# The whole path once: installs what is missing, builds, fetches a real model, runs `forebay demo`.
#
# Needs cargo. Everything that it fetches stays in the target folder; the demo's own files go to the
# system's temporary folder, or to the target folder where that is too small, and are removed.
set -euo pipefail
cd "$(dirname "$0")/../.."
say() { echo "demo: $*" >&2; }

if ! command -v cargo >/dev/null; then
    say "cargo is missing; install Rust from https://rustup.rs and open a new shell"
    exit 1
fi
target=${CARGO_TARGET_DIR:-target}

say "building (some minutes the first time)"
export CARGO_TERM_QUIET=true
if [ -t 2 ]; then CARGO_TERM_QUIET=false; fi
make --no-print-directory --silent build

model=()
if ! python3 -m pip --version >/dev/null 2>&1; then
    # Without it the demo makes tensors: less real, no less true.
    tests/scripts/need.sh python3:python3 pip3:python3-pip || true
fi
if path=$(python3 tests/scripts/model.py "$target/model"); then
    model=(--model "$path")
fi

place=()
temporary=${TMPDIR:-/tmp}
free_kib=$(df -Pk "$temporary" | awk 'NR == 2 { print $4 }')
if [ "$free_kib" -lt $((6 << 20)) ]; then
    place=(--dir "$target")
fi
exec "$target/release/forebay" demo "${model[@]}" "${place[@]}" "$@"

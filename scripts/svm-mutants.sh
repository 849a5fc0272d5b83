#!/usr/bin/env bash
# Shows that the tests in the svm lane notice defects: builds the addon and the C++ tests with one
# deliberate defect at a time (native/base/mutant.h) and runs them there, where they have to fail,
# and without any, where they have to pass.
#
#   scripts/svm-mutants.sh [--cpus N] [name...]    default: None, which is no defect, then all
#
# Logs are in out/mutants/log. Takes one to three minutes a defect.
source "$(dirname "$0")/lib.sh"

tree=out/mutants
lane=(--quiet --timeout 600)
if [ "${1:-}" = --cpus ]; then
  lane+=(--cpus "${2:?}")
  shift 2
fi
mapfile -t known < <(sed -n 's/^  k\([A-Z][A-Za-z0-9]*\),.*/\1/p' native/base/mutant.h)
names=("$@")
[ $# -gt 0 ] || names=("${known[@]}")
for name in "${names[@]}"; do
  [[ " ${known[*]} " == *" $name "* ]] || fail "no defect is called $name: ${known[*]}"
done

bash scripts/setup.sh --svm
mkdir -p "$tree/log"

# What runs in the lane. The C++ tests first: where they notice, no guest has to boot.
export FORKLET_PREBUILD="$FORKLET_ROOT/$tree" REQUIRE_KVM=1
# shellcheck disable=SC2016  # expands in the lane
tests='
out/mutants/native_tests --test-case="On a vCPU*" &&
  exec node node_modules/vitest/vitest.mjs run --project kvm --bail 1 \
    test/kvm/options.test.ts test/kvm/vm.test.ts test/kvm/fork.test.ts'

# The first test that failed, from a log of the above.
first_failure() {
  sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
    /^TEST CASE:/ { sub(/^TEST CASE: */, ""); name = $0 }
    /: (FATAL )?ERROR: / { print name; exit }
    / FAIL / { sub(/^ *FAIL */, ""); print; exit }'
}

failed=0
for name in "${names[@]}"; do
  log="$tree/log/$name.log"
  begin=$SECONDS
  cmake --preset mutants -DFORKLET_MUTANT="$name" >/dev/null
  cmake --build "$tree" >"$log" 2>&1 || {
    tail -n 30 "$log" >&2
    fail "$name does not build"
  }
  built=$((SECONDS - begin))
  status=0
  scripts/svm-lane "${lane[@]}" -- bash -c "$tests" >"$log" 2>&1 || status=$?
  took="built in $built s, tested in $((SECONDS - begin - built)) s"
  # 124 and 125 are the lane's own: neither is a test that noticed.
  if [ "$name" = None ] && [ "$status" -eq 0 ]; then
    echo "ok      $name: passes ($took)"
  elif [ "$name" != None ] && [ "$status" -eq 1 ] && [ -n "$(first_failure "$log")" ]; then
    echo "ok      $name: noticed by '$(first_failure "$log")' ($took)"
  else
    echo "FAILED  $name: exit code $status ($took); see $log"
    failed=$((failed + 1))
  fi
done
echo "mutants: $((${#names[@]} - failed)) passed, $failed failed"
[ "$failed" -eq 0 ]

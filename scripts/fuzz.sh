#!/usr/bin/env bash
# Builds the fuzz targets of native/fuzz.txt and runs each for a while.
#   scripts/fuzz.sh [seconds per target, default 60] [target...]
# Inputs found are kept in out/fuzz/corpus/TARGET; a crash is written to out/fuzz/TARGET-*.
source "$(dirname "$0")/lib.sh"

seconds="${1:-60}"
shift || true

if [ $# -gt 0 ]; then
  targets=("$@")
else
  mapfile -t targets < <(read_list native/fuzz.txt | sed 's|.*/||; s|\.[^.]*$||')
fi
configure_asan
cmake --build out/asan --target "${targets[@]}"

passed=0
failed=0
for target in "${targets[@]}"; do
  corpus="out/fuzz/corpus/$target"
  log="out/fuzz/$target.log"
  mkdir -p "$corpus"
  echo "fuzz: $target, $seconds s"
  if "out/asan/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 \
    -print_final_stats=1 -artifact_prefix="out/fuzz/$target-" "$corpus" >"$log" 2>&1; then
    passed=$((passed + 1))
    sed -n 's/^stat::number_of_executed_units: */    inputs: /p' "$log"
  else
    failed=$((failed + 1))
    tail -n 40 "$log"
  fi
done
echo "fuzz: $passed passed, $failed failed"
[ "$failed" -eq 0 ]

#!/usr/bin/env bash
# Formats files in place: those given, or every source of the checkout.
source "$(dirname "$0")/lib.sh"

if [ $# -eq 0 ]; then
  mapfile -d '' -t all < <(git ls-files -z --cached --others --exclude-standard)
  set -- "${all[@]}"
fi

cxx=()
other=()
for file in "$@"; do
  case "$file" in
    *.c | *.cc | *.h) cxx+=("$file") ;;
    *.ts | *.mts | *.js | *.mjs | *.json) other+=("$file") ;;
  esac
done
[ ${#cxx[@]} -eq 0 ] || clang-format -i "${cxx[@]}"
[ ${#other[@]} -eq 0 ] || biome check --write --no-errors-on-unmatched "${other[@]}"

#!/usr/bin/env bash
# Runs every linter. With names as arguments, only those: biome, clang-format, clang-tidy, shellcheck.
# clang-tidy skips files that it has passed before, in any checkout, with the same headers, flags
# and settings.
source "$(dirname "$0")/lib.sh"

lint_biome() {
  local colors=off
  [ ! -t 1 ] || colors=force
  biome ci --error-on-warnings --colors="$colors"
}

# The checkout's files that match the patterns, each ended by a NUL; deleted ones are left out.
checkout_files() {
  git ls-files -z --cached --others --exclude-standard -- "$@" | while IFS= read -r -d '' file; do
    [ ! -e "$file" ] || printf '%s\0' "$file"
  done
}

cxx_files() {
  checkout_files 'native/*.h' 'native/*.cc' 'native/*.c' 'guest/*.c' 'guest/*.h' \
    'test/*.cc' 'test/*.c' 'test/*.h' 'bench/*.c'
}

lint_clang_format() {
  cxx_files | xargs -0 -r clang-format --dry-run -Werror
}

# One file, if it has not passed before in the same surroundings; $1 is the hash of those.
tidy_file() {
  local stamp output
  stamp="$TIDY_STAMPS/$({ echo "$1"; cat "$2"; } | sha256sum | cut -c1-40)"
  [ ! -e "$stamp" ] || return 0
  if output="$(clang-tidy --quiet -p out/lint "$2" 2>/dev/null)"; then
    : >"$stamp"
  else
    printf '%s\n' "$output"
    return 1
  fi
}
export -f tidy_file

lint_clang_tidy() {
  cmake --preset lint >/dev/null
  export TIDY_STAMPS="${XDG_CACHE_HOME:-$HOME/.cache}/forklet/lint"
  mkdir -p "$TIDY_STAMPS"
  local surroundings
  surroundings="$({
    cat .clang-tidy CMakeLists.txt CMakePresets.json
    clang-tidy --version
    cxx_files | grep -z '\.h$' | sort -z | xargs -0 -r cat
  } | sha256sum)"
  sed -n "s|^ *\"file\": \"$FORKLET_ROOT/\(.*\)\".*|\1|p" out/lint/compile_commands.json | sort -u |
    xargs -d '\n' -P "$(nproc)" -I{} bash -c 'tidy_file "$@"' tidy "$surroundings" {}
}

lint_shellcheck() {
  checkout_files | xargs -0 -r awk \
    'FNR == 1 { if (/^#!.*sh$|^# shellcheck shell=/) printf "%s%c", FILENAME, 0; nextfile }' |
    xargs -0 -r shellcheck --external-sources --source-path=SCRIPTDIR
}

linters=("$@")
[ $# -gt 0 ] || linters=(biome clang-format clang-tidy shellcheck)

passed=0
failed=0
for linter in "${linters[@]}"; do
  case "$linter" in
    biome | clang-format | clang-tidy | shellcheck) ;;
    *) fail "no linter is called $linter" ;;
  esac
  # A subshell of its own, so that `set -e` holds inside it.
  set +e
  (set -e; "lint_${linter//-/_}")
  status=$?
  set -e
  if [ "$status" -eq 0 ]; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "lint: $linter failed" >&2
  fi
done
echo "lint: $passed passed, $failed failed"
[ "$failed" -eq 0 ]

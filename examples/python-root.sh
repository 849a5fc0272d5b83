#!/usr/bin/env bash
# Makes a root directory for a VM with this machine's Python and no more of it than a program needs.
#
#   examples/python-root.sh DIRECTORY [MODULE...]
#
# Copies Debian's python3, the shared libraries that it takes, forklet_park, and what the modules
# import: some 10 MB. Nothing else is in there, not even a shell.
set -euo pipefail

directory=${1:?usage: examples/python-root.sh DIRECTORY [MODULE...]}
shift
readonly python=/usr/bin/python3
park=$(cd "$(dirname "${BASH_SOURCE[0]}")/../guest/park" && pwd)
readonly park

copy() {
  local file
  for file in "$@"; do
    install -D -m "$(stat -Lc %a "$file")" "$file" "$directory$file"
  done
}

libraries_of() {
  # `name => /path (address)`, or `/path (address)` for the loader.
  ldd "$1" | sed -nE 's/^(.*=>)?\s*(\/[^ ]+) \(.*/\2/p'
}

# What is loaded once the modules are; the standard library's own file by file.
mapfile -t files < <("$python" -I -B - "$park" forklet_park encodings.ascii "$@" <<'END'
import importlib, os, sys

sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
for module in list(sys.modules.values()):
    file = getattr(module, "__file__", None)
    if file and os.path.isfile(file) and not file.startswith(sys.argv[1]):
        print(os.path.realpath(file))
END
)
copy "$python" "${files[@]}"
install -D -m 644 "$park/forklet_park.py" \
  "$directory$("$python" -Ic 'import os; print(os.path.dirname(os.__file__))')/forklet_park.py"
libraries=()
for file in "$python" "${files[@]}"; do
  case $file in
    "$python" | *.so) mapfile -t -O "${#libraries[@]}" libraries < <(libraries_of "$file") ;;
  esac
done
mapfile -t libraries < <(printf '%s\n' "${libraries[@]}" | sort -u)
copy "${libraries[@]}"
mkdir -p "$directory"/{dev,etc,proc,root,run,sys,tmp}

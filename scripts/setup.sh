#!/usr/bin/env bash
# Makes a clean checkout ready: installs Debian packages and npm modules, builds the TypeScript, the
# addon, the guest's agent, root file system and kernel, and links what a VM boots from into
# prebuilt/linux-x64. A step whose inputs have not changed is skipped.
#
#   scripts/setup.sh          what the demo and the tests need
#   scripts/setup.sh --dev    also what linting, fuzzing and the C++ tests need
#   scripts/setup.sh --svm    also what the svm lane needs (docs/svm-lane.md)
#
# Safe to run twice at once. Logs are in out/log.
source "$(dirname "$0")/lib.sh"

stamps=out/stamps
logs=out/log
artifacts=prebuilt/linux-x64
mkdir -p "$stamps" "$logs" "$artifacts"
started=$SECONDS
ran=0

package_lists=(scripts/debian-packages.txt)
svm=false
for option in "$@"; do
  case "$option" in
    --dev) package_lists+=(scripts/debian-packages-dev.txt) ;;
    --svm)
      package_lists+=(scripts/debian-packages-svm.txt)
      svm=true
      ;;
    *) fail "usage: scripts/setup.sh [--dev] [--svm]" ;;
  esac
done

# A hash over files (whole directories included) and over the tools that decide what they become.
hash_inputs() {
  {
    node -p 'process.version + process.arch'
    find "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
  } | sha256sum
}

# Runs one step with its output in a log, and says every half minute that it is still at work.
# run_step NAME TITLE COMMAND...
run_step() {
  local name="$1" title="$2" log="$logs/$1.log" begin=$SECONDS status=0 pid next=30
  shift 2
  printf '==> %s\n' "$title"
  # In a process group of its own, so that an interrupt reaches everything that the step has
  # started; and without the lock's descriptor, which is this script's alone.
  set -m
  "$@" </dev/null >"$log" 2>&1 9>&- &
  pid=$!
  set +m
  trap 'kill -- "-$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; exit 130' INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    if [ $((SECONDS - begin)) -ge "$next" ]; then
      printf '    %d s: %.100s\n' $((SECONDS - begin)) "$(tail -n 1 "$log")"
      next=$((next + 30))
    fi
  done
  wait "$pid" || status=$?
  trap - INT TERM
  if [ "$status" -ne 0 ]; then
    printf '\n--- end of %s ---\n' "$log" >&2
    tail -n 40 "$log" >&2
    fail "step failed after $((SECONDS - begin)) s (exit $status): $title"
  fi
  printf '    done in %d s\n' $((SECONDS - begin))
  ran=$((ran + 1))
}

# A step that is skipped while its inputs and its output stay as they are.
# cached_step NAME TITLE OUTPUT INPUTS-HASH COMMAND...
cached_step() {
  local name="$1" title="$2" output="$3" hash="$4"
  shift 4
  if [ -e "$output" ] && [ "$(cat "$stamps/$name" 2>/dev/null)" = "$hash" ]; then
    return
  fi
  rm -f "$stamps/$name"
  run_step "$name" "$title" "$@"
  [ -e "$output" ] || fail "$title: left no $output (log: $logs/$name.log)"
  printf '%s\n' "$hash" >"$stamps/$name"
}

# The names in the lists, one a line, sorted.
wanted_packages() {
  sed 's/#.*//; s/[[:space:]]*$//; /^$/d' "${package_lists[@]}" | LC_ALL=C sort -u
}

missing_packages() {
  local wanted
  mapfile -t wanted < <(wanted_packages)
  # Fails for names that it does not know; those are missing too.
  { dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${wanted[@]}" 2>/dev/null || true; } |
    sed -n 's/ installed$//p' | LC_ALL=C sort -u | LC_ALL=C comm -13 - <(wanted_packages)
}

apt_install() {
  "${as_root[@]}" apt-get -q -o DPkg::Lock::Timeout=300 update
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 \
    install --no-install-recommends "$@"
}

install_packages() {
  local missing command
  if ! command -v dpkg-query >/dev/null; then
    echo "note: not a Debian system: the programs and headers of these packages must be there:"
    wanted_packages | sed 's/^/    /'
    return
  fi
  mapfile -t missing < <(missing_packages)
  [ ${#missing[@]} -gt 0 ] || return 0
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then
      command="apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}"
      fail "Debian packages are missing, and installing them needs root. Run:

    sudo $command

and start again."
    fi
    as_root=(sudo -n)
  fi
  run_step packages "Debian packages: ${missing[*]}" apt_install "${missing[@]}"
}

# One of the guest's parts. Its build script keeps results in a cache of the user's, keyed by what
# went in, and knows best whether it has to build.
# build_artifact FOLDER LINK TITLE
build_artifact() {
  local script="guest/$1/build" path
  if ! path="$("$script" --print-path 2>/dev/null)"; then
    run_step "$1" "$3" "$script"
    path="$("$script" --print-path)"
  fi
  ln -sfn "$path" "$artifacts/$2"
}

[ "$(uname -sm)" = 'Linux x86_64' ] ||
  fail "forklet builds and runs on Linux x86-64 only; this is $(uname -sm)"
[ "$(node -p 'parseInt(process.versions.node)')" -ge 20 ] ||
  fail "Node 20 or later is needed; this is $(node --version)"

exec 9>out/setup.lock
if ! flock -n 9; then
  echo 'setup: waiting for another setup in this checkout'
  flock 9
fi

install_packages
cached_step modules 'npm modules' node_modules/.package-lock.json \
  "$(hash_inputs package.json package-lock.json)" npm ci --no-audit --no-fund
cached_step typescript 'TypeScript' dist/index.js \
  "$(hash_inputs lib tsconfig.json tsconfig.build.json package-lock.json)" npm run build
cached_step addon 'Addon' build/Release/forklet.node \
  "$(hash_inputs native binding.gyp package-lock.json)" \
  bash scripts/build-native.sh
build_artifact agent agent 'Guest agent'
build_artifact rootfs rootfs.cpio 'Root file system'
build_artifact kernel vmlinux 'Guest kernel (some minutes; built once a machine)'
if $svm && ! scripts/svm/build-image --print-path >/dev/null 2>&1; then
  run_step svm 'Image of the svm lane' scripts/svm/build-image
fi
if $svm && ! scripts/svm/stock-kernel --print-path >/dev/null 2>&1; then
  run_step stock-kernel 'Kernel of Debian for a test' scripts/svm/stock-kernel
fi

[ "$ran" -eq 0 ] || printf 'setup: ready after %d s\n' $((SECONDS - started))
[ -e /dev/kvm ] || echo 'setup: /dev/kvm is missing, so no VM can run here'

# shellcheck shell=bash
# Debian's kernel packages, downloaded and unpacked, not installed: nothing on the machine is to boot
# them, and installing them runs hooks that build an initramfs and look for a boot loader.
# Sourced, never run.

say() { printf 'svm: %s\n' "$*" >&2; }
die() {
  say "$@"
  exit 1
}

# require PROGRAM:PACKAGE...: fails with what to install.
require() {
  local missing=() pair
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
  done
  command -v apt-get >/dev/null || die "the kernel is a Debian package, and this is not Debian"
  ((${#missing[@]} == 0)) ||
    die "missing ${missing[*]}; run: apt-get install -y --no-install-recommends ${missing[*]}"
}

# The package that a metapackage stands for, as NAME=VERSION. Package lists may be absent, as in
# container images, until somebody updates them.
find_package() {
  local name version
  name=$(apt-cache depends --important "$1" 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
  version=$(apt-cache show --no-all-versions "${name:-none}" 2>/dev/null |
    sed -n 's/^Version: //p' | head -n 1)
  [[ -n $name && -n $version ]] || return 1
  printf '%s=%s\n' "$name" "$version"
}

update_lists() {
  if [[ $(id -u) -eq 0 ]]; then
    apt-get -q -o DPkg::Lock::Timeout=300 update >&2
  elif sudo -n true 2>/dev/null; then
    sudo -n apt-get -q -o DPkg::Lock::Timeout=300 update >&2
  else
    die "apt does not know $1; run: sudo apt-get update"
  fi
}

# unpack_package NAME=VERSION DIRECTORY WORK: leaves the archive in WORK.
unpack_package() {
  say "downloading $1"
  # As root, apt warns that its unprivileged user cannot write here; it downloads all the same.
  (cd "$3" && apt-get -q -o APT::Sandbox::User=root download "$1" >&2)
  dpkg-deb -x "$3"/*.deb "$2"
}

# make_result SCRIPT [--print-path]: what both scripts do around their own require_inputs, find_result,
# which sets `final` to the directory of the result, and build, which makes it.
# shellcheck disable=SC2154  # metapackage, cache and final are the script's
make_result() {
  local script=$1 print_only=false lock
  case ${2-} in
    '') ;;
    --print-path) print_only=true ;;
    *) die "usage: $script [--print-path]" ;;
  esac
  require_inputs
  if ! find_result; then
    ! $print_only || die "apt does not know $metapackage"
    update_lists "$metapackage"
    find_result || die "apt does not know $metapackage, which is in Debian's main archive"
  fi
  if [[ ! -d $final ]]; then
    ! $print_only || die "not built yet; run $script"
    mkdir -p "$cache"
    exec {lock}>"$cache/lock"
    flock "$lock"
    [[ -d $final ]] || build
  fi
  printf '%s\n' "$final"
}

#!/usr/bin/env bash
# Makes the package that is published and tests it where there is no compiler: test/package.
source "$(dirname "$0")/lib.sh"

bash scripts/pack-release.sh
FORKLET_PACKAGE="$(realpath out/package/*.tgz)"
export FORKLET_PACKAGE
exec vitest run --project package "$@"

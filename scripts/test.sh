#!/usr/bin/env bash
# `npm test`: all set-up, then all tests. Arguments go to vitest.
source "$(dirname "$0")/lib.sh"

bash scripts/setup.sh
exec vitest run --project unit --project kvm --project lifecycle "$@"

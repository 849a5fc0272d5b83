#!/usr/bin/env bash
# `npm run demo`: all set-up, then the demo.
source "$(dirname "$0")/lib.sh"

bash scripts/setup.sh
exec node scripts/demo/demo.mjs "$@"

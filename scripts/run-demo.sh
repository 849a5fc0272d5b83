#!/usr/bin/env bash
# `npm run demo`: all set-up, then the demo, which measures itself against the benches' reference.
source "$(dirname "$0")/lib.sh"

bash scripts/setup.sh
bash bench/build.sh
exec node scripts/demo/demo.mjs "$@"

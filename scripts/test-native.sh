#!/usr/bin/env bash
# Builds the C++ unit tests with ASan and UBSan and runs them. Arguments go to doctest, for example
# --test-case='Virtqueue*'. FORKLET_WERROR=1 turns warnings into errors, as CI does.
source "$(dirname "$0")/lib.sh"

build_native_tests
UBSAN_OPTIONS=print_stacktrace=1 out/asan/native_tests "$@"

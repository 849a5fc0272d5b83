#!/usr/bin/env bash
# Builds what the benches are made of besides JavaScript, into out/bench: the reference, and the
# programs of the guest.
source "$(dirname "$0")/../scripts/lib.sh"

command -v gcc >/dev/null || fail 'missing gcc; run: npm run setup'
guest_compiler=musl-gcc
command -v musl-gcc >/dev/null || guest_compiler=gcc

warnings=(-std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -Wshadow -Wconversion -Wstrict-prototypes)
mkdir -p out/bench
gcc "${warnings[@]}" -O2 -o out/bench/restore bench/reference/*.c
for program in touch spawn; do
  "$guest_compiler" "${warnings[@]}" -Os -static -s -o "out/bench/$program" "bench/guest/$program.c"
done

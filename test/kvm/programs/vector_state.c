// Fills the widest vector registers there are with a pattern of its own, gives way to other
// processes by system calls, and looks whether the registers are still what they were.
//
//   vector_state SEED ROUNDS     prints the width; exits with 1 when a register has changed
//
// Two of them on one vCPU show each other's registers if the kernel's way of saving them, or the
// host's way of completing the instructions for it, loses anything.
#include <cpuid.h>
#include <stdint.h>

#include "start.h"

enum { REGISTERS = 16, BYTES = 64, YIELDS = 8 };

static uint8_t before[REGISTERS * BYTES] __attribute__((aligned(64)));
static uint8_t after[REGISTERS * BYTES] __attribute__((aligned(64)));

// The upper registers zmm16 to zmm31 are kept apart from the lower halves; eight of each are used.
#define EACH(load, prefix, a, b, c, d, e, f, g, h)                               \
  load("0x000", prefix #a) load("0x040", prefix #b) load("0x080", prefix #c)     \
      load("0x0c0", prefix #d) load("0x100", prefix #e) load("0x140", prefix #f) \
          load("0x180", prefix #g) load("0x1c0", prefix #h)
#define EACH_UPPER(load, prefix, a, b, c, d, e, f, g, h)                         \
  load("0x200", prefix #a) load("0x240", prefix #b) load("0x280", prefix #c)     \
      load("0x2c0", prefix #d) load("0x300", prefix #e) load("0x340", prefix #f) \
          load("0x380", prefix #g) load("0x3c0", prefix #h)

#define LOAD_EVEX(offset, reg) "vmovups " offset "(%[from]), %%" reg "\n"
#define STORE_EVEX(offset, reg) "vmovups %%" reg ", " offset "(%[to])\n"
#define LOAD_SSE(offset, reg) "movups " offset "(%[from]), %%" reg "\n"
#define STORE_SSE(offset, reg) "movups %%" reg ", " offset "(%[to])\n"

#define YIELD_LOOP          \
  "mov %[yields], %%r12d\n" \
  "1: mov $24, %%eax\n"     \
  "syscall\n"               \
  "dec %%r12d\n"            \
  "jnz 1b\n"

// The registers are not in the clobber list: nothing else here uses them.
#define ROUND(load, store, prefix, upper...)                                                  \
  __asm__ volatile(EACH(load, prefix, 0, 1, 2, 3, 4, 5, 6, 7) EACH_UPPER(load, prefix, upper) \
                       YIELD_LOOP EACH(store, prefix, 0, 1, 2, 3, 4, 5, 6, 7)                 \
                           EACH_UPPER(store, prefix, upper)                                   \
                   :                                                                          \
                   : [from] "r"(before), [to] "r"(after), [yields] "i"(YIELDS)                \
                   : "rax", "rcx", "r11", "r12", "memory")

enum width { SSE = 16, AVX = 32, AVX512 = 64 };

static enum width widest(void) {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return SSE;
  unsigned enabled, high;
  __asm__("xgetbv" : "=a"(enabled), "=d"(high) : "c"(0));
  if ((enabled & 0x6) != 0x6 || !(c & bit_AVX)) return SSE;
  if ((enabled & 0xe6) != 0xe6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return AVX;
  return b & bit_AVX512F ? AVX512 : AVX;
}

static void fill(unsigned seed) {
  uint32_t state = seed * 2654435761u + 1;
  for (size_t i = 0; i < sizeof(before); i++) {
    state = state * 1664525u + 1013904223u;
    before[i] = (uint8_t)(state >> 24);
  }
}

static int changed(enum width width) {
  for (size_t reg = 0; reg < REGISTERS; reg++) {
    for (size_t i = 0; i < (size_t)width; i++) {
      if (before[reg * BYTES + i] != after[reg * BYTES + i]) return 1;
    }
  }
  return 0;
}

int guest_main(int argc, char** argv) {
  if (argc < 3) return 2;
  const enum width width = widest();
  const unsigned seed = parse_number(argv[1]);
  const unsigned rounds = parse_number(argv[2]);
  for (unsigned round = 0; round < rounds; round++) {
    fill(seed + round * 1000);
    switch (width) {
      case AVX512:
        ROUND(LOAD_EVEX, STORE_EVEX, "zmm", 16, 17, 18, 19, 20, 21, 22, 23);
        break;
      case AVX:
        ROUND(LOAD_EVEX, STORE_EVEX, "ymm", 8, 9, 10, 11, 12, 13, 14, 15);
        break;
      case SSE:
        ROUND(LOAD_SSE, STORE_SSE, "xmm", 8, 9, 10, 11, 12, 13, 14, 15);
        break;
    }
    if (changed(width)) return 1;
  }
  say(width == AVX512 ? "zmm\n" : width == AVX ? "ymm\n" : "xmm\n");
  return 0;
}

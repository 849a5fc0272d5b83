// For guest programs without a C library: a few kilobytes instead of a megabyte, since what runs
// in a test VM is written into it first.
#pragma once

#include <stddef.h>

static inline long call3(long number, long a, long b, long c) {
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c)
                   : "rcx", "r11", "memory");
  return result;
}

enum { SYS_WRITE = 1, SYS_SCHED_YIELD = 24, SYS_SOCKET = 41, SYS_CONNECT = 42, SYS_EXIT = 231 };

static inline _Noreturn void finish(int code) {
  for (;;) call3(SYS_EXIT, code, 0, 0);
}

static inline void say(const char* text) {
  size_t size = 0;
  while (text[size] != '\0') size++;
  call3(SYS_WRITE, 1, (long)text, (long)size);
}

static inline unsigned parse_number(const char* text) {
  unsigned number = 0;
  for (; *text >= '0' && *text <= '9'; text++) number = number * 10 + (unsigned)(*text - '0');
  return number;
}

int guest_main(int argc, char** argv);

__attribute__((used)) static _Noreturn void enter(long* stack) {
  finish(guest_main((int)stack[0], (char**)(stack + 1)));
}

__asm__(
    ".globl _start\n"
    "_start:\n"
    "  mov %rsp, %rdi\n"
    "  and $-16, %rsp\n"
    "  call enter\n");

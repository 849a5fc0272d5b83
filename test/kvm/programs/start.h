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

static inline long call6(long number, long a, long b, long c, long d, long e, long f) {
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}

enum {
  SYS_READ = 0,
  SYS_WRITE = 1,
  SYS_OPEN = 2,
  SYS_CLOSE = 3,
  SYS_POLL = 7,
  SYS_MMAP = 9,
  SYS_SCHED_YIELD = 24,
  SYS_SOCKET = 41,
  SYS_CONNECT = 42,
  SYS_ACCEPT = 43,
  SYS_SHUTDOWN = 48,
  SYS_BIND = 49,
  SYS_LISTEN = 50,
  SYS_SETSOCKOPT = 54,
  SYS_SETRESUID = 117,
  SYS_CLOCK_GETTIME = 228,
  SYS_EXIT = 231,
  SYS_INOTIFY_ADD_WATCH = 254,
  SYS_INOTIFY_INIT1 = 294,
  SYS_GETRANDOM = 318,
};

static inline _Noreturn void finish(int code) {
  for (;;) call3(SYS_EXIT, code, 0, 0);
}

static inline void say(const char* text) {
  size_t size = 0;
  while (text[size] != '\0') size++;
  call3(SYS_WRITE, 1, (long)text, (long)size);
}

static inline int same(const char* a, const char* b) {
  while (*a != '\0' && *a == *b) a++, b++;
  return *a == *b;
}

static inline void say_number(long number) {
  char digits[24];
  char* at = digits + sizeof(digits) - 1;
  *at = '\0';
  const int negative = number < 0;
  do {
    *--at = (char)('0' + (negative ? -(number % 10) : number % 10));
    number /= 10;
  } while (number != 0);
  if (negative) *--at = '-';
  say(at);
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

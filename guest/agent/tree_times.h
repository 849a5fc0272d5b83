/* Times of a tree's entries. */
#pragma once

#include <stdint.h>
#include <time.h>

#define NS_PER_S INT64_C(1000000000)

static inline struct timespec tree_time(int64_t ns) {
  int64_t seconds = ns / NS_PER_S;
  int64_t rest = ns % NS_PER_S;
  if (rest < 0) {
    rest += NS_PER_S;
    seconds--;
  }
  return (struct timespec){.tv_sec = seconds, .tv_nsec = (long)rest};
}

static inline int64_t tree_nanoseconds(struct timespec time) {
  int64_t result;
  // Beyond the year 2262 the nearest that fits stands for them.
  if (__builtin_mul_overflow((int64_t)time.tv_sec, NS_PER_S, &result) ||
      __builtin_add_overflow(result, (int64_t)time.tv_nsec, &result)) {
    return time.tv_sec < 0 ? INT64_MIN : INT64_MAX;
  }
  return result;
}

#pragma once
#include <cstdint>
#include <cstdio>
#include <ctime>
struct TraceHack { uint64_t t[16]; };
extern TraceHack trace_hack;
inline void Mark(int i) { timespec ts; clock_gettime(CLOCK_MONOTONIC, &ts); trace_hack.t[i] = ts.tv_sec * 1000000000ull + ts.tv_nsec; }

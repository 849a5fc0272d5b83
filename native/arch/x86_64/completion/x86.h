// Bits of x86-64 that the completion of instructions looks at. Named as in the
// manuals.
#pragma once

#include <cstdint>

namespace forklet::x86 {

inline constexpr uint64_t kCr0Mp = 1u << 1;
inline constexpr uint64_t kCr0Em = 1u << 2;
inline constexpr uint64_t kCr0Ts = 1u << 3;
inline constexpr uint64_t kCr0Wp = 1u << 16;
inline constexpr uint64_t kCr0Pg = 1u << 31;

inline constexpr uint64_t kCr4Tsd = 1u << 2;
inline constexpr uint64_t kCr4Osfxsr = 1u << 9;
inline constexpr uint64_t kCr4La57 = 1u << 12;
inline constexpr uint64_t kCr4Osxsave = 1u << 18;
inline constexpr uint64_t kCr4Smep = 1u << 20;
inline constexpr uint64_t kCr4Smap = 1u << 21;
inline constexpr uint64_t kCr4Pke = 1u << 22;

inline constexpr uint64_t kEferLma = 1u << 10;
inline constexpr uint64_t kEferNxe = 1u << 11;

inline constexpr uint64_t kFlagCf = 1u << 0;
inline constexpr uint64_t kFlagPf = 1u << 2;
inline constexpr uint64_t kFlagAf = 1u << 4;
inline constexpr uint64_t kFlagZf = 1u << 6;
inline constexpr uint64_t kFlagSf = 1u << 7;
inline constexpr uint64_t kFlagTf = 1u << 8;
inline constexpr uint64_t kFlagOf = 1u << 11;
inline constexpr uint64_t kFlagRf = 1u << 16;
inline constexpr uint64_t kFlagAc = 1u << 18;

inline constexpr uint8_t kDebugVector = 1;
inline constexpr uint8_t kBreakpointVector = 3;
inline constexpr uint8_t kUndefinedVector = 6;
inline constexpr uint8_t kNoFpuVector = 7;
inline constexpr uint8_t kStackVector = 12;
inline constexpr uint8_t kProtectionVector = 13;
inline constexpr uint8_t kPageFaultVector = 14;
inline constexpr uint8_t kFpuErrorVector = 16;

// Error code of a page fault.
inline constexpr uint32_t kFaultPresent = 1u << 0;
inline constexpr uint32_t kFaultWrite = 1u << 1;
inline constexpr uint32_t kFaultUser = 1u << 2;
inline constexpr uint32_t kFaultReserved = 1u << 3;
inline constexpr uint32_t kFaultFetch = 1u << 4;
inline constexpr uint32_t kFaultKey = 1u << 5;

inline constexpr uint64_t kDr6SingleStep = 1u << 14;

inline constexpr uint32_t kMsrTsc = 0x10;
inline constexpr uint32_t kMsrTscAux = 0xc0000103;

}  // namespace forklet::x86

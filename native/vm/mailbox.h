// The two areas of guest RAM through which the host hands over what differs
// between a VM and its forks. The guest has the same structs in C:
// guest/agent/mailbox.h and exchange.h; a test compares them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arch/x86_64/layout.h"

namespace forklet {

// Who a VM is, and what time it is there. Fresh for each generation.
struct GuestIdentity {
  uint64_t generation = 0;   // Random and never the same twice; 0 for a VM that was booted
  uint8_t entropy[64] = {};  // From the host's random pool
  int64_t realtime_ns = 0;   // The host's wall clock ...
  uint64_t tsc = 0;          // ... when the guest's TSC had this value
  uint32_t tsc_khz = 0;      // Rate of that TSC; 0: unknown
};

// Written by the host, read by the agent (layout::kMailbox).
struct Mailbox {
  static constexpr uint32_t kVersion = 1;
  static constexpr uint32_t kParkAgain = 1u << 0;  // Read PARK_AGENT again and do nothing else

  uint32_t version = kVersion;
  uint32_t flags = 0;
  uint64_t generation = 0;
  uint8_t entropy[64] = {};
  int64_t realtime_ns = 0;
  uint64_t tsc = 0;
  uint32_t tsc_khz = 0;
  uint32_t hostname_bytes = 0;  // 0: keep the host name
  char hostname[64] = {};
  uint8_t id[16] = {};  // Machine id
};
static_assert(sizeof(Mailbox) == 184 && sizeof(Mailbox) <= layout::kPageSize);
static_assert(offsetof(Mailbox, realtime_ns) == 80 && offsetof(Mailbox, hostname) == 104);

enum class ExchangeCommand : uint32_t {
  kIdle = 0,     // Park again
  kRequest = 1,  // Handle the input, write the answer, park again
  kYield = 2,    // Wait for the doorbell's interrupt, then park again
};

// The head of the area that a parked program and the host share
// (layout::kExchange); input, and then the answer in its place, follow it.
struct Exchange {
  static constexpr uint32_t kVersion = 1;
  static constexpr uint64_t kDataOffset = 256;
  static constexpr uint64_t kDataBytes = layout::kExchangePages * layout::kPageSize - kDataOffset;

  uint32_t version = kVersion;
  ExchangeCommand command = ExchangeCommand::kIdle;
  uint32_t input_bytes = 0;
  uint32_t output_bytes = 0;  // By the program
  uint32_t error = 0;         // By the program: the request failed, and the answer says why
  uint32_t zero = 0;
  uint64_t sequence = 0;
  uint64_t generation = 0;
  uint8_t entropy[64] = {};
  int64_t realtime_ns = 0;
  uint64_t tsc = 0;
  uint32_t tsc_khz = 0;
  uint32_t zero2 = 0;
};
static_assert(sizeof(Exchange) == 128 && sizeof(Exchange) <= Exchange::kDataOffset);
static_assert(offsetof(Exchange, generation) == 32 && offsetof(Exchange, realtime_ns) == 104);

}  // namespace forklet

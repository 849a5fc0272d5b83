#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/event_fd.h"
#include "base/result.h"

namespace forklet {

// Keeps this process alive when the file behind a mapping fails: when it was
// truncated, or its disk does not answer. The access that meets the failure
// raises SIGBUS, which would end the process; with a guard, the whole range is
// replaced by zero pages, the guard fails, and the access completes.
//
// The owner must then give up what lives in the range: its contents are gone.
// Accesses by the kernel (KVM_RUN, read(2), write(2)) raise no signal: they fail
// with EFAULT, which is the caller's to handle, and need no guard.
//
// The first guard installs a handler for SIGBUS, for the whole process and for
// good. What is none of our guards' business goes on to the handler before it.
// A program that installs one of its own later has to pass on what is not its
// business in the same way.
//
// Owner: whoever owns the mapping. Thread: any.
class FaultGuard {
 public:
  // The range is page-aligned and mapped for private reading and writing, and
  // stays mapped for the life of the guard. Guards do not overlap.
  static Result<std::unique_ptr<FaultGuard>> Create(uint8_t* start, size_t bytes);
  ~FaultGuard();
  FaultGuard(const FaultGuard&) = delete;
  FaultGuard& operator=(const FaultGuard&) = delete;

  // Whether the range has failed. Set before any access sees a replaced page, so
  // that whoever reads the range and then finds this false has read the truth.
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  // Signalled when it does.
  const EventFd& failure() const { return failure_; }

 private:
  FaultGuard(uint8_t* start, size_t bytes, EventFd failure)
      : start_(start), bytes_(bytes), failure_(std::move(failure)) {}

  // The handler's part: async-signal-safe. False when it cannot be helped.
  static bool HandleFault(const void* address);
  bool Replace();

  friend struct FaultHandler;

  uint8_t* const start_;
  const size_t bytes_;
  const EventFd failure_;
  std::atomic<bool> failed_ = false;
  FaultGuard* next_ = nullptr;  // Thread: under the registry's lock
};

}  // namespace forklet

#pragma once

#include <cstdint>

#include "base/result.h"
#include "base/unique_fd.h"

namespace forklet {

// An eventfd(2), non-blocking and close-on-exec: wakes threads, and stands for
// notifications (ioeventfd) and interrupts (irqfd) towards KVM.
class EventFd {
 public:
  static Result<EventFd> Create();

  int fd() const { return fd_.get(); }
  // Never blocks; a saturated counter already means "signalled".
  void Signal() const;
  // Returns and clears the count; 0 when nothing was signalled.
  uint64_t Drain() const;

 private:
  explicit EventFd(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace forklet

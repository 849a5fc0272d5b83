#include "base/event_fd.h"

#include <sys/eventfd.h>

#include <cerrno>

namespace forklet {

Result<EventFd> EventFd::Create() {
  UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd) return Error{ErrorCode::kSystem, errno, "eventfd", {}};
  return EventFd(std::move(fd));
}

void EventFd::Signal() const {
  const uint64_t one = 1;
  while (::write(fd_.get(), &one, sizeof one) < 0 && errno == EINTR) {
  }
}

uint64_t EventFd::Drain() const {
  uint64_t count = 0;
  while (::read(fd_.get(), &count, sizeof count) < 0) {
    if (errno != EINTR) return 0;
  }
  return count;
}

}  // namespace forklet

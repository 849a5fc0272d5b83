// ioctl(2) with context: the error names the request.
#pragma once

#include <sys/ioctl.h>

#include <cerrno>
#include <string>
#include <utility>

#include "base/result.h"
#include "base/unique_fd.h"

namespace forklet {

// `op` is the request's own token. Does not retry EINTR: for KVM_RUN that is
// the kick, not a failure. Not for KVM_RUN, which must not build `detail`.
template <class Arg>
Result<int> Ioctl(const UniqueFd& fd, unsigned long request, const char* op, Arg arg,
                  std::string detail = {}) {
  static_assert(sizeof(Arg) == sizeof(long), "the kernel reads a full word");
  const int rc = ::ioctl(fd.get(), request, arg);
  if (rc >= 0) return rc;
  const int saved = errno;  // Before anything can overwrite it.
  return Error{ErrorCode::kKvm, saved, op, std::move(detail)};
}

}  // namespace forklet

#define KVM_IOCTL(fd, request, ...) ::forklet::Ioctl(fd, request, #request, __VA_ARGS__)

#include "base/result.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace forklet {

void CheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "forklet: %s:%d: CHECK(%s) failed; this is a bug in forklet\n", file, line,
               condition);
  std::abort();
}

const char* ErrorName(ErrorCode code) {
  switch (code) {
    case ErrorCode::kKvmUnavailable:
      return "ERR_VM_KVM_UNAVAILABLE";
    case ErrorCode::kKvm:
      return "ERR_VM_KVM";
    case ErrorCode::kSystem:
      return "ERR_VM_SYSTEM";
    case ErrorCode::kBadKernel:
      return "ERR_VM_BAD_KERNEL";
    case ErrorCode::kNoMemory:
      return "ERR_VM_NO_MEMORY";
    case ErrorCode::kExited:
      return "ERR_VM_EXITED";
    case ErrorCode::kClosed:
      return "ERR_VM_CLOSED";
    case ErrorCode::kInternal:
      return "ERR_VM_INTERNAL";
    case ErrorCode::kPaused:
      return "ERR_VM_PAUSED";
    case ErrorCode::kReset:
      return "ERR_VM_RESET";
    case ErrorCode::kNoSnapshot:
      return "ERR_VM_NO_SNAPSHOT";
    case ErrorCode::kParkTimeout:
      return "ERR_VM_PARK_TIMEOUT";
    case ErrorCode::kNotUnique:
      return "ERR_VM_NOT_UNIQUE";
    case ErrorCode::kExists:
      return "ERR_VM_EXISTS";
    case ErrorCode::kBadSnapshot:
      return "ERR_VM_BAD_SNAPSHOT";
    case ErrorCode::kIo:
      return "ERR_VM_IO";
    case ErrorCode::kLimit:
      return "ERR_VM_LIMIT";
    case ErrorCode::kProgram:
      return "ERR_VM_PROGRAM";
    case ErrorCode::kCancelled:
      return "ERR_VM_CANCELLED";
  }
  return "ERR_VM_INTERNAL";
}

std::string Error::Message() const {
  std::string message = op;
  if (sys_errno != 0) {
    char buffer[128];
    // The GNU strerror_r: thread-safe, returns the text.
    const char* text = strerror_r(sys_errno, buffer, sizeof buffer);
    if (!message.empty()) message += ": ";
    message += text;
  }
  if (!detail.empty()) {
    if (!message.empty()) message += ": ";
    message += detail;
  }
  return message;
}

}  // namespace forklet

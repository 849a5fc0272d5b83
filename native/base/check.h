// CHECK: for bugs of ours only. No guest input and no failure of the host may
// reach one.
#pragma once

namespace forklet {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);
}  // namespace forklet

#define CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::forklet::CheckFailed(__FILE__, __LINE__, #condition))

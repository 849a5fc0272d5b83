// What tests on real vCPUs share.
#pragma once

#include <cstdlib>

#include "doctest.h"
#include "kvm/kvm.h"

namespace forklet::test {

inline constexpr const char* kKvmPath = "/dev/kvm";

inline bool HaveKvm() {
  if (Kvm::Open(kKvmPath).ok()) return true;
  // NOLINTNEXTLINE(concurrency-mt-unsafe): nothing changes the environment
  REQUIRE_MESSAGE(std::getenv("REQUIRE_KVM") == nullptr, "/dev/kvm is needed");
  MESSAGE("not run: no /dev/kvm");
  return false;
}

}  // namespace forklet::test

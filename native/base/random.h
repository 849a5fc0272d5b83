#pragma once

#include <sys/random.h>

#include <cstddef>

#include "base/check.h"

namespace forklet {

// Random bytes of the host's kernel, at most 256. Fails only where that has no
// getrandom, which no supported one lacks.
inline void FillRandom(void* data, size_t bytes) {
  CHECK(::getrandom(data, bytes, 0) == static_cast<ssize_t>(bytes));
}

}  // namespace forklet

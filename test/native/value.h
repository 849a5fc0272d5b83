// The value of what must not fail.
#pragma once

#include <utility>

#include "base/result.h"
#include "doctest.h"

namespace forklet::test {

template <class T>
T Value(Result<T> result) {
  if (!result.ok()) FAIL(result.error().Message());
  return std::move(result).value();
}

}  // namespace forklet::test

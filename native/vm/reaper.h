#pragma once

#include <functional>

namespace forklet {

// Runs releases, one after the other, on a background thread that exists only
// while there is something to release: closing a VM takes milliseconds that the
// JavaScript thread does not have.
//
// Process-wide. Thread: any.
class Reaper {
 public:
  // Runs `release` in the background, or here when no thread can be had.
  static void Submit(std::function<void()> release);
};

}  // namespace forklet

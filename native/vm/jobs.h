#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/thread.h"

namespace forklet {

// Finite work that may wait, each piece on a thread of its own: boots, freezes,
// saves.
//
// Owner: Core. Thread: any; JoinAll comes last.
class Jobs {
 public:
  // Requires JoinAll().
  ~Jobs();

  Status Start(const std::string& thread_name, std::function<void()> work);
  void JoinAll();

 private:
  struct Job {
    Thread thread;
    std::atomic<bool> over = false;
  };

  // Joins those that are over: their threads are about to end, if they have not.
  // Under mutex_.
  void Reap();

  std::mutex mutex_;
  std::vector<std::unique_ptr<Job>> jobs_;  // Under mutex_
};

}  // namespace forklet

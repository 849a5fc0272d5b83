#pragma once

#include <pthread.h>

#include <csignal>
#include <functional>
#include <memory>
#include <string>

#include "base/mapping.h"
#include "base/result.h"

namespace forklet {

// One thread of ours: named, on a small stack, with every signal blocked but the
// kick and SIGBUS, so that the process's handlers do not run on it.
//
// std::thread reports a failed start by an exception only, which is an abort
// here; this one returns an Error.
//
// Owner: whoever started it. The destructor requires that it was joined.
class Thread {
 public:
  static constexpr size_t kStackBytes = 128u << 10;

  // `name` is cut to 15 characters, the kernel's limit.
  static Result<Thread> Start(const std::string& name, std::function<void()> body,
                              size_t stack_bytes = kStackBytes);

  Thread() = default;
  Thread(Thread&& other) noexcept = default;
  Thread& operator=(Thread&& other) noexcept {
    CHECK(handle_ == nullptr);
    stack_ = std::move(other.stack_);
    handle_ = std::move(other.handle_);
    return *this;
  }
  ~Thread() { CHECK(handle_ == nullptr); }

  bool joinable() const { return handle_ != nullptr; }
  bool IsCurrent() const;
  void Join();
  // CPU time used so far, in nanoseconds; 0 when it cannot be told.
  uint64_t CpuTimeNs() const;

  // Interrupts a blocking system call of the thread with EINTR. Only after
  // InstallKickHandler().
  void Kick() const;

  // Calls `body` on the calling thread, one of ours, with a kick pending that is
  // blocked: a system call that is given the other signals to block, which are the
  // argument, is interrupted at once. Only after InstallKickHandler().
  static void WithPendingKick(const std::function<void(const sigset_t& others)>& body);

  // Lets the calling thread work in the background: it has its share of the
  // processors, but does not interrupt a thread that runs (SCHED_BATCH).
  static void MakeBackground();

  // Claims the first SIGRTMIN+n that nobody uses, for the whole process and for
  // good: another copy of this library may have claimed one before. Any thread,
  // any number of times.
  static Status InstallKickHandler();

 private:
  // Ours, not one of glibc's cached ones, so that a thread that was joined
  // leaves no mapping behind.
  Mapping stack_;
  std::unique_ptr<pthread_t> handle_;  // Null when not running
};

}  // namespace forklet

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "base/event_fd.h"
#include "base/result.h"
#include "base/thread.h"
#include "base/unique_fd.h"

namespace forklet {

// A thread that waits for descriptors and runs what is posted to it.
//
// Owner: shared by the VMs that use it; the last one to go ends the thread.
class EventLoop {
 public:
  using Task = std::function<void()>;

  static Result<std::shared_ptr<EventLoop>> Create(const std::string& thread_name);
  // Runs what was posted and joins the thread. Not on the loop's thread.
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // Runs `task` on the loop's thread, after those posted before. Thread: any.
  void Post(Task task);
  // Post, and wait until it has run. Not on the loop's thread.
  void PostAndWait(const Task& task);

  // Calls `handler` whenever `event` is signalled; the loop has drained it.
  // Lifetime: `event` outlives the registration. Thread: any.
  Status Add(const EventFd& event, Task handler);
  // After it returns the handler does not run again. Only on the loop's thread.
  void Remove(const EventFd& event);

 private:
  struct Registration {
    const EventFd* event;
    Task handler;
  };

  EventLoop(UniqueFd epoll, EventFd wake) : epoll_(std::move(epoll)), wake_(std::move(wake)) {}
  void Run();
  void RunPosted();
  void Dispatch(uint64_t token);

  UniqueFd epoll_;
  EventFd wake_;
  Thread thread_;

  std::mutex mutex_;  // Guards the fields below
  bool stopping_ = false;
  std::vector<Task> posted_;
  // By a token that is never used again, so that an event that epoll reported
  // before a removal cannot reach a newer registration of the same number.
  std::unordered_map<uint64_t, std::shared_ptr<Registration>> registrations_;
  uint64_t next_token_ = 1;
};

}  // namespace forklet

#include "base/event_loop.h"

#include <sys/epoll.h>

#include <cerrno>
#include <condition_variable>

namespace forklet {

namespace {
constexpr uint64_t kWakeToken = 0;
constexpr size_t kStackBytes = 256u << 10;
}  // namespace

Result<std::shared_ptr<EventLoop>> EventLoop::Create(const std::string& thread_name) {
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll) return Error{ErrorCode::kSystem, errno, "epoll_create1", {}};
  ASSIGN_OR_RETURN(EventFd wake, EventFd::Create());
  std::shared_ptr<EventLoop> loop(new EventLoop(std::move(epoll), std::move(wake)));
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.u64 = kWakeToken;
  if (::epoll_ctl(loop->epoll_.get(), EPOLL_CTL_ADD, loop->wake_.fd(), &event) != 0) {
    return Error{ErrorCode::kSystem, errno, "epoll_ctl", {}};
  }
  // Lifetime: the destructor joins the thread.
  EventLoop* raw = loop.get();
  ASSIGN_OR_RETURN(loop->thread_, Thread::Start(
                                      thread_name, [raw] { raw->Run(); }, kStackBytes));
  return loop;
}

EventLoop::~EventLoop() {
  if (!thread_.joinable()) return;
  CHECK(!thread_.IsCurrent());
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.Signal();
  thread_.Join();
}

void EventLoop::Post(Task task) {
  bool first;
  {
    std::lock_guard lock(mutex_);
    first = posted_.empty();
    posted_.push_back(std::move(task));
  }
  // One signal covers all that is posted until the loop takes the list.
  if (first) wake_.Signal();
}

void EventLoop::PostAndWait(const Task& task) {
  CHECK(!thread_.IsCurrent());
  std::mutex mutex;
  std::condition_variable condition;
  bool done = false;
  Post([&] {
    task();
    // Notified under the lock: the waiter may destroy the condition right after.
    std::lock_guard lock(mutex);
    done = true;
    condition.notify_one();
  });
  std::unique_lock lock(mutex);
  condition.wait(lock, [&] { return done; });
}

Status EventLoop::Add(const EventFd& event, Task handler) {
  std::lock_guard lock(mutex_);
  const uint64_t token = next_token_++;
  epoll_event interest = {};
  interest.events = EPOLLIN;
  interest.data.u64 = token;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, event.fd(), &interest) != 0) {
    return Error{ErrorCode::kSystem, errno, "epoll_ctl", {}};
  }
  registrations_.emplace(token,
                         std::make_shared<Registration>(Registration{&event, std::move(handler)}));
  return Ok();
}

void EventLoop::Remove(const EventFd& event) {
  CHECK(thread_.IsCurrent());
  std::lock_guard lock(mutex_);
  // Fails only when it was never added, which is fine.
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, event.fd(), nullptr);
  std::erase_if(registrations_, [&](const auto& entry) { return entry.second->event == &event; });
}

void EventLoop::Run() {
  constexpr int kMaxEvents = 64;
  epoll_event events[kMaxEvents];
  for (;;) {
    const int count = ::epoll_wait(epoll_.get(), events, kMaxEvents, -1);
    CHECK(count >= 0 || errno == EINTR);
    for (int i = 0; i < count; ++i) {
      if (events[i].data.u64 == kWakeToken) {
        wake_.Drain();
        RunPosted();
      } else {
        Dispatch(events[i].data.u64);
      }
    }
    {
      std::lock_guard lock(mutex_);
      if (!stopping_) continue;
    }
    // Somebody may wait for what was posted last.
    RunPosted();
    return;
  }
}

void EventLoop::RunPosted() {
  std::vector<Task> tasks;
  {
    std::lock_guard lock(mutex_);
    tasks.swap(posted_);
  }
  for (Task& task : tasks) task();
}

void EventLoop::Dispatch(uint64_t token) {
  std::shared_ptr<Registration> registration;
  {
    std::lock_guard lock(mutex_);
    const auto found = registrations_.find(token);
    if (found == registrations_.end()) return;
    registration = found->second;
  }
  registration->event->Drain();
  registration->handler();
}

}  // namespace forklet

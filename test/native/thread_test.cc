#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <csignal>
#include <ctime>
#include <mutex>

#include "base/event_loop.h"
#include "base/thread.h"
#include "doctest.h"

namespace forklet {

TEST_CASE("A kick interrupts a blocked thread, and only the kick is unblocked on it") {
  REQUIRE(Thread::InstallKickHandler().ok());
  int pipe_fds[2];
  REQUIRE(::pipe(pipe_fds) == 0);
  const UniqueFd reader(pipe_fds[0]);
  const UniqueFd writer(pipe_fds[1]);
  std::atomic<bool> blocked_term = false;
  std::atomic<int> error = 0;

  auto thread = Thread::Start("test", [&] {
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    blocked_term = sigismember(&mask, SIGTERM) == 1;
    char byte;
    if (::read(reader.get(), &byte, 1) < 0) error = errno;
  });
  REQUIRE(thread.ok());
  // The thread may not be inside read(2) yet: kick until it has seen one.
  while (error == 0) {
    thread.value().Kick();
    const timespec pause = {0, 1'000'000};
    nanosleep(&pause, nullptr);
  }
  thread.value().Join();

  CHECK(blocked_term);
  CHECK(error == EINTR);
}

TEST_CASE("A kick that is pending interrupts a call that unblocks it, and is gone afterwards") {
  REQUIRE(Thread::InstallKickHandler().ok());
  int during = 0;
  int after = 0;

  auto thread = Thread::Start("test", [&] {
    const timespec moment = {0, 1'000'000};
    Thread::WithPendingKick([&](const sigset_t& others) {
      during = ::ppoll(nullptr, 0, nullptr, &others) < 0 ? errno : 0;
    });
    after = ::ppoll(nullptr, 0, &moment, nullptr) < 0 ? errno : 0;
  });
  REQUIRE(thread.ok());
  thread.value().Join();

  CHECK(during == EINTR);
  CHECK(after == 0);
}

TEST_CASE("An event loop runs posted tasks in order, and what it was told to wait for") {
  auto loop = EventLoop::Create("test");
  REQUIRE(loop.ok());
  auto event = EventFd::Create();
  REQUIRE(event.ok());
  std::vector<int> order;
  std::mutex mutex;
  std::condition_variable condition;
  bool handled = false;

  for (int i = 0; i < 100; ++i) {
    loop.value()->Post([&order, i] { order.push_back(i); });
  }
  REQUIRE(loop.value()
              ->Add(event.value(),
                    [&] {
                      std::lock_guard lock(mutex);
                      handled = true;
                      condition.notify_one();
                    })
              .ok());
  event.value().Signal();
  {
    std::unique_lock lock(mutex);
    condition.wait(lock, [&] { return handled; });
  }
  loop.value()->PostAndWait([&] { loop.value()->Remove(event.value()); });

  REQUIRE(order.size() == 100);
  for (int i = 0; i < 100; ++i) CHECK(order[static_cast<size_t>(i)] == i);
}

TEST_CASE("An event loop never calls a handler after its removal") {
  auto loop = EventLoop::Create("test");
  REQUIRE(loop.ok());
  auto event = EventFd::Create();
  REQUIRE(event.ok());
  std::atomic<int> calls = 0;
  REQUIRE(loop.value()->Add(event.value(), [&] { ++calls; }).ok());

  loop.value()->PostAndWait([&] {
    event.value().Signal();  // Pending, and removed before the loop waits again
    loop.value()->Remove(event.value());
  });
  loop.value()->PostAndWait([] {});

  CHECK(calls == 0);
}

}  // namespace forklet

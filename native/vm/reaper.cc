#include "vm/reaper.h"

#include <deque>
#include <mutex>

#include "base/thread.h"

namespace forklet {

namespace {

// Never destroyed: the thread may outlive static destructors at process exit.
struct State {
  std::mutex mutex;
  std::deque<std::function<void()>> releases;
  bool running = false;
  Thread thread;  // The last one that was started
};
State& state() {
  static auto& state = *new State;
  return state;
}

void Run() {
  for (;;) {
    std::function<void()> release;
    {
      std::lock_guard lock(state().mutex);
      if (state().releases.empty()) {
        state().running = false;
        return;
      }
      release = std::move(state().releases.front());
      state().releases.pop_front();
    }
    release();
  }
}

}  // namespace

void Reaper::Submit(std::function<void()> release) {
  {
    std::lock_guard lock(state().mutex);
    if (state().running) {
      state().releases.push_back(std::move(release));
      return;
    }
    // The thread before is past its last look at the list: this join is short.
    if (state().thread.joinable()) state().thread.Join();
    auto thread = Thread::Start("forklet-reaper", Run);
    if (thread.ok()) {
      state().releases.push_back(std::move(release));
      state().thread = std::move(thread).value();
      state().running = true;
      return;
    }
  }
  release();
}

}  // namespace forklet

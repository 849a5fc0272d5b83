#include "base/thread.h"

#include <sched.h>
#include <sys/mman.h>

#include <cerrno>
#include <csignal>
#include <ctime>
#include <mutex>

namespace forklet {

namespace {

// The kick's signal number; 0 until a handler is installed. Process-wide by
// nature: signal dispositions are.
int kick_signal = 0;
std::mutex kick_mutex;

void IgnoreKick(int) {}

struct StartArguments {
  std::string name;
  std::function<void()> body;
};

void* Run(void* raw) {
  std::unique_ptr<StartArguments> arguments(static_cast<StartArguments*>(raw));
  pthread_setname_np(pthread_self(), arguments->name.substr(0, 15).c_str());
  arguments->body();
  return nullptr;
}

}  // namespace

Status Thread::InstallKickHandler() {
  std::lock_guard lock(kick_mutex);
  if (kick_signal != 0) return Ok();
  for (int signal = SIGRTMIN; signal <= SIGRTMAX; ++signal) {
    struct sigaction current = {};
    if (sigaction(signal, nullptr, &current) != 0) continue;
    if ((current.sa_flags & SA_SIGINFO) != 0 || current.sa_handler != SIG_DFL) continue;
    struct sigaction action = {};
    action.sa_handler = IgnoreKick;  // No SA_RESTART: KVM_RUN has to return
    if (sigaction(signal, &action, nullptr) != 0) {
      return Error{ErrorCode::kSystem, errno, "sigaction", {}};
    }
    kick_signal = signal;
    return Ok();
  }
  return Error{ErrorCode::kSystem, 0, "sigaction", "every real-time signal is in use"};
}

void Thread::WithPendingKick(const std::function<void(const sigset_t& others)>& body) {
  sigset_t kick;
  sigset_t others;
  sigemptyset(&kick);
  {
    std::lock_guard lock(kick_mutex);
    CHECK(kick_signal != 0);
    sigaddset(&kick, kick_signal);
  }
  CHECK(pthread_sigmask(SIG_BLOCK, &kick, &others) == 0);
  pthread_kill(pthread_self(), kick_signal);
  body(others);
  // The handler runs now, and does nothing.
  CHECK(pthread_sigmask(SIG_SETMASK, &others, nullptr) == 0);
}

void Thread::MakeBackground() {
  const sched_param parameters = {};
  // Allowed to everybody; a sandbox that forbids it loses some speed.
  static_cast<void>(::sched_setscheduler(0, SCHED_BATCH, &parameters));
}

Result<Thread> Thread::Start(const std::string& name, std::function<void()> body,
                             size_t stack_bytes) {
  constexpr size_t kGuardBytes = 4096;
  Thread thread;
  ASSIGN_OR_RETURN(thread.stack_,
                   Mapping::Create(UniqueFd(), kGuardBytes + stack_bytes, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, 0));
  if (mprotect(thread.stack_.data(), kGuardBytes, PROT_NONE) != 0) {
    return Error{ErrorCode::kSystem, errno, "mprotect", {}};
  }
  pthread_attr_t attributes;
  CHECK(pthread_attr_init(&attributes) == 0);
  CHECK(pthread_attr_setstack(&attributes, thread.stack_.data() + kGuardBytes, stack_bytes) == 0);

  // The new thread inherits the mask: everything blocked but the kick, and
  // SIGBUS, which an access raises: were it blocked, the kernel would end the
  // process instead of calling the handler (see FaultGuard).
  sigset_t mask;
  sigset_t previous;
  sigfillset(&mask);
  sigdelset(&mask, SIGBUS);
  {
    std::lock_guard lock(kick_mutex);
    if (kick_signal != 0) sigdelset(&mask, kick_signal);
  }
  CHECK(pthread_sigmask(SIG_SETMASK, &mask, &previous) == 0);
  auto arguments = std::make_unique<StartArguments>(StartArguments{name, std::move(body)});
  auto handle = std::make_unique<pthread_t>();
  const int error = pthread_create(handle.get(), &attributes, Run, arguments.get());
  CHECK(pthread_sigmask(SIG_SETMASK, &previous, nullptr) == 0);
  pthread_attr_destroy(&attributes);
  if (error != 0) {
    return Error{ErrorCode::kSystem, error, "pthread_create",
                 "the limits are `ulimit -u`, the cgroup's pids.max and memory"};
  }
  // Lifetime: the thread owns its arguments now.
  static_cast<void>(arguments.release());
  thread.handle_ = std::move(handle);
  return thread;
}

bool Thread::IsCurrent() const {
  return handle_ != nullptr && pthread_equal(*handle_, pthread_self()) != 0;
}

void Thread::Join() {
  CHECK(handle_ != nullptr);
  CHECK(pthread_join(*handle_, nullptr) == 0);
  handle_ = nullptr;
  stack_.Reset();
}

void Thread::Kick() const {
  std::lock_guard lock(kick_mutex);
  CHECK(handle_ != nullptr && kick_signal != 0);
  // The handle stays valid until Join(), even when the thread has ended.
  pthread_kill(*handle_, kick_signal);
}

uint64_t Thread::CpuTimeNs() const {
  clockid_t clock;
  timespec time = {};
  if (handle_ == nullptr || pthread_getcpuclockid(*handle_, &clock) != 0) return 0;
  if (clock_gettime(clock, &time) != 0) return 0;
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(time.tv_nsec);
}

}  // namespace forklet

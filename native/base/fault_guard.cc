#include "base/fault_guard.h"

#include <sys/mman.h>

#include <cerrno>
#include <csignal>
#include <mutex>

namespace forklet {

namespace {

// Guards both of what is below it. A spinlock, since the handler takes it:
// whoever holds it touches no guarded range, so a fault never comes from inside
// it, and the holder is always another thread, which goes on.
std::atomic_flag registry_lock = ATOMIC_FLAG_INIT;
FaultGuard* registry = nullptr;

class RegistryLock {
 public:
  RegistryLock() {
    while (registry_lock.test_and_set(std::memory_order_acquire)) {
    }
  }
  ~RegistryLock() { registry_lock.clear(std::memory_order_release); }
  RegistryLock(const RegistryLock&) = delete;
  RegistryLock& operator=(const RegistryLock&) = delete;
};

// Process-wide by nature: signal dispositions are.
std::mutex install_mutex;
bool installed = false;
// Written before the handler is installed, and never again.
struct sigaction previous = {};

}  // namespace

// Friend of FaultGuard: the handler and what it passes on.
struct FaultHandler {
  static void Handle(int signal, siginfo_t* info, void* context) {
    const int saved = errno;
    // Raised by an access to a page that cannot be had, or whose memory is
    // broken. Others may come at any time, also while this thread holds the
    // lock, and are not ours anyway.
    const bool by_access = info->si_code == BUS_ADRERR || info->si_code == BUS_MCEERR_AR;
    if (!by_access || !FaultGuard::HandleFault(info->si_addr)) PassOn(signal, info, context);
    errno = saved;
  }

  static void PassOn(int signal, siginfo_t* info, void* context) {
    if ((previous.sa_flags & SA_SIGINFO) != 0) return previous.sa_sigaction(signal, info, context);
    if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
      return previous.sa_handler(signal);
    }
    // Ignoring works for a signal that was sent. An access would raise it again
    // and again: the kernel ends the process then, and so does this.
    if (previous.sa_handler == SIG_IGN && info->si_code <= 0) return;
    struct sigaction fatal = {};
    fatal.sa_handler = SIG_DFL;
    sigaction(signal, &fatal, nullptr);
    // Taken when the handler returns.
    raise(signal);
  }

  static Status Install() {
    std::lock_guard lock(install_mutex);
    if (installed) return Ok();
    if (sigaction(SIGBUS, nullptr, &previous) != 0) {
      return Error{ErrorCode::kSystem, errno, "sigaction", {}};
    }
    struct sigaction action = {};
    action.sa_sigaction = Handle;
    // On the alternate stack where a thread of the program's has one.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    if (sigaction(SIGBUS, &action, nullptr) != 0) {
      return Error{ErrorCode::kSystem, errno, "sigaction", {}};
    }
    installed = true;
    return Ok();
  }
};

Result<std::unique_ptr<FaultGuard>> FaultGuard::Create(uint8_t* start, size_t bytes) {
  TRY(FaultHandler::Install());
  ASSIGN_OR_RETURN(EventFd failure, EventFd::Create());
  std::unique_ptr<FaultGuard> guard(new FaultGuard(start, bytes, std::move(failure)));
  const RegistryLock lock;
  guard->next_ = registry;
  registry = guard.get();
  return guard;
}

FaultGuard::~FaultGuard() {
  const RegistryLock lock;
  FaultGuard** link = &registry;
  while (*link != this) link = &(*link)->next_;
  *link = next_;
}

bool FaultGuard::HandleFault(const void* address) {
  const RegistryLock lock;
  for (FaultGuard* guard = registry; guard != nullptr; guard = guard->next_) {
    const auto offset =
        reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(guard->start_);
    if (offset < guard->bytes_) return guard->Replace();
  }
  return false;
}

bool FaultGuard::Replace() {
  // Before the pages, see failed().
  failed_.store(true, std::memory_order_release);
  // All of it and not one page: where one page is gone others are, each would
  // cost a mapping, and a guest that runs on with a few zero pages does worse
  // than one that loses everything. Once more, should several threads have met
  // the failure: it does no harm, and one that was mapped anew since is helped.
  void* const replaced = ::mmap(start_, bytes_, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  if (replaced == MAP_FAILED) return false;
  ::madvise(start_, bytes_, MADV_DONTFORK);
  ::madvise(start_, bytes_, MADV_DONTDUMP);
  failure_.Signal();
  return true;
}

}  // namespace forklet

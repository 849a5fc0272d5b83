#include "vm/snapshot.h"

#include <utility>

#include "base/clock.h"

namespace forklet {

namespace {
// Forks of a snapshot after which its packed pages, which each fork copies, are
// written into a file of their own.
constexpr uint64_t kForksBeforeFlattening = 2;
// Fewer are copied in less time than it takes to map them.
constexpr uint64_t kPagesWorthFlattening = 16;

// Pages that forks are given before they write them. More than that takes longer to
// make ready than it saves.
constexpr uint64_t kMaxWorkingSet = 64;
// Forks that are looked at until one has written some, and not too many.
constexpr int kMaxLessons = 8;

template <class T>
std::unique_ptr<T> Pop(std::vector<std::unique_ptr<T>>& from) {
  if (from.empty()) return nullptr;
  std::unique_ptr<T> last = std::move(from.back());
  from.pop_back();
  return last;
}
}  // namespace

Result<std::shared_ptr<Snapshot>> Snapshot::Create(const std::string& kvm_path,
                                                   std::shared_ptr<const VmState> state) {
  ASSIGN_OR_RETURN(Kvm kvm, Kvm::Open(kvm_path));
  ASSIGN_OR_RETURN(auto host, CachedHostProfile(kvm_path, kvm));
  return std::shared_ptr<Snapshot>(
      new Snapshot(kvm_path, std::move(kvm), std::move(host), std::move(state)));
}

Snapshot::~Snapshot() { Close(); }

void Snapshot::Close() {
  std::vector<std::unique_ptr<Vm>> dropped;
  std::lock_guard lock(mutex_);
  closed_ = true;
  fork_target_ = shell_target_ = 0;
  dropped.swap(forks_);
  for (auto& shell : shells_) dropped.push_back(std::move(shell));
  shells_.clear();
}

std::unique_ptr<Vm> Snapshot::TakeFork() {
  std::lock_guard lock(mutex_);
  auto fork = Pop(forks_);
  if (fork != nullptr) ++forked_;
  return fork;
}

Result<std::unique_ptr<Vm>> Snapshot::ForkShell(uint64_t epoch_ns, ForkTimes& times) {
  const auto state = StateToRestore();
  std::unique_ptr<Vm> vm;
  {
    std::lock_guard lock(mutex_);
    if (shells_.empty() || !shells_.back()->HasMemoryOf(*state)) return vm;
    vm = Pop(shells_);
    ++forked_;
  }
  times.pool = PoolHit::kShell;
  times.shell = MonotonicNs() - epoch_ns;
  TRY(vm->Restore(state));
  times.restored = MonotonicNs() - epoch_ns;
  return vm;
}

Result<std::unique_ptr<Vm>> Snapshot::CreateShell() {
  return Vm::CreateShell(*kvm_, host_, *StateToRestore());
}

Result<std::unique_ptr<Vm>> Snapshot::Fork(PoolUse pool, uint64_t epoch_ns, ForkTimes& times) {
  std::unique_ptr<Vm> vm;
  if (pool != PoolUse::kNever) {
    std::lock_guard lock(mutex_);
    vm = Pop(shells_);
    // Many snapshots are forked once, as those of running VMs are.
    if (!closed_ && forked_ > 0) shell_target_ = kShells;
  }
  times.pool = vm == nullptr ? PoolHit::kNone : PoolHit::kShell;
  if (vm == nullptr) {
    ASSIGN_OR_RETURN(vm, CreateShell());
  }
  times.shell = MonotonicNs() - epoch_ns;
  TRY(vm->Restore(StateToRestore()));
  times.restored = MonotonicNs() - epoch_ns;
  std::lock_guard lock(mutex_);
  ++forked_;
  return vm;
}

void Snapshot::Learn(const Vm& fork) {
  {
    std::lock_guard lock(mutex_);
    if (!working_set_.empty() || lessons_ == kMaxLessons) return;
    ++lessons_;
  }
  auto written = fork.WrittenPages();
  if (!written.ok() || CountPages(written.value()) > kMaxWorkingSet) return;
  std::lock_guard lock(mutex_);
  working_set_ = std::move(written).value();
}

void Snapshot::SetForkTarget(size_t count) {
  std::vector<std::unique_ptr<Vm>> surplus;
  std::lock_guard lock(mutex_);
  if (!closed_) fork_target_ = count;
  while (forks_.size() > fork_target_) surplus.push_back(Pop(forks_));
}

std::shared_ptr<const VmState> Snapshot::StateToRestore() {
  std::lock_guard lock(mutex_);
  return flat_state_ != nullptr ? flat_state_ : state_;
}

bool Snapshot::NeedsRefill() {
  std::lock_guard lock(mutex_);
  return forks_.size() < fork_target_ || shells_.size() < shell_target_;
}

Result<bool> Snapshot::Refill() {
  bool flatten;
  bool fork;
  std::vector<PageRun> working_set;
  {
    std::lock_guard lock(mutex_);
    fork = forks_.size() < fork_target_;
    if (!fork && shells_.size() >= shell_target_) return false;
    if (fork) working_set = working_set_;
    flatten = flat_state_ == nullptr && state_->memory->packed_pages() >= kPagesWorthFlattening &&
              (forked_ >= kForksBeforeFlattening || fork_target_ >= kForksBeforeFlattening);
  }
  if (flatten) {
    VmState flat = *state_;
    ASSIGN_OR_RETURN(flat.memory, state_->memory->Flatten());
    std::lock_guard lock(mutex_);
    flat_state_ = std::make_shared<const VmState>(std::move(flat));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Vm> vm, CreateShell());
  if (fork) {
    TRY(vm->Restore(StateToRestore()));
    TRY(vm->Prepare(working_set));
  }
  std::lock_guard lock(mutex_);
  // Closed, or asked for less, in the meantime: this one goes again.
  auto& pool = fork ? forks_ : shells_;
  if (pool.size() < (fork ? fork_target_ : shell_target_)) pool.push_back(std::move(vm));
  return true;
}

}  // namespace forklet

#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "base/event_loop.h"
#include "vm/messages.h"
#include "vm/vm.h"

namespace forklet {

// The core of the library: takes requests, answers with events. Knows nothing
// of JavaScript.
//
// Owner: one a binding's environment. Thread: the owner's; no method waits,
// but for the two that end everything.
class Core {
 public:
  explicit Core(std::shared_ptr<EventSink> sink) : sink_(std::move(sink)) {}
  // Requires that one of the two below came before, unless no VM is left.
  ~Core();
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  // Boots a VM. Done with BootTimes, or Failed with nothing left.
  void CreateVm(RequestId request, VmId vm, VmConfig config);
  // Stops and releases a VM in any state, mid-boot included. Done follows after
  // the release, and no other event of this VM.
  void CloseVm(RequestId request, VmId vm);
  // Done with VmStats.
  void Stats(RequestId request, VmId vm);
  // Done with ProbeReport.
  void Probe(RequestId request, std::string kvm_path);

  // The three below do nothing when the VM or the connection is gone, which it
  // can be at any moment.
  void Send(VmId vm, uint64_t connection, Bytes data);
  void Consume(VmId vm, uint64_t connection, uint64_t bytes);
  void Disconnect(VmId vm, uint64_t connection);

  // Ends and releases all VMs, and waits for it.
  void CloseAll();
  // For a process that is about to end: stops every thread of ours and waits
  // for that; memory and descriptors are left to the kernel.
  void StopAll();

 private:
  struct Entry;

  // The running VM of that name, or nullptr.
  Vm* Running(VmId vm);
  void Fail(RequestId request, Error error);

  const std::shared_ptr<EventSink> sink_;
  std::map<VmId, std::shared_ptr<Entry>> entries_;
  std::vector<std::shared_ptr<Thread>> jobs_;  // Probes under way or over
};

}  // namespace forklet

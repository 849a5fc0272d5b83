// What the core and its binding say to each other: plain values, so that the
// core can also live in another process.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "arch/x86_64/layout.h"
#include "arch/x86_64/mp_table.h"
#include "base/result.h"
#include "devices/doorbell.h"

namespace forklet {

using RequestId = uint32_t;   // Chosen by the binding's side; names one answer
using VmId = uint32_t;        // Chosen by the binding's side
using SnapshotId = uint32_t;  // Likewise
using Bytes = std::vector<uint8_t>;

// Everything that a boot needs; complete and validated by the caller.
struct VmConfig {
  uint64_t memory_bytes = 0;
  uint32_t vcpus = 1;
  std::string kvm_path;
  std::string kernel_path;
  std::string kernel_args;
  std::vector<Bytes> initramfs;  // Segments, each a multiple of 4 bytes
};

// Whether memory and vCPUs are what a VM can have: whole pages, 32 MiB to 1 TiB,
// and what the MP table has room for.
inline bool IsBootable(uint64_t memory_bytes, uint64_t vcpus) {
  return memory_bytes % layout::kPageSize == 0 && memory_bytes >= 32u << 20 &&
         memory_bytes <= uint64_t{1} << 40 && vcpus >= 1 && vcpus <= kMaxVcpus;
}

// Monotonic times since the request, in nanoseconds.
struct BootTimes {
  uint64_t started = 0;        // The boot thread runs
  uint64_t vm_created = 0;     // VM, irqchip and memory exist
  uint64_t kernel_loaded = 0;  // Kernel and initramfs are in guest memory
  uint64_t entered = 0;        // The boot processor's thread was started
};

// How long a freeze took, in nanoseconds.
struct FreezeTimes {
  uint64_t park = 0;     // Until the guest stood parked
  uint64_t stopped = 0;  // While it then stood still
};

// A snapshot, as it came to be.
struct SnapshotInfo {
  uint64_t memory_bytes = 0;
  uint32_t vcpus = 0;
  uint64_t connection = 0;    // The control connection; 0: none
  uint64_t copied_pages = 0;  // Guest pages that were copied
  ParkPlace place = ParkPlace::kAgent;
  FreezeTimes times;
  std::optional<Bytes> session;  // For one that was loaded: what was saved with it
};

enum class PoolUse : uint8_t { kUse, kNever, kRequire };
enum class PoolHit : uint8_t { kNone, kShell, kFork };

// Monotonic times since the request for a fork, in nanoseconds.
struct ForkTimes {
  PoolHit pool = PoolHit::kNone;
  uint64_t shell = 0;     // An empty VM exists
  uint64_t restored = 0;  // It holds the snapshot's state
};

struct VmStats {
  uint64_t memory_allocated_bytes = 0;
  std::vector<uint64_t> vcpu_cpu_time_ns;
  std::map<std::string, uint64_t> exits;
  uint64_t completed_instructions = 0;
  uint64_t console_bytes = 0;
  uint64_t vsock_bytes_to_guest = 0;
  uint64_t vsock_bytes_from_guest = 0;
  std::map<std::string, uint64_t> kvm;
};

// One line of what a host check found.
struct Check {
  std::string name;
  bool ok = false;
  std::string found;
  std::string needed;
  std::string remedy;
};

struct ProbeReport {
  std::string backend;
  std::vector<std::string> quirks;
  std::vector<Check> checks;
};

// Why a VM stopped running.
enum class ExitReason : uint8_t {
  kPowerOff,
  kRestart,
  kPanic,
  kHalt,
  kTripleFault,
  kInternalError,  // KVM could not go on
  kHostError,      // A device or the host failed under the VM
  kIoError,        // The file behind its memory failed
};
const char* ExitReasonName(ExitReason reason);

// Events: what the core says.
struct Done {
  RequestId request;
  std::variant<std::monostate, BootTimes, VmStats, ProbeReport, SnapshotInfo, ForkTimes, Bytes>
      value;
};
struct Failed {
  RequestId request;
  Error error;
};
struct ConsoleOutput {
  VmId vm;
  std::string data;
};
struct VmExited {
  VmId vm;
  ExitReason reason;
  std::string detail;
};
struct ConnectionOpened {
  VmId vm;
  uint64_t connection;
  uint32_t port;
};
struct ConnectionData {
  VmId vm;
  uint64_t connection;
  Bytes data;
};
struct ConnectionSent {
  VmId vm;
  uint64_t connection;
  uint64_t bytes;
};
struct ConnectionClosed {
  VmId vm;
  uint64_t connection;
};
using Event = std::variant<Done, Failed, ConsoleOutput, VmExited, ConnectionOpened, ConnectionData,
                           ConnectionSent, ConnectionClosed>;

// Takes events, from any thread, in the order of each thread's calls. Must not
// block and must not call back into the core.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void Deliver(Event event) = 0;
};

}  // namespace forklet

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "arch/x86_64/host_profile.h"
#include "base/clock.h"
#include "base/event_loop.h"
#include "base/result.h"
#include "devices/acpi_power.h"
#include "devices/bus.h"
#include "devices/doorbell.h"
#include "devices/serial.h"
#include "devices/virtio/mmio.h"
#include "devices/virtio/rng.h"
#include "devices/virtio/vsock.h"
#include "kvm/kvm.h"
#include "memory/guest_memory.h"
#include "vm/irqfd_line.h"
#include "vm/mailbox.h"
#include "vm/messages.h"
#include "vm/vcpu.h"
#include "vm/vm_state.h"

namespace forklet {

// A virtual machine: memory, vCPUs, devices, and what they say to each other.
//
// It comes to be in one of two ways: booted around a kernel, or made empty and
// then restored from a frozen state, once or, for a reset, again. Whatever keeps
// its vCPUs from running is a Hold; they run while there is none.
//
// Owner: Core's entry, or a snapshot's pool. Thread: any, unless a method says
// otherwise; one job (Freeze, Reset) at a time. Destroyed on a thread that may
// wait: not its own, not the device thread, not JavaScript's.
class Vm final : private VcpuObserver, private VsockHost, private DoorbellHost {
 public:
  // The port on the host that the guest's agent dials, once.
  static constexpr uint32_t kControlPort = 1;

  // Builds a VM around a kernel, ready to be entered. Fills in the times of the
  // stages, relative to `epoch_ns`. `sink` and `loop` are shared.
  static Result<std::unique_ptr<Vm>> Boot(VmId id, const VmConfig& config,
                                          std::shared_ptr<EventLoop> loop,
                                          std::shared_ptr<EventSink> sink, uint64_t epoch_ns,
                                          BootTimes& times);
  // An empty VM for that state, or another of its shape, which somebody may need
  // later: Restore and Adopt come next.
  static Result<std::unique_ptr<Vm>> CreateShell(const Kvm& kvm,
                                                 std::shared_ptr<const HostProfile> host,
                                                 const VmState& like);
  ~Vm() override;

  // Whether the memory of that state is mapped, so that a restore only has to set
  // registers.
  bool HasMemoryOf(const VmState& state) const { return memory_.image() == state.memory; }
  // Puts a frozen state of the same size into a VM that is not entered.
  Status Restore(std::shared_ptr<const VmState> state);
  // What the VM has written since it was restored. While it runs, some may be missed.
  Result<std::vector<PageRun>> WrittenPages() const { return memory_.WrittenPages(); }
  // Has a restored VM make ready what its first entry needs: threads, and these
  // pages, which it is expected to write. Thread: one that may wait.
  Status Prepare(const std::vector<PageRun>& working_set) const;
  // Gives a restored VM its name and whoever hears of its events. `hostname`
  // empty: the frozen one's.
  void Adopt(VmId id, std::shared_ptr<EventLoop> loop, std::shared_ptr<EventSink> sink,
             std::string hostname);

  // Lets the vCPUs enter the guest for the first time since boot or restore:
  // guest time starts now. Nothing when they have.
  Status Enter();
  // The same for a VM that has its owner: a failure ends it, which says so.
  void EnterOrEnd();
  // Stops all vCPUs where they are, until Resume; false when they do not stand
  // still in time. Not on a thread of this VM.
  [[nodiscard]] bool Pause(Deadline deadline);
  Status Resume();

  // A freeze begins: from now on it is noticed when the guest parks at `place`, so
  // that the caller may ask it to. EndFreeze follows, with or without Freeze.
  Status BeginFreeze(ParkPlace place);
  // Waits until the guest stands parked, which it did at `parked_ns` of the
  // monotonic clock, and returns what it is then. It stands still until EndFreeze:
  // nothing that it says after this state comes before that. Not on a thread of
  // this VM.
  //
  // Failures: kParkTimeout at the deadline, kCancelled after CancelFreeze, kExited
  // or kClosed when it ends.
  Result<std::shared_ptr<const VmState>> Freeze(Deadline deadline, uint64_t& parked_ns);
  // Calls `announce`, which tells of the freeze, and then lets the guest go on.
  void EndFreeze(const std::function<void()>& announce);
  void CancelFreeze();

  // Puts the VM back to a frozen state of the same size; it is then like a fork
  // that is not entered. Everything pending is dropped. After a failure the VM can
  // only be reset again or closed. In steps:
  // the vCPUs are to stand still, which is not waited for;
  Status BeginReset(const VmState& state);
  // where they do and little was written, it is done in a turn of the device thread.
  // `done` is called there: nothing is done when its argument is empty;
  void TryReset(std::shared_ptr<const VmState> state,
                std::function<void(std::optional<Status>)> done);
  // then this does it, not on a thread of this VM.
  Status Reset(const Kvm& kvm, std::shared_ptr<const VmState> state);

  // Hands input to the program at its park. Done with its answer, or Failed,
  // follows for `request`. One at a time.
  void CallProgram(RequestId request, Bytes input, uint64_t max_bytes);
  void CancelCall(RequestId request);
  // Lets the guest run on though its program stands parked, now or next.
  void YieldProgram();

  // Makes the vCPUs leave the guest; does not wait.
  void RequestStop();
  // Joins the vCPUs and leaves the device thread: no event follows.
  void Shutdown();

  // Until Shutdown() begins.
  void Send(uint64_t connection, Bytes data);
  void Consume(uint64_t connection, uint64_t bytes);
  void Disconnect(uint64_t connection);
  Result<VmStats> Stats() const;

 private:
  // A vCPU that is to stand still leaves KVM_RUN within microseconds; more means
  // that something holds it there.
  static constexpr std::chrono::seconds kHoldTime{5};

  // What keeps the vCPUs from running.
  enum class Hold : uint32_t {
    kNotEntered = 1,  // Boot or restore is done; nobody has asked for more
    kPaused = 2,      // Pause()
    kFreezing = 4,    // Parked, and being frozen
    kStanding = 8,    // A program has answered and stands parked; nothing else is to do
    kRestoring = 16,  // Reset() is at work
  };

  // A request that a parked program is to answer.
  struct Call {
    RequestId request;
    Bytes input;
    uint64_t max_bytes;
    bool handed_over = false;  // The program has it
  };
  // Where the guest's program is, as far as the host knows.
  enum class Program : uint8_t {
    kRunning,  // Somewhere; or there is none
    kParked,   // In its read of PARK_PROGRAM, which is completed
    kWaiting,  // Told to wait for the doorbell's interrupt
  };
  // Whoever waits for the guest to park.
  struct Freezer {
    ParkPlace place;
    bool stood = false;  // It stood there before
    bool parked = false;
    bool cancelled = false;
  };

  Vm(std::shared_ptr<const HostProfile> host, const CpuidTable& cpuid, VmFd fd, GuestMemory memory);

  // KVM's part of a VM, with its memslots and irqchip.
  static Result<VmFd> CreateMachine(const Kvm& kvm, const HostProfile& host,
                                    const GuestMemory& memory);
  static Result<std::unique_ptr<Vm>> Build(const Kvm& kvm, std::shared_ptr<const HostProfile> host,
                                           const CpuidTable& cpuid, GuestMemory memory);
  Status CreateDevices();
  Result<std::vector<std::unique_ptr<Vcpu>>> CreateVcpus(const Kvm& kvm, const VmFd& machine,
                                                         uint32_t count);
  // Wires the devices to KVM's VM. While nobody uses them.
  Status WireDevices(const VmFd& machine);
  // Registers the devices with the device thread.
  Status ConnectDevices();
  // Has the device thread end the VM when the file behind its memory fails.
  Status WatchMemory();

  // Adds what KVM and the vCPUs have counted. Under run_mutex_.
  Status AddMachineStats(VmStats& stats) const;

  // Holds (vm_run.cc).
  void AddHold(Hold hold);
  Status RemoveHold(Hold hold);
  Status ReleaseVcpus();
  [[nodiscard]] bool WaitHeld(Deadline deadline);
  Status StartTime(const VmState& state);
  // Enter(), under park_mutex_, and its halves: time starts, if it has not; the vCPUs
  // and the devices do.
  Status EnterLocked();
  Result<bool> BeginEntry();
  Status EndEntry();
  // The vCPU whose thread this is.
  uint32_t CurrentVcpu() const;

  // Freezing and restoring (vm_freeze.cc).
  Result<bool> OthersOutsideKernel(uint32_t parked);
  Status WaitParked(std::unique_lock<std::mutex>& lock, Deadline deadline);
  // Lets the guest take an interrupt that is pending, and come back.
  Status ParkAgain(ParkPlace place);
  // Takes back what that has told the agent.
  void StopParkingAgain();
  // Has the devices finish what the guest gave them, and leaves them still.
  DevicesState QuiesceDevices();
  void ResumeDevices();
  // All but the memory.
  Status RestoreMachine(std::shared_ptr<const VmState> state);
  Status RestoreDevices(const VmState& state);

  // Resetting (vm_reset.cc).
  std::optional<Status> ResetInTurn(const std::shared_ptr<const VmState>& state);
  Status ReplaceMemory(std::shared_ptr<const MemoryImage> image);
  // Whether KVM may have translations of the guest's page tables that do not hold
  // for another state's.
  bool MayHaveStaleTranslations(const VmState& state) const;
  // New vCPUs and KVM's part of the VM in place of those that there are.
  Status RebuildMachine(const Kvm& kvm);

  // Programs (vm_program.cc). All under park_mutex_.
  // The answer to the last request, if parking is one.
  std::optional<Event> OnProgramParked();
  Status CallParked();
  void HandOver(bool just_started);
  Event FinishCall();
  void FailCall(ErrorCode code, std::string detail);
  Status YieldLocked();
  // What the program finds when it leaves its park.
  void Command(ExchangeCommand command);

  // A fresh identity at this moment, at which the guest's TSC has that value.
  GuestIdentity NewIdentity(uint64_t generation, uint64_t tsc) const;

  // Ends the VM: the first reason counts. Not under park_mutex_, like the one below.
  void End(ExitReason reason, std::string detail);
  // Ends it if the host has failed at something that the guest cannot go on without.
  void EndOnFailure(const Status& status);
  void OnPower(PowerEvent event);

  void OnDoorbellEvent(DoorbellEvent event) override;
  void OnPark(ParkPlace place) override;
  void OnReseeded(uint32_t generation) override;
  void OnProgramGone() override;
  void OnVcpuExit(ExitReason reason, std::string detail) override;
  bool OnConnect(uint32_t host_port) override;
  void OnOpened(ConnectionId id, uint32_t port) override;
  void OnData(ConnectionId id, std::vector<uint8_t> data) override;
  void OnEnd(ConnectionId id) override;
  void OnSent(ConnectionId id, size_t bytes) override;
  void OnClosed(ConnectionId id) override;

  const std::shared_ptr<const HostProfile> host_;
  const CpuidTable cpuid_;  // What the vCPUs are given, but for their own numbers
  // Thread: written before the first entry.
  VmId id_ = 0;
  std::shared_ptr<EventLoop> loop_;
  std::shared_ptr<EventSink> sink_;
  std::string hostname_;

  // Teardown: the reverse of this order. vCPUs go before what they run on,
  // devices before memory, and KVM's VM before the memory that its slots name.
  GuestMemory memory_;
  VmFd fd_;
  IrqfdLine serial_line_;
  IrqfdLine vsock_line_;
  IrqfdLine rng_line_;
  IrqfdLine doorbell_line_;
  std::unique_ptr<Doorbell> doorbell_;
  std::unique_ptr<AcpiPower> acpi_power_;
  std::unique_ptr<Serial> serial_;
  std::unique_ptr<VsockDevice> vsock_;
  std::unique_ptr<RngDevice> rng_;
  std::unique_ptr<VirtioMmio> vsock_transport_;
  std::unique_ptr<VirtioMmio> rng_transport_;
  std::unique_ptr<Bus> mmio_;
  std::unique_ptr<Bus> ports_;
  std::vector<std::unique_ptr<Vcpu>> vcpus_;

  bool devices_connected_ = false;  // Thread: whoever enters, resets or shuts down
  bool shut_down_ = false;
  std::atomic<bool> ended_ = false;
  std::atomic<bool> control_dialled_ = false;
  std::atomic<uint64_t> control_connection_ = 0;
  std::atomic<uint64_t> console_bytes_ = 0;
  std::atomic<uint64_t> vsock_bytes_to_guest_ = 0;
  std::atomic<uint64_t> vsock_bytes_from_guest_ = 0;

  // Order of the two: park_mutex_ first. Of both: vcpus_ and fd_, which a reset may
  // replace, are read under either.
  mutable std::mutex run_mutex_;
  VmStats retired_;  // Under run_mutex_: of vCPUs that were replaced
  uint32_t holds_ = static_cast<uint32_t>(Hold::kNotEntered);  // Under run_mutex_
  // Under run_mutex_: until the guest's random pool is reseeded, which the first
  // vCPU does, the others stand still.
  bool reseeding_ = false;
  uint32_t first_vcpu_ = 0;

  mutable std::mutex park_mutex_;
  std::condition_variable parked_;  // freezer_ or ended_
  // All below under park_mutex_.
  std::optional<Freezer> freezer_;
  uint32_t parked_vcpu_ = 0;  // The last that parked
  Program program_ = Program::kRunning;
  std::optional<Call> call_;
  // The guest has other work: its program is not to stand when it parks next.
  std::atomic<bool> yield_due_ = false;
  uint64_t sequence_ = 0;    // Of the last request that a program was given
  bool answer_due_ = false;  // It has not answered that one yet
  bool kick_due_ = false;    // The restored devices have something to tell the guest
  GuestIdentity identity_;
  std::shared_ptr<const VmState> origin_;  // Restored last; null for a VM that was booted
};

}  // namespace forklet

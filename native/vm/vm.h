#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "arch/x86_64/host_profile.h"
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
#include "vm/messages.h"
#include "vm/vcpu.h"

namespace forklet {

// A virtual machine: memory, vCPUs, devices, and what they say to each other.
//
// Owner: Core's entry. Thread: built on a boot thread, entered by Start(), then
// driven by three kinds of threads: its vCPUs (VM exits), the device thread
// (queues, connections) and the core's (the methods below). Destroyed on a
// thread that may wait: not its own, not the device thread, not JavaScript's.
class Vm final : private VcpuObserver, private VsockHost {
 public:
  // The port on the host that the guest's agent dials, once.
  static constexpr uint32_t kControlPort = 1;

  // Builds a VM around a kernel, ready to be entered. Fills in the times of the
  // stages, relative to `epoch_ns`. `sink` and `loop` are shared.
  static Result<std::unique_ptr<Vm>> Boot(VmId id, const VmConfig& config,
                                          std::shared_ptr<EventLoop> loop,
                                          std::shared_ptr<EventSink> sink, uint64_t epoch_ns,
                                          BootTimes& times);
  ~Vm() override;

  // Creates the vCPU threads, which enter the guest.
  Status Start();
  // Makes the vCPUs leave the guest; does not wait.
  void RequestStop();
  // Joins the vCPUs and leaves the device thread: no event follows.
  void Shutdown();

  // Thread: any, until Shutdown() begins.
  void Send(uint64_t connection, Bytes data);
  void Consume(uint64_t connection, uint64_t bytes);
  void Disconnect(uint64_t connection);
  Result<VmStats> Stats() const;

 private:
  Vm(VmId id, std::shared_ptr<EventLoop> loop, std::shared_ptr<EventSink> sink, VmFd fd,
     GuestMemory memory);

  Status CreateDevices();
  Status CreateVcpus(const Kvm& kvm, const HostProfile& host, uint32_t count);
  Status AddVirtio(VirtioDevice& device, uint32_t index, IrqfdLine& line,
                   std::unique_ptr<VirtioMmio>& transport);

  // Ends the VM: the first reason counts. Thread: any.
  void End(ExitReason reason, std::string detail);
  void OnDoorbell(DoorbellEvent event);
  void OnPower(PowerEvent event);

  void OnVcpuExit(ExitReason reason, std::string detail) override;
  bool OnConnect(uint32_t host_port) override;
  void OnOpened(ConnectionId id, uint32_t port) override;
  void OnData(ConnectionId id, std::vector<uint8_t> data) override;
  void OnEnd(ConnectionId id) override;
  void OnSent(ConnectionId id, size_t bytes) override;
  void OnClosed(ConnectionId id) override;

  const VmId id_;
  const std::shared_ptr<EventLoop> loop_;
  const std::shared_ptr<EventSink> sink_;

  // Teardown: the reverse of this order. vCPUs go before what they run on,
  // devices before memory, and KVM's VM before the memory that its slots name.
  GuestMemory memory_;
  VmFd fd_;
  IrqfdLine serial_line_;
  IrqfdLine vsock_line_;
  IrqfdLine rng_line_;
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

  bool shut_down_ = false;
  std::atomic<bool> ended_ = false;
  bool control_dialled_ = false;  // Thread: the device thread
  std::atomic<uint64_t> console_bytes_ = 0;
  std::atomic<uint64_t> vsock_bytes_to_guest_ = 0;
  std::atomic<uint64_t> vsock_bytes_from_guest_ = 0;
};

}  // namespace forklet

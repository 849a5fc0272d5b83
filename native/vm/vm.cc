#include "vm/vm.h"

#include <sys/stat.h>

#include <cerrno>

#include "arch/x86_64/acpi.h"
#include "arch/x86_64/boot.h"
#include "arch/x86_64/command_line.h"
#include "arch/x86_64/cpuid.h"
#include "arch/x86_64/kernel/kernel_image.h"
#include "arch/x86_64/layout.h"
#include "arch/x86_64/mp_table.h"
#include "base/clock.h"
#include "kvm/stats.h"

namespace forklet {

namespace {
constexpr uint32_t kVsockIndex = 0;
constexpr uint32_t kRngIndex = 1;
constexpr uint32_t kVirtioDevices = 2;

// Turns of the device thread that what a guest said last may take. A queue holds
// fewer chains than that, so that only a guest which goes on talking loses some.
constexpr int kMaxFinalTurns = 8;

GuestAddress VirtioWindow(uint32_t index) {
  return layout::kVirtioMmio + index * layout::kPageSize;
}
}  // namespace

const char* ExitReasonName(ExitReason reason) {
  switch (reason) {
    case ExitReason::kPowerOff:
      return "power-off";
    case ExitReason::kRestart:
      return "restart";
    case ExitReason::kPanic:
      return "panic";
    case ExitReason::kHalt:
      return "halt";
    case ExitReason::kTripleFault:
      return "triple-fault";
    case ExitReason::kInternalError:
      return "internal-error";
    case ExitReason::kHostError:
      return "host-error";
  }
  return "host-error";
}

Vm::Vm(VmId id, std::shared_ptr<EventLoop> loop, std::shared_ptr<EventSink> sink, VmFd fd,
       GuestMemory memory)
    : id_(id),
      loop_(std::move(loop)),
      sink_(std::move(sink)),
      memory_(std::move(memory)),
      fd_(std::move(fd)) {}

// Ordering requirements:
//  - memslots before the irqchip and the vCPUs: with a vCPU in place each new
//    slot waits for a grace period;
//  - the irqchip before the vCPUs, whose local APICs it creates, and before the
//    irqfds;
//  - CPUID before the other vCPU state, which it bounds.
Result<std::unique_ptr<Vm>> Vm::Boot(VmId id, const VmConfig& config,
                                     std::shared_ptr<EventLoop> loop,
                                     std::shared_ptr<EventSink> sink, uint64_t epoch_ns,
                                     BootTimes& times) {
  ASSIGN_OR_RETURN(const Kvm kvm, Kvm::Open(config.kvm_path));
  ASSIGN_OR_RETURN(const HostProfile host, CachedHostProfile(config.kvm_path, kvm));
  ASSIGN_OR_RETURN(const KernelImage image, KernelImage::Open(config.kernel_path));
  ASSIGN_OR_RETURN(GuestMemory memory, GuestMemory::Create(config.memory_bytes));
  ASSIGN_OR_RETURN(VmFd fd, kvm.CreateVm());
  std::unique_ptr<Vm> vm(
      new Vm(id, std::move(loop), std::move(sink), std::move(fd), std::move(memory)));
  TRY(vm->fd_.SetRealModeAreas(layout::kTss, layout::kIdentityMap));
  if (host.exit_on_emulation_failure) {
    TRY(vm->fd_.EnableCapability(KVM_CAP_EXIT_ON_EMULATION_FAILURE,
                                 "KVM_CAP_EXIT_ON_EMULATION_FAILURE", 1));
  }
  uint32_t slot = 0;
  for (const MemoryRegion& region : vm->memory_.regions()) {
    TRY(vm->fd_.SetMemoryRegion(slot++, region.start, region.size, region.host));
  }
  TRY(vm->fd_.CreateIrqchip());
  times.vm_created = MonotonicNs() - epoch_ns;

  ASSIGN_OR_RETURN(const LoadedKernel kernel, image.Load(vm->memory_));
  ASSIGN_OR_RETURN(const InitramfsRange initramfs,
                   LoadInitramfs(vm->memory_, config.initramfs, kernel.end));
  ASSIGN_OR_RETURN(const std::string command_line,
                   ComposeCommandLine(host, kVirtioDevices, config.kernel_args));
  WriteBootParameters(vm->memory_, command_line, initramfs, kernel.setup_header);
  WriteMpTable(vm->memory_, config.vcpus, kVirtioDevices);
  WriteAcpiTables(vm->memory_, config.vcpus, kVirtioDevices);
  times.kernel_loaded = MonotonicNs() - epoch_ns;

  TRY(vm->CreateDevices());
  TRY(vm->CreateVcpus(kvm, host, config.vcpus));
  TRY(SetBootRegisters(vm->vcpus_.front()->fd(), kernel.entry));
  return vm;
}

Status Vm::CreateDevices() {
  TRY(serial_line_.Connect(fd_, layout::kSerialGsi));
  serial_ = std::make_unique<Serial>(serial_line_, [this](uint8_t byte) {
    console_bytes_.fetch_add(1, std::memory_order_relaxed);
    sink_->Deliver(ConsoleOutput{id_, std::string(1, static_cast<char>(byte))});
  });
  doorbell_ = std::make_unique<Doorbell>([this](DoorbellEvent event) { OnDoorbell(event); });
  acpi_power_ = std::make_unique<AcpiPower>([this](PowerEvent event) { OnPower(event); });
  vsock_ = std::make_unique<VsockDevice>(VsockConfig{}, static_cast<VsockHost&>(*this));
  rng_ = std::make_unique<RngDevice>();
  TRY(AddVirtio(*vsock_, kVsockIndex, vsock_line_, vsock_transport_));
  TRY(AddVirtio(*rng_, kRngIndex, rng_line_, rng_transport_));

  ASSIGN_OR_RETURN(
      mmio_,
      Bus::Create({{layout::kDoorbell.value, layout::kPageSize, doorbell_.get()},
                   {VirtioWindow(kVsockIndex).value, VirtioMmio::kBytes, vsock_transport_.get()},
                   {VirtioWindow(kRngIndex).value, VirtioMmio::kBytes, rng_transport_.get()}}));
  ASSIGN_OR_RETURN(ports_, Bus::Create({{layout::kSerialPort, Serial::kPorts, serial_.get()},
                                        {layout::kPowerPort, kAcpiPowerPorts, acpi_power_.get()}}));
  return Ok();
}

Status Vm::AddVirtio(VirtioDevice& device, uint32_t index, IrqfdLine& line,
                     std::unique_ptr<VirtioMmio>& transport) {
  TRY(line.Connect(fd_, layout::kVirtioGsi + index));
  ASSIGN_OR_RETURN(transport, VirtioMmio::Create(device, memory_, line));
  for (uint16_t queue = 0; queue < transport->queue_count(); ++queue) {
    TRY(fd_.AddIoeventfd(transport->notifier(queue), VirtioWindow(index) + VirtioMmio::kQueueNotify,
                         queue));
    // Lifetime: Shutdown() removes the handler before the transport goes.
    VirtioMmio* raw = transport.get();
    TRY(loop_->Add(transport->notifier(queue), [raw, queue] { raw->HandleNotify(queue); }));
  }
  return Ok();
}

Status Vm::CreateVcpus(const Kvm& kvm, const HostProfile& host, uint32_t count) {
  const VcpuContext context = {&memory_, mmio_.get(), ports_.get(), this, host.xsave_bytes};
  for (uint32_t id = 0; id < count; ++id) {
    ASSIGN_OR_RETURN(VcpuFd fd, fd_.CreateVcpu(id, kvm.vcpu_mmap_size()));
    TRY(fd.SetCpuid(VcpuCpuid(host.cpuid, id, count, host.tsc_deadline)));
    TRY(SetBootMsrs(fd));
    TRY(SetBootLapic(fd));
    vcpus_.push_back(std::make_unique<Vcpu>(id, std::move(fd), context));
  }
  return Ok();
}

Status Vm::Start() {
  for (const auto& vcpu : vcpus_) TRY(vcpu->Start());
  return Ok();
}

void Vm::RequestStop() {
  for (const auto& vcpu : vcpus_) vcpu->RequestStop();
}

Vm::~Vm() { Shutdown(); }

void Vm::Shutdown() {
  if (shut_down_) return;
  shut_down_ = true;
  RequestStop();
  for (const auto& vcpu : vcpus_) vcpu->Join();
  // Tasks posted before run first, and none is posted after: the vCPUs are gone,
  // and the core has let go of this VM.
  loop_->PostAndWait([this] {
    for (const auto* transport : {vsock_transport_.get(), rng_transport_.get()}) {
      if (transport == nullptr) continue;
      for (uint16_t queue = 0; queue < transport->queue_count(); ++queue) {
        loop_->Remove(transport->notifier(queue));
      }
    }
  });
}

void Vm::End(ExitReason reason, std::string detail) {
  if (ended_.exchange(true)) return;
  RequestStop();
  // On the device thread, behind a last look at the queues, so that what the
  // guest said before it ended is heard before its end is.
  loop_->Post([this, reason, detail = std::move(detail)]() mutable {
    for (int turn = 0; turn < kMaxFinalTurns; ++turn) {
      if (vsock_transport_->HandleNotify(VsockDevice::kTxQueue) == Turn::kIdle) break;
    }
    sink_->Deliver(VmExited{id_, reason, std::move(detail)});
  });
}

void Vm::OnDoorbell(DoorbellEvent event) {
  switch (event) {
    case DoorbellEvent::kPowerOff:
      return End(ExitReason::kPowerOff, "the guest powered off");
    case DoorbellEvent::kPanic:
      return End(ExitReason::kPanic, "the guest's kernel panicked");
    case DoorbellEvent::kRestart:
      return End(ExitReason::kRestart, "the guest asked for a restart");
    case DoorbellEvent::kHalt:
      return End(ExitReason::kHalt, "the guest halted");
  }
}

void Vm::OnPower(PowerEvent event) {
  switch (event) {
    case PowerEvent::kPowerOff:
      return End(ExitReason::kPowerOff, "the guest powered off");
    case PowerEvent::kRestart:
      return End(ExitReason::kRestart, "the guest asked for a restart");
  }
}

void Vm::OnVcpuExit(ExitReason reason, std::string detail) { End(reason, std::move(detail)); }

bool Vm::OnConnect(uint32_t host_port) {
  if (host_port != kControlPort || control_dialled_) return false;
  control_dialled_ = true;
  return true;
}

void Vm::OnOpened(ConnectionId id, uint32_t port) {
  sink_->Deliver(ConnectionOpened{id_, static_cast<uint64_t>(id), port});
}

void Vm::OnData(ConnectionId id, std::vector<uint8_t> data) {
  vsock_bytes_from_guest_.fetch_add(data.size(), std::memory_order_relaxed);
  sink_->Deliver(ConnectionData{id_, static_cast<uint64_t>(id), std::move(data)});
}

void Vm::OnEnd(ConnectionId id) {
  // The agent never half-closes its connection: it is gone.
  vsock_->Reset(id);
  OnClosed(id);
}

void Vm::OnSent(ConnectionId id, size_t bytes) {
  vsock_bytes_to_guest_.fetch_add(bytes, std::memory_order_relaxed);
  sink_->Deliver(ConnectionSent{id_, static_cast<uint64_t>(id), bytes});
}

void Vm::OnClosed(ConnectionId id) {
  sink_->Deliver(ConnectionClosed{id_, static_cast<uint64_t>(id)});
}

void Vm::Send(uint64_t connection, Bytes data) {
  loop_->Post([this, connection, data = std::move(data)]() mutable {
    vsock_->Send(ConnectionId{connection}, std::move(data));
  });
}

void Vm::Consume(uint64_t connection, uint64_t bytes) {
  loop_->Post([this, connection, bytes] { vsock_->Consume(ConnectionId{connection}, bytes); });
}

void Vm::Disconnect(uint64_t connection) {
  loop_->Post([this, connection] { vsock_->Reset(ConnectionId{connection}); });
}

Result<VmStats> Vm::Stats() const {
  VmStats stats;
  struct stat file = {};
  if (::fstat(memory_.memfd().get(), &file) != 0) {
    return Error{ErrorCode::kSystem, errno, "fstat", "guest memory"};
  }
  constexpr uint64_t kStatBlockBytes = 512;
  stats.memory_allocated_bytes = static_cast<uint64_t>(file.st_blocks) * kStatBlockBytes;
  for (const auto& vcpu : vcpus_) {
    stats.vcpu_cpu_time_ns.push_back(vcpu->CpuTimeNs());
    stats.completed_instructions += vcpu->completed_instructions();
    vcpu->AddExits(stats.exits);
  }
  stats.console_bytes = console_bytes_.load(std::memory_order_relaxed);
  stats.vsock_bytes_to_guest = vsock_bytes_to_guest_.load(std::memory_order_relaxed);
  stats.vsock_bytes_from_guest = vsock_bytes_from_guest_.load(std::memory_order_relaxed);
  // KVM's own statistics came with Linux 5.14; a host without them has the rest.
  auto vm_stats = fd_.OpenStats();
  if (!vm_stats.ok()) return stats;
  TRY(AddStats(vm_stats.value(), stats.kvm));
  for (const auto& vcpu : vcpus_) {
    if (vcpu->stats()) TRY(AddStats(vcpu->stats(), stats.kvm));
  }
  return stats;
}

}  // namespace forklet

#include "vm/vm.h"

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

Status WireVirtio(const VmFd& machine, uint32_t index, IrqfdLine& line,
                  const VirtioMmio& transport) {
  TRY(line.Connect(machine, layout::kVirtioGsi + index));
  for (uint16_t queue = 0; queue < transport.queue_count(); ++queue) {
    TRY(machine.AddIoeventfd(transport.notifier(queue),
                             VirtioWindow(index) + VirtioMmio::kQueueNotify, queue));
  }
  return Ok();
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
    case ExitReason::kIoError:
      return "io-error";
  }
  return "host-error";
}

Vm::Vm(std::shared_ptr<const HostProfile> host, const CpuidTable& cpuid, VmFd fd,
       GuestMemory memory)
    : host_(std::move(host)), cpuid_(cpuid), memory_(std::move(memory)), fd_(std::move(fd)) {}

// Ordering requirements:
//  - memslots before the irqchip and the vCPUs: with a vCPU in place each new
//    slot waits for a grace period;
//  - the irqchip before the vCPUs, whose local APICs it creates, and before the
//    irqfds.
Result<VmFd> Vm::CreateMachine(const Kvm& kvm, const HostProfile& host, const GuestMemory& memory) {
  ASSIGN_OR_RETURN(VmFd machine, kvm.CreateVm());
  TRY(machine.SetRealModeAreas(layout::kTss, layout::kIdentityMap));
  if (host.exit_on_emulation_failure) {
    TRY(machine.EnableCapability(KVM_CAP_EXIT_ON_EMULATION_FAILURE,
                                 "KVM_CAP_EXIT_ON_EMULATION_FAILURE", 1));
  }
  uint32_t slot = 0;
  for (const MemoryRegion& region : memory.regions()) {
    TRY(machine.SetMemoryRegion(slot++, region.start, region.size, region.host));
  }
  TRY(machine.CreateIrqchip());
  return machine;
}

Result<std::unique_ptr<Vm>> Vm::Build(const Kvm& kvm, std::shared_ptr<const HostProfile> host,
                                      const CpuidTable& cpuid, GuestMemory memory) {
  ASSIGN_OR_RETURN(VmFd machine, CreateMachine(kvm, *host, memory));
  return std::unique_ptr<Vm>(new Vm(std::move(host), cpuid, std::move(machine), std::move(memory)));
}

Result<std::unique_ptr<Vm>> Vm::Boot(VmId id, const VmConfig& config,
                                     std::shared_ptr<EventLoop> loop,
                                     std::shared_ptr<EventSink> sink, uint64_t epoch_ns,
                                     BootTimes& times) {
  ASSIGN_OR_RETURN(const Kvm kvm, Kvm::Open(config.kvm_path));
  ASSIGN_OR_RETURN(const auto host, CachedHostProfile(config.kvm_path, kvm));
  ASSIGN_OR_RETURN(const KernelImage image, KernelImage::Open(config.kernel_path));
  ASSIGN_OR_RETURN(GuestMemory memory, GuestMemory::Create(config.memory_bytes));
  ASSIGN_OR_RETURN(std::unique_ptr<Vm> vm, Build(kvm, host, host->cpuid, std::move(memory)));
  vm->Adopt(id, std::move(loop), std::move(sink), {});
  times.vm_created = MonotonicNs() - epoch_ns;

  ASSIGN_OR_RETURN(const LoadedKernel kernel, image.Load(vm->memory_));
  ASSIGN_OR_RETURN(const InitramfsRange initramfs,
                   LoadInitramfs(vm->memory_, config.initramfs, kernel.end));
  ASSIGN_OR_RETURN(const std::string command_line,
                   ComposeCommandLine(*host, kVirtioDevices, config.kernel_args));
  WriteBootParameters(vm->memory_, command_line, initramfs, kernel.setup_header);
  WriteMpTable(vm->memory_, config.vcpus, kVirtioDevices);
  WriteAcpiTables(vm->memory_, config.vcpus, kVirtioDevices);
  CHECK(vm->memory_.WriteObject(layout::kMailbox, Mailbox()));
  CHECK(vm->memory_.WriteObject(layout::kExchange, Exchange()));
  times.kernel_loaded = MonotonicNs() - epoch_ns;

  TRY(vm->CreateDevices());
  ASSIGN_OR_RETURN(vm->vcpus_, vm->CreateVcpus(kvm, vm->fd_, config.vcpus));
  for (const auto& vcpu : vm->vcpus_) {
    TRY(SetBootMsrs(vcpu->fd()));
    TRY(SetBootLapic(vcpu->fd()));
    if (host->xsetbv_unseen) TRY(SetBootXcr0(vcpu->fd(), SupportedXcr0(host->cpuid)));
  }
  TRY(SetBootRegisters(vm->vcpus_.front()->fd(), kernel.entry));
  return vm;
}

Result<std::unique_ptr<Vm>> Vm::CreateShell(const Kvm& kvm, std::shared_ptr<const HostProfile> host,
                                            const VmState& like) {
  ASSIGN_OR_RETURN(GuestMemory memory, GuestMemory::Reserve(like.memory_bytes));
  // Mapped before KVM knows of it, which is cheaper than after; unless there would
  // be more to do than that.
  if (like.memory->packed_pages() == 0) TRY(memory.Map(like.memory));
  ASSIGN_OR_RETURN(std::unique_ptr<Vm> vm,
                   Build(kvm, std::move(host), like.cpuid, std::move(memory)));
  TRY(vm->CreateDevices());
  ASSIGN_OR_RETURN(vm->vcpus_,
                   vm->CreateVcpus(kvm, vm->fd_, static_cast<uint32_t>(like.cpus.size())));
  return vm;
}

void Vm::Adopt(VmId id, std::shared_ptr<EventLoop> loop, std::shared_ptr<EventSink> sink,
               std::string hostname) {
  id_ = id;
  loop_ = std::move(loop);
  sink_ = std::move(sink);
  hostname_ = std::move(hostname);
}

Status Vm::CreateDevices() {
  serial_ = std::make_unique<Serial>(serial_line_, [this](uint8_t byte) {
    console_bytes_.fetch_add(1, std::memory_order_relaxed);
    sink_->Deliver(ConsoleOutput{id_, std::string(1, static_cast<char>(byte))});
  });
  doorbell_ = std::make_unique<Doorbell>(static_cast<DoorbellHost&>(*this));
  acpi_power_ = std::make_unique<AcpiPower>([this](PowerEvent event) { OnPower(event); });
  vsock_ = std::make_unique<VsockDevice>(VsockConfig{}, static_cast<VsockHost&>(*this));
  rng_ = std::make_unique<RngDevice>();
  ASSIGN_OR_RETURN(vsock_transport_, VirtioMmio::Create(*vsock_, memory_, vsock_line_));
  ASSIGN_OR_RETURN(rng_transport_, VirtioMmio::Create(*rng_, memory_, rng_line_));

  ASSIGN_OR_RETURN(
      mmio_,
      Bus::Create({{layout::kDoorbell.value, layout::kPageSize, doorbell_.get()},
                   {VirtioWindow(kVsockIndex).value, VirtioMmio::kBytes, vsock_transport_.get()},
                   {VirtioWindow(kRngIndex).value, VirtioMmio::kBytes, rng_transport_.get()}}));
  ASSIGN_OR_RETURN(ports_, Bus::Create({{layout::kSerialPort, Serial::kPorts, serial_.get()},
                                        {layout::kPowerPort, kAcpiPowerPorts, acpi_power_.get()}}));
  return WireDevices(fd_);
}

Status Vm::WireDevices(const VmFd& machine) {
  TRY(serial_line_.Connect(machine, layout::kSerialGsi));
  TRY(doorbell_line_.Connect(machine, layout::kDoorbellGsi));
  TRY(WireVirtio(machine, kVsockIndex, vsock_line_, *vsock_transport_));
  return WireVirtio(machine, kRngIndex, rng_line_, *rng_transport_);
}

// Ordering requirement: CPUID before the rest of a vCPU's state, which it bounds.
Result<std::vector<std::unique_ptr<Vcpu>>> Vm::CreateVcpus(const Kvm& kvm, const VmFd& machine,
                                                           uint32_t count) {
  const VcpuContext context = {&memory_, mmio_.get(), ports_.get(), this, host_->xsave_bytes};
  std::vector<std::unique_ptr<Vcpu>> vcpus;
  for (uint32_t id = 0; id < count; ++id) {
    ASSIGN_OR_RETURN(VcpuFd fd, machine.CreateVcpu(id, kvm.vcpu_mmap_size()));
    TRY(fd.SetCpuid(VcpuCpuid(cpuid_, id, count, host_->tsc_deadline)));
    vcpus.push_back(std::make_unique<Vcpu>(id, std::move(fd), context));
  }
  return vcpus;
}

Status Vm::ConnectDevices() {
  TRY(WatchMemory());
  for (VirtioMmio* transport : {vsock_transport_.get(), rng_transport_.get()}) {
    for (uint16_t queue = 0; queue < transport->queue_count(); ++queue) {
      // Lifetime: Shutdown() removes the handler before the transport goes.
      TRY(loop_->Add(transport->notifier(queue),
                     [transport, queue] { transport->HandleNotify(queue); }));
    }
  }
  return Ok();
}

Status Vm::WatchMemory() {
  const FaultGuard* guard = memory_.guard();
  if (guard == nullptr) return Ok();
  return loop_->Add(guard->failure(), [this] { End(ExitReason::kIoError, GuestMemory::kFailed); });
}

Vm::~Vm() { Shutdown(); }

void Vm::Shutdown() {
  if (shut_down_) return;
  shut_down_ = true;
  RequestStop();
  for (const auto& vcpu : vcpus_) vcpu->Join();
  // Nobody has heard of a VM that was made ahead of need.
  if (loop_ == nullptr) return;
  // Tasks posted before run first, and none is posted after: the vCPUs are gone,
  // and the core has let go of this VM.
  loop_->PostAndWait([this] {
    if (memory_.guard() != nullptr) loop_->Remove(memory_.guard()->failure());
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
  if (memory_.HasFailed()) {
    // Whatever the guest did without its memory is not its fault.
    reason = ExitReason::kIoError;
    detail = GuestMemory::kFailed;
  }
  {
    std::lock_guard lock(park_mutex_);
    FailCall(ErrorCode::kExited, "the VM has stopped running");
    parked_.notify_all();
  }
  // On the device thread, behind a last look at the queues, so that what the
  // guest said before it ended is heard before its end is.
  loop_->Post([this, reason, detail = std::move(detail)]() mutable {
    for (int turn = 0; turn < kMaxFinalTurns; ++turn) {
      if (vsock_transport_->HandleNotify(VsockDevice::kTxQueue) == Turn::kIdle) break;
    }
    sink_->Deliver(VmExited{id_, reason, std::move(detail)});
  });
}

void Vm::EndOnFailure(const Status& status) {
  if (!status.ok()) End(ExitReason::kHostError, status.error().Message());
}

void Vm::OnDoorbellEvent(DoorbellEvent event) {
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
  return host_port == kControlPort && !control_dialled_.exchange(true);
}

void Vm::OnOpened(ConnectionId id, uint32_t port) {
  if (port == kControlPort) control_connection_.store(static_cast<uint64_t>(id));
  sink_->Deliver(ConnectionOpened{id_, static_cast<uint64_t>(id), port});
}

void Vm::OnData(ConnectionId id, std::vector<uint8_t> data) {
  // Read from memory that may have failed just before: then this is not what the
  // guest wrote.
  if (memory_.guard() != nullptr && memory_.guard()->failed()) return;
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
  auto control = static_cast<uint64_t>(id);
  control_connection_.compare_exchange_strong(control, 0);
  sink_->Deliver(ConnectionClosed{id_, static_cast<uint64_t>(id)});
}

void Vm::Send(uint64_t connection, Bytes data) {
  // Whoever the bytes are for has to run.
  YieldProgram();
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
  std::lock_guard lock(run_mutex_);
  VmStats stats = retired_;
  ASSIGN_OR_RETURN(stats.memory_allocated_bytes, memory_.AllocatedBytes());
  stats.console_bytes = console_bytes_.load(std::memory_order_relaxed);
  stats.vsock_bytes_to_guest = vsock_bytes_to_guest_.load(std::memory_order_relaxed);
  stats.vsock_bytes_from_guest = vsock_bytes_from_guest_.load(std::memory_order_relaxed);
  TRY(AddMachineStats(stats));
  return stats;
}

Status Vm::AddMachineStats(VmStats& stats) const {
  stats.vcpu_cpu_time_ns.resize(vcpus_.size());
  for (size_t id = 0; id < vcpus_.size(); ++id) {
    const Vcpu& vcpu = *vcpus_[id];
    stats.vcpu_cpu_time_ns[id] += vcpu.CpuTimeNs();
    stats.completed_instructions += vcpu.completed_instructions();
    vcpu.AddExits(stats.exits);
  }
  // KVM's own statistics came with Linux 5.14; a host without them has the rest.
  auto vm_stats = fd_.OpenStats();
  if (!vm_stats.ok()) return Ok();
  TRY(AddStats(vm_stats.value(), stats.kvm));
  for (const auto& vcpu : vcpus_) {
    if (vcpu->stats()) TRY(AddStats(vcpu->stats(), stats.kvm));
  }
  return Ok();
}

}  // namespace forklet

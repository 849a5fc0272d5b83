#include "vm/vm_state_io.h"

#include <algorithm>
#include <cstdio>
#include <type_traits>

#include "arch/x86_64/mp_table.h"
#include "base/state_io.h"
#include "vm/messages.h"

namespace forklet {

namespace {

// The structs of KVM's own ABI, which never change, are kept as they are.
template <class T>
void WriteObject(StateWriter& out, const T& object) {
  static_assert(std::is_trivially_copyable_v<T>);
  out.WriteBytes({reinterpret_cast<const uint8_t*>(&object), sizeof object});
}
template <class T>
bool ReadObject(StateReader& in, T& object) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::vector<uint8_t> bytes;
  if (!in.ReadBytes(bytes, sizeof object) || bytes.size() != sizeof object) return false;
  std::memcpy(&object, bytes.data(), sizeof object);
  return true;
}

// More than any CPU's state: AMX has 11 KiB.
constexpr size_t kMaxXsaveBytes = 1u << 20;
constexpr size_t kMaxMsrs = 4096;
constexpr size_t kMsrBytes = 4 + 8;
constexpr size_t kCpuBytes = sizeof(kvm_regs) + sizeof(kvm_sregs) + sizeof(kvm_lapic_state);

void WriteCpu(StateWriter& out, const CpuState& cpu) {
  WriteObject(out, cpu.mp_state);
  WriteObject(out, cpu.regs);
  WriteObject(out, cpu.sregs);
  out.WriteBytes(cpu.xsave);
  WriteObject(out, cpu.xcrs);
  WriteObject(out, cpu.debug);
  WriteObject(out, cpu.lapic);
  out.WriteCount(cpu.msrs.size());
  for (const kvm_msr_entry& msr : cpu.msrs) {
    out.Write(uint32_t{msr.index});
    out.Write(uint64_t{msr.data});
  }
  out.Write(cpu.tsc);
  out.Write(cpu.tsc_deadline);
  WriteObject(out, cpu.events);
}

bool ReadCpu(StateReader& in, CpuState& cpu) {
  size_t msrs = 0;
  if (!ReadObject(in, cpu.mp_state) || !ReadObject(in, cpu.regs) || !ReadObject(in, cpu.sregs) ||
      !in.ReadBytes(cpu.xsave, kMaxXsaveBytes) || !ReadObject(in, cpu.xcrs) ||
      !ReadObject(in, cpu.debug) || !ReadObject(in, cpu.lapic) ||
      !in.ReadCount(msrs, kMsrBytes, kMaxMsrs)) {
    return false;
  }
  for (size_t i = 0; i < msrs; ++i) {
    uint32_t index = 0;
    uint64_t data = 0;
    if (!in.Read(index) || !in.Read(data)) return false;
    kvm_msr_entry entry = {};
    entry.index = index;
    entry.data = data;
    cpu.msrs.push_back(entry);
  }
  return in.Read(cpu.tsc) && in.Read(cpu.tsc_deadline) && ReadObject(in, cpu.events);
}

bool ReadAll(StateReader& in, VmState& state) {
  uint8_t place = 0;
  size_t cpus = 0;
  if (!in.Read(state.memory_bytes) || !in.Read(place) || place > 1 || !in.Read(state.parked_vcpu) ||
      !in.Read(state.control_connection) || !in.Read(state.emulated_supervisor) ||
      !in.Read(state.cpuid_unmasked) || !ReadObject(in, state.cpuid) ||
      !ReadObject(in, state.irqchip) || !in.ReadCount(cpus, kCpuBytes, kMaxVcpus)) {
    return false;
  }
  state.place = place == 0 ? ParkPlace::kAgent : ParkPlace::kProgram;
  state.cpus.resize(cpus);
  for (CpuState& cpu : state.cpus) {
    if (!ReadCpu(in, cpu)) return false;
  }
  return in.Finish();
}

Error Bad(std::string detail) { return Error{ErrorCode::kBadSnapshot, 0, {}, std::move(detail)}; }

// Leaves and registers whose bits are features, which a guest may rely on once
// it has seen them.
struct FeatureRegister {
  uint32_t function;
  uint32_t index;
  uint32_t kvm_cpuid_entry2::*value;
  const char* name;
};
constexpr FeatureRegister kFeatures[] = {
    {0x1, 0, &kvm_cpuid_entry2::ecx, "CPUID 1 ECX"},
    {0x1, 0, &kvm_cpuid_entry2::edx, "CPUID 1 EDX"},
    {0x7, 0, &kvm_cpuid_entry2::ebx, "CPUID 7.0 EBX"},
    {0x7, 0, &kvm_cpuid_entry2::ecx, "CPUID 7.0 ECX"},
    {0x7, 0, &kvm_cpuid_entry2::edx, "CPUID 7.0 EDX"},
    {0x7, 1, &kvm_cpuid_entry2::eax, "CPUID 7.1 EAX"},
    {0xd, 0, &kvm_cpuid_entry2::eax, "CPUID 0xd.0 EAX"},
    {0xd, 1, &kvm_cpuid_entry2::eax, "CPUID 0xd.1 EAX"},
    {0x80000001, 0, &kvm_cpuid_entry2::ecx, "CPUID 0x80000001 ECX"},
    {0x80000001, 0, &kvm_cpuid_entry2::edx, "CPUID 0x80000001 EDX"},
    {0x80000008, 0, &kvm_cpuid_entry2::ebx, "CPUID 0x80000008 EBX"},
};

uint32_t Features(const CpuidTable& table, const FeatureRegister& feature) {
  for (uint32_t i = 0; i < table.count; ++i) {
    const kvm_cpuid_entry2& entry = table.entries[i];
    if (entry.function == feature.function && entry.index == feature.index) {
      return entry.*feature.value;
    }
  }
  return 0;
}

Status CheckCpu(const VmState& state, const HostProfile& host) {
  if (state.emulated_supervisor != host.emulated_supervisor ||
      state.cpuid_unmasked != host.cpuid_unmasked) {
    return Bad("the snapshot was made on another kind of KVM: see `quirks` of doctor()");
  }
  for (const FeatureRegister& feature : kFeatures) {
    const uint32_t missing = Features(state.cpuid, feature) & ~Features(host.cpuid, feature);
    if (missing == 0) continue;
    char text[96];
    std::snprintf(text, sizeof text, "this host's CPU lacks features that the guest uses: %s 0x%x",
                  feature.name, missing);
    return Bad(text);
  }
  for (const CpuState& cpu : state.cpus) {
    if (cpu.xsave.size() != host.xsave_bytes) {
      return Bad("the snapshot's CPU state has " + std::to_string(cpu.xsave.size()) +
                 " bytes of XSAVE state, and this host's " + std::to_string(host.xsave_bytes));
    }
    for (const kvm_msr_entry& msr : cpu.msrs) {
      if (std::find(host.msrs.begin(), host.msrs.end(), msr.index) != host.msrs.end()) continue;
      char text[64];
      std::snprintf(text, sizeof text, "this host's KVM does not restore MSR 0x%x", msr.index);
      return Bad(text);
    }
  }
  return Ok();
}

}  // namespace

std::vector<uint8_t> WriteVmState(const VmState& state) {
  StateWriter out;
  out.Write(state.memory_bytes);
  out.Write(static_cast<uint8_t>(state.place));
  out.Write(state.parked_vcpu);
  out.Write(state.control_connection);
  out.Write(state.emulated_supervisor);
  out.Write(state.cpuid_unmasked);
  WriteObject(out, state.cpuid);
  WriteObject(out, state.irqchip);
  out.WriteCount(state.cpus.size());
  for (const CpuState& cpu : state.cpus) WriteCpu(out, cpu);
  return std::move(out).Take();
}

Result<VmState> ReadVmState(std::span<const uint8_t> bytes, const HostProfile& host) {
  StateReader in(bytes);
  VmState state;
  if (!ReadAll(in, state)) return Bad("the machine's state is malformed");
  if (!IsBootable(state.memory_bytes, state.cpus.size()) ||
      state.parked_vcpu >= state.cpus.size() || state.cpuid.count > CpuidTable::kCapacity) {
    return Bad("the machine's state is out of range");
  }
  for (uint32_t chip = 0; chip < state.irqchip.chips.size(); ++chip) {
    if (state.irqchip.chips[chip].chip_id != chip) {
      return Bad("the interrupt controllers' state is out of order");
    }
  }
  TRY(CheckCpu(state, host));
  return state;
}

}  // namespace forklet

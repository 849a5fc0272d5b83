#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "arch/x86_64/cpu_state.h"
#include "devices/doorbell.h"
#include "memory/memory_image.h"
#include "snapshot/device_state.h"

namespace forklet {

// Everything that a frozen VM is. Immutable once made; what comes from a file is
// checked where it is restored.
struct VmState {
  uint64_t memory_bytes = 0;
  ParkPlace place = ParkPlace::kAgent;  // Where it stands
  uint32_t parked_vcpu = 0;             // Who stands there
  uint64_t control_connection = 0;      // To the agent; 0: none
  // The host that it was frozen on: what its vCPUs were given, and the quirks that
  // its kernel was booted around.
  CpuidTable cpuid;
  bool emulated_supervisor = false;
  bool cpuid_unmasked = false;
  IrqchipState irqchip;
  std::vector<CpuState> cpus;  // One a vCPU
  DevicesState devices;
  std::shared_ptr<const MemoryImage> memory;
};

}  // namespace forklet

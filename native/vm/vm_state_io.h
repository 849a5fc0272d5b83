#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "arch/x86_64/host_profile.h"
#include "base/result.h"
#include "vm/vm_state.h"

namespace forklet {

// A frozen VM but for its memory and devices, as bytes. What they are kept in has
// a version and a checksum: see docs/snapshot-format.md.
std::vector<uint8_t> WriteVmState(const VmState& state);

// The same back, for a host of this profile. The bytes may
// come from anybody: kBadSnapshot when they do not hold a VM, or one that this
// host cannot run, naming what it lacks. What KVM is given of it, it checks
// itself.
Result<VmState> ReadVmState(std::span<const uint8_t> bytes, const HostProfile& host);

}  // namespace forklet

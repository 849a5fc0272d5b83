#pragma once

#include <cstdint>

#include "kvm/uapi.h"

namespace forklet {

// Turns what KVM supports into what vCPU `id` of `vcpus` sees: its own APIC id,
// one package with one thread a core; no counters, which KVM would have to share
// with the host; and no virtualization of its own, whose state a snapshot would
// lack and whose handling in KVM a guest need not reach.
CpuidTable VcpuCpuid(const CpuidTable& supported, uint32_t id, uint32_t vcpus, bool tsc_deadline);

// The components that XCR0 may have, or 0 when there is no XSAVE.
uint64_t SupportedXcr0(const CpuidTable& supported);

}  // namespace forklet

// <linux/kvm.h>, made safe for C++.
//
// Some releases of the header declare flexible arrays through a macro that puts
// an empty struct in front of them. An empty struct has no size in C and one
// byte in C++, which shifts the array and changes the request numbers that are
// computed from the sizes. The affected structs are therefore declared here,
// with room for their entries, and the affected requests by their number.
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>

namespace forklet {

// struct kvm_cpuid2 with room. 256 is KVM_MAX_CPUID_ENTRIES of the kernel.
struct CpuidTable {
  static constexpr uint32_t kCapacity = 256;
  uint32_t count = kCapacity;
  uint32_t padding = 0;
  kvm_cpuid_entry2 entries[kCapacity] = {};
};
static_assert(offsetof(CpuidTable, entries) == 8);
static_assert(sizeof(kvm_cpuid_entry2) == 40);

// struct kvm_msrs with room for what a boot sets.
template <uint32_t kCapacity>
struct MsrTable {
  uint32_t count = 0;
  uint32_t padding = 0;
  kvm_msr_entry entries[kCapacity] = {};
};
static_assert(offsetof(MsrTable<1>, entries) == 8);
static_assert(sizeof(kvm_msr_entry) == 16);

// struct kvm_msr_list with room: KVM lists some hundred MSRs.
struct MsrIndexTable {
  static constexpr uint32_t kCapacity = 1024;
  uint32_t count = 0;
  uint32_t indices[kCapacity] = {};
};
static_assert(offsetof(MsrIndexTable, indices) == 4);

// The largest state that KVM_GET_XSAVE2 can hand out is a few KiB (AMX: 8 KiB
// of tiles); KVM_CHECK_EXTENSION(KVM_CAP_XSAVE2) tells, and is checked.
inline constexpr size_t kLegacyXsaveBytes = 4096;

// Header sizes as in C: 8 bytes, whatever the entries.
inline constexpr unsigned long kGetSupportedCpuid = _IOWR(KVMIO, 0x05, uint64_t);
inline constexpr unsigned long kGetMsrIndexList = _IOWR(KVMIO, 0x02, uint32_t);
inline constexpr unsigned long kSetCpuid2 = _IOW(KVMIO, 0x90, uint64_t);
inline constexpr unsigned long kGetMsrs = _IOWR(KVMIO, 0x88, uint64_t);
inline constexpr unsigned long kSetMsrs = _IOW(KVMIO, 0x89, uint64_t);
inline constexpr unsigned long kGetXsave = _IOR(KVMIO, 0xa4, uint8_t[kLegacyXsaveBytes]);
inline constexpr unsigned long kSetXsave = _IOW(KVMIO, 0xa5, uint8_t[kLegacyXsaveBytes]);
inline constexpr unsigned long kGetXsave2 = _IOR(KVMIO, 0xcf, uint8_t[kLegacyXsaveBytes]);

// struct kvm_signal_mask with the kernel's set of 64 signals.
struct SignalMask {
  uint32_t bytes = sizeof(uint64_t);
  uint8_t blocked[sizeof(uint64_t)] = {};
};
static_assert(sizeof(SignalMask) == 12);
inline constexpr unsigned long kSetSignalMask = _IOW(KVMIO, 0x8b, uint32_t);
static_assert(kSetSignalMask == 0x4004ae8b);

// What the rest of the code takes from the header, held to the kernel's ABI.
static_assert(sizeof(kvm_regs) == 144);
static_assert(sizeof(kvm_sregs) == 312);
static_assert(sizeof(kvm_fpu) == 416);
static_assert(sizeof(kvm_xcrs) == 392);
static_assert(sizeof(kvm_vcpu_events) == 64);
static_assert(sizeof(kvm_debugregs) == 128);
static_assert(sizeof(kvm_lapic_state) == 1024);
static_assert(sizeof(kvm_userspace_memory_region) == 32);
static_assert(sizeof(kvm_mp_state) == 4);
static_assert(sizeof(kvm_irqchip) == 520);
static_assert(sizeof(kvm_clock_data) == 48);
static_assert(sizeof(kvm_irqfd) == 32);
static_assert(sizeof(kvm_ioeventfd) == 64);
static_assert(KVM_CREATE_VM == 0xae01);
static_assert(KVM_RUN == 0xae80);
static_assert(KVM_SET_USER_MEMORY_REGION == 0x4020ae46);
static_assert(kGetSupportedCpuid == 0xc008ae05);
static_assert(kGetMsrIndexList == 0xc004ae02);
static_assert(kSetCpuid2 == 0x4008ae90);
static_assert(kSetMsrs == 0x4008ae89);
static_assert(kGetXsave == 0x9000aea4);
static_assert(kSetXsave == 0x5000aea5);

}  // namespace forklet

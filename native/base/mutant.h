// Deliberate defects: scripts/svm-mutants.sh builds the core with one at a time
// and shows that the tests notice. Its build alone (CMake's FORKLET_MUTANT, which
// binding.gyp does not know) defines one; in every other kMutant is the constant
// kNone, and no defect is in the program.
//
// A new defect is an enumerator here and an `if (kMutant == ...)` where it belongs,
// in a .cc file: this header in another would give two files different constants.
#pragma once

#include <cstdint>

namespace forklet {

enum class Mutant : uint8_t {
  kNone,
  kSharedApicId,     // CPUID says APIC id 0 on every vCPU
  kNoTopology,       // CPUID leaves the number of cores out
  kNoBootMsrs,       // Memory types and string instructions stay as after a reset
  kNoLocalPins,      // The local APIC's LINT pins stay masked
  kNoXcr0,           // The quirk xsetbv-unseen is found, and nothing done about it
  kOneProcessor,     // The MP table lists the boot processor alone
  kShortUsedLength,  // Devices say that they wrote a byte less than they did
  kLostInterrupt,    // One virtio interrupt in sixteen is not raised
  kForkMissingMsr,   // A fork does not get the address of its kernel's system calls
  kForkNoLocalApic,  // A fork's local APIC stays as after a reset
  kForkNoIrqchip,    // A fork's PICs and IOAPIC stay as after a reset
};

#ifdef FORKLET_MUTANT
inline constexpr Mutant kMutant = Mutant::FORKLET_MUTANT;
#else
inline constexpr Mutant kMutant = Mutant::kNone;
#endif

}  // namespace forklet

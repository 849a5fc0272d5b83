/*
 * Reads a snapshot that forklet has saved, by what docs/snapshot-format.md says
 * of it and nothing else: none of this is shared with native/, so that it checks
 * the format as well. Only VMs with one vCPU.
 */
#pragma once

#include <linux/kvm.h>
#include <stdint.h>

#define MAX_REGIONS 16
#define MAX_CPUID_ENTRIES 256
#define IRQCHIPS 3

/* A part of guest memory, and where it is in the memory file. */
struct region {
  uint64_t start; /* Guest-physical address */
  uint64_t bytes;
  uint64_t file_offset;
};

struct snapshot {
  int memory; /* Descriptor of the memory file */
  uint64_t memory_bytes;
  uint32_t regions_used;
  struct region regions[MAX_REGIONS];

  struct kvm_cpuid2* cpuid;
  struct kvm_irqchip irqchips[IRQCHIPS];
  uint64_t clock_ns;
  struct kvm_mp_state mp_state;
  struct kvm_regs regs;
  struct kvm_sregs sregs;
  struct kvm_xsave* xsave; /* As large as it was saved, 4 KiB at least */
  struct kvm_xcrs xcrs;
  struct kvm_debugregs debugregs;
  struct kvm_lapic_state lapic;
  struct kvm_msrs* msrs;
  uint64_t tsc;          /* IA32_TSC when it was frozen */
  uint64_t tsc_deadline; /* 0: not armed */
  struct kvm_vcpu_events events;
};

/* Ends the program with a message when the directory is not a whole snapshot. */
void snapshot_read(struct snapshot* snapshot, const char* directory);

/* Prints "restore: ..." and ends the program. */
_Noreturn void die(const char* format, ...) __attribute__((format(printf, 1, 2)));

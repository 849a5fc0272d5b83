#include "arch/x86_64/command_line.h"

#include <cstdio>

#include "arch/x86_64/layout.h"

namespace forklet {

namespace {

// Every guest:
//   console          the serial port; quiet, since each byte costs a VM exit
//   reboot=t panic   a restart or a panic becomes a triple fault at once, should
//                    the doorbell not have ended the VM before
//   clocksource      the only clock that stays right across a fork
//   nokaslr          the kernel is loaded where its ELF says
//   noreplace-smp    LOCK prefixes stay, rather than being patched in and out
//   rdinit           our agent, in whatever root the caller gave
constexpr char kBase[] =
    "console=ttyS0 quiet reboot=t panic=-1 clocksource=kvm-clock nokaslr noreplace-smp "
    "rdinit=/.forklet/agent";

// cpuid-unmasked: what a guest kernel must not use although it sees it. The
// XSAVE family stays, in its plain form, which the run loop can complete; the
// others are instructions that the emulator lacks, or (erms, fsrm) string
// instructions that it executes a byte at a time.
constexpr char kUnmaskedCpuid[] =
    " clearcpuid=xsavec,xsaves,xsaveopt,popcnt,cx16,smap,fsgsbase,erms,fsrm";

// emulated-supervisor: what costs instructions and gives nothing where the
// guest's kernel never runs on the processor. A tick every tenth period keeps
// the ticks, which follow the host's time, from eating the guest's, which does
// not. Messages below a warning are not recorded, and the thunks of mitigations
// stay in place unused (patches of our kernel; others ignore these three).
constexpr char kEmulatedSupervisor[] =
    " tick_stretch=10 log_limit=5 rodata=off mitigations=off noreplace-thunks";

}  // namespace

Result<std::string> ComposeCommandLine(const HostProfile& host, uint32_t virtio_devices,
                                       const std::string& extra) {
  std::string line = kBase;
  char text[128];
  std::snprintf(text, sizeof text,
                " forklet.doorbell=0x%llx forklet.mailbox=0x%llx forklet.exchange=0x%llx"
                " forklet.irq=%u",
                static_cast<unsigned long long>(layout::kDoorbell.value),
                static_cast<unsigned long long>(layout::kMailbox.value),
                static_cast<unsigned long long>(layout::kExchange.value), layout::kDoorbellGsi);
  line += text;
  for (uint32_t i = 0; i < virtio_devices; ++i) {
    const GuestAddress address = layout::kVirtioMmio + i * layout::kPageSize;
    std::snprintf(text, sizeof text, " virtio_mmio.device=4K@0x%llx:%u",
                  static_cast<unsigned long long>(address.value), layout::kVirtioGsi + i);
    line += text;
  }
  if (host.cpuid_unmasked) line += kUnmaskedCpuid;
  if (host.emulated_supervisor) line += kEmulatedSupervisor;
  if (!extra.empty()) line += " " + extra;
  if (line.size() >= layout::kCommandLineBytes) {
    return Error{ErrorCode::kBadKernel,
                 0,
                 {},
                 "the kernel's command line has " + std::to_string(line.size()) +
                     " bytes, and room for " + std::to_string(layout::kCommandLineBytes - 1) +
                     ": shorten `kernelArgs`"};
  }
  return line;
}

}  // namespace forklet

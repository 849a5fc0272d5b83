#include "completion_fixture.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "arch/x86_64/completion/xsave_area.h"
#include "arch/x86_64/layout.h"
#include "doctest.h"

namespace forklet::test {
namespace {

// Everything that the code under test may change; the assembly below knows the
// offsets.
struct Job {
  uint64_t gpr[16];   // 0
  uint64_t rflags;    // 128
  const void* code;   // 136
  void* state;        // 144: XSAVE area to load and store, or nullptr
  void* host_state;   // 152: XSAVE area for the host's own
  uint64_t host_rsp;  // 160
};

extern "C" {
Job* forklet_test_job;
void forklet_test_run();
}

// Loads registers and flags from the job, calls its code, and stores them. RSP
// stays the host's.
asm(R"(
  .text
  .globl forklet_test_run
forklet_test_run:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  mov forklet_test_job(%rip), %rdi
  mov %rsp, 160(%rdi)
  mov 144(%rdi), %rbx
  test %rbx, %rbx
  jz 1f
  mov $-1, %eax
  mov $-1, %edx
  mov 152(%rdi), %rcx
  xsave64 (%rcx)
  xrstor64 (%rbx)
1:
  push 128(%rdi)
  popfq
  mov 0(%rdi), %rax
  mov 8(%rdi), %rcx
  mov 16(%rdi), %rdx
  mov 24(%rdi), %rbx
  mov 40(%rdi), %rbp
  mov 48(%rdi), %rsi
  mov 64(%rdi), %r8
  mov 72(%rdi), %r9
  mov 80(%rdi), %r10
  mov 88(%rdi), %r11
  mov 96(%rdi), %r12
  mov 104(%rdi), %r13
  mov 112(%rdi), %r14
  mov 120(%rdi), %r15
  push 136(%rdi)
  mov 56(%rdi), %rdi
  call *(%rsp)
  lea 8(%rsp), %rsp
  push %rdi
  mov forklet_test_job(%rip), %rdi
  pop 56(%rdi)
  pushfq
  pop 128(%rdi)
  cld
  mov %rax, 0(%rdi)
  mov %rcx, 8(%rdi)
  mov %rdx, 16(%rdi)
  mov %rbx, 24(%rdi)
  mov %rbp, 40(%rdi)
  mov %rsi, 48(%rdi)
  mov %r8, 64(%rdi)
  mov %r9, 72(%rdi)
  mov %r10, 80(%rdi)
  mov %r11, 88(%rdi)
  mov %r12, 96(%rdi)
  mov %r13, 104(%rdi)
  mov %r14, 112(%rdi)
  mov %r15, 120(%rdi)
  mov 144(%rdi), %rbx
  test %rbx, %rbx
  jz 2f
  mov $-1, %eax
  mov $-1, %edx
  mov 152(%rdi), %rcx
  xsave64 (%rbx)
  xrstor64 (%rcx)
2:
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret
)");

sigjmp_buf after_fault;

void OnFault(int) { siglongjmp(after_fault, 1); }

// False when the code raised a signal; its registers are lost then.
bool RunJob(Job& job) {
  forklet_test_job = &job;
  struct sigaction action = {}, old[4];
  action.sa_handler = OnFault;
  constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
  for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &action, &old[i]);
  volatile bool ran = false;
  if (sigsetjmp(after_fault, 1) == 0) {
    forklet_test_run();
    ran = true;
  }
  for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &old[i], nullptr);
  return ran;
}

uint64_t Xgetbv() {
  uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

struct alignas(64) XsaveBuffer {
  uint8_t bytes[16384];
};

uint32_t HostMxcsrMask() {
  XsaveBuffer buffer = {};
  asm volatile("fxsave64 %0" : "+m"(buffer));
  uint32_t mask;
  std::memcpy(&mask, buffer.bytes + kXsaveMxcsrMask, sizeof mask);
  return mask;
}

GuestMemory CreateMemory() {
  auto memory = GuestMemory::Create(uint64_t{8} << 20);
  REQUIRE(memory.ok());
  return std::move(memory).value();
}

}  // namespace

uint64_t HostXcr0() { return Xgetbv(); }

std::vector<uint8_t> RandomXsave(uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> bytes(4096);
  XsaveArea area(bytes);
  const auto fill = [&](std::span<uint8_t> part) {
    for (uint8_t& byte : part) byte = static_cast<uint8_t>(random());
  };
  fill(area.Bytes(kXsaveSt, kXsaveStBytes));
  for (uint64_t st = kXsaveSt; st < kXsaveXmm; st += 16) {
    std::fill_n(bytes.begin() + static_cast<long>(st) + 10, 6, 0);  // ST has 80 bits
  }
  fill(area.Bytes(kXsaveXmm, kXsaveXmmBytes));
  bytes[0] = 0x7f, bytes[1] = 0x02;  // FCW
  bytes[4] = 0xff;                   // All of ST valid
  const uint32_t mxcsr[] = {0x1fa0, HostMxcsrMask()};
  std::memcpy(bytes.data() + kXsaveMxcsr, mxcsr, sizeof mxcsr);
  uint64_t in_use = kXstateX87 | kXstateSse;
  // PKRU stays: it decides what this very process can access.
  ForEachExtended(HostXcr0() & ~(uint64_t{1} << kXstatePkruBit), [&](unsigned bit) {
    if (bit != 2 && (bit < 5 || bit > 7)) return true;  // AVX and AVX-512
    fill(area.Component(bit));
    in_use |= uint64_t{1} << bit;
    return true;
  });
  area.set_xstate_bv(in_use);
  return bytes;
}

FakeCpu::FakeCpu() : xcr0(HostXcr0()), xsave(RandomXsave(1)) {
  registers.rflags = 2;
  control.cr0 = x86::kCr0Pg | x86::kCr0Wp | 0x33;
  control.cr4 = x86::kCr4Osfxsr | x86::kCr4Osxsave | 0x20;
  control.efer = x86::kEferLma | x86::kEferNxe | 0x101;
  control.code64 = true;
}

Status FakeCpu::SetRegisters(const CpuRegisters& value) {
  if (fail) return Error{ErrorCode::kKvm, 5, "KVM_SET_REGS", {}};
  registers = value;
  return Ok();
}

Result<uint64_t> FakeCpu::GetMsr(uint32_t index) { return index == x86::kMsrTsc ? tsc : tsc_aux; }

Result<std::span<uint8_t>> FakeCpu::GetXsave() {
  handed_out_ = xsave;
  return std::span<uint8_t>(handed_out_);
}

Status FakeCpu::SetXsave() {
  if (fail) return Error{ErrorCode::kKvm, 5, "KVM_SET_XSAVE", {}};
  xsave = handed_out_;
  return Ok();
}

Status FakeCpu::Inject(const GuestException& value) {
  if (fail) return Error{ErrorCode::kKvm, 5, "KVM_SET_VCPU_EVENTS", {}};
  injected = value;
  return Ok();
}

GuestSpace::GuestSpace() : memory_(CreateMemory()) {}

GuestAddress GuestSpace::NewPage() {
  const GuestAddress page{next_page_};
  next_page_ += layout::kPageSize;
  REQUIRE(memory_.Range(page, layout::kPageSize) != nullptr);
  return page;
}

uint64_t& GuestSpace::Entry(uint64_t address, int level) {
  GuestAddress table = root();
  for (int current = 4;; --current) {
    const uint64_t index = (address >> (12 + 9 * (current - 1))) & 511;
    auto* entry = reinterpret_cast<uint64_t*>(memory_.Range(table + index * 8, 8));
    if (current == level) return *entry;
    if (*entry == 0) {
      *entry = next_table_ | kPresent | kWritable | kUser;
      next_table_ += layout::kPageSize;
      REQUIRE(next_table_ <= 0x100000);
    }
    table = GuestAddress{*entry & 0x000ffffffffff000};
  }
}

void GuestSpace::Map(uint64_t address, GuestAddress page, uint64_t flags) {
  Entry(address) = page.value | flags;
}

void GuestSpace::Place(uint64_t address, std::span<const uint8_t> bytes, uint64_t flags) {
  for (size_t done = 0; done < bytes.size(); done += layout::kPageSize) {
    // Placed again, a range keeps its pages.
    uint64_t& entry = Entry(address + done);
    const GuestAddress page = entry == 0 ? NewPage() : GuestAddress{entry & 0x000ffffffffff000};
    entry = page.value | flags;
    const size_t count = std::min<size_t>(layout::kPageSize, bytes.size() - done);
    REQUIRE(memory_.Write(page, bytes.subspan(done, count)));
  }
}

std::vector<uint8_t> GuestSpace::Read(uint64_t address, size_t size) {
  std::vector<uint8_t> bytes(size);
  for (size_t done = 0; done < size;) {
    const uint64_t in_page = (address + done) % layout::kPageSize;
    const size_t count = std::min<size_t>(layout::kPageSize - in_page, size - done);
    const GuestAddress page{Entry(address + done) & 0x000ffffffffff000};
    REQUIRE(memory_.Read(page + in_page, {bytes.data() + done, count}));
    done += count;
  }
  return bytes;
}

SharedRange::SharedRange(size_t bytes) {
  auto mapping = Mapping::Create(UniqueFd(), bytes, PROT_READ | PROT_WRITE | PROT_EXEC,
                                 MAP_PRIVATE | MAP_ANONYMOUS, 0);
  REQUIRE(mapping.ok());
  mapping_ = std::move(mapping).value();
}

void SharedRange::Publish(GuestSpace& space, uint64_t flags) {
  space.Place(address(), {data(), size()}, flags);
}

Bench::Bench() {
  cpu.control.cr3 = space.root().value;
  code.Publish(space);
  data.Publish(space);
}

void Bench::SetCode(std::span<const uint8_t> bytes, size_t offset) {
  REQUIRE(offset + bytes.size() < code.size());
  constexpr uint8_t kRet = 0xc3;
  std::fill_n(code.data(), code.size(), kRet);
  std::copy(bytes.begin(), bytes.end(), code.data() + offset);
  code.Publish(space);
  cpu.registers.rip = code.address() + offset;
}

Completion Bench::Complete() {
  auto result = CompleteInstruction(cpu, space.memory(), {});
  REQUIRE(result.ok());
  return std::move(result).value();
}

bool Bench::RunNatively(CpuRegisters& registers, std::vector<uint8_t>* xsave) {
  static XsaveBuffer state, host_state;
  Job job = {};
  std::copy(registers.gpr.begin(), registers.gpr.end(), job.gpr);
  job.rflags = registers.rflags;
  job.code = reinterpret_cast<const void*>(registers.rip);
  if (xsave != nullptr) {
    std::memset(&state, 0, sizeof state);
    std::memcpy(&state, xsave->data(), xsave->size());
    job.state = &state;
    job.host_state = &host_state;
  }
  if (!RunJob(job)) return false;
  const uint64_t rsp = registers.gpr[kRsp];
  std::copy(std::begin(job.gpr), std::end(job.gpr), registers.gpr.begin());
  registers.gpr[kRsp] = rsp;
  registers.rflags = job.rflags;
  if (xsave != nullptr) std::memcpy(xsave->data(), &state, xsave->size());
  return true;
}

bool HostXsaveIsExact() {
  static const bool exact = [] {
    Bench bench;
    bench.SetCode(std::vector<uint8_t>{0x48, 0x0f, 0xae, 0x23});  // xsave64 [rbx]
    CpuRegisters registers = bench.cpu.registers;
    registers.gpr[kRax] = kXstateX87 | kXstateSse;
    registers.gpr[kRbx] = bench.data.address();
    std::vector<uint8_t> initial(4096);
    XsaveArea(initial).set_mxcsr(kMxcsrInit);
    REQUIRE(bench.RunNatively(registers, &initial));
    const XsaveArea stored(std::span<uint8_t>(bench.data.data(), 4096));
    return (stored.xstate_bv() & (kXstateX87 | kXstateSse)) == 0;
  }();
  if (!exact) MESSAGE("not run: the processor under this process does not follow the manual");
  return exact;
}

}  // namespace forklet::test

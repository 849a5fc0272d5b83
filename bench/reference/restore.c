/*
 * The reference that forklet's benches compare themselves with: restores a
 * snapshot the way that published systems do, with nothing made ahead. For each
 * VM, inside the timed span:
 *
 *   KVM_CREATE_VM, mmap(MAP_PRIVATE) of the memory, memslots, KVM_CREATE_IRQCHIP,
 *   KVM_CREATE_VCPU and its kvm_run, KVM_SET_CPUID2; then the state: interrupt
 *   controllers, registers, special registers, XSAVE, XCRS, debug registers, local
 *   APIC, MSRs, events.
 *
 * That is all a VM needs to be entered. What it would also need to be of use
 * (devices, notifications, threads) is left out: the reference is as fast as this
 * sequence can be. With --first-store it then sets the guest's clocks, puts a
 * request into the exchange and runs the guest until the program at its park has
 * answered, which it does after having stored to its memory.
 *
 * Times are CLOCK_MONOTONIC. Teardown is outside the timed span.
 *
 *   restore DIRECTORY [option...]
 *     --count N        timed restores, one after the other (100)
 *     --warm-up N      restores before these (5)
 *     --alive K        keep K - 1 VMs alive meanwhile (1)
 *     --first-store N  run each until its program has stored to N pages
 *     --memory memfd   map a copy of the memory in a memfd (the default)
 *     --memory file    map the file of the snapshot
 *
 * The result is one line of JSON on standard output.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../../guest/agent/exchange.h"
#include "snapshot.h"

/* Guest-physical: see docs/guest-protocol.md. */
#define EXCHANGE 0x8f000u
#define PARK_PROGRAM 0xd0000010u
#define TSS 0xfffbd000u

#define MSR_TSC 0x10u
#define MSR_TSC_DEADLINE 0x6e0u

struct options {
  const char* directory;
  long count;
  long warm_up;
  long alive;
  long pages; /* -1: the guest is not run */
  bool memfd;
};

struct machine {
  int vm;
  int vcpu;
  struct kvm_run* run;
  uint8_t* memory;
};

static int kvm;
static size_t run_bytes;
static struct snapshot frozen;

static uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int request(int fd, unsigned long number, const char* name, uintptr_t argument) {
  const int result = ioctl(fd, number, argument);
  if (result < 0) die("%s: %s", name, strerror(errno));
  return result;
}
#define REQUEST(fd, number, argument) request(fd, number, #number, (uintptr_t)(argument))

static void set_msrs(int vcpu, const struct kvm_msrs* msrs) {
  /* KVM stops at the first one that it refuses, and reports no error. */
  if (REQUEST(vcpu, KVM_SET_MSRS, msrs) != (int)msrs->nmsrs) die("KVM_SET_MSRS: refused");
}

static int create_vm(void) {
  for (int attempt = 1;; attempt++) {
    const int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm >= 0) return vm;
    /* May fail with EINTR under load; nothing is left of such an attempt. */
    if (errno != EINTR || attempt == 5) die("KVM_CREATE_VM: %s", strerror(errno));
  }
}

/* Order: slots before irqchip and vCPU, with which each would wait for a grace
 * period; special registers before the local APIC, and that before the MSRs. */
static void restore(struct machine* machine) {
  machine->vm = create_vm();
  REQUEST(machine->vm, KVM_SET_TSS_ADDR, TSS);
  machine->memory = mmap(NULL, frozen.memory_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_NORESERVE, frozen.memory, 0);
  if (machine->memory == MAP_FAILED) die("mmap: %s", strerror(errno));
  for (uint32_t slot = 0; slot < frozen.regions_used; slot++) {
    const struct region* region = &frozen.regions[slot];
    const struct kvm_userspace_memory_region memslot = {
        .slot = slot,
        .guest_phys_addr = region->start,
        .memory_size = region->bytes,
        .userspace_addr = (uintptr_t)(machine->memory + region->file_offset),
    };
    REQUEST(machine->vm, KVM_SET_USER_MEMORY_REGION, &memslot);
  }
  REQUEST(machine->vm, KVM_CREATE_IRQCHIP, 0);
  machine->vcpu = REQUEST(machine->vm, KVM_CREATE_VCPU, 0);
  machine->run = mmap(NULL, run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, machine->vcpu, 0);
  if (machine->run == MAP_FAILED) die("mmap of kvm_run: %s", strerror(errno));
  REQUEST(machine->vcpu, KVM_SET_CPUID2, frozen.cpuid);

  for (int i = 0; i < IRQCHIPS; i++) REQUEST(machine->vm, KVM_SET_IRQCHIP, &frozen.irqchips[i]);
  REQUEST(machine->vcpu, KVM_SET_REGS, &frozen.regs);
  REQUEST(machine->vcpu, KVM_SET_SREGS, &frozen.sregs);
  REQUEST(machine->vcpu, KVM_SET_XSAVE, frozen.xsave);
  REQUEST(machine->vcpu, KVM_SET_XCRS, &frozen.xcrs);
  REQUEST(machine->vcpu, KVM_SET_DEBUGREGS, &frozen.debugregs);
  REQUEST(machine->vcpu, KVM_SET_LAPIC, &frozen.lapic);
  set_msrs(machine->vcpu, frozen.msrs);
  REQUEST(machine->vcpu, KVM_SET_VCPU_EVENTS, &frozen.events);
}

static void close_machine(struct machine* machine) {
  munmap(machine->run, run_bytes);
  close(machine->vcpu);
  close(machine->vm);
  munmap(machine->memory, frozen.memory_bytes);
}

static void set_msr(int vcpu, uint32_t index, uint64_t value) {
  struct {
    struct kvm_msrs table;
    struct kvm_msr_entry entry;
  } msr = {.table.nmsrs = 1, .entry = {.index = index, .data = value}};
  set_msrs(vcpu, &msr.table);
}

static uint64_t get_tsc(int vcpu) {
  struct {
    struct kvm_msrs table;
    struct kvm_msr_entry entry;
  } msr = {.table.nmsrs = 1, .entry.index = MSR_TSC};
  if (REQUEST(vcpu, KVM_GET_MSRS, &msr) != 1) die("KVM_GET_MSRS: the TSC cannot be read");
  return msr.entry.data;
}

/* Guest time starts now: timers are as far ahead as when it was frozen. */
static void start_time(const struct machine* machine) {
  const struct kvm_clock_data clock = {.clock = frozen.clock_ns};
  REQUEST(machine->vm, KVM_SET_CLOCK, &clock);
  set_msr(machine->vcpu, MSR_TSC, frozen.tsc);
  if (frozen.tsc_deadline == 0) return;
  const int64_t ahead = (int64_t)(frozen.tsc_deadline - frozen.tsc);
  set_msr(machine->vcpu, MSR_TSC_DEADLINE,
          get_tsc(machine->vcpu) + (ahead > 0 ? (uint64_t)ahead : 0));
}

/* Where a guest-physical address is in the mapping; it lies in the first region. */
static void* guest(const struct machine* machine, uint64_t address) {
  return machine->memory + frozen.regions[0].file_offset + (address - frozen.regions[0].start);
}

static void run_to_answer(const struct machine* machine, uint32_t pages) {
  struct fk_exchange* exchange = guest(machine, EXCHANGE);
  exchange->version = FK_EXCHANGE_VERSION;
  exchange->state = FK_EXCHANGE_REQUEST;
  exchange->input_bytes = sizeof pages;
  exchange->output_bytes = 0;
  exchange->error = 0;
  exchange->sequence = 1;
  memcpy(exchange->data, &pages, sizeof pages);
  start_time(machine);
  while (ioctl(machine->vcpu, KVM_RUN, 0) != 0) {
    if (errno != EINTR && errno != EAGAIN) die("KVM_RUN: %s", strerror(errno));
  }
  const struct kvm_run* run = machine->run;
  if (run->exit_reason != KVM_EXIT_MMIO || run->mmio.is_write ||
      run->mmio.phys_addr != PARK_PROGRAM) {
    die("the guest stopped with exit %u, not at its program's park: was it frozen there?",
        run->exit_reason);
  }
}

static void check_answer(const struct machine* machine, uint32_t pages) {
  const struct fk_exchange* exchange = guest(machine, EXCHANGE);
  uint32_t answer;
  memcpy(&answer, exchange->data, sizeof answer);
  if (exchange->error != 0 || exchange->output_bytes != sizeof answer || answer != pages) {
    die("the guest's program gave another answer than the number of pages");
  }
}

/* The CPUID of a vCPU that is alone, from what the host can do at most. */
static void complete_cpuid(struct kvm_cpuid2* cpuid) {
  const bool deadline = REQUEST(kvm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) != 0;
  for (uint32_t i = 0; i < cpuid->nent; i++) {
    if (cpuid->entries[i].function != 1) continue;
    cpuid->entries[i].ecx |= 1u << 31 | (deadline ? 1u << 24 : 0); /* Hypervisor, deadline */
    cpuid->entries[i].ebx = (cpuid->entries[i].ebx & 0xffff) | 1u << 16;
    cpuid->entries[i].edx &= ~(1u << 28); /* One thread */
  }
}

/* A memfd with the same contents and the same holes. */
static int copy_to_memfd(int file, uint64_t bytes) {
  static uint8_t buffer[1 << 20];
  const int copy = memfd_create("reference", MFD_CLOEXEC);
  if (copy < 0 || ftruncate(copy, (off_t)bytes) != 0) die("memfd: %s", strerror(errno));
  for (off_t data = 0; (data = lseek(file, data, SEEK_DATA)) >= 0;) {
    const off_t end = lseek(file, data, SEEK_HOLE);
    while (data < end) {
      const size_t left = (size_t)(end - data);
      const ssize_t got = pread(file, buffer, left < sizeof buffer ? left : sizeof buffer, data);
      if (got <= 0 || pwrite(copy, buffer, (size_t)got, data) != got) die("copying the memory");
      data += got;
    }
  }
  return copy;
}

/* A field of a /proc file, in bytes. */
static uint64_t proc_bytes(const char* path, const char* field) {
  char line[256];
  FILE* file = fopen(path, "re");
  if (file == NULL) die("%s: %s", path, strerror(errno));
  unsigned long long kilobytes = 0;
  while (fgets(line, sizeof line, file) != NULL) {
    if (strncmp(line, field, strlen(field)) == 0) {
      kilobytes = strtoull(line + strlen(field), NULL, 10);
    }
  }
  fclose(file);
  return kilobytes * 1024;
}

static void print_memory(const char* name) {
  printf("\"%s\":{\"pssBytes\":%llu,\"availableBytes\":%llu,\"freeBytes\":%llu},", name,
         (unsigned long long)proc_bytes("/proc/self/smaps_rollup", "Pss:"),
         (unsigned long long)proc_bytes("/proc/meminfo", "MemAvailable:"),
         (unsigned long long)proc_bytes("/proc/meminfo", "MemFree:"));
}

static void print_times(const char* name, const uint64_t* times, long count) {
  printf("\"%s\":[", name);
  for (long i = 0; i < count; i++) printf("%s%llu", i ? "," : "", (unsigned long long)times[i]);
  printf("],");
}

static void* array(long count, size_t bytes) {
  void* memory = calloc((size_t)count + 1, bytes);
  if (memory == NULL) die("out of memory");
  return memory;
}

static void measure(const struct options* options) {
  struct machine* held = array(options->alive, sizeof *held);
  uint64_t* grown = array(options->alive, sizeof *grown);
  uint64_t* restored = array(options->count, sizeof *restored);
  uint64_t* stored = array(options->count, sizeof *stored);
  uint64_t* closed = array(options->count, sizeof *closed);
  const long others = options->alive - 1;

  printf("{\"memoryBytes\":%llu,\"alive\":%ld,", (unsigned long long)frozen.memory_bytes,
         options->alive);
  print_memory("before");
  for (long i = 0; i < others; i++) {
    const uint64_t begin = now_ns();
    restore(&held[i]);
    grown[i] = now_ns() - begin;
  }
  print_memory("after");
  for (long i = -options->warm_up; i < options->count; i++) {
    struct machine machine;
    const uint64_t begin = now_ns();
    restore(&machine);
    const uint64_t ready = now_ns();
    if (options->pages >= 0) run_to_answer(&machine, (uint32_t)options->pages);
    const uint64_t answered = now_ns();
    if (options->pages >= 0) check_answer(&machine, (uint32_t)options->pages);
    const uint64_t closing = now_ns();
    close_machine(&machine);
    if (i < 0) continue;
    restored[i] = ready - begin;
    stored[i] = answered - begin;
    closed[i] = now_ns() - closing;
  }
  const uint64_t closing = now_ns();
  for (long i = 0; i < others; i++) close_machine(&held[i]);
  const uint64_t all_closed = now_ns() - closing;

  print_times("grownNs", grown, others);
  print_times("restoredNs", restored, options->count);
  print_times("storedNs", stored, options->pages >= 0 ? options->count : 0);
  print_times("closedNs", closed, options->count);
  printf("\"allClosedNs\":%llu}\n", (unsigned long long)all_closed);
}

static long number(const char* text, long least, long most) {
  char* end;
  errno = 0;
  const long value = text == NULL ? LONG_MIN : strtol(text, &end, 10);
  if (value < least || value > most || errno != 0 || *end != '\0') {
    die("a number from %ld to %ld is needed, not '%s'", least, most, text == NULL ? "" : text);
  }
  return value;
}

static struct options parse(int argc, char** argv) {
  struct options options = {NULL, 100, 5, 1, -1, true};
  for (int i = 1; i < argc; i++) {
    const char* value = i + 1 < argc ? argv[i + 1] : NULL;
    if (argv[i][0] != '-') {
      options.directory = argv[i];
      continue;
    }
    if (strcmp(argv[i], "--count") == 0) {
      options.count = number(value, 0, 1000000);
    } else if (strcmp(argv[i], "--warm-up") == 0) {
      options.warm_up = number(value, 0, 1000000);
    } else if (strcmp(argv[i], "--alive") == 0) {
      options.alive = number(value, 1, 100000);
    } else if (strcmp(argv[i], "--first-store") == 0) {
      options.pages = number(value, 0, INT_MAX);
    } else if (strcmp(argv[i], "--memory") == 0 && value != NULL &&
               (strcmp(value, "memfd") == 0 || strcmp(value, "file") == 0)) {
      options.memfd = strcmp(value, "memfd") == 0;
    } else {
      die("unknown option '%s'; see the head of restore.c", argv[i]);
    }
    i++;
  }
  if (options.directory == NULL) die("usage: restore DIRECTORY [option...]");
  return options;
}

int main(int argc, char** argv) {
  const struct options options = parse(argc, argv);
  kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm < 0) die("/dev/kvm: %s", strerror(errno));
  run_bytes = (size_t)REQUEST(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  snapshot_read(&frozen, options.directory);
  complete_cpuid(frozen.cpuid);
  if (options.memfd) frozen.memory = copy_to_memfd(frozen.memory, frozen.memory_bytes);
  measure(&options);
  return 0;
}

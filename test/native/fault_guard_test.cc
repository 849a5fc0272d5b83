#include "base/fault_guard.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "base/mapping.h"
#include "base/thread.h"

#include "doctest.h"

namespace forklet {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kBytes = 16 * kPage;

// A mapping of a file that can be truncated under it.
struct MappedFile {
  MappedFile() {
    std::FILE* file = std::tmpfile();
    REQUIRE(file != nullptr);
    fd = UniqueFd(::dup(::fileno(file)));
    std::fclose(file);
    const std::vector<uint8_t> contents(kBytes, 0x5a);
    REQUIRE_EQ(::pwrite(fd.get(), contents.data(), kBytes, 0), kBytes);
    mapping =
        Mapping::Create(fd, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, 0).value();
  }
  void Truncate() const { REQUIRE_EQ(::ftruncate(fd.get(), 0), 0); }
  uint8_t Load(size_t offset) const {
    return *static_cast<volatile const uint8_t*>(mapping.data() + offset);
  }

  UniqueFd fd;
  Mapping mapping;
};

// Runs on a thread of ours, whose signals are blocked as they are in earnest.
void OnOurThread(const std::function<void()>& body) {
  auto thread = Thread::Start("test", body);
  REQUIRE(thread.ok());
  thread.value().Join();
}

TEST_CASE("A truncated file fails its guard, and the access completes with zeros") {
  MappedFile file;
  auto guard = FaultGuard::Create(file.mapping.data(), kBytes);
  REQUIRE(guard.ok());
  CHECK_EQ(file.Load(0), 0x5a);
  CHECK_FALSE(guard.value()->failed());
  CHECK_EQ(guard.value()->failure().Drain(), 0);
  file.Truncate();
  uint8_t read = 1;
  uint8_t written = 0;

  OnOurThread([&] {
    read = file.Load(3 * kPage + 5);
    file.mapping.data()[4 * kPage] = 7;
    written = file.Load(4 * kPage);
  });

  CHECK_EQ(read, 0);
  CHECK_EQ(written, 7);
  CHECK(guard.value()->failed());
  CHECK_GT(guard.value()->failure().Drain(), 0);
  // All of the range, so that nothing is half there.
  CHECK_EQ(file.Load(0), 0);
}

TEST_CASE("A failure that several threads meet at once is survived by all of them") {
  MappedFile file;
  auto guard = FaultGuard::Create(file.mapping.data(), kBytes);
  REQUIRE(guard.ok());
  file.Truncate();
  std::vector<Thread> threads;
  for (size_t i = 0; i < 8; ++i) {
    auto thread = Thread::Start("test", [&file, i] { (void)file.Load(i * kPage); });
    REQUIRE(thread.ok());
    threads.push_back(std::move(thread).value());
  }
  for (Thread& thread : threads) thread.Join();
  CHECK(guard.value()->failed());
}

TEST_CASE("A failure leaves the guards of other ranges alone") {
  MappedFile whole;
  MappedFile broken;
  auto before = FaultGuard::Create(whole.mapping.data(), kBytes);
  auto guard = FaultGuard::Create(broken.mapping.data(), kBytes);
  MappedFile other;
  auto after = FaultGuard::Create(other.mapping.data(), kBytes);
  REQUIRE(before.ok());
  REQUIRE(guard.ok());
  REQUIRE(after.ok());
  broken.Truncate();

  OnOurThread([&] { (void)broken.Load(0); });

  CHECK(guard.value()->failed());
  CHECK_FALSE(before.value()->failed());
  CHECK_FALSE(after.value()->failed());
  CHECK_EQ(whole.Load(0), 0x5a);
}

TEST_CASE("A range that is mapped anew after a failure is guarded again") {
  MappedFile file;
  auto guard = FaultGuard::Create(file.mapping.data(), kBytes);
  REQUIRE(guard.ok());
  file.Truncate();
  OnOurThread([&] { (void)file.Load(0); });
  REQUIRE_NE(::mmap(file.mapping.data(), kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
                    file.fd.get(), 0),
             MAP_FAILED);

  OnOurThread([&] { (void)file.Load(kPage); });

  CHECK(guard.value()->failed());
}

// What ends a process, or depends on what was installed first, happens in a
// process of its own: this program, run again with one of the tests below. (A
// comma in a name would separate two.)
int RunChild(const char* name) {
  const pid_t child = ::fork();
  if (child == 0) {
    const std::string test_case = std::string("--test-case=") + name;
    const int null = ::open("/dev/null", O_WRONLY);
    ::dup2(null, STDOUT_FILENO);
    ::execl("/proc/self/exe", "native_tests", "--no-skip", test_case.c_str(), nullptr);
    _exit(127);
  }
  int status = 0;
  REQUIRE_EQ(::waitpid(child, &status, 0), child);
  return status;
}

constexpr int kReachedProgramsHandler = 42;

// A process whose program has a handler of its own, and a guard besides.
void InstallBoth(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  REQUIRE_EQ(sigaction(SIGBUS, &action, nullptr), 0);
  static MappedFile guarded;
  static auto guard = FaultGuard::Create(guarded.mapping.data(), kBytes);
  REQUIRE(guard.ok());
}

TEST_CASE("child: unguarded fault before a program's handler" * doctest::skip()) {
  InstallBoth([](int) { _exit(kReachedProgramsHandler); });
  const MappedFile file;
  file.Truncate();
  OnOurThread([&] { (void)file.Load(0); });
}

TEST_CASE("child: unguarded fault without a handler" * doctest::skip()) {
  InstallBoth(SIG_DFL);
  const MappedFile file;
  file.Truncate();
  OnOurThread([&] { (void)file.Load(0); });
}

TEST_CASE("child: unguarded fault while ignored" * doctest::skip()) {
  InstallBoth(SIG_IGN);
  raise(SIGBUS);
  const MappedFile file;
  file.Truncate();
  OnOurThread([&] { (void)file.Load(0); });
}

TEST_CASE("child: sent to a program's handler" * doctest::skip()) {
  InstallBoth([](int) { _exit(kReachedProgramsHandler); });
  raise(SIGBUS);
}

TEST_CASE("child: sent without a handler" * doctest::skip()) {
  InstallBoth(SIG_DFL);
  raise(SIGBUS);
}

TEST_CASE("A SIGBUS that is not a guard's goes to the handler that was there before") {
  for (const char* name : {"child: unguarded fault before a program's handler",
                           "child: sent to a program's handler"}) {
    const int status = RunChild(name);
    REQUIRE(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), kReachedProgramsHandler);
  }
}

TEST_CASE("A SIGBUS that is not a guard's ends the process when there was no handler") {
  for (const char* name :
       {"child: unguarded fault without a handler", "child: unguarded fault while ignored",
        "child: sent without a handler"}) {
    const int status = RunChild(name);
    REQUIRE(WIFSIGNALED(status));
    CHECK_EQ(WTERMSIG(status), SIGBUS);
  }
}

}  // namespace
}  // namespace forklet

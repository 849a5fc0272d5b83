// Saving to a directory and loading it again, and everything that may be wrong
// with one.
#include "snapshot/saved_snapshot.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <string>

#include "base/file_io.h"
#include "base/thread.h"
#include "snapshot/directory.h"

#include "doctest.h"

namespace forklet {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kBytes = 3u << 20;

struct Fixture {
  Fixture() {
    char name[] = "/tmp/forklet-snapshot-XXXXXX";
    REQUIRE_NE(::mkdtemp(name), nullptr);
    root = name;
    for (size_t i = 0; i < memory.size(); i += 3) memory[i] = static_cast<uint8_t>(i / 4096 + 1);
  }
  ~Fixture() { fs::remove_all(root); }

  static std::vector<uint8_t> Text(const std::string& text) { return {text.begin(), text.end()}; }
  static SnapshotContents Contents(const std::string& session = "{}") {
    SnapshotContents contents;
    contents.config = {.memory_bytes = kBytes, .vcpus = 1, .regions = {{0, kBytes, 0}}};
    contents.cpu = {1, 2, 3};
    contents.devices = {4, 5};
    contents.session = Text(session);
    contents.manifest = Text("{\n  \"format\": 1\n}\n");
    return contents;
  }
  MemorySource Source() const { return SourceOf({{0, memory}}, nullptr); }
  // Gives one piece, and calls `during` when the next one is asked for.
  MemorySource SourceThat(const std::function<void()>& during) const {
    return [this, during, given = false]() mutable -> Result<std::optional<MemoryPiece>> {
      if (given) {
        during();
        return std::optional<MemoryPiece>();
      }
      given = true;
      return std::optional(MemoryPiece{0, memory});
    };
  }
  Status Save(const std::string& session = "{}", bool overwrite = false) const {
    return SaveSnapshot(target(), overwrite, Contents(session), Source(), nullptr);
  }

  std::string target() const { return root + "/golden"; }
  std::string file(const char* name) const { return target() + "/" + name; }
  std::string session() const {
    const auto loaded = LoadSnapshot(target());
    REQUIRE(loaded.ok());
    const auto& bytes = loaded.value().contents.session;
    return {bytes.begin(), bytes.end()};
  }
  std::set<std::string> Names(const std::string& directory) const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(directory))
      names.insert(entry.path().filename());
    return names;
  }
  std::set<std::string> Names() const { return Names(root); }
  mode_t Mode(const std::string& path) const {
    struct stat info;
    REQUIRE_EQ(::stat(path.c_str(), &info), 0);
    return info.st_mode & 07777;
  }
  // What loading has to say.
  std::string Complaint() const {
    const auto loaded = LoadSnapshot(target());
    REQUIRE_FALSE(loaded.ok());
    CHECK_EQ(loaded.error().code, ErrorCode::kBadSnapshot);
    CHECK_NE(loaded.error().detail.find("snapshot '" + target() + "'"), std::string::npos);
    return loaded.error().Message();
  }

  std::string root;
  std::vector<uint8_t> memory = std::vector<uint8_t>(kBytes);
};

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// --- saving and loading ---

TEST_CASE_FIXTURE(Fixture, "A saved snapshot comes back as it was, memory included") {
  REQUIRE(Save("{\"a\":1}").ok());

  const auto loaded = LoadSnapshot(target() + "/");

  REQUIRE(loaded.ok());
  const SnapshotContents expected = Contents("{\"a\":1}");
  CHECK(loaded.value().contents.config == expected.config);
  CHECK_EQ(loaded.value().contents.cpu, expected.cpu);
  CHECK_EQ(loaded.value().contents.devices, expected.devices);
  CHECK_EQ(loaded.value().contents.session, expected.session);
  CHECK_EQ(loaded.value().contents.manifest, expected.manifest);
  std::vector<uint8_t> read(kBytes);
  REQUIRE(ReadAt(loaded.value().memory, read, 0).ok());
  CHECK(read == memory);
  CHECK(VerifySnapshot(loaded.value(), nullptr).ok());
}

TEST_CASE_FIXTURE(Fixture, "A saved snapshot is its owner's alone, whatever the umask") {
  const mode_t before = ::umask(0);
  const Status open = SaveSnapshot(root + "/open", false, Contents(), Source(), nullptr);
  ::umask(0777);
  const Status closed = Save();
  ::umask(before);
  REQUIRE(open.ok());
  REQUIRE(closed.ok());
  for (const std::string& directory : {root + "/open", target()}) {
    CHECK_EQ(Mode(directory), 0700);
    CHECK_EQ(Names(directory), std::set<std::string>{"manifest.json", "memory", "state"});
    for (const char* name : {"manifest.json", "memory", "state"}) {
      CHECK_EQ(Mode(directory + "/" + name), 0600);
    }
  }
}

TEST_CASE_FIXTURE(Fixture, "Saving leaves nothing but the snapshot") {
  REQUIRE(Save().ok());
  CHECK_EQ(Names(), std::set<std::string>{"golden"});
}

TEST_CASE_FIXTURE(Fixture, "Saving takes a path relative to the working directory") {
  const fs::path before = fs::current_path();
  fs::current_path(root);
  const Status saved = SaveSnapshot("golden", false, Contents(), Source(), nullptr);
  fs::current_path(before);
  CHECK(saved.ok());
  CHECK(LoadSnapshot(target()).ok());
}

TEST_CASE_FIXTURE(Fixture, "Saving takes a name as long as names can be") {
  const std::string name(255, 'n');
  CHECK(SaveSnapshot(root + "/" + name, false, Contents(), Source(), nullptr).ok());
  CHECK_EQ(Names(), std::set<std::string>{name});
}

TEST_CASE_FIXTURE(Fixture, "Saving refuses paths that name no directory, or in none") {
  for (const std::string& path : {std::string(), std::string("/"), root + "/.", root + "/.."}) {
    const Status saved = SaveSnapshot(path, true, Contents(), Source(), nullptr);
    REQUIRE_FALSE(saved.ok());
    CHECK_EQ(saved.error().sys_errno, EINVAL);
  }
  const Status saved = SaveSnapshot(root + "/none/golden", false, Contents(), Source(), nullptr);
  REQUIRE_FALSE(saved.ok());
  CHECK_EQ(saved.error().sys_errno, ENOENT);
}

TEST_CASE_FIXTURE(Fixture, "A state that could not be loaded is not saved") {
  SnapshotContents contents = Contents();
  contents.config.regions.clear();
  CHECK_FALSE(SaveSnapshot(target(), false, contents, Source(), nullptr).ok());
  contents = Contents();
  contents.manifest.resize(kMaxManifestBytes + 1);
  CHECK_FALSE(SaveSnapshot(target(), false, contents, Source(), nullptr).ok());
  CHECK(Names().empty());
}

// --- the target ---

TEST_CASE_FIXTURE(Fixture, "Saving over a snapshot is refused unless it is asked for") {
  REQUIRE(Save("old").ok());
  const Status refused = Save("new");
  REQUIRE_FALSE(refused.ok());
  CHECK_EQ(refused.error().code, ErrorCode::kExists);
  CHECK_EQ(session(), "old");

  REQUIRE(Save("new", true).ok());
  CHECK_EQ(session(), "new");
  CHECK_EQ(Names(), std::set<std::string>{"golden"});
}

TEST_CASE_FIXTURE(Fixture, "Overwriting needs nothing to overwrite, and takes an empty directory") {
  REQUIRE(Save("first", true).ok());
  CHECK_EQ(session(), "first");
  fs::remove_all(target());
  fs::create_directory(target());
  REQUIRE(Save("second", true).ok());
  CHECK_EQ(session(), "second");
}

TEST_CASE_FIXTURE(Fixture, "Overwriting keeps hands off whatever is not a snapshot") {
  const auto refused = [&] {
    const Status saved = Save("new", true);
    return !saved.ok() && saved.error().code == ErrorCode::kExists && Names().size() == 1;
  };
  fs::create_directory(target());
  std::ofstream(file("letter.txt")) << "dear";
  CHECK(refused());
  CHECK(fs::exists(file("letter.txt")));
  fs::remove_all(target());
  std::ofstream(target()) << "a file";
  CHECK(refused());
  fs::remove(target());
  fs::create_directory_symlink("/tmp", target());
  CHECK(refused());
}

TEST_CASE_FIXTURE(Fixture, "A target that appears while saving is not replaced") {
  const Status saved = SaveSnapshot(target(), false, Contents(), SourceThat([&] {
                                      fs::create_directory(target());
                                      std::ofstream(file("letter.txt")) << "dear";
                                    }),
                                    nullptr);
  REQUIRE_FALSE(saved.ok());
  CHECK_EQ(saved.error().code, ErrorCode::kExists);
  CHECK_EQ(Names(), std::set<std::string>{"golden"});
  CHECK(fs::exists(file("letter.txt")));
}

TEST_CASE_FIXTURE(Fixture, "A target that goes away while it is to be overwritten is no obstacle") {
  REQUIRE(Save("old").ok());
  const Status saved = SaveSnapshot(target(), true, Contents("new"),
                                    SourceThat([&] { fs::remove_all(target()); }), nullptr);
  REQUIRE(saved.ok());
  CHECK_EQ(session(), "new");
}

TEST_CASE_FIXTURE(Fixture, "A snapshot that was loaded keeps its memory when it is overwritten") {
  REQUIRE(Save("old").ok());
  const auto old = LoadSnapshot(target());
  REQUIRE(old.ok());
  std::fill(memory.begin(), memory.end(), uint8_t{0x77});

  REQUIRE(Save("new", true).ok());

  CHECK(VerifySnapshot(old.value(), nullptr).ok());
  CHECK(VerifySnapshot(LoadSnapshot(target()).value(), nullptr).ok());
}

// --- failures while saving ---

TEST_CASE_FIXTURE(Fixture, "A save that fails or is cancelled leaves the old snapshot whole") {
  REQUIRE(Save("old").ok());
  const MemorySource failing = []() -> Result<std::optional<MemoryPiece>> {
    return Error{ErrorCode::kIo, EIO, "", {}};
  };
  const Status failed = SaveSnapshot(target(), true, Contents("new"), failing, nullptr);
  REQUIRE_FALSE(failed.ok());
  CHECK_EQ(failed.error().code, ErrorCode::kIo);

  std::atomic<bool> cancel = false;
  const Status cancelled =
      SaveSnapshot(target(), true, Contents("new"), SourceThat([&] { cancel = true; }), &cancel);
  REQUIRE_FALSE(cancelled.ok());
  CHECK_EQ(cancelled.error().sys_errno, ECANCELED);

  CHECK_EQ(session(), "old");
  CHECK_EQ(Names(), std::set<std::string>{"golden"});
}

TEST_CASE_FIXTURE(Fixture, "A save beyond the limit of file sizes leaves the old snapshot whole") {
  REQUIRE(Save("old").ok());
  rlimit before = {};
  REQUIRE_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  Status saved = Ok();

  // On a thread of ours, as in earnest: SIGXFSZ would end the process elsewhere.
  auto thread = Thread::Start(
      "test",
      [&] {
        const rlimit limit = {1u << 20, before.rlim_max};
        ::setrlimit(RLIMIT_FSIZE, &limit);
        saved = Save("new", true);
        ::setrlimit(RLIMIT_FSIZE, &before);
      },
      1u << 20);
  REQUIRE(thread.ok());
  thread.value().Join();

  REQUIRE_FALSE(saved.ok());
  CHECK_EQ(saved.error().sys_errno, EFBIG);
  CHECK_EQ(session(), "old");
  CHECK_EQ(Names(), std::set<std::string>{"golden"});
}

// A file system of 5 MiB, for as long as this lives.
struct SmallDisk {
  explicit SmallDisk(const std::string& at)
      : directory(at),
        mounted(::mount("forklet-test", at.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, "size=5m") ==
                0) {}
  ~SmallDisk() {
    if (mounted) ::umount2(directory.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;

  const std::string directory;
  const bool mounted;
};

TEST_CASE_FIXTURE(Fixture, "A full disk leaves the old snapshot whole") {
  const SmallDisk disk(root);
  if (!disk.mounted) {
    MESSAGE("not tested here: mounting a small file system needs root");
    return;
  }
  REQUIRE(Save("old").ok());
  const Status saved = Save("new", true);
  REQUIRE_FALSE(saved.ok());
  CHECK_EQ(saved.error().sys_errno, ENOSPC);
  CHECK_EQ(session(), "old");
  CHECK_EQ(Names(), std::set<std::string>{"golden"});
}

// Runs `save` in a process that dies in the middle of it.
void DieWhileSaving(const Fixture& fixture, bool overwrite) {
  const pid_t child = ::fork();
  if (child == 0) {
    (void)SaveSnapshot(fixture.target(), overwrite, Fixture::Contents("new"),
                       fixture.SourceThat([] { ::kill(::getpid(), SIGKILL); }), nullptr);
    _exit(0);
  }
  int status = 0;
  REQUIRE_EQ(::waitpid(child, &status, 0), child);
  REQUIRE(WIFSIGNALED(status));
}

TEST_CASE_FIXTURE(Fixture,
                  "A process that dies while saving leaves no snapshot, and the next cleans") {
  DieWhileSaving(*this, false);
  const std::set<std::string> names = Names();
  REQUIRE_EQ(names.size(), 1);
  CHECK(names.begin()->starts_with(".golden.tmp-"));
  CHECK(Contains(Complaint(), "No such file"));
  // Another target's leftovers are not ours to judge.
  REQUIRE(SaveSnapshot(root + "/silver", false, Contents(), Source(), nullptr).ok());
  CHECK_EQ(Names().size(), 2);

  REQUIRE(Save("next").ok());

  CHECK_EQ(session(), "next");
  CHECK_EQ(Names(), std::set<std::string>{"golden", "silver"});
}

TEST_CASE_FIXTURE(Fixture, "A process that dies while overwriting leaves the old snapshot whole") {
  REQUIRE(Save("old").ok());
  DieWhileSaving(*this, true);
  CHECK_EQ(Names().size(), 2);
  CHECK_EQ(session(), "old");
  CHECK(VerifySnapshot(LoadSnapshot(target()).value(), nullptr).ok());
  REQUIRE(Save("next", true).ok());
  CHECK_EQ(Names(), std::set<std::string>{"golden"});
}

TEST_CASE_FIXTURE(Fixture, "A save does not take one that is under way for a leftover") {
  Status inner = Ok();
  const Status outer = SaveSnapshot(target(), true, Contents("outer"),
                                    SourceThat([&] { inner = Save("inner"); }), nullptr);
  REQUIRE(inner.ok());
  REQUIRE(outer.ok());
  CHECK_EQ(session(), "outer");
  CHECK_EQ(Names(), std::set<std::string>{"golden"});
}

TEST_CASE_FIXTURE(Fixture, "Saves to one target at once: the last one counts, whole") {
  std::vector<Thread> threads;
  std::atomic<int> failures = 0;
  for (int i = 0; i < 4; ++i) {
    auto thread = Thread::Start(
        "test",
        [&, i] {
          for (int round = 0; round < 3; ++round) {
            if (!Save("session " + std::to_string(i), true).ok()) ++failures;
          }
        },
        1u << 20);
    REQUIRE(thread.ok());
    threads.push_back(std::move(thread).value());
  }
  for (Thread& thread : threads) thread.Join();
  CHECK_EQ(failures, 0);
  CHECK(Contains(session(), "session "));
  CHECK(VerifySnapshot(LoadSnapshot(target()).value(), nullptr).ok());
  CHECK_EQ(Names(), std::set<std::string>{"golden"});
}

// --- what loading refuses ---

TEST_CASE_FIXTURE(Fixture, "Loading refuses what is not there, or not a directory") {
  CHECK(Contains(Complaint(), "No such file"));
  std::ofstream(target()) << "a file";
  CHECK(Contains(Complaint(), "Not a directory"));
  fs::remove(target());
  fs::create_directory(target());
  CHECK(Contains(Complaint(), "'state'"));
}

TEST_CASE_FIXTURE(Fixture, "Loading refuses a snapshot with a file missing") {
  for (const char* name : {"manifest.json", "memory", "state"}) {
    REQUIRE(Save("{}", true).ok());
    fs::remove(file(name));
    const std::string complaint = Complaint();
    CHECK(Contains(complaint, "No such file"));
    CHECK(Contains(complaint, name));
  }
}

TEST_CASE_FIXTURE(Fixture, "Loading refuses files that are symbolic links or no files at all") {
  for (const char* name : {"manifest.json", "memory", "state"}) {
    REQUIRE(Save("{}", true).ok());
    fs::rename(file(name), root + "/elsewhere");
    fs::create_symlink(root + "/elsewhere", file(name));
    CHECK(Contains(Complaint(), "symbolic links"));
    fs::remove(file(name));
    REQUIRE_EQ(::mkfifo(file(name).c_str(), 0600), 0);
    CHECK(Contains(Complaint(), "no regular file"));
  }
}

TEST_CASE_FIXTURE(Fixture, "Loading refuses what others can write to") {
  REQUIRE(Save().ok());
  for (const std::string& path : {target(), file("manifest.json"), file("memory"), file("state")}) {
    const mode_t before = Mode(path);
    for (mode_t bit : {mode_t{020}, mode_t{002}}) {
      REQUIRE_EQ(::chmod(path.c_str(), before | bit), 0);
      CHECK(Contains(Complaint(), "written to by others"));
    }
    REQUIRE_EQ(::chmod(path.c_str(), before), 0);
  }
  CHECK(LoadSnapshot(target()).ok());
}

TEST_CASE_FIXTURE(Fixture, "Loading refuses what belongs to somebody else") {
  if (::geteuid() != 0) {
    MESSAGE("not tested here: giving files away needs root");
    return;
  }
  REQUIRE(Save().ok());
  for (const std::string& path : {target(), file("manifest.json"), file("memory"), file("state")}) {
    REQUIRE_EQ(::chown(path.c_str(), 12345, 0), 0);
    CHECK(Contains(Complaint(), "belongs to user 12345"));
    REQUIRE_EQ(::chown(path.c_str(), 0, 0), 0);
  }
  CHECK(LoadSnapshot(target()).ok());
}

TEST_CASE_FIXTURE(Fixture, "Loading refuses a state or manifest that was changed or truncated") {
  for (const char* name : {"manifest.json", "state"}) {
    REQUIRE(Save("{}", true).ok());
    std::fstream stream(file(name), std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(12);
    stream.put('!');
    stream.close();
    CHECK(Contains(Complaint(), "checksum"));

    REQUIRE(Save("{}", true).ok());
    fs::resize_file(file(name), fs::file_size(file(name)) - 1);
    CHECK(Contains(Complaint(), name));

    fs::resize_file(file(name), uint64_t{1} << 40);
    CHECK(Contains(Complaint(), "too large"));
  }
}

TEST_CASE_FIXTURE(Fixture, "Loading refuses a memory of another size") {
  for (uint64_t size : {uint64_t{0}, kBytes - 1, kBytes + 1}) {
    REQUIRE(Save("{}", true).ok());
    fs::resize_file(file("memory"), size);
    const std::string complaint = Complaint();
    CHECK(Contains(complaint, "memory"));
    CHECK(Contains(complaint, std::to_string(size)));
    CHECK(Contains(complaint, std::to_string(kBytes)));
  }
}

TEST_CASE_FIXTURE(Fixture, "Verifying finds a changed memory, which loading does not read") {
  REQUIRE(Save().ok());
  std::fstream stream(file("memory"), std::ios::in | std::ios::out | std::ios::binary);
  stream.seekp(2u << 20);
  stream.put('!');
  stream.close();

  const auto loaded = LoadSnapshot(target());
  REQUIRE(loaded.ok());
  const Status verified = VerifySnapshot(loaded.value(), nullptr);

  REQUIRE_FALSE(verified.ok());
  CHECK_EQ(verified.error().code, ErrorCode::kBadSnapshot);
  CHECK(Contains(verified.error().detail, target()));
  CHECK(Contains(verified.error().detail, "at byte 2097152"));
}

}  // namespace
}  // namespace forklet

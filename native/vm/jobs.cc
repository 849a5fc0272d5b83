#include "vm/jobs.h"

#include "base/check.h"

namespace forklet {

namespace {
constexpr size_t kStackBytes = 512u << 10;
}  // namespace

Jobs::~Jobs() { CHECK(jobs_.empty()); }

Status Jobs::Start(const std::string& thread_name, std::function<void()> work) {
  std::lock_guard lock(mutex_);
  Reap();
  auto job = std::make_unique<Job>();
  // Lifetime: the job is released after its thread was joined.
  Job* raw = job.get();
  ASSIGN_OR_RETURN(job->thread, Thread::Start(
                                    thread_name,
                                    [raw, work = std::move(work)] {
                                      work();
                                      raw->over.store(true);
                                    },
                                    kStackBytes));
  jobs_.push_back(std::move(job));
  return Ok();
}

void Jobs::Reap() {
  std::erase_if(jobs_, [](const std::unique_ptr<Job>& job) {
    if (!job->over.load()) return false;
    job->thread.Join();
    return true;
  });
}

void Jobs::JoinAll() {
  std::vector<std::unique_ptr<Job>> last;
  {
    std::lock_guard lock(mutex_);
    last.swap(jobs_);
  }
  for (const auto& job : last) job->thread.Join();
}

}  // namespace forklet

// How this code base reports failure: a value or an Error, never an exception.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>

#include "base/check.h"

namespace forklet {

// What a caller can branch on. Each maps to one ERR_VM_* code (see ErrorName).
enum class ErrorCode : uint8_t {
  kKvmUnavailable,  // /dev/kvm missing, not permitted, wrong API version
  kKvm,             // a KVM request failed: see op and sys_errno
  kSystem,          // another system call failed: see op and sys_errno
  kBadKernel,       // the kernel image is not one that we can boot
  kNoMemory,        // the host refused memory, or the guest's is too small
  kExited,          // the VM is not running any more
  kClosed,          // the VM was closed
  kInternal,        // state that should be impossible; a bug of ours, survived
  kPaused,          // the VM is paused
  kReset,           // the VM was reset to its snapshot meanwhile
  kNoSnapshot,      // the VM comes from no snapshot, so there is none to go back to
  kParkTimeout,     // the guest did not stand still for a freeze in time
  kNotUnique,       // a fork did not confirm that it differs from its siblings
  kExists,          // a snapshot directory exists already
  kBadSnapshot,     // a snapshot directory is missing, damaged, unsafe or of another version
  kIo,              // the file behind a VM's memory failed under it
  kLimit,           // more forks than this host has room for
  kProgram,         // a guest program at its park failed, ended or answered too much
  kCancelled,       // the caller gave up; never leaves lib/
};

// The public code, such as "ERR_VM_BAD_KERNEL".
const char* ErrorName(ErrorCode code);

struct Error {
  ErrorCode code;
  int sys_errno = 0;   // Host errno, or 0
  std::string op;      // System call or KVM request, or ""
  std::string detail;  // Sentence that names the value and, where known, the remedy

  // One line for people: "KVM_CREATE_VM: Device or resource busy: detail".
  std::string Message() const;
};

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & {
    CHECK(ok());
    return *std::get_if<0>(&state_);
  }
  const T& value() const& {
    CHECK(ok());
    return *std::get_if<0>(&state_);
  }
  T&& value() && {
    CHECK(ok());
    return std::move(*std::get_if<0>(&state_));
  }

  Error& error() & {
    CHECK(!ok());
    return *std::get_if<1>(&state_);
  }
  const Error& error() const& {
    CHECK(!ok());
    return *std::get_if<1>(&state_);
  }
  Error&& error() && {
    CHECK(!ok());
    return std::move(*std::get_if<1>(&state_));
  }

 private:
  std::variant<T, Error> state_;
};

using Status = Result<std::monostate>;
inline Status Ok() { return std::monostate{}; }

}  // namespace forklet

#define FORKLET_CONCAT_(a, b) a##b
#define FORKLET_CONCAT(a, b) FORKLET_CONCAT_(a, b)

// Returns the Error of a failed Status or Result; drops the value otherwise.
#define TRY(expression)                                           \
  do {                                                            \
    auto try_result_ = (expression);                              \
    if (!try_result_.ok()) return std::move(try_result_).error(); \
  } while (0)

// Declares or assigns `target` from a Result, or returns its Error.
#define ASSIGN_OR_RETURN(target, expression) \
  ASSIGN_OR_RETURN_(FORKLET_CONCAT(result_, __LINE__), target, expression)
#define ASSIGN_OR_RETURN_(result, target, expression) \
  auto result = (expression);                         \
  if (!result.ok()) return std::move(result).error(); \
  target = std::move(result).value()

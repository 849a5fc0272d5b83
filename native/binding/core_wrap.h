#pragma once

#include <napi.h>

#include <memory>

#include "binding/event_queue.h"
#include "vm/core.h"

namespace forklet::binding {

// The core as a JavaScript object: checks types, copies, posts. See NativeCore
// in lib/native.ts.
//
// Owner: JavaScript's garbage collector. Thread: the environment's.
class CoreWrap final : public Napi::ObjectWrap<CoreWrap> {
 public:
  static Napi::Function Define(Napi::Env env);

  explicit CoreWrap(const Napi::CallbackInfo& info);
  ~CoreWrap() override;

 private:
  void CreateVm(const Napi::CallbackInfo& info);
  void CloseVm(const Napi::CallbackInfo& info);
  void Send(const Napi::CallbackInfo& info);
  void Consume(const Napi::CallbackInfo& info);
  void Disconnect(const Napi::CallbackInfo& info);
  void PauseVm(const Napi::CallbackInfo& info);
  void ResumeVm(const Napi::CallbackInfo& info);
  void EnterVm(const Napi::CallbackInfo& info);
  void Stats(const Napi::CallbackInfo& info);
  void Probe(const Napi::CallbackInfo& info);

  // core_wrap_snapshots.cc
  void SnapshotVm(const Napi::CallbackInfo& info);
  void CancelSnapshot(const Napi::CallbackInfo& info);
  Napi::Value ForkSnapshot(const Napi::CallbackInfo& info);
  void PrewarmSnapshot(const Napi::CallbackInfo& info);
  void CloseSnapshot(const Napi::CallbackInfo& info);
  void ResetVm(const Napi::CallbackInfo& info);
  void SaveSnapshot(const Napi::CallbackInfo& info);
  void LoadSnapshot(const Napi::CallbackInfo& info);
  void CancelRequest(const Napi::CallbackInfo& info);
  void CallProgram(const Napi::CallbackInfo& info);
  void CancelCall(const Napi::CallbackInfo& info);
  void YieldProgram(const Napi::CallbackInfo& info);

  void Ref(const Napi::CallbackInfo& info);
  void Unref(const Napi::CallbackInfo& info);

  // The environment ends: nothing of ours may run when it has.
  static void CleanUp(void* self);

  std::shared_ptr<EventQueue> events_;
  std::unique_ptr<Core> core_;  // Null once the environment has ended
};

}  // namespace forklet::binding

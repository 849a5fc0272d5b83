#include "binding/core_wrap.h"

#include <sys/syscall.h>
#include <unistd.h>

#include "binding/convert.h"
#include "vm/reaper.h"

namespace forklet::binding {

namespace {

// Whether this is the process's first thread, and so the environment's end the
// process's.
bool IsMainThread() { return ::syscall(SYS_gettid) == ::getpid(); }

// Request and VM ids are 32 bits wide; `lib/internal/core.ts` counts them up.

}  // namespace

Napi::Function CoreWrap::Define(Napi::Env env) {
  return DefineClass(env, "Core",
                     {
                         InstanceMethod<&CoreWrap::CreateVm>("createVm"),
                         InstanceMethod<&CoreWrap::CloseVm>("closeVm"),
                         InstanceMethod<&CoreWrap::Send>("send"),
                         InstanceMethod<&CoreWrap::Consume>("consume"),
                         InstanceMethod<&CoreWrap::Disconnect>("disconnect"),
                         InstanceMethod<&CoreWrap::PauseVm>("pauseVm"),
                         InstanceMethod<&CoreWrap::ResumeVm>("resumeVm"),
                         InstanceMethod<&CoreWrap::EnterVm>("enterVm"),
                         InstanceMethod<&CoreWrap::SnapshotVm>("snapshotVm"),
                         InstanceMethod<&CoreWrap::CancelSnapshot>("cancelSnapshot"),
                         InstanceMethod<&CoreWrap::ForkSnapshot>("forkSnapshot"),
                         InstanceMethod<&CoreWrap::PrewarmSnapshot>("prewarmSnapshot"),
                         InstanceMethod<&CoreWrap::CloseSnapshot>("closeSnapshot"),
                         InstanceMethod<&CoreWrap::ResetVm>("resetVm"),
                         InstanceMethod<&CoreWrap::SaveSnapshot>("saveSnapshot"),
                         InstanceMethod<&CoreWrap::LoadSnapshot>("loadSnapshot"),
                         InstanceMethod<&CoreWrap::CancelRequest>("cancelRequest"),
                         InstanceMethod<&CoreWrap::CallProgram>("callProgram"),
                         InstanceMethod<&CoreWrap::CancelCall>("cancelCall"),
                         InstanceMethod<&CoreWrap::YieldProgram>("yieldProgram"),
                         InstanceMethod<&CoreWrap::Stats>("stats"),
                         InstanceMethod<&CoreWrap::Probe>("probe"),
                         InstanceMethod<&CoreWrap::Ref>("ref"),
                         InstanceMethod<&CoreWrap::Unref>("unref"),
                     });
}

CoreWrap::CoreWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<CoreWrap>(info) {
  if (!info[0].IsFunction()) {
    Napi::TypeError::New(info.Env(), "expected a function").ThrowAsJavaScriptException();
    return;
  }
  events_ = EventQueue::Create(info.Env(), info[0].As<Napi::Function>());
  if (events_ == nullptr) return;
  core_ = std::make_unique<Core>(events_);
  // Added after the thread-safe function's own hook, and so run before it.
  napi_add_env_cleanup_hook(info.Env(), CleanUp, this);
}

CoreWrap::~CoreWrap() {
  if (core_ == nullptr) return;
  napi_remove_env_cleanup_hook(Env(), CleanUp, this);
  events_->Detach();
  // A finalizer must not wait.
  Reaper::Submit([core = std::shared_ptr<Core>(std::move(core_))] { core->CloseAll(); });
}

void CoreWrap::CleanUp(void* raw) {
  auto& self = *static_cast<CoreWrap*>(raw);
  self.events_->Detach();
  if (IsMainThread()) {
    self.core_->StopAll();
  } else {
    self.core_->CloseAll();
  }
  self.core_.reset();
}

void CoreWrap::CreateVm(const Napi::CallbackInfo& info) {
  const auto request = ToId(info[0]);
  const auto vm = ToId(info[1]);
  if (!request || !vm) return;
  auto config = ToVmConfig(info[2]);
  if (config && core_) core_->CreateVm(*request, *vm, std::move(*config));
}

void CoreWrap::CloseVm(const Napi::CallbackInfo& info) {
  const auto request = ToId(info[0]);
  const auto vm = ToId(info[1]);
  if (request && vm && core_) core_->CloseVm(*request, *vm);
}

void CoreWrap::Send(const Napi::CallbackInfo& info) {
  const auto vm = ToId(info[0]);
  const auto connection = ToInteger(info[1]);
  if (!vm || !connection) return;
  auto data = ToBytes(info[2]);
  if (data && core_) core_->Send(*vm, *connection, std::move(*data));
}

void CoreWrap::Consume(const Napi::CallbackInfo& info) {
  const auto vm = ToId(info[0]);
  const auto connection = ToInteger(info[1]);
  const auto bytes = ToInteger(info[2]);
  if (vm && connection && bytes && core_) core_->Consume(*vm, *connection, *bytes);
}

void CoreWrap::Disconnect(const Napi::CallbackInfo& info) {
  const auto vm = ToId(info[0]);
  const auto connection = ToInteger(info[1]);
  if (vm && connection && core_) core_->Disconnect(*vm, *connection);
}

void CoreWrap::PauseVm(const Napi::CallbackInfo& info) {
  const auto request = ToId(info[0]);
  const auto vm = ToId(info[1]);
  if (request && vm && core_) core_->PauseVm(*request, *vm);
}

void CoreWrap::ResumeVm(const Napi::CallbackInfo& info) {
  const auto request = ToId(info[0]);
  const auto vm = ToId(info[1]);
  if (request && vm && core_) core_->ResumeVm(*request, *vm);
}

void CoreWrap::EnterVm(const Napi::CallbackInfo& info) {
  const auto vm = ToId(info[0]);
  if (vm && core_) core_->EnterVm(*vm);
}

void CoreWrap::Stats(const Napi::CallbackInfo& info) {
  const auto request = ToId(info[0]);
  const auto vm = ToId(info[1]);
  if (request && vm && core_) core_->Stats(*request, *vm);
}

void CoreWrap::Probe(const Napi::CallbackInfo& info) {
  const auto request = ToId(info[0]);
  if (!request) return;
  if (!info[1].IsString()) {
    Napi::TypeError::New(info.Env(), "expected a path").ThrowAsJavaScriptException();
    return;
  }
  if (core_) core_->Probe(*request, info[1].As<Napi::String>().Utf8Value());
}

void CoreWrap::Ref(const Napi::CallbackInfo& info) { events_->Ref(info.Env()); }

void CoreWrap::Unref(const Napi::CallbackInfo& info) { events_->Unref(info.Env()); }

}  // namespace forklet::binding

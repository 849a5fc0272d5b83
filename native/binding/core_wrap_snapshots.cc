// The half of CoreWrap that makes snapshots and VMs from them.
#include "binding/convert.h"
#include "binding/core_wrap.h"

namespace forklet::binding {

void CoreWrap::SnapshotVm(const Napi::CallbackInfo& info) {
  const auto request = ToId(info[0]);
  const auto vm = ToId(info[1]);
  const auto snapshot = ToId(info[2]);
  const auto place = ToParkPlace(info[3]);
  const auto timeout_ms = ToId(info[4]);
  if (!request || !vm || !snapshot || !place || !timeout_ms) return;
  if (core_) core_->SnapshotVm(*request, *vm, *snapshot, *place, *timeout_ms);
}

void CoreWrap::CancelSnapshot(const Napi::CallbackInfo& info) {
  const auto vm = ToId(info[0]);
  if (vm && core_) core_->CancelSnapshot(*vm);
}

Napi::Value CoreWrap::ForkSnapshot(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto request = ToId(info[0]);
  const auto snapshot = ToId(info[1]);
  const auto vm = ToId(info[2]);
  const auto pool = ToPoolUse(info[3]);
  auto hostname = ToText(info[4]);
  if (!request || !snapshot || !vm || !pool || !hostname || !core_) return env.Undefined();
  const auto times = core_->ForkSnapshot(*request, *snapshot, *vm, *pool, std::move(*hostname));
  return times ? ForkTimesToJs(env, *times) : env.Undefined();
}

void CoreWrap::PrewarmSnapshot(const Napi::CallbackInfo& info) {
  const auto request = ToId(info[0]);
  const auto snapshot = ToId(info[1]);
  const auto count = ToId(info[2]);
  if (request && snapshot && count && core_) core_->PrewarmSnapshot(*request, *snapshot, *count);
}

void CoreWrap::CloseSnapshot(const Napi::CallbackInfo& info) {
  const auto request = ToId(info[0]);
  const auto snapshot = ToId(info[1]);
  if (request && snapshot && core_) core_->CloseSnapshot(*request, *snapshot);
}

void CoreWrap::ResetVm(const Napi::CallbackInfo& info) {
  const auto request = ToId(info[0]);
  const auto vm = ToId(info[1]);
  const auto snapshot = ToId(info[2]);
  if (request && vm && snapshot && core_) core_->ResetVm(*request, *vm, *snapshot);
}

void CoreWrap::SaveSnapshot(const Napi::CallbackInfo& info) {
  const auto request = ToId(info[0]);
  const auto snapshot = ToId(info[1]);
  auto directory = ToText(info[2]);
  const auto overwrite = ToBoolean(info[3]);
  if (!request || !snapshot || !directory || !overwrite) return;
  auto session = ToBytes(info[4]);
  if (!session || !core_) return;
  core_->SaveSnapshot(*request, *snapshot, std::move(*directory), *overwrite, std::move(*session));
}

void CoreWrap::LoadSnapshot(const Napi::CallbackInfo& info) {
  const auto request = ToId(info[0]);
  const auto snapshot = ToId(info[1]);
  auto kvm_path = ToText(info[2]);
  auto directory = ToText(info[3]);
  const auto verify = ToBoolean(info[4]);
  if (!request || !snapshot || !kvm_path || !directory || !verify || !core_) return;
  core_->LoadSnapshot(*request, *snapshot, std::move(*kvm_path), std::move(*directory), *verify);
}

void CoreWrap::CancelRequest(const Napi::CallbackInfo& info) {
  const auto request = ToId(info[0]);
  if (request && core_) core_->CancelRequest(*request);
}

void CoreWrap::CallProgram(const Napi::CallbackInfo& info) {
  const auto request = ToId(info[0]);
  const auto vm = ToId(info[1]);
  if (!request || !vm) return;
  auto input = ToBytes(info[2]);
  const auto max_bytes = ToInteger(info[3]);
  if (!input || !max_bytes || !core_) return;
  core_->CallProgram(*request, *vm, std::move(*input), *max_bytes);
}

void CoreWrap::CancelCall(const Napi::CallbackInfo& info) {
  const auto request = ToId(info[0]);
  const auto vm = ToId(info[1]);
  if (request && vm && core_) core_->CancelCall(*request, *vm);
}

void CoreWrap::YieldProgram(const Napi::CallbackInfo& info) {
  const auto vm = ToId(info[0]);
  if (vm && core_) core_->YieldProgram(*vm);
}

}  // namespace forklet::binding

// The addon's entry point: what `require` returns.
#include <napi.h>

#include "binding/core_wrap.h"

namespace forklet::binding {

namespace {

// Per environment: the class that createCore() instantiates.
struct AddonData {
  Napi::FunctionReference core_class;
};

Napi::Value CreateCore(const Napi::CallbackInfo& info) {
  const auto* data = info.Env().GetInstanceData<AddonData>();
  return data->core_class.New({info[0]});
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  auto data = std::make_unique<AddonData>();
  data->core_class = Napi::Persistent(CoreWrap::Define(env));
  env.SetInstanceData(data.release());  // Lifetime: the environment's
  exports.Set("createCore", Napi::Function::New(env, CreateCore, "createCore"));
  return exports;
}

}  // namespace

NODE_API_MODULE(forklet, Init)

}  // namespace forklet::binding

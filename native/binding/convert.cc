#include "binding/convert.h"

#include <cmath>

namespace forklet::binding {

namespace {

constexpr double kMaxSafeInteger = 9007199254740991.0;

Napi::Number ToJs(Napi::Env env, uint64_t value) {
  // Figures and ids, all far below 2^53.
  return Napi::Number::New(env, static_cast<double>(value));
}

Napi::Object ToJs(Napi::Env env, const std::map<std::string, uint64_t>& figures) {
  Napi::Object object = Napi::Object::New(env);
  for (const auto& [name, value] : figures) object.Set(name, ToJs(env, value));
  return object;
}

Napi::Value ToJs(Napi::Env env, std::monostate) { return env.Undefined(); }

Napi::Value ToJs(Napi::Env env, const BootTimes& times) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("started", ToJs(env, times.started));
  object.Set("vmCreated", ToJs(env, times.vm_created));
  object.Set("kernelLoaded", ToJs(env, times.kernel_loaded));
  object.Set("entered", ToJs(env, times.entered));
  return object;
}

Napi::Value ToJs(Napi::Env env, const VmStats& stats) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("memoryAllocatedBytes", ToJs(env, stats.memory_allocated_bytes));
  Napi::Array cpu_times = Napi::Array::New(env, stats.vcpu_cpu_time_ns.size());
  for (uint32_t i = 0; i < stats.vcpu_cpu_time_ns.size(); ++i) {
    cpu_times.Set(i, ToJs(env, stats.vcpu_cpu_time_ns[i]));
  }
  object.Set("vcpuCpuTimeNs", cpu_times);
  object.Set("exits", ToJs(env, stats.exits));
  object.Set("completedInstructions", ToJs(env, stats.completed_instructions));
  object.Set("consoleBytes", ToJs(env, stats.console_bytes));
  object.Set("vsockBytesToGuest", ToJs(env, stats.vsock_bytes_to_guest));
  object.Set("vsockBytesFromGuest", ToJs(env, stats.vsock_bytes_from_guest));
  object.Set("kvm", ToJs(env, stats.kvm));
  return object;
}

Napi::Value ToJs(Napi::Env env, const ProbeReport& report) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("backend", report.backend);
  Napi::Array quirks = Napi::Array::New(env);
  for (const std::string& quirk : report.quirks) {
    quirks.Set(quirks.Length(), Napi::String::New(env, quirk));
  }
  object.Set("quirks", quirks);
  Napi::Array checks = Napi::Array::New(env);
  for (const Check& check : report.checks) {
    Napi::Object item = Napi::Object::New(env);
    item.Set("name", check.name);
    item.Set("ok", check.ok);
    item.Set("found", check.found);
    item.Set("needed", check.needed);
    item.Set("remedy", check.remedy);
    checks.Set(checks.Length(), item);
  }
  object.Set("checks", checks);
  return object;
}

Napi::Value CopyBytes(Napi::Env env, const void* data, size_t size) {
  return Napi::Buffer<uint8_t>::Copy(env, static_cast<const uint8_t*>(data), size);
}

Napi::Value ToJs(Napi::Env env, const Bytes& bytes) {
  return CopyBytes(env, bytes.data(), bytes.size());
}

const char* PlaceName(ParkPlace place) { return place == ParkPlace::kAgent ? "agent" : "program"; }

const char* PoolName(PoolHit pool) {
  switch (pool) {
    case PoolHit::kFork:
      return "fork";
    case PoolHit::kShell:
      return "shell";
    case PoolHit::kNone:
      return "none";
  }
  return "none";
}

Napi::Value ToJs(Napi::Env env, const SnapshotInfo& info) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("memoryBytes", ToJs(env, info.memory_bytes));
  object.Set("vcpus", ToJs(env, info.vcpus));
  object.Set("connection", ToJs(env, info.connection));
  object.Set("copiedPages", ToJs(env, info.copied_pages));
  object.Set("at", PlaceName(info.place));
  object.Set("parkNs", ToJs(env, info.times.park));
  object.Set("stoppedNs", ToJs(env, info.times.stopped));
  if (info.session) object.Set("session", ToJs(env, *info.session));
  return object;
}

Napi::Value ToJs(Napi::Env env, const ForkTimes& times) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("pool", PoolName(times.pool));
  object.Set("shell", ToJs(env, times.shell));
  object.Set("restored", ToJs(env, times.restored));
  return object;
}

Napi::Object NewEvent(Napi::Env env, const char* type) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("type", type);
  return object;
}

Napi::Object NewVmEvent(Napi::Env env, const char* type, VmId vm) {
  Napi::Object object = NewEvent(env, type);
  object.Set("vm", ToJs(env, vm));
  return object;
}

Napi::Object NewConnectionEvent(Napi::Env env, const char* type, VmId vm, uint64_t connection) {
  Napi::Object object = NewVmEvent(env, type, vm);
  object.Set("connection", ToJs(env, connection));
  return object;
}

struct EventVisitor {
  Napi::Env env;

  Napi::Value operator()(const Done& event) const {
    Napi::Object object = NewEvent(env, "done");
    object.Set("request", ToJs(env, event.request));
    object.Set("value",
               std::visit([&](const auto& value) -> Napi::Value { return ToJs(env, value); },
                          event.value));
    return object;
  }
  Napi::Value operator()(const Failed& event) const {
    Napi::Object error = Napi::Object::New(env);
    error.Set("code", ErrorName(event.error.code));
    error.Set("message", event.error.Message());
    error.Set("errno", event.error.sys_errno);
    error.Set("syscall", event.error.op);
    Napi::Object object = NewEvent(env, "failed");
    object.Set("request", ToJs(env, event.request));
    object.Set("error", error);
    return object;
  }
  Napi::Value operator()(const ConsoleOutput& event) const {
    Napi::Object object = NewVmEvent(env, "console", event.vm);
    object.Set("data", CopyBytes(env, event.data.data(), event.data.size()));
    return object;
  }
  Napi::Value operator()(const VmExited& event) const {
    Napi::Object object = NewVmEvent(env, "exit", event.vm);
    object.Set("reason", ExitReasonName(event.reason));
    object.Set("detail", event.detail);
    return object;
  }
  Napi::Value operator()(const ConnectionOpened& event) const {
    Napi::Object object = NewConnectionEvent(env, "connection-opened", event.vm, event.connection);
    object.Set("port", ToJs(env, event.port));
    return object;
  }
  Napi::Value operator()(const ConnectionData& event) const {
    Napi::Object object = NewConnectionEvent(env, "connection-data", event.vm, event.connection);
    object.Set("data", CopyBytes(env, event.data.data(), event.data.size()));
    return object;
  }
  Napi::Value operator()(const ConnectionSent& event) const {
    Napi::Object object = NewConnectionEvent(env, "connection-sent", event.vm, event.connection);
    object.Set("bytes", ToJs(env, event.bytes));
    return object;
  }
  Napi::Value operator()(const ConnectionClosed& event) const {
    return NewConnectionEvent(env, "connection-closed", event.vm, event.connection);
  }
};

std::nullopt_t ThrowTypeError(Napi::Env env, const char* message) {
  if (!env.IsExceptionPending()) Napi::TypeError::New(env, message).ThrowAsJavaScriptException();
  return std::nullopt;
}

}  // namespace

Napi::Value ForkTimesToJs(Napi::Env env, const ForkTimes& times) { return ToJs(env, times); }

Napi::Value ToJs(Napi::Env env, const Event& event) { return std::visit(EventVisitor{env}, event); }

std::optional<std::string> ToText(Napi::Value value) {
  if (!value.IsString()) return ThrowTypeError(value.Env(), "expected a string");
  return value.As<Napi::String>().Utf8Value();
}

std::optional<bool> ToBoolean(Napi::Value value) {
  if (!value.IsBoolean()) return ThrowTypeError(value.Env(), "expected a boolean");
  return value.As<Napi::Boolean>().Value();
}

std::optional<ParkPlace> ToParkPlace(Napi::Value value) {
  const auto name = ToText(value);
  if (!name) return std::nullopt;
  if (*name == "agent") return ParkPlace::kAgent;
  if (*name == "program") return ParkPlace::kProgram;
  return ThrowTypeError(value.Env(), "expected 'agent' or 'program'");
}

std::optional<PoolUse> ToPoolUse(Napi::Value value) {
  const auto name = ToText(value);
  if (!name) return std::nullopt;
  if (*name == "use") return PoolUse::kUse;
  if (*name == "never") return PoolUse::kNever;
  if (*name == "require") return PoolUse::kRequire;
  return ThrowTypeError(value.Env(), "expected 'use', 'never' or 'require'");
}

std::optional<uint32_t> ToId(Napi::Value value) {
  const auto integer = ToInteger(value);
  if (!integer) return std::nullopt;
  if (*integer > UINT32_MAX) {
    Napi::TypeError::New(value.Env(), "expected a 32-bit id").ThrowAsJavaScriptException();
    return std::nullopt;
  }
  return static_cast<uint32_t>(*integer);
}

std::optional<uint64_t> ToInteger(Napi::Value value) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
  if (!(number >= 0 && number <= kMaxSafeInteger) || number != std::floor(number)) {
    return ThrowTypeError(value.Env(), "expected a non-negative integer");
  }
  return static_cast<uint64_t>(number);
}

std::optional<Bytes> ToBytes(Napi::Value value) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    return ThrowTypeError(value.Env(), "expected a Uint8Array");
  }
  const auto array = value.As<Napi::Uint8Array>();
  return Bytes(array.Data(), array.Data() + array.ByteLength());
}

std::optional<VmConfig> ToVmConfig(Napi::Value value) {
  if (!value.IsObject()) return ThrowTypeError(value.Env(), "expected an object");
  const auto object = value.As<Napi::Object>();
  const auto memory_bytes = ToInteger(object.Get("memoryBytes"));
  const auto vcpus = ToInteger(object.Get("vcpus"));
  const auto kvm_path = ToText(object.Get("kvmPath"));
  const auto kernel_path = ToText(object.Get("kernelPath"));
  const auto kernel_args = ToText(object.Get("kernelArgs"));
  const Napi::Value segments = object.Get("initramfs");
  if (!memory_bytes || !vcpus || !kvm_path || !kernel_path || !kernel_args) return std::nullopt;
  if (!IsBootable(*memory_bytes, *vcpus)) {
    return ThrowTypeError(value.Env(), "memoryBytes or vcpus is out of range");
  }
  if (!segments.IsArray()) return ThrowTypeError(value.Env(), "expected an array");

  VmConfig config;
  config.memory_bytes = *memory_bytes;
  config.vcpus = static_cast<uint32_t>(*vcpus);
  config.kvm_path = *kvm_path;
  config.kernel_path = *kernel_path;
  config.kernel_args = *kernel_args;
  const auto array = segments.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); ++i) {
    auto segment = ToBytes(array.Get(i));
    if (!segment) return std::nullopt;
    config.initramfs.push_back(std::move(*segment));
  }
  return config;
}

}  // namespace forklet::binding

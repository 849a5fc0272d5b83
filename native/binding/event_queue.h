#pragma once

#include <napi.h>

#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "vm/messages.h"

namespace forklet::binding {

// Carries the core's events to JavaScript, in batches: one call of the
// environment's thread-safe function stands for all events that have gathered
// by the time that it runs.
//
// What gathers is bounded: vsock data by its credit, the console by
// kMaxConsoleBytes a VM between two answers, everything else by the requests made.
//
// Owner: shared by the core's threads and the CoreWrap. Thread: Deliver from
// any, the rest from JavaScript's.
class EventQueue final : public EventSink {
 public:
  // Console output that JavaScript has not seen yet; the oldest is dropped.
  static constexpr size_t kMaxConsoleBytes = 64 * 1024;

  // Null with a pending JavaScript exception when Node-API refuses.
  static std::shared_ptr<EventQueue> Create(Napi::Env env, Napi::Function on_events);
  ~EventQueue() override = default;

  void Deliver(Event event) override;
  // Whether this queue keeps the event loop alive; not after creation.
  void Ref(Napi::Env env);
  void Unref(Napi::Env env);
  // Drops what has gathered and everything that still comes.
  void Detach();

 private:
  EventQueue() = default;
  static void CallJs(napi_env env, napi_value callback, void* context, void* data);
  bool AppendToConsole(const Event& event);

  std::mutex mutex_;
  napi_threadsafe_function function_ = nullptr;  // Under mutex_; null when detached
  bool scheduled_ = false;                       // Under mutex_
  std::vector<Event> events_;                    // Under mutex_
  // Under mutex_: where in events_ a VM's console output lies that more is added to.
  std::unordered_map<VmId, size_t> console_;
};

}  // namespace forklet::binding

#include "binding/event_queue.h"

#include "binding/convert.h"

namespace forklet::binding {

std::shared_ptr<EventQueue> EventQueue::Create(Napi::Env env, Napi::Function on_events) {
  std::shared_ptr<EventQueue> queue(new EventQueue());
  // The function's context keeps the queue alive until Node-API is done with it.
  auto context = std::make_unique<std::shared_ptr<EventQueue>>(queue);
  const auto finalize = [](napi_env, void*, void* raw) {
    delete static_cast<std::shared_ptr<EventQueue>*>(raw);
  };
  const napi_status status = napi_create_threadsafe_function(
      env, on_events, nullptr, Napi::String::New(env, "forklet"), /*max_queue_size=*/0,
      /*initial_thread_count=*/1, nullptr, finalize, context.get(), CallJs, &queue->function_);
  if (status != napi_ok) {
    Napi::Error::New(env, "Node-API refused a thread-safe function").ThrowAsJavaScriptException();
    return nullptr;
  }
  static_cast<void>(context.release());  // Lifetime: finalize deletes it
  queue->Unref(env);
  return queue;
}

bool EventQueue::AppendToConsole(const Event& event) {
  const auto* output = std::get_if<ConsoleOutput>(&event);
  if (output == nullptr) {
    // What comes behind an answer stays there: it may say what came before it.
    if (std::holds_alternative<Done>(event) || std::holds_alternative<Failed>(event)) {
      console_.clear();
    }
    return false;
  }
  const auto found = console_.find(output->vm);
  if (found == console_.end()) {
    console_.emplace(output->vm, events_.size());
    return false;
  }
  std::string& data = std::get<ConsoleOutput>(events_[found->second]).data;
  data += output->data;
  // Cut by halves, so that a flood costs a copy only now and then.
  if (data.size() > 2 * kMaxConsoleBytes) data.erase(0, data.size() - kMaxConsoleBytes);
  return true;
}

void EventQueue::Deliver(Event event) {
  std::lock_guard lock(mutex_);
  if (function_ == nullptr || AppendToConsole(event)) return;
  events_.push_back(std::move(event));
  if (scheduled_) return;
  scheduled_ = true;
  // napi_closing: the environment is going down, and Detach() is near.
  napi_call_threadsafe_function(function_, nullptr, napi_tsfn_nonblocking);
}

void EventQueue::CallJs(napi_env raw_env, napi_value callback, void* context, void*) {
  // Null when the environment is being torn down.
  if (raw_env == nullptr || callback == nullptr) return;
  EventQueue& queue = **static_cast<std::shared_ptr<EventQueue>*>(context);
  std::vector<Event> events;
  {
    std::lock_guard lock(queue.mutex_);
    events.swap(queue.events_);
    queue.console_.clear();
    queue.scheduled_ = false;
  }
  if (events.empty()) return;
  const Napi::Env env(raw_env);
  const Napi::HandleScope scope(env);
  const Napi::Array batch = Napi::Array::New(env, events.size());
  // A terminating worker makes any of these calls fail: then nobody listens.
  if (batch.IsEmpty()) return;
  for (uint32_t i = 0; i < events.size(); ++i) {
    const Napi::HandleScope event_scope(env);
    batch.Set(i, ToJs(env, events[i]));
    if (env.IsExceptionPending()) return;
  }
  const napi_value argument = batch;
  napi_value ignored;
  napi_call_function(env, env.Undefined(), callback, 1, &argument, &ignored);
  // Left pending, it would end as a deprecation warning; it is an uncaught
  // exception of the program's.
  if (env.IsExceptionPending()) {
    napi_value exception;
    if (napi_get_and_clear_last_exception(env, &exception) == napi_ok) {
      napi_fatal_exception(env, exception);
    }
  }
}

void EventQueue::Ref(Napi::Env env) {
  std::lock_guard lock(mutex_);
  if (function_ != nullptr) napi_ref_threadsafe_function(env, function_);
}

void EventQueue::Unref(Napi::Env env) {
  std::lock_guard lock(mutex_);
  if (function_ != nullptr) napi_unref_threadsafe_function(env, function_);
}

void EventQueue::Detach() {
  std::lock_guard lock(mutex_);
  if (function_ == nullptr) return;
  napi_release_threadsafe_function(std::exchange(function_, nullptr), napi_tsfn_abort);
  events_.clear();
  console_.clear();
}

}  // namespace forklet::binding

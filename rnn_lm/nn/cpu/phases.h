// Work on several threads, one phase after the other.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace rnn_lm {

constexpr int64_t kLeastCall = 1 << 17;  // multiplications of a call that are worth a second thread

using Phases = std::vector<std::function<void(int64_t)>>;

// Calls phase(part) for all parts of a phase before the next one begins, on this thread and those of the pool that are
// free, whenever they come. Each takes parts of its own number first, which may be in its cache. Nobody waits for a
// part that nobody has begun, so that calls on a full pool cannot wait for each other.
template <typename Pool>
void RunPhases(Pool pool, int64_t parts, const Phases& phases) {
  struct State {
    explicit State(int64_t parts) : begun(parts) {}
    std::vector<std::atomic<int64_t>> begun;  // of each part, how many phases
    std::atomic<int64_t> done{0};             // parts of all phases
  };
  auto state = std::make_shared<State>(parts);
  const int64_t count = phases.size();
  const auto* all = phases.data();  // of this call, which returns when all are
                                    // done: nobody begins one after that
  const auto work = [state, parts, count, all](int64_t self) noexcept {
    for (int64_t phase = 0; phase < count; ++phase) {
      for (int64_t i = 0; i < parts; ++i) {
        const int64_t part = (self + i) % parts;
        int64_t expected = phase;
        if (!state->begun[part].compare_exchange_strong(expected, phase + 1, std::memory_order_acq_rel)) continue;
        all[phase](part);
        state->done.fetch_add(1, std::memory_order_acq_rel);
      }
      if (phase + 1 == count && self != 0) return;
      // Awake for a while, as to wake a thread takes long; then in turns with other programs.
      for (int64_t turns = 0; state->done.load(std::memory_order_acquire) < (phase + 1) * parts; ++turns) {
        if (turns < 4000) {
#if defined(__x86_64__)
          __builtin_ia32_pause();
#endif
        } else {
          std::this_thread::yield();
        }
      }
    }
  };
  for (int64_t i = 1; i < std::min<int64_t>(parts, pool.num_threads()); ++i) pool.Schedule([work, i] { work(i); });
  work(0);
}

}  // namespace rnn_lm

// The threads of the forward pass. Not OpenMP: its runtime is shared with torch, and as soon as two threads of a process have used it, it no
// longer spins at barriers but sleeps; with some 270 barriers a step that cost a third of the speed.
#pragma once
#include <immintrin.h>

#include <atomic>
#include <thread>
#include <vector>

namespace {

class Team {
public:
    explicit Team(int threads) : size(threads) {
        for (int thread = 1; thread < threads; thread++) workers.emplace_back([this, thread] { work(thread); });
    }
    ~Team() {
        ended = true;
        release(begun);
        for (auto& worker : workers) worker.join();
    }

    // Runs body(thread) on all threads, the caller being thread 0.
    template <class F>
    void run(F body) {
        call = [](void* what, int thread) { (*static_cast<F*>(what))(thread); };
        what = &body;
        release(begun);
        body(0);
        barrier();
    }

    // Nobody goes on until all have come. What each wrote before, all see after.
    void barrier() {
        uint32_t phase = passed.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived.store(0, std::memory_order_relaxed);
            next.store(0, std::memory_order_relaxed);
            release(passed);
        } else {
            await(passed, phase);
        }
    }

    // body(i) for i under count, each on whichever thread is free. Ends with a barrier.
    template <class F>
    void each(int count, int at_once, F body) {
        for (int first; (first = next.fetch_add(at_once, std::memory_order_relaxed)) < count;)
            for (int i = first; i < count && i < first + at_once; i++) body(i);
        barrier();
    }

    const int size;

private:
    void work(int thread) {
        for (uint32_t phase = 0;; phase++) {
            await(begun, phase);
            if (ended) return;
            call(what, thread);
            barrier();
        }
    }
    static void release(std::atomic<uint32_t>& counter) {
        counter.fetch_add(1, std::memory_order_acq_rel);
        counter.notify_all();
    }
    // A barrier takes a microsecond when all are there: so it spins first, for some 50 of them, and then leaves the processor to others.
    static void await(std::atomic<uint32_t>& counter, uint32_t old) {
        for (int i = 0; i < SPINS; i++) {
            if (counter.load(std::memory_order_acquire) != old) return;
            _mm_pause();
        }
        counter.wait(old, std::memory_order_acquire);
    }

    static constexpr int SPINS = 1000;
    alignas(64) std::atomic<uint32_t> begun{0};
    alignas(64) std::atomic<uint32_t> passed{0};
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<int> next{0};
    void (*call)(void*, int) = nullptr;
    void* what = nullptr;
    std::atomic<bool> ended{false};
    std::vector<std::thread> workers;
};

}  // namespace

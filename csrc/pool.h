// Threads for a batch: std::thread alone, no OpenMP (whose own threads do not survive a fork
// either, and which competes with the network's).
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <list>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <unistd.h>
#endif

namespace litedepth {

class Pool {
 public:
    // This process's pool; its threads start when a call first wants them. A forked child has none
    // of its parent's threads and perhaps its locked mutex, so it never touches the parent's pool.
    // Pools are never destroyed: a thread that still runs at exit would find its mutex gone.
    static Pool& here() {
        static std::atomic<Pool*> current{nullptr};
        Pool* found = current.load();
        while (!found || found->process_ != process()) {
            Pool* fresh = new Pool;
            if (current.compare_exchange_strong(found, fresh)) return *fresh;
            delete fresh;  // another thread was first; it has started no threads yet
        }
        return *found;
    }

    void run(int threads, std::int64_t count, const std::function<void(std::int64_t)>& task) {
        Job job{task, count};
        {
            std::lock_guard<std::mutex> lock(mutex_);
            const auto all = static_cast<int>(std::min<std::int64_t>(threads, count));
            job.wanted = stopped_ ? 0 : all - 1;
            start(job.wanted);
            if (job.wanted > 0) jobs_.push_back(&job);
        }
        work_.notify_all();
        job.run();
        std::unique_lock<std::mutex> lock(mutex_);
        jobs_.remove(&job);
        done_.wait(lock, [&] { return job.helpers == 0; });
        if (job.error) std::rethrow_exception(job.error);
    }

    // Ends the threads, each after the job it is at. Later calls run in their caller alone.
    void stop() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopped_ = true;
        }
        work_.notify_all();
        for (std::thread& thread : threads_) thread.join();
        threads_.clear();
    }

 private:
    struct Job {
        const std::function<void(std::int64_t)>& task;
        const std::int64_t count;
        std::atomic<std::int64_t> next{0};
        int wanted = 0, helpers = 0;  // threads that may still join, and those at it: under mutex_
        std::exception_ptr error;
        std::mutex error_mutex;

        Job(const std::function<void(std::int64_t)>& t, std::int64_t n) : task(t), count(n) {}

        void run() {
            try {
                for (std::int64_t i; (i = next.fetch_add(1)) < count;) task(i);
            } catch (...) {
                next = count;  // the others stop as well
                std::lock_guard<std::mutex> lock(error_mutex);
                if (!error) error = std::current_exception();
            }
        }
    };

    static long process() {
#ifdef _WIN32
        return 0;  // no fork
#else
        return static_cast<long>(getpid());
#endif
    }

    // A machine that gives no more threads still gets its work done, by fewer.
    void start(int wanted) {
        try {
            while (static_cast<int>(threads_.size()) < wanted)
                threads_.emplace_back([this] { serve(); });
        } catch (const std::system_error&) {
        }
    }

    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            const auto open = std::find_if(jobs_.begin(), jobs_.end(),
                                           [](const Job* job) { return job->wanted > 0; });
            if (open == jobs_.end()) {
                if (stopped_) return;
                work_.wait(lock);
                continue;
            }
            Job& job = **open;
            --job.wanted;
            ++job.helpers;
            lock.unlock();
            job.run();
            lock.lock();
            if (--job.helpers == 0) done_.notify_all();
        }
    }

    const long process_ = process();
    std::mutex mutex_;
    std::condition_variable work_, done_;
    std::list<Job*> jobs_;
    std::vector<std::thread> threads_;
    bool stopped_ = false;
};

// task(0) .. task(count - 1), by the caller and up to threads - 1 others, each index once, in any
// order. What a task throws ends the rest and is thrown here. Several callers at once are fine.
inline void parallel_for(int threads, std::int64_t count,
                         const std::function<void(std::int64_t)>& task) {
    if (threads <= 1 || count <= 1) {
        for (std::int64_t i = 0; i < count; ++i) task(i);
        return;
    }
    Pool::here().run(threads, count, task);
}

}  // namespace litedepth

// parallel_for without threads of our own: a second pool beside torch's would fight it for the same cores.
#include <atomic>

#include "topkast.h"

namespace {

struct Job {
    tk_body body;
    void* context;
    int64_t count;
    std::atomic<int64_t> next{0};
};

void work(void* data) {
    Job& job = *static_cast<Job*>(data);
    for (int64_t i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.count;) job.body(job.context, i);
}

}  // namespace

void tk_run_serial(void*, tk_body body, void* context, int64_t count) {
    for (int64_t i = 0; i < count; ++i) body(context, i);
}

void tk_run_gomp(void* pool, tk_body body, void* context, int64_t count) {
    const tk_gomp_pool& gomp = *static_cast<tk_gomp_pool*>(pool);
    const int64_t threads = count < gomp.threads ? count : gomp.threads;
    if (threads <= 1) return tk_run_serial(nullptr, body, context, count);
    Job job{body, context, count};
    gomp.gomp_parallel(work, &job, static_cast<unsigned>(threads), 0);
}

// Enough of CUDA for the kernels of cupy_ops to run on a CPU: blocks one after another, the threads of a block as
// fibers that take turns at __syncthreads. A wrong number shows here as it does on a GPU, unless a race makes it;
// and since each thread runs to the next barrier before the others begin, a missing barrier shows as well, most often.
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

using std::exp;
using std::log;
using std::sqrt;
using std::tanh;

#define __global__
#define __device__ static
#define __shared__ static

struct Dim {
    unsigned x;
};
static Dim blockIdx, gridDim, threadIdx;

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 15);
    bool done = false;
    int barriers = 0;
};
static ucontext_t scheduler;
static Fiber* current;
static const std::function<void()>* body;

static void __syncthreads() {
    current->barriers++;
    swapcontext(&current->context, &scheduler);
}

static void enter() {
    (*body)();
    current->done = true;
    swapcontext(&current->context, &scheduler);
}

static void run(unsigned grid, const std::function<void()>& kernel) {
    static std::vector<Fiber> fibers(THREADS);
    gridDim.x = grid, body = &kernel;
    for (blockIdx.x = 0; blockIdx.x < grid; blockIdx.x++) {
        for (Fiber& f : fibers) {
            f.done = false, f.barriers = 0;
            getcontext(&f.context);
            f.context.uc_stack.ss_sp = f.stack.data(), f.context.uc_stack.ss_size = f.stack.size();
            f.context.uc_link = nullptr;
            makecontext(&f.context, enter, 0);
        }
        // every other round the other way round: what depends on the order of threads differs then
        for (int left = THREADS, round = 0; left > 0; round++)
            for (int i = 0; i < THREADS; i++) {
                int t = round % 2 ? THREADS - 1 - i : i;
                if (fibers[t].done) continue;
                threadIdx.x = t, current = &fibers[t];
                swapcontext(&scheduler, &current->context);
                left -= current->done;
            }
        for (Fiber& f : fibers)
            if (f.barriers != fibers[0].barriers) {
                std::fprintf(stderr, "threads of one block met different numbers of barriers\n");
                std::abort();
            }
    }
}

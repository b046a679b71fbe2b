// Enough of CUDA for the kernels of cupy_ops to run on a CPU: blocks one after another, the threads of a block as
// fibers that take turns at __syncthreads. A wrong number shows here as it does on a GPU, unless a race makes it;
// and since each thread runs to the next barrier before the others begin, a missing barrier shows as well, most often.
#include <setjmp.h>
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

// A fiber is entered once and stays: it works on one block after the other, and jumps (which costs no system call)
// back to the scheduler at each barrier and at the end of each block.
struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    jmp_buf here;
    bool entered = false, done = false;
    int barriers = 0;
};
static jmp_buf scheduler;
static Fiber* current;
static const std::function<void()>* body;

static void leave() {
    if (!_setjmp(current->here)) _longjmp(scheduler, 1);
}

static void __syncthreads() {
    current->barriers++;
    leave();
}

static void work() {
    for (;;) {
        (*body)();
        current->done = true;
        leave();
    }
}

static void go_on(Fiber& f) {
    current = &f;
    if (_setjmp(scheduler)) return;
    if (f.entered) _longjmp(f.here, 1);
    f.entered = true;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data(), f.context.uc_stack.ss_size = f.stack.size();
    f.context.uc_link = nullptr;
    makecontext(&f.context, work, 0);
    setcontext(&f.context);
}

static void run(unsigned grid, const std::function<void()>& kernel) {
    static std::vector<Fiber> fibers(THREADS);
    gridDim.x = grid, body = &kernel;
    for (blockIdx.x = 0; blockIdx.x < grid; blockIdx.x++) {
        for (Fiber& f : fibers) f.done = false, f.barriers = 0;
        // every other round the other way round, and the next block as well: who comes first differs
        static int left, round, i;  // static: a jump does not keep what is in a register
        for (left = THREADS, round = 0; left > 0; round++)
            for (i = 0; i < THREADS; i++) {
                threadIdx.x = (round + blockIdx.x) % 2 ? THREADS - 1 - i : i;
                Fiber& f = fibers[threadIdx.x];
                if (f.done) continue;
                go_on(f);
                left -= current->done;
            }
        for (Fiber& f : fibers)
            if (f.barriers != fibers[0].barriers) {
                std::fprintf(stderr, "threads of one block met different numbers of barriers\n");
                std::abort();
            }
    }
}

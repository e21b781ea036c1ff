#include "base/process.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <utility>

#include "base/error.h"

namespace stoker {
namespace {

std::atomic<uint64_t> generation = 0;
std::atomic<bool (*)()> work_check = nullptr;

}  // namespace

uint64_t fork_generation() {
  // A counter rather than getpid, which is a system call a batch.
  [[maybe_unused]] static const int registered =
      pthread_atfork(nullptr, nullptr, [] { generation.fetch_add(1, std::memory_order_relaxed); });
  return generation.load(std::memory_order_relaxed);  // changes only while the process has one thread
}

void check_same_process(uint64_t of) {
  if (of != fork_generation())
    throw ClosedError(
        "the loader was started in another process, before a fork; its threads do not exist here. Make a loader in "
        "this process, or fork before the first batch is taken.");
}

std::thread start_thread(const std::string& name, std::function<void()> body) {
  sigset_t blocked;
  sigset_t previous;
  sigfillset(&blocked);
  for (const int own_fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS})
    sigdelset(&blocked, own_fault);
  pthread_sigmask(SIG_SETMASK, &blocked, &previous);  // inherited by the new thread
  try {
    std::thread thread([name, body = std::move(body)] {
      pthread_setname_np(pthread_self(), name.c_str());
      body();
    });
    pthread_sigmask(SIG_SETMASK, &previous, nullptr);
    return thread;
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &previous, nullptr);
    throw;
  }
}

void set_work_check(bool (*holds)()) { work_check = holds; }

bool work_check_holds() {
  const auto holds = work_check.load();
  return holds == nullptr || holds();
}

}  // namespace stoker

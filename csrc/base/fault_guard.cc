#include "base/fault_guard.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <utility>

#include "base/file.h"

namespace stoker {
namespace {

// The innermost guard of this thread. The handler runs in the thread that faulted, so no lock is needed.
// initial-exec: the default model may allocate at the first access of a thread, which a signal handler must not.
[[gnu::tls_model("initial-exec")]] thread_local FaultGuard* innermost = nullptr;

size_t handler_page_size;          // sysconf is not async-signal-safe
struct sigaction previous_action;  // who had SIGBUS before us

}  // namespace

struct FaultHandler {
  static void handle(int signal, siginfo_t* info, void* context) {
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);  // compared with the mappings' addresses
    for (const FaultGuard* guard = innermost; guard != nullptr && info->si_code > 0; guard = guard->outer_) {
      for (const MappedFile* mapping : guard->mappings_) {
        const auto begin = reinterpret_cast<uintptr_t>(mapping->bytes().data());
        if (address - begin >= mapping->bytes().size()) continue;
        mapping->set_faulted();  // before anybody can read zeros there
        // The bare system call: TSan would take mmap for a write to what other threads may be reading, which is meant.
        const uintptr_t page = address - address % handler_page_size;
        if (::syscall(SYS_mmap, page, handler_page_size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) < 0)
          break;
        return;  // the read is repeated and finds zeros
      }
    }
    pass_on(signal, info, context);
  }

  static void pass_on(int signal, siginfo_t* info, void* context) {
    if ((previous_action.sa_flags & SA_SIGINFO) != 0) {
      previous_action.sa_sigaction(signal, info, context);
    } else if (previous_action.sa_handler == SIG_DFL || previous_action.sa_handler == SIG_IGN) {
      ::signal(signal, SIG_DFL);  // the read is repeated and ends the process, as it would have without us
      if (info->si_code <= 0) ::raise(signal);
    } else {
      previous_action.sa_handler(signal);
    }
  }

  static void install() {
    handler_page_size = page_size_bytes();
    struct sigaction action{};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &previous_action);
  }
};

FaultGuard::FaultGuard(std::vector<const MappedFile*> mappings) : mappings_(std::move(mappings)), outer_(innermost) {
  static std::once_flag installed;
  std::call_once(installed, FaultHandler::install);
  innermost = this;
}

FaultGuard::~FaultGuard() { innermost = outer_; }

const MappedFile* FaultGuard::faulted() const {
  const auto found = std::find_if(mappings_.begin(), mappings_.end(), [](const MappedFile* m) { return m->faulted(); });
  return found == mappings_.end() ? nullptr : *found;
}

}  // namespace stoker

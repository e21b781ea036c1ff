// Threads and forks of this process.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <thread>

namespace stoker {

/// How often this process has been the child of a fork since the first call in an ancestor. A number that differs from
/// a remembered one means: another process, without the threads of that time.
uint64_t fork_generation();

/// Raises ClosedError where this is a forked child of the process that `generation` is of: what threads work on there
/// is in no known state here, its mutexes maybe locked.
void check_same_process(uint64_t generation);

/// Starts a thread with a name (15 characters at most) and all signals blocked but those that report its own faults, so
/// that the host program's handlers run in its own threads.
std::thread start_thread(const std::string& name, std::function<void()> body);

/// Builds with assertions only: something that must hold whenever the core takes up work, on whatever thread. The
/// bindings set it to: the GIL is not held.
void set_work_check(bool (*holds)());
bool work_check_holds();

}  // namespace stoker

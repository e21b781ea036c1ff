// Files, threads, forks and the buffer pool.
#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>

#include "base/buffer_pool.h"
#include "base/error.h"
#include "base/file.h"
#include "base/process.h"
#include "mds_files.h"

namespace stoker {
namespace {

using namespace testing_files;

TEST(File, ReadsExactlyOrRaises) {
  const TemporaryDirectory directory;
  write_file(directory / "x", {std::byte{1}, std::byte{2}, std::byte{3}});
  const File file(directory / "x");
  EXPECT_EQ(file.size_bytes(), 3U);
  Bytes two(2);
  file.read_at(1, two);
  EXPECT_EQ(two, (Bytes{std::byte{2}, std::byte{3}}));
  EXPECT_THROW(file.read_at(2, two), CorruptShardError);
}

TEST(File, WhatIsNoFileIsRefusedAndAPipeIsNotWaitedFor) {
  const TemporaryDirectory directory;
  ASSERT_EQ(::mkfifo((directory / "pipe").c_str(), 0600), 0);
  for (const std::string& path : {directory / "absent", directory / "pipe", directory.path()}) {
    try {
      const File file(path);
      FAIL() << path;
    } catch (const SystemError& error) {
      EXPECT_EQ(error.path, path);
      EXPECT_NE(error.code, 0);
    }
  }
}

TEST(File, AnEmptyOneMapsToNothing) {
  const TemporaryDirectory directory;
  write_file(directory / "empty", {});
  const MappedFile mapping{File(directory / "empty")};
  EXPECT_TRUE(mapping.bytes().empty());
}

TEST(Process, ThreadsHaveNamesAndLeaveSignalsToTheirHost) {
  char name[16] = {};
  bool blocks_interrupt = false;
  bool blocks_fault = true;
  start_thread("stoker-test", [&] {
    pthread_getname_np(pthread_self(), name, sizeof(name));
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
    blocks_interrupt = sigismember(&blocked, SIGINT) == 1;
    blocks_fault = sigismember(&blocked, SIGBUS) == 1;
  }).join();
  EXPECT_STREQ(name, "stoker-test");
  EXPECT_TRUE(blocks_interrupt);
  EXPECT_FALSE(blocks_fault);
  sigset_t ours;
  pthread_sigmask(SIG_SETMASK, nullptr, &ours);
  EXPECT_EQ(sigismember(&ours, SIGINT), 0);
}

TEST(Process, AForkIsAnotherGeneration) {
  const uint64_t here = fork_generation();
  const pid_t child = ::fork();
  if (child == 0) ::_exit(fork_generation() == here ? 1 : 0);
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_EQ(fork_generation(), here);
}

TEST(BufferPool, MemoryComesBackAndIsUsedAgainUpToALimit) {
  std::optional<BufferPool> pool(std::in_place, 1000, 1);
  std::optional<BufferPool::Buffer> a(pool->take());
  std::optional<BufferPool::Buffer> b(pool->take());
  EXPECT_NE(a->data(), b->data());
  EXPECT_EQ(a->size_bytes(), 1000U);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a->data()) % BufferPool::kAlignment, 0U);
  const std::byte* first = a->data();
  a.reset();
  b.reset();  // beyond the limit: freed
  std::optional<BufferPool::Buffer> c(pool->take());
  EXPECT_EQ(c->data(), first);
  pool.reset();
  c->data()[999] = std::byte{1};  // a buffer may outlive its pool
}

}  // namespace
}  // namespace stoker

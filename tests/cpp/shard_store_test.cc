#include "shard/shard_store.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "base/error.h"
#include "mds_files.h"

namespace stoker {
namespace {

using namespace testing_files;

/// Twenty shards of one sample.
class ShardStoreTest : public testing::Test {
 protected:
  ShardStore store(size_t open_shards, size_t head_bytes = SIZE_MAX, const Form& form = {}) {
    const std::vector<ShardLengths> shards(20, {9});
    return ShardStore({write_stream(directory_, "web", shards, form)}, 1 << 20, {open_shards, head_bytes});
  }
  TemporaryDirectory directory_;
};

long num_mappings() {
  std::ifstream maps("/proc/self/maps");
  return std::count(std::istreambuf_iterator<char>(maps), {}, '\n');
}

TEST_F(ShardStoreTest, TheLeastRecentlyUsedShardIsClosedFirst) {
  ShardStore shards = store(2);
  const std::shared_ptr<const Shard> zero = shards.get({0, 0});
  const std::shared_ptr<const Shard> one = shards.get({0, 1});
  EXPECT_EQ(shards.get({0, 0}), zero);
  shards.get({0, 2});
  EXPECT_EQ(shards.get({0, 0}), zero);
  EXPECT_TRUE(one->is_retired());
  EXPECT_NE(shards.get({0, 1}), one);
}

TEST_F(ShardStoreTest, HeldShardsAreClosedLast) {
  ShardStore shards = store(2);
  shards.hold({0, 0});
  const std::shared_ptr<const Shard> zero = shards.get({0, 0});
  EXPECT_TRUE(zero->is_held());
  for (uint32_t i = 1; i < 5; ++i) shards.get({0, i});
  EXPECT_EQ(shards.get({0, 0}), zero);
  shards.hold({0, 0});
  EXPECT_TRUE(shards.release({0, 0}));
  EXPECT_TRUE(zero->is_held());
  EXPECT_FALSE(shards.release({0, 0}));
  EXPECT_FALSE(shards.release({0, 0}));
  EXPECT_FALSE(zero->is_held());
  for (uint32_t i = 1; i < 5; ++i) shards.get({0, i});
  EXPECT_NE(shards.get({0, 0}), zero);
  for (uint32_t i = 0; i < 20; ++i) shards.hold({0, i});
  for (uint32_t i = 0; i < 20; ++i) shards.get({0, i});  // all are held: the limit is kept all the same
  shards.unclaim();
  EXPECT_FALSE(shards.get({0, 19})->is_held());
}

TEST_F(ShardStoreTest, HeadsOfShardsThatAreNotHeldAreKeptWithinTheirLimitButForTheLastOne) {
  ShardStore shards = store(100, 1);
  shards.hold({0, 5});
  const std::shared_ptr<const Shard> held = shards.get({0, 5});
  const std::shared_ptr<const Shard> zero = shards.get({0, 0});
  EXPECT_EQ(shards.get({0, 0}), zero);
  shards.get({0, 1});
  EXPECT_TRUE(zero->is_retired());
  EXPECT_FALSE(held->is_retired());
  shards.release({0, 5});
  shards.get({0, 2});
  EXPECT_TRUE(held->is_retired());
}

TEST_F(ShardStoreTest, ShardsWhoseFilesMayGoAreClosedWithTheirLastRelease) {
  std::vector<StreamFiles> files = {write_stream(directory_, "web", std::vector(20, ShardLengths{4, 4}), {})};
  files[0].closes_unheld = true;
  ShardStore shards(files, 0);
  for (int i = 0; i < 2; ++i) shards.hold({0, 0});
  const std::shared_ptr<const Shard> zero = shards.get({0, 0});
  shards.release({0, 0});
  EXPECT_EQ(shards.get({0, 0}), zero);
  const long before = num_mappings();
  const std::weak_ptr<const Shard> seen = shards.get({0, 0});
  shards.release({0, 0});
  EXPECT_TRUE(zero->is_retired());
  EXPECT_NE(shards.get({0, 0}), zero);
  EXPECT_LE(num_mappings(), before + 1);
}

TEST_F(ShardStoreTest, AForkedChildIsToldWhereThreadsWork) {
  ShardStore shards = store(100);
  const auto child_is_told = [&] {
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        shards.get({0, 0});
      } catch (const ClosedError&) {
        ::_exit(1);
      }
      ::_exit(0);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return WEXITSTATUS(status) == 1;
  };
  EXPECT_FALSE(child_is_told());
  shards.claim();
  EXPECT_TRUE(child_is_told());
  shards.unclaim();
  EXPECT_FALSE(child_is_told());
}

TEST_F(ShardStoreTest, PiecesGoWithTheirShard) {
  ShardStore shards = store(2, SIZE_MAX, {.compressed = true});
  for (uint32_t i = 0; i < 20; ++i) {
    const Piece piece{shards.get({0, i}), 0};
    ASSERT_EQ(shards.pieces().pin(piece), PieceCache::State::kAbsent);
    shards.pieces().load(piece);
    shards.pieces().unpin(piece);
  }
  EXPECT_EQ(shards.pieces().present_bytes(),
            2 * shards.streams()[0].shards[0].raw_bytes);  // of the two that are open
}

TEST_F(ShardStoreTest, MappingsStayWithinTheLimit) {
  ShardStore shards = store(3);
  shards.get({0, 0});
  const auto before = num_mappings();
  for (uint32_t i = 0; i < 20; ++i) shards.get({0, i});
  EXPECT_LE(num_mappings(), before + 2);
}

TEST_F(ShardStoreTest, ADecodedShardIsOneMappingToo) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers have mappings of their own for each of ours";
#endif
  // Large enough for huge pages, which the kernel would not give to a part of a mapping without splitting it.
  const std::vector<ShardLengths> lengths(8, ShardLengths{1'200'000});
  const StreamFiles files = write_stream(directory_, "large", lengths, {.compressed = true, .frame_bytes = 1 << 20});
  ShardStore shards({files}, uint64_t{1} << 30, {.open_shards = 100});
  const auto load = [&](uint32_t i) {
    const std::shared_ptr<const Shard> shard = shards.get({0, i});
    for (uint32_t piece = 0; piece < shard->body().num_pieces(); ++piece) shard->load(piece);
  };
  load(0);
  const auto before = num_mappings();
  for (uint32_t i = 1; i < lengths.size(); ++i) load(i);
  EXPECT_LE(num_mappings(), before + static_cast<long>(lengths.size()) - 1);
}

TEST_F(ShardStoreTest, ThreadsThatAskAtOnceGetTheSameShard) {
  ShardStore shards = store(100);
  for (uint32_t i = 0; i < 20; ++i) {
    std::shared_ptr<const Shard> got[4];
    std::vector<std::thread> threads;
    for (auto& place : got) threads.emplace_back([&shards, &place, i] { place = shards.get({0, i}); });
    for (std::thread& thread : threads) thread.join();
    for (const auto& shard : got) EXPECT_EQ(shard, got[0]);
  }
}

}  // namespace
}  // namespace stoker

#include "order/sample_list.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>

#include "base/error.h"

namespace stoker {
namespace {

using std::chrono_literals::operator""ms;

SampleList::Chunk chunk(std::vector<uint64_t> samples) {
  const auto size = static_cast<uint32_t>(samples.size());
  return {std::move(samples), {size}};
}

TEST(SampleListTest, SamplesAreNumberedOverTheShardsOfAllStreams) {
  const SampleList list({{2, {3, 0, 2}}, {0, {0, 4}}}, 1);
  const std::vector<std::vector<uint32_t>> want = {{2, 0, 0}, {2, 0, 1}, {2, 0, 2}, {2, 2, 0}, {2, 2, 1},
                                                   {0, 1, 0}, {0, 1, 1}, {0, 1, 2}, {0, 1, 3}};
  for (uint64_t i = 0; i < want.size(); ++i) {
    const auto [stream, shard, sample] = list.place(i);
    EXPECT_EQ((std::vector{stream, shard, sample}), want[i]);
    EXPECT_EQ(list.shard_size(i), i < 3 ? 3U : i < 5 ? 2U : 4U);
  }
  EXPECT_THROW(list.place(9), ArgumentError);
  EXPECT_THROW(SampleList({}, 1).place(0), ArgumentError);
}

TEST(SampleListTest, ChunksComeInOrderAndTheListerIsNotFarAhead) {
  SampleList list({{0, {1000}}}, 3);
  std::atomic<uint64_t> pushed = 0;
  std::thread lister([&] {
    for (uint64_t i = 0; i < 100; ++i) {
      list.push(chunk({i, i + 1}));
      pushed = i + 1;
    }
  });
  for (uint64_t i = 0; i < 100; ++i) {
    EXPECT_LE(pushed, i + 3);
    EXPECT_EQ(list.take().samples, (std::vector{i, i + 1}));
  }
  EXPECT_FALSE(list.take_if_there());
  lister.join();
}

TEST(SampleListTest, AFailureComesBehindWhatWasListedAndStays) {
  SampleList list({{0, {10}}}, 2);
  list.push(chunk({1}));
  list.fail(std::make_exception_ptr(ArgumentError("no order")));
  EXPECT_EQ(list.take().samples, std::vector<uint64_t>{1});
  EXPECT_THROW(list.take(), ArgumentError);
  EXPECT_THROW(list.take(), ArgumentError);
  EXPECT_FALSE(list.take_if_there());
}

TEST(SampleListTest, ClosingEndsAllWaiting) {
  SampleList list({{0, {10}}}, 1);
  std::thread taker([&] { EXPECT_THROW(list.take(), ClosedError); });
  while (!list.is_awaited()) std::this_thread::sleep_for(1ms);
  list.close();
  taker.join();
  EXPECT_GT(list.waited_s(), 0);

  SampleList full({{0, {10}}}, 1);
  EXPECT_TRUE(full.push(chunk({1})));
  std::thread lister([&] { EXPECT_FALSE(full.push(chunk({2}))); });
  std::this_thread::sleep_for(5ms);
  full.close();
  lister.join();
  EXPECT_FALSE(full.take_if_there());
}

TEST(SampleListTest, BatchesMustBeOfTheChunksSamples) {
  SampleList list({{0, {10}}}, 4);
  EXPECT_THROW(list.push({{1, 2}, {}}), ArgumentError);
  EXPECT_THROW(list.push({{1, 2}, {1}}), ArgumentError);
  EXPECT_THROW(list.push({{1, 2}, {3}}), ArgumentError);
  EXPECT_THROW(list.push({{1, 2}, {2, 1, 2}}), ArgumentError);
  EXPECT_TRUE(list.push({{1, 2}, {0, 2}}));
  EXPECT_THROW(SampleList({}, 0), ArgumentError);
}

}  // namespace
}  // namespace stoker

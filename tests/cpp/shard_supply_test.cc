#include "shard/shard_supply.h"

#include <gtest/gtest.h>

#include <fstream>
#include <future>

#include "base/error.h"
#include "mds_files.h"

namespace stoker {
namespace {

using namespace testing_files;

constexpr ShardId kOne{0, 1}, kTwo{0, 2}, kThree{1, 0};

// Until a thread waits in await(): there is no other way to see that it does than awaited().
void wait_until_awaited(const ShardSupply& supply) {
  while (!supply.awaited()) std::this_thread::yield();
}

class ShardSupplyTest : public testing::Test {
 protected:
  SuppliedFile file(const std::string& name) {
    std::ofstream(directory_ / name) << name;
    return {std::make_shared<File>(directory_ / name), false};
  }

  ShardSupply supply_;

 private:
  TemporaryDirectory directory_;
};

TEST_F(ShardSupplyTest, ShardsAreTakenInTheOrderInWhichTheyWereWantedEachOnce) {
  for (const ShardId id : {kTwo, kOne, kTwo, kThree}) supply_.want(id);
  for (const ShardId id : {kTwo, kOne, kThree}) EXPECT_EQ(supply_.take(), id);
  supply_.want(kTwo);  // it is being supplied
  supply_.want({9, 9});
  EXPECT_EQ(supply_.take(), (ShardId{9, 9}));
}

TEST_F(ShardSupplyTest, AReadyFileIsHandedOverOnceAndTheShardIsUnknownAgain) {
  supply_.want(kOne);
  EXPECT_EQ(supply_.take(), kOne);
  EXPECT_FALSE(supply_.take_file(kOne));
  SuppliedFile one = file("one");
  const std::weak_ptr<File> seen = one.file;
  supply_.set_ready(kOne, std::move(one));
  EXPECT_TRUE(supply_.is_ready(kOne));
  EXPECT_EQ(supply_.await(kOne).file->size_bytes(), 3U);
  EXPECT_TRUE(seen.expired());
  EXPECT_EQ(supply_.waited_s(), 0);
  EXPECT_FALSE(supply_.is_ready(kOne));
  EXPECT_FALSE(supply_.take_file(kOne));
  supply_.want(kOne);
  EXPECT_EQ(supply_.take(), kOne);
}

TEST_F(ShardSupplyTest, WhatIsNotWantedAnyMoreIsNotTakenAndItsFileIsClosed) {
  for (const ShardId id : {kOne, kTwo, kThree}) supply_.want(id);
  EXPECT_EQ(supply_.take(), kOne);
  supply_.unwant(kOne);
  supply_.unwant(kTwo);
  supply_.unwant({7, 7});
  EXPECT_EQ(supply_.take(), kThree);
  for (const ShardId id : {kOne, kThree}) {
    SuppliedFile made = file("made");
    const std::weak_ptr<File> seen = made.file;
    supply_.set_ready(id, std::move(made));
    EXPECT_EQ(supply_.is_ready(id), id == kThree);  // the other one was not wanted any more when it came
    supply_.unwant(id);
    EXPECT_TRUE(seen.expired());
    EXPECT_FALSE(supply_.is_ready(id));
  }
}

TEST_F(ShardSupplyTest, AnAwaitedShardIsTakenFirstAndWakesWhoWaitsForIt) {
  supply_.want(kOne);
  supply_.want(kTwo);
  auto made = std::async(std::launch::async, [&] { return supply_.await(kTwo); });
  wait_until_awaited(supply_);
  supply_.unwant(kTwo);  // somebody waits
  EXPECT_EQ(supply_.take(), kTwo);
  supply_.set_ready(kTwo, file("two"));
  EXPECT_EQ(made.get().file->size_bytes(), 3U);
  EXPECT_GT(supply_.waited_s(), 0);
  EXPECT_EQ(supply_.waited_s(), supply_.waited_s(0));
  EXPECT_EQ(supply_.waited_s(1), 0);
  EXPECT_FALSE(supply_.awaited());
  EXPECT_EQ(supply_.take(), kOne);
}

TEST_F(ShardSupplyTest, TwoThatWaitForOneShardGetAFileEach) {
  std::vector<std::future<SuppliedFile>> waiting;
  for (int i = 0; i < 2; ++i) waiting.push_back(std::async(std::launch::async, [&] { return supply_.await(kOne); }));
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(supply_.take(), kOne);
    supply_.set_ready(kOne, file("one"));
  }
  for (std::future<SuppliedFile>& one : waiting) EXPECT_EQ(one.get().file->size_bytes(), 3U);
}

TEST_F(ShardSupplyTest, NewsAreToldOnce) {
  for (const ShardId id : {kOne, kTwo}) supply_.want(id);
  for (int i = 0; i < 2; ++i) supply_.set_ready(*supply_.take(), file("x"));
  EXPECT_EQ(supply_.take_news(), (std::vector<ShardId>{kOne, kTwo}));
  EXPECT_TRUE(supply_.take_news().empty());
}

TEST_F(ShardSupplyTest, AFailureIsRaisedAtEveryAwaitUntilTheNextRun) {
  supply_.want(kOne);
  EXPECT_EQ(supply_.take(), kOne);
  supply_.set_failed(kOne, std::make_exception_ptr(SupplyError("why")));
  EXPECT_THROW(supply_.await(kOne), SupplyError);
  EXPECT_THROW(supply_.await(kOne), SupplyError);
  supply_.want(kOne);
  supply_.want(kTwo);
  EXPECT_EQ(supply_.take(), kTwo);
  supply_.resume();
  supply_.want(kOne);
  EXPECT_EQ(supply_.take(), kOne);
}

TEST_F(ShardSupplyTest, StopWakesWhoWaitsAndResumeForgetsWhatWasWanted) {
  auto made = std::async(std::launch::async, [&] { return supply_.await(kOne); });
  wait_until_awaited(supply_);
  supply_.want(kThree);
  supply_.stop();
  EXPECT_THROW(made.get(), ClosedError);
  EXPECT_THROW(supply_.await(kTwo), ClosedError);
  supply_.resume();
  auto again = std::async(std::launch::async, [&] { return supply_.await(kTwo); });
  EXPECT_EQ(supply_.take(), kTwo);
  supply_.set_ready(kTwo, file("two"));
  EXPECT_TRUE(again.get().file);
  supply_.want(kThree);
  EXPECT_EQ(supply_.take(), kThree);
}

TEST_F(ShardSupplyTest, CloseWakesWhoWaitsAndWhoSupplies) {
  auto made = std::async(std::launch::async, [&] { return supply_.await(kOne); });
  wait_until_awaited(supply_);
  EXPECT_EQ(supply_.take(), kOne);
  auto taken = std::async(std::launch::async, [&] { return supply_.take(); });
  supply_.close();
  EXPECT_THROW(made.get(), ClosedError);
  EXPECT_EQ(taken.get(), std::nullopt);
  supply_.resume();
  EXPECT_THROW(supply_.await(kTwo), ClosedError);
}

}  // namespace
}  // namespace stoker

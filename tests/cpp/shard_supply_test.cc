#include "shard/shard_supply.h"

#include <gtest/gtest.h>

#include <future>

#include "base/error.h"

namespace stoker {
namespace {

constexpr ShardId kOne{0, 1}, kTwo{0, 2}, kThree{1, 0};

// Until a thread waits in await(): there is no other way to see that it does than awaited().
void wait_until_awaited(const ShardSupply& supply) {
  while (!supply.awaited()) std::this_thread::yield();
}

TEST(ShardSupplyTest, ShardsAreTakenInTheOrderInWhichTheyWereWantedEachOnce) {
  ShardSupply supply;
  for (const ShardId id : {kTwo, kOne, kTwo, kThree}) supply.want(id);
  for (const ShardId id : {kTwo, kOne, kThree}) EXPECT_EQ(supply.take(), id);
  supply.want(kTwo);  // it is being made
  supply.want({9, 9});
  EXPECT_EQ(supply.take(), (ShardId{9, 9}));
}

TEST(ShardSupplyTest, WhatIsNotWantedAnyMoreIsNotTakenButWhatIsBeingMadeIsFinished) {
  ShardSupply supply;
  supply.want(kOne);
  supply.want(kTwo);
  supply.want(kThree);
  EXPECT_EQ(supply.take(), kOne);
  supply.unwant(kOne);
  supply.unwant(kTwo);
  supply.unwant({7, 7});
  EXPECT_EQ(supply.take(), kThree);
  supply.set_ready(kOne, {"one", 11});
  EXPECT_TRUE(supply.is_ready(kOne));
  EXPECT_FALSE(supply.is_ready(kTwo));
  supply.unwant(kOne);
  EXPECT_EQ(supply.await(kOne).path, "one");
  EXPECT_EQ(supply.waited_s(), 0);
}

TEST(ShardSupplyTest, AnAwaitedShardIsTakenFirstAndWakesWhoWaitsForIt) {
  ShardSupply supply;
  supply.want(kOne);
  supply.want(kTwo);
  auto made = std::async(std::launch::async, [&] { return supply.await(kTwo); });
  wait_until_awaited(supply);
  supply.unwant(kTwo);  // somebody waits
  EXPECT_EQ(supply.take(), kTwo);
  supply.set_ready(kTwo, {"two", 22});
  EXPECT_EQ(made.get().size_bytes, 22U);
  EXPECT_GT(supply.waited_s(), 0);
  EXPECT_FALSE(supply.awaited());
  EXPECT_EQ(supply.take(), kOne);
}

TEST(ShardSupplyTest, AFailureIsRaisedAtEveryAwaitUntilTheNextRun) {
  ShardSupply supply;
  supply.want(kOne);
  EXPECT_EQ(supply.take(), kOne);
  supply.set_failed(kOne, std::make_exception_ptr(SupplyError("why")));
  EXPECT_THROW(supply.await(kOne), SupplyError);
  EXPECT_THROW(supply.await(kOne), SupplyError);
  supply.want(kOne);
  supply.want(kTwo);
  EXPECT_EQ(supply.take(), kTwo);
  supply.resume();
  supply.want(kOne);
  EXPECT_EQ(supply.take(), kOne);
}

TEST(ShardSupplyTest, AForgottenFileIsMadeAgain) {
  ShardSupply supply;
  supply.want(kOne);
  supply.forget(kOne);  // not ready: nothing
  EXPECT_EQ(supply.take(), kOne);
  supply.set_ready(kOne, {"one", 1});
  supply.forget(kOne);
  EXPECT_FALSE(supply.is_ready(kOne));
  supply.want(kOne);
  EXPECT_EQ(supply.take(), kOne);
}

TEST(ShardSupplyTest, StopWakesWhoWaitsAndResumeLetsWait) {
  ShardSupply supply;
  auto made = std::async(std::launch::async, [&] { return supply.await(kOne); });
  wait_until_awaited(supply);
  supply.stop();
  EXPECT_THROW(made.get(), ClosedError);
  EXPECT_THROW(supply.await(kTwo), ClosedError);
  supply.resume();
  auto again = std::async(std::launch::async, [&] { return supply.await(kTwo); });
  EXPECT_EQ(supply.take(), kTwo);
  supply.set_ready(kTwo, {"two", 2});
  EXPECT_EQ(again.get().path, "two");
}

TEST(ShardSupplyTest, CloseWakesWhoWaitsAndWhoMakes) {
  ShardSupply supply;
  auto made = std::async(std::launch::async, [&] { return supply.await(kOne); });
  wait_until_awaited(supply);
  EXPECT_EQ(supply.take(), kOne);
  auto taken = std::async(std::launch::async, [&] { return supply.take(); });
  supply.close();
  EXPECT_THROW(made.get(), ClosedError);
  EXPECT_EQ(taken.get(), std::nullopt);
  supply.resume();
  EXPECT_THROW(supply.await(kTwo), ClosedError);
}

}  // namespace
}  // namespace stoker

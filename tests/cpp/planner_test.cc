#include "engine/planner.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "mds_files.h"

namespace stoker {
namespace {

using namespace testing_files;

class PlannerTest : public testing::Test {
 protected:
  PlannerTest() {
    store_ = std::make_shared<ShardStore>(
        std::vector{write_stream(directory_, "a", {{5, 6, 7}, {8}}, {}), write_stream(directory_, "b", {{9, 9}}, {})},
        0);
    OrderSpec spec;
    spec.streams = {{"a", {3, 1}}, {"b", {2}}};
    spec.counts = {8, 4};
    spec.global_batch = 6;
    order_ = std::make_shared<const Order>(spec);
  }
  Planner planner(RankSlice slice, uint64_t first_row = 0) {
    LayoutSpec layout;
    layout.kind = LayoutKind::kPad;
    layout.seq_len = 7;
    layout.overflow.assign(2, Overflow::kTruncate);
    return Planner(store_, order_, layout, slice, first_row);
  }
  static std::vector<std::pair<uint32_t, uint32_t>> samples(const BatchPlan& plan) {
    std::vector<std::pair<uint32_t, uint32_t>> out;
    for (const Segment& s : plan.rows.segments()) out.emplace_back(s.stream * 10 + s.shard, s.sample);
    return out;
  }

  TemporaryDirectory directory_;
  std::shared_ptr<ShardStore> store_;
  std::shared_ptr<const Order> order_;
};

TEST_F(PlannerTest, RanksTakeTurnsAtTheRowsOfAGlobalBatch) {
  Planner whole = planner({});
  Planner even = planner({0, 2});
  Planner odd = planner({1, 2});
  for (uint64_t batch = 1; batch <= 4; ++batch) {
    const auto all = samples(whole.next());
    const BatchPlan one = even.next();
    const auto other = samples(odd.next());
    EXPECT_EQ(one.end_row, 6 * batch);
    ASSERT_EQ(all.size(), 6U);
    for (size_t i = 0; i < 6; ++i) EXPECT_EQ(all[i], (i % 2 == 0 ? samples(one) : other)[i / 2]);
  }
}

TEST_F(PlannerTest, APlanMayBeginAtAnyRow) {
  Planner from_start = planner({});
  from_start.next();
  Planner later = planner({}, 6);
  EXPECT_EQ(later.next_row(), 6U);
  EXPECT_EQ(samples(from_start.next()), samples(later.next()));
}

TEST_F(PlannerTest, AShardIsNamedOnceAPlanAndCountsAreOfTheRows) {
  Planner plans = planner({});
  for (int batch = 0; batch < 4; ++batch) {
    const BatchPlan plan = plans.next();
    EXPECT_LE(plan.shards.size(), 3U);
    uint64_t units = 0;
    for (const StreamCounts& counts : plan.rows.counts()) units += counts.units;
    EXPECT_EQ(units, 6U);
    for (size_t i = 0; i < plan.segment_shards.size(); ++i) {
      const Segment& segment = plan.rows.segments()[i];
      EXPECT_EQ(plan.shards[plan.segment_shards[i]], store_->get({segment.stream, segment.shard}));
    }
  }
}

TEST_F(PlannerTest, ARankThatIsNoneIsRefused) {
  EXPECT_THROW(planner({2, 2}), ArgumentError);
  EXPECT_THROW(planner({0, 4}), ArgumentError);
  EXPECT_THROW(planner({0, 0}), ArgumentError);
}

}  // namespace
}  // namespace stoker

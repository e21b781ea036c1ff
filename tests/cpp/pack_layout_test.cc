#include "layout/pack_layout.h"

#include <gtest/gtest.h>

#include <map>

#include "base/error.h"
#include "order/dealing.h"
#include "order/key.h"

namespace stoker {
namespace {

/// Two streams of some shards, and lengths by a formula.
class PackLayoutTest : public testing::Test, private SampleLengths {
 protected:
  PackLayoutTest() {
    spec_.kind = LayoutKind::kPack;
    spec_.seq_len = 20;
    spec_.overflow = {Overflow::kSplit, Overflow::kTruncate};
    spec_.groups = {0, 0};
    spec_.pack_window = 25;
    OrderSpec order;
    order.streams = {{"a", {30, 7, 19}}, {"b", {40, 5}}};
    order.counts = {3, 2};
    order.finite = false;
    order.lanes = 3;
    order.global_batch = 6;
    order.shuffle_block = 10;
    order_ = std::make_unique<Order>(order);
  }

  std::unique_ptr<Layout> layout(const LayoutStart& start = {}) { return make_layout(spec_, *order_, *this, start); }

  static std::vector<std::vector<uint32_t>> row(const Rows& rows, uint32_t i) {
    std::vector<std::vector<uint32_t>> out;
    for (const Segment& s : rows.row(i)) out.push_back({s.stream, s.shard, s.sample, s.token_begin, s.token_end});
    return out;
  }

  std::span<const uint32_t> token_ends(uint32_t stream, uint32_t shard) override {
    std::vector<uint32_t>& ends = ends_[{stream, shard}];
    if (ends.empty()) {
      uint32_t end = 0;
      for (uint32_t x = 0; x < 50; ++x) ends.push_back(end += static_cast<uint32_t>(key("n", stream, shard, x) % 30));
    }
    return ends;
  }
  std::string path(uint32_t stream, uint32_t shard) override { return text(stream, "/", shard); }

  LayoutSpec spec_;
  std::unique_ptr<Order> order_;

 private:
  template <typename... Parts>
  static uint64_t key(const char* name, const Parts&... parts) {
    return stoker::key(std::string_view(name), uint64_t{parts}...);
  }
  std::map<std::pair<uint32_t, uint32_t>, std::vector<uint32_t>> ends_;
};

TEST_F(PackLayoutTest, HintsOfAnyRowGoOnWithTheSameRows) {
  constexpr uint64_t kRows = 120;
  Rows want(2);
  const std::unique_ptr<Layout> whole = layout();
  for (uint64_t r = 0; r < kRows; ++r) whole->append_row(r, want);
  for (uint64_t from = 0; from < kRows; from += 7) {
    const std::unique_ptr<Layout> first = layout();
    Rows ignored(2);
    for (uint64_t r = 0; r < from; ++r) first->append_row(r, ignored);
    const std::unique_ptr<Layout> second = layout({from, first->hints(from)});
    for (uint64_t r = from; r < kRows; ++r) {
      Rows one(2);
      second->append_row(r, one);
      ASSERT_EQ(row(one, 0), row(want, static_cast<uint32_t>(r))) << "from row " << from;
    }
  }
}

TEST_F(PackLayoutTest, ARankPassesOverRowsThatOthersServe) {
  constexpr uint64_t kRows = 60;
  Rows want(2);
  const std::unique_ptr<Layout> whole = layout();
  for (uint64_t r = 0; r < kRows; ++r) whole->append_row(r, want);
  const std::unique_ptr<Layout> every_second = layout();
  for (uint64_t r = 1; r < kRows; r += 2) {
    Rows one(2);
    every_second->append_row(r, one);
    EXPECT_EQ(row(one, 0), row(want, static_cast<uint32_t>(r)));
  }
}

TEST_F(PackLayoutTest, EverySampleThatIsDrawnIsCountedOnceOverAllRanks) {
  spec_.overflow = {Overflow::kDrop, Overflow::kTruncate};
  const auto counted = [&](uint32_t world_size, uint64_t num_rows) {
    StreamCounts sum;
    for (uint32_t rank = 0; rank < world_size; ++rank) {
      const std::unique_ptr<Layout> part = layout();
      Rows rows(2);
      for (uint64_t r = rank; r < num_rows; r += world_size) part->append_row(r, rows);
      for (const StreamCounts& counts : rows.counts()) sum += counts;
    }
    return sum;
  };
  for (const uint64_t num_rows : {1U, 24U, 240U}) {
    const StreamCounts alone = counted(1, num_rows);
    const StreamCounts together = counted(2, num_rows);
    EXPECT_EQ(together.units, alone.units);
    EXPECT_EQ(together.dropped_samples, alone.dropped_samples);
    EXPECT_EQ(together.dropped_tokens, alone.dropped_tokens);
    EXPECT_EQ(together.empty_samples, alone.empty_samples);
    EXPECT_EQ(together.truncated_samples, alone.truncated_samples);
  }
  EXPECT_GT(counted(1, 240).dropped_samples, 0U);
}

TEST_F(PackLayoutTest, WalkingFarIsDoneInSteps) {
  constexpr uint64_t kRow = 900;
  Rows want(2);
  layout()->append_row(kRow, want);
  const std::unique_ptr<Layout> rows = layout();
  int steps = 1;
  while (!rows->approach(kRow)) ++steps;
  EXPECT_GT(steps, 10);
  Rows got(2);
  rows->append_row(kRow, got);
  EXPECT_EQ(row(got, 0), row(want, 0));
}

TEST_F(PackLayoutTest, BlocksAreHeldUntilTheRowsOfTheirWindowAreOut) {
  const std::unique_ptr<Layout> rows = layout();
  std::map<std::pair<uint32_t, uint32_t>, int> held;
  for (uint64_t r = 0; r < 300; ++r) {
    Rows one(2);
    rows->append_row(r, one);
    for (const BlockChange& change : rows->take_changes())
      for (const ShardRange& range : change.ranges)
        held[{change.stream, range.shard}] += change.kind == BlockChange::Kind::kBegins ? 1 : -1;
    for (const Segment& s : one.segments()) EXPECT_GT((held[{s.stream, s.shard}]), 0) << "row " << r;
  }
}

TEST_F(PackLayoutTest, LanesWithoutATokenAreAnErrorAndNotAHang) {
  spec_.seq_len = 1;
  spec_.overflow = {Overflow::kDrop, Overflow::kDrop};
  spec_.pack_window = 1;
  const std::unique_ptr<Layout> rows = layout();
  Rows out(2);
  EXPECT_THROW(
      {
        for (uint64_t r = 0; r < 1'000'000; ++r) rows->append_row(r, out);
      },
      ArgumentError);
}

}  // namespace
}  // namespace stoker
